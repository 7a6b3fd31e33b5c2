// NVRTC whose machine code is a shared library of g++, which compiler.py makes. CuPy's own cache keeps what comes out.
#include <dlfcn.h>
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

using std::string, std::vector;
enum Status { SUCCESS = 0, COMPILATION = 6, NO_LOWERED_NAME = 10 };
struct Program { string text, log, code; vector<string> expressions, lowered; };

static string read(const string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}
template <class Lines> static void write(const string& path, const Lines& lines) {
    std::ofstream file(path);
    for (auto& line : lines) file << line << "\n";
}
static string home() {
    Dl_info info;
    dladdr((void*)home, &info);
    return std::filesystem::canonical(info.dli_fname).parent_path().parent_path().string() + "/";
}

extern "C" {
const char* nvrtcGetErrorString(int e) { return e == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
int nvrtcVersion(int* major, int* minor) { return *major = 12, *minor = 9, SUCCESS; }
int nvrtcCreateProgram(Program** p, const char* text, const char*, int, const char* const*, const char* const*) {
    return *p = new Program{text}, SUCCESS;
}
int nvrtcDestroyProgram(Program** p) { return delete *p, *p = nullptr, SUCCESS; }
int nvrtcAddNameExpression(Program* p, const char* name) { return p->expressions.push_back(name), SUCCESS; }
int nvrtcGetLoweredName(Program* p, const char* name, const char** lowered) {
    const size_t i = std::find(p->expressions.begin(), p->expressions.end(), name) - p->expressions.begin();
    if (i == p->expressions.size()) return NO_LOWERED_NAME;
    p->lowered.resize(p->expressions.size());
    return *lowered = (p->lowered[i] = "name" + std::to_string(i)).c_str(), SUCCESS;
}
int nvrtcCompileProgram(Program* p, int count, const char* const* options) {
    // CuPy asks for nothing where it wants the version, which its cache goes by: that of what this is built of.
    const string version = read(home() + "version") + (getenv("CUDA_ON_CPU_BYTES") ? " bytes" : "");
    if (p->text.find_first_not_of(" \n") == string::npos) return p->code = "// " + version, SUCCESS;
    string at = std::filesystem::temp_directory_path() / "cuda_on_cpu-XXXXXX";
    if (!mkdtemp(at.data())) return COMPILATION;
    write(at + "/kernel.cu", vector{p->text}), write(at + "/expressions", p->expressions);
    write(at + "/options", vector<string>(options, options + count));
    const bool failed = system((read(home() + "compiler") + " " + at + " 2> " + at + "/log >&2").c_str());
    p->log = read(at + "/log"), p->code = read(at + "/kernel.so");
    std::filesystem::remove_all(at);
    return failed ? COMPILATION : SUCCESS;
}
int nvrtcGetProgramLogSize(Program* p, size_t* size) { return *size = p->log.size() + 1, SUCCESS; }
int nvrtcGetProgramLog(Program* p, char* to) { return memcpy(to, p->log.c_str(), p->log.size() + 1), SUCCESS; }
int nvrtcGetCUBINSize(Program* p, size_t* size) { return *size = p->code.size(), SUCCESS; }
int nvrtcGetCUBIN(Program* p, char* to) { return memcpy(to, p->code.data(), p->code.size()), SUCCESS; }
int nvrtcGetPTXSize(Program* p, size_t* size) { return nvrtcGetCUBINSize(p, size); }
int nvrtcGetPTX(Program* p, char* to) { return nvrtcGetCUBIN(p, to); }
}
