// NVRTC whose machine code is a shared library of g++. A text stays C++; inline PTX and the words for dynamic shared
// memory are replaced, and at the end of the text every kernel is listed. CuPy's own cache keeps what comes out.
#include <dlfcn.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

using std::string, std::vector;

namespace {

enum Status { SUCCESS = 0, COMPILATION = 6, NO_LOWERED_NAME = 10 };
struct Program { string text, log, code; vector<string> expressions, lowered; };

// ---- places in a text
bool is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }
string word(const string& s, size_t i) { return {s.begin() + i, std::find_if_not(s.begin() + i, s.end(), is_word)}; }
size_t blank(const string& s, size_t i) {  // after blanks
    while (i < s.size() && (isspace((unsigned char)s[i]) || s[i] == '\\')) i++;
    return i;
}
size_t after(const string& s, size_t i) {  // after a comment, a string, or else one character
    if (s.compare(i, 2, "//") == 0) return std::min(s.find('\n', i), s.size());
    if (s.compare(i, 2, "/*") == 0) return std::min(s.find("*/", i + 2), s.size() - 2) + 2;
    const bool quoted = s[i] == '"' || (s[i] == '\'' && !(i && isdigit((unsigned char)s[i - 1])));  // 1'000 is a number
    for (size_t k = i + 1; quoted && k < s.size(); k++) {
        if (s[k] == '\\') k++;
        else if (s[k] == s[i]) return k + 1;
    }
    return i + 1;
}
size_t closing(const string& s, size_t open) {  // after the bracket that closes the one at `open`
    int depth = 0;
    for (size_t i = open; i < s.size(); i = after(s, i)) {
        if (strchr("([{", s[i])) depth++;
        if (strchr(")]}", s[i]) && --depth == 0) return i + 1;
    }
    return s.size();
}
vector<string> split(const string& s, char at) {
    vector<string> parts(1);
    for (size_t i = 0, end; i < s.size(); i = end) {
        end = s[i] == '(' ? closing(s, i) : after(s, i);
        if (s[i] == at) parts.emplace_back();
        else parts.back() += s.substr(i, end - i);
    }
    return parts;
}

// ---- what is replaced
string instruction(const string& inside) {  // "text" : "=r"(out) : "r"(in) : "memory"
    const auto parts = split(inside, ':');
    string args;
    for (size_t p = 1; p < std::min<size_t>(parts.size(), 3); p++)
        for (auto& one : split(parts[p], ','))
            if (const size_t open = one.find('('); open != string::npos)
                args += (args.empty() ? "" : ", ") + one.substr(open, closing(one, open) - open);
    return "ptx::run<" + parts[0] + ">(" + args + ")";
}
string dynamic_shared(string declared) {  // float x
    while (!is_word(declared.back())) declared.pop_back();
    const auto name = std::find_if_not(declared.rbegin(), declared.rend(), is_word).base();
    const string type(declared.begin(), name);
    return type + "* " + string(name, declared.end()) + " = (" + type + "*)::cuda_on_cpu::shared_memory()";
}
string listed(const string& s, size_t i) {  // the kernel that follows __global__, with the words before its name
    string before;
    while (i < s.size()) {
        const string name = word(s, i);
        const size_t next = blank(s, i + std::max<size_t>(name.size(), 1));
        const bool called = !name.empty() && s[next] == '(';
        const size_t end = called ? blank(s, closing(s, next)) : next;
        if (called && name != "__launch_bounds__" && name != "__cluster_dims__" && name != "__attribute__")
            return "CUDA_ON_CPU_KERNEL(" + name + ", " + before + ")\n";
        if (called) before += name + s.substr(next, end - next) + " ";
        else if (!name.empty() && name != "void" && name != "static" && name != "inline") before += name + " ";
        i = end;
    }
    return "";
}
string translated(const string& s, const vector<string>& expressions, vector<string>& lowered) {
    string out, kernels;
    size_t statement = 0, end;  // where the present one begins
    for (size_t i = 0; i < s.size(); i = end) {
        const string w = i && is_word(s[i - 1]) ? "" : word(s, i);
        end = w.empty() ? after(s, i) : i + w.size();
        size_t next = blank(s, end);
        if (w == "asm" || w == "__asm__") {
            const string more = word(s, next);  // volatile
            next = blank(s, next + more.size());
            end = closing(s, next);
            out += instruction(s.substr(next + 1, end - next - 2));
            continue;
        }
        if (w == "extern" && word(s, next) == "__shared__") {
            next = blank(s, next + strlen("__shared__"));
            if (word(s, next) == "__align__") next = blank(s, closing(s, s.find('(', next)));
            const size_t open = s.find('[', next);
            end = s.find(']', open) + 1;
            out += dynamic_shared(s.substr(next, open - next));
            continue;
        }
        const string before = w == "__global__" ? s.substr(statement, i - statement) : "template";
        if (before.find("template") == string::npos) kernels += listed(s, next);
        if (strchr(";}{", s[i])) statement = end;
        out += s.substr(i, end - i);
    }
    out += "\n#undef __launch_bounds__\n#undef __cluster_dims__\n"
           "#define __launch_bounds__(threads_, ...) cuda_on_cpu_k.threads = (threads_);\n"
           "#define __cluster_dims__(blocks_, ...) cuda_on_cpu_k.cluster = (blocks_);\n" + kernels;
    for (auto& expression : expressions) {
        lowered.push_back("name" + std::to_string(lowered.size()));
        out += "CUDA_ON_CPU_KERNEL_(" + lowered.back() + ", (" + expression + "),)\n";
    }
    return out;
}

