// Devices and their memory, which is the host's, and errors.
#include "driver.hpp"

thread_local int device;
static map<char*, Room> memory;
constexpr size_t FILLED = 16 << 20;  // that much of new memory holds NaN

const Room* room_of(const void* p) {
    auto* found = holding(memory, p);
    return found ? &found->second : nullptr;
}
template <class T> static T known(const map<int, T>& all, int key, T otherwise) {
    return all.count(key) ? all.at(key) : otherwise;
}
int processors() { return known<int>({{75, 40}, {80, 108}, {89, 128}, {120, 170}}, settings["sm"], 132); }
int available() { return processors() * settings["part"] / 100; }
int most_shared() {
    return known<int>({{75, 65536}, {80, 166912}, {90, 232448}, {100, 232448}}, settings["sm"], 101376);
}
// Written from CUDA's headers when this is built.
static const map<int, const char*> RUNTIME_ERRORS = {
#include "runtime_errors.inc"
}, DRIVER_ERRORS = {
#include "driver_errors.inc"
};

// Kernels that are compiled for it (compiler.py) tell what they read and write. Of each word of 2 bytes a launch counts
// once that it is read, and once that it is written.
const bool measured = getenv("CUDA_ON_CPU_BYTES");
static map<char*, std::array<vector<bool>, 2>> seen;
static long bytes;
static void touch(const char* p, size_t size, bool written) {
    static char* base;
    static size_t room;
    if ((size_t)(p - base) >= room) {  // most are where the last one was
        const auto* found = holding(memory, p);
        if (!found) return;
        base = found->first, room = found->second.size;
        for (auto& words : seen[base]) words.resize(room / 2 + 1);
    }
    auto& words = seen[base][written];
    for (size_t i = (p - base) / 2; i < (p - base + size + 1) / 2; i++)
        if (!words[i]) words[i] = true, bytes += 2;
}
long touched() {
    for (auto& [base, both] : seen) for (auto& words : both) words.assign(words.size(), false);
    return std::exchange(bytes, 0);
}

extern "C" {
#define TOUCH(size) \
    void __asan_load##size##_noabort(const char* p) { touch(p, size, false); } \
    void __asan_store##size##_noabort(const char* p) { touch(p, size, true); }
TOUCH(1) TOUCH(2) TOUCH(4) TOUCH(8) TOUCH(16)
void __asan_loadN_noabort(const char* p, size_t size) { touch(p, size, false); }
void __asan_storeN_noabort(const char* p, size_t size) { touch(p, size, true); }
void __asan_handle_no_return() {}

const char* cudaGetErrorName(cudaError_t e) { return known(RUNTIME_ERRORS, e, "unknown"); }
CUresult cuGetErrorName(CUresult e, const char** s) { return *s = known(DRIVER_ERRORS, e, "unknown"), CUDA_SUCCESS; }
const char* cudaGetErrorString(cudaError_t e) {
    return e >= 900 && e <= 907 ? "operation not permitted when stream is capturing" : "an error of CUDA on the CPU";
}
CUresult cuGetErrorString(CUresult e, const char** s) { return *s = cudaGetErrorString((cudaError_t)e), CUDA_SUCCESS; }

cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 12090, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 12090, cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { return *d = device, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = settings["devices"], cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= settings["devices"]) return cudaErrorInvalidDevice;
    return device = d, cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int d) {
    return snprintf(text, size, "0000:%02x:00.0", d), cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {  // of which CuPy and kernels ask
    const map<int, int> values = {
        {cudaDevAttrComputeCapabilityMajor, settings["sm"] / 10},
        {cudaDevAttrComputeCapabilityMinor, settings["sm"] % 10}, {cudaDevAttrMultiProcessorCount, available()},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, most_shared()}};
    return *value = known(values, attribute, 0), cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    *p = {"CUDA on the CPU"};
    p->major = settings["sm"] / 10, p->minor = settings["sm"] % 10, p->multiProcessorCount = processors();
    p->warpSize = 32, p->totalGlobalMem = 80ull << 30, p->sharedMemPerBlockOptin = most_shared();
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** p, size_t size) {
    LOCK;
    if (capturing(true)) return spoil("cudaMalloc in a capture that is not relaxed");
    if (size > 64ull << 30 || posix_memalign(p, 512, size)) return cudaErrorMemoryAllocation;
    memset(*p, 0xff, std::min(size, FILLED));
    memory[(char*)*p] = {size, device};
    return forget(*p, size), cudaSuccess;
}
cudaError_t cudaFree(void* p) {
    LOCK;
    if (!p) return cudaSuccess;
    const auto found = memory.find((char*)p);
    if (found == memory.end()) return problem("free of memory that is not there"), cudaErrorInvalidValue;
    went_back(p, found->second.size), memory.erase(found);
    return capturing() || finish_all(), free(p), cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t size, unsigned) {
    return posix_memalign(p, 512, size) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) { LOCK; return capturing() || finish_all(), free(p), cudaSuccess; }
static bool within(const void* to, const void* from) {  // whether both are a device's; counts what crosses
    if (!room_of(to) != !room_of(from)) counts[room_of(to) ? "to_device" : "to_host"]++;
    return room_of(to) && room_of(from);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
    LOCK;
    counts["memcpy"]++;
    within(to, from);
    note("  memcpy");
    if (capturing()) return spoil("memcpy in a capture");
    if (auto error = finish(nullptr)) return error;
    return memmove(to, from, size), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    LOCK;
    const string what = "memcpyAsync of " + to_string(size) + " bytes, kind " + to_string(kind);
    const bool inside = within(to, from);
    if (measured && inside) counts["bytes"] += 2 * size;
    if (!inside && is_capturing(stream)) problem("host memory in a capture: " + what);
    auto copy = [=] { return memmove(to, from, size), cudaSuccess; };
    const auto error = submit(stream, "memcpyAsync", what, copy, {to, from});
    return error || inside || is_capturing(stream) ? error : finish(stream);  // as for memory that is not pinned
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* all) { return *free = 70ull << 30, *all = 80ull << 30, cudaSuccess; }
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
    LOCK;
    if (measured) counts["bytes"] += size;
    return submit(stream, "memset", "memset", [=] { return memset(to, value, size), cudaSuccess; }, {to});
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    LOCK;
    const Room* room = room_of(p);
    *a = {room ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered, room ? room->device : 0, (void*)p};
    return cudaSuccess;
}
}
