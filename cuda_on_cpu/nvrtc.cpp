// NVRTC whose machine code is a shared library of g++. CuPy's own cache keeps what comes out.
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
// Every access to memory calls a function (devices.cpp); those to a thread's own variables go without.
static const char* ACCESSES = " -fsanitize=kernel-address --param asan-instrumentation-with-call-threshold=0"
                              " --param asan-stack=0 --param asan-globals=0";
struct Program { string text, log, code; vector<string> expressions, lowered; };

static string read(const string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}
template <class Lines> static string joined(const Lines& lines) {
    string all;
    for (auto& line : lines) all += line + "\n";
    return all;
}
static string home() {
    Dl_info info;
    dladdr((void*)home, &info);
    return std::filesystem::canonical(info.dli_fname).parent_path().parent_path().string() + "/";
}

// Python is there in a process that has CuPy; a process of its own would take as long as g++ does for a small kernel.
extern "C" {
struct PyObject;
int PyGILState_Ensure();
void PyGILState_Release(int);
PyObject *PyImport_AddModule(const char*), *PyModule_GetDict(PyObject*), *PyDict_GetItemString(PyObject*, const char*);
PyObject *PyRun_String(const char*, int, PyObject*, PyObject*), *PyObject_CallFunction(PyObject*, const char*, ...);
const char* PyUnicode_AsUTF8(PyObject*);
void PyErr_Print(), Py_DecRef(PyObject*);
}
static string translated(const Program& p, const string& options) {
    const int state = PyGILState_Ensure(), file = 257;  // Py_file_input
    PyObject* names = PyModule_GetDict(PyImport_AddModule("cuda_on_cpu_compiler"));
    if (!PyDict_GetItemString(names, "translated"))
        Py_DecRef(PyRun_String(read(home() + "compiler.py").c_str(), file, names, names));
    PyObject* function = PyDict_GetItemString(names, "translated");
    PyObject* made = PyObject_CallFunction(function, "sss", p.text.c_str(), options.c_str(), joined(p.expressions).c_str());
    string text = made ? PyUnicode_AsUTF8(made) : "";
    if (made) Py_DecRef(made);
    else PyErr_Print();
    return PyGILState_Release(state), text;
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
    string command = read(home() + "compiler");
    vector<string> given(options, options + count);
    for (auto& option : given) if (option.rfind("-I", 0) == 0) command += " '" + option + "'";
    if (getenv("CUDA_ON_CPU_BYTES")) command += ACCESSES;
    const string text = translated(*p, joined(given));
    std::ofstream(at + "/kernel.cpp") << text;
    command += " -o " + at + "/kernel.so " + at + "/kernel.cpp > " + at + "/log 2>&1";
    const bool failed = text.empty() || system(command.c_str());
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