// ---- compilation
string home() {
    Dl_info info;
    dladdr((void*)home, &info);
    return std::filesystem::canonical(info.dli_fname).parent_path().parent_path().string() + "/";
}
string read(const string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

Status compile(Program& p, int count, const char* const* options) {
    if (p.text.find_first_not_of(" \n") == string::npos) {  // CuPy asks so for the version, which its cache goes by
        string all;
        for (auto file : {"command", "include/cuda_on_cpu.hpp", "include/ptx.hpp", "lib/libnvrtc.so.12"})
            all += read(home() + file);
        return p.code = "// cuda_on_cpu " + std::to_string(std::hash<string>()(all)), SUCCESS;
    }
    string head, folders, arch = "900";
    for (string option : vector<string>(options, options + count)) {
        if (option.rfind("--", 0) == 0) option.erase(0, 1);
        const size_t equals = std::min(option.find('='), option.size());
        const string value = equals < option.size() ? option.substr(equals + 1) : "1";
        if (option.rfind("-D", 0) == 0) head += "#define " + option.substr(2, equals - 2) + " " + value + "\n";
        else if (option.rfind("-I", 0) == 0) folders += " '" + option + "'";
        else if (option.rfind("-arch=", 0) == 0) arch = option.substr(option.find('_') + 1) + "0";
    }
    string at = std::filesystem::temp_directory_path() / "cuda_on_cpu-XXXXXX";
    if (!mkdtemp(at.data())) return COMPILATION;
    std::ofstream(at + "/kernel.cpp") << "#define __CUDA_ARCH__ " << arch << "\n" << head << "#line 1 \"kernel.cu\"\n"
                                      << translated(p.text, p.expressions, p.lowered);
    const char* header = p.text.find("cupy/carray.cuh") == string::npos ? "plain" : "cupy";
    const string command = read(home() + "command") + " -include " + home() + "include/" + header + ".hpp" + folders +
                           " -shared -o " + at + "/kernel.so " + at + "/kernel.cpp > " + at + "/log 2>&1";
    const bool failed = system(command.c_str());
    p.log = read(at + "/log"), p.code = read(at + "/kernel.so");
    std::filesystem::remove_all(at);
    return failed ? COMPILATION : SUCCESS;
}

}  // namespace

extern "C" {
const char* nvrtcGetErrorString(int e) { return e == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
int nvrtcVersion(int* major, int* minor) { return *major = 12, *minor = 9, SUCCESS; }
constexpr int ARCHITECTURES[] = {75, 80, 89, 90, 100, 120};
int nvrtcGetNumSupportedArchs(int* n) { return *n = std::size(ARCHITECTURES), SUCCESS; }
int nvrtcGetSupportedArchs(int* to) { return std::copy_n(ARCHITECTURES, std::size(ARCHITECTURES), to), SUCCESS; }
int nvrtcCreateProgram(Program** p, const char* text, const char*, int, const char* const*, const char* const*) {
    return *p = new Program{text}, SUCCESS;
}
int nvrtcDestroyProgram(Program** p) { return delete *p, *p = nullptr, SUCCESS; }
int nvrtcAddNameExpression(Program* p, const char* name) { return p->expressions.push_back(name), SUCCESS; }
int nvrtcGetLoweredName(Program* p, const char* name, const char** lowered) {
    const size_t i = std::find(p->expressions.begin(), p->expressions.end(), name) - p->expressions.begin();
    if (i >= p->lowered.size()) return NO_LOWERED_NAME;
    return *lowered = p->lowered[i].c_str(), SUCCESS;
}
int nvrtcCompileProgram(Program* p, int count, const char* const* options) { return compile(*p, count, options); }
int nvrtcGetProgramLogSize(Program* p, size_t* size) { return *size = p->log.size() + 1, SUCCESS; }
int nvrtcGetProgramLog(Program* p, char* to) { return memcpy(to, p->log.c_str(), p->log.size() + 1), SUCCESS; }
#define CODE(kind) \
    int nvrtcGet##kind##Size(Program* p, size_t* size) { return *size = p->code.size(), SUCCESS; } \
    int nvrtcGet##kind(Program* p, char* to) { return memcpy(to, p->code.data(), p->code.size()), SUCCESS; }
CODE(CUBIN) CODE(PTX) CODE(LTOIR)
}
