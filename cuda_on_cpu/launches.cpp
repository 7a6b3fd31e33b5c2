// Modules, which are shared libraries here, and launches of their kernels.
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>
#include <filesystem>
#include <fstream>
#include "driver.hpp"

using cuda_on_cpu::Kernel;

struct Module { void* library; Statics statics; };
struct Function { string name; const Kernel* kernel; Statics statics; int dynamic, most_blocks; };  // of a cluster

// The sections of a library that its __shared__ variables are in.
static Statics shared_variables(const Elf64_Ehdr* image, void* library) {
    auto* sections = (const Elf64_Shdr*)((const char*)image + image->e_shoff);
    const char* names = (const char*)image + sections[image->e_shstrndx].sh_offset;
    size_t first = ~0ul, last = 0;
    for (auto* s = sections; s < sections + image->e_shnum; s++)
        if (!strncmp(names + s->sh_name, "cuda_shared", 11))
            first = std::min(first, s->sh_addr), last = std::max(last, s->sh_addr + s->sh_size);
    link_map* place;
    dlinfo(library, RTLD_DI_LINKMAP, &place);
    return last ? Statics{(char*)place->l_addr + first, last - first} : Statics{};
}
static string text_of(dim3 d) { return to_string(d.x) + "," + to_string(d.y) + "," + to_string(d.z); }

static CUresult launch(void* function, dim3 grid, dim3 block, unsigned shared, void* to, void** given, bool together) {
    LOCK;
    if (idle(to, "launches")) return counts["cooperative"] += together, CUDA_SUCCESS;
    const auto* f = (Function*)function;
    const Kernel* kernel = f->kernel;
    const unsigned threads = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z;
    const string size = " grid " + text_of(grid) + " block " + text_of(block) + " shared " + to_string(shared);
    const string what = f->name.substr(0, 90) + size;
    if (!refused.empty() && f->name.rfind(refused, 0) == 0) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (!threads || threads > (kernel->threads ? kernel->threads : 1024u) || block.z > 64 || !blocks ||
        grid.y > 65535 || grid.z > 65535 || (int)shared > f->dynamic || grid.x % kernel->cluster ||
        kernel->cluster > f->most_blocks)
        return problem("a launch beyond limits: " + what), CUDA_ERROR_INVALID_VALUE;
    if (kernel->cluster > (settings["sm"] < 90 ? 1 : settings["cluster"])) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    counts["cooperative"] += together;
    if (together && blocks > (unsigned)available())
        return problem("a cooperative grid beyond the device: " + what), CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    vector<size_t> places = {0};  // of arguments, in words of which some are addresses
    for (int i = 0; i < kernel->count; i++) places.push_back(places[i] + (std::abs(kernel->sizes[i]) + 15) / 16 * 2);
    auto words = std::make_shared<Words>(places.back());
    Words addresses;
    vector<void*> args;
    for (int i = 0; i < kernel->count; i++) {
        args.push_back(memcpy(words->data() + places[i], given[i], std::abs(kernel->sizes[i])));
        if (kernel->sizes[i] > 0)
            addresses.insert(addresses.end(), words->begin() + places[i], words->begin() + places[i + 1]);
    }
    auto run = [=, statics = f->statics]() mutable {
        const string failure = words ? execute(kernel, grid, block, shared, together, args.data(), statics) : "";
        if (const long bytes = measured ? touched() : 0) counts["bytes"] += bytes, note("  = " + to_string(bytes) + " bytes");
        return failure.empty() ? cudaSuccess : (problem(what + ": " + failure), cudaErrorLaunchFailure);
    };
    return (CUresult)submit(to, "launches", what, run, addresses);
}

extern "C" {
CUresult cuInit(unsigned) { return CUDA_ERROR_NO_DEVICE; }  // for those who bring a runtime of their own
CUresult cuModuleLoadData(CUmodule* m, const void* data) {
    LOCK;
    counts["modules"]++;
    if (capturing(true)) return (CUresult)spoil("a module is loaded in a capture that is not relaxed");
    if (capturing()) problem("a module is loaded in a capture");
    auto* image = (const Elf64_Ehdr*)data;
    if (memcmp(image->e_ident, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
    static int loaded;
    const string name = "cuda_on_cpu-" + to_string(getpid()) + "-" + to_string(loaded++) + ".so";
    const auto path = std::filesystem::temp_directory_path() / name;
    std::ofstream(path, std::ios::binary).write((const char*)data, image->e_shoff + image->e_shentsize * image->e_shnum);
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    unlink(path.c_str());
    if (!library) return problem(dlerror()), CUDA_ERROR_INVALID_IMAGE;
    return *m = (CUmodule) new Module{library, shared_variables(image, library)}, CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
    LOCK;
    auto* module = (Module*)m;
    auto kernel = (const Kernel* (*)())dlsym(module->library, (string("cuda_on_cpu_kernel_") + name).c_str());
    if (!kernel) return problem(string("no kernel ") + name), CUDA_ERROR_NOT_FOUND;
    return *f = (CUfunction) new Function{name, kernel(), module->statics, 49152, 8}, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) {
    LOCK;
    auto* function = (Function*)f;
    if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) function->most_blocks = value ? 16 : 8;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value > most_shared())
        return problem("more shared memory than a block may have: " + to_string(value)), CUDA_ERROR_INVALID_VALUE;
    return function->dynamic = std::max(value, 49152), CUDA_SUCCESS;
}
#define AT CUfunction f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, unsigned n, CUstream s
CUresult cuLaunchKernel(AT, void** args, void**) { return launch(f, {x, y, z}, {a, b, c}, n, s, args, false); }
CUresult cuLaunchCooperativeKernel(AT, void** args) { return launch(f, {x, y, z}, {a, b, c}, n, s, args, true); }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int, size_t) { return *n = 1, CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction f, const CUlaunchConfig*) {
    const int blocks = ((Function*)f)->kernel->cluster;
    return *n = blocks > (settings["sm"] < 90 ? 1 : settings["cluster"]) ? 0 : available() / blocks, CUDA_SUCCESS;
}
}
