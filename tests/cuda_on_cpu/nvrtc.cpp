// NVRTC whose machine code is a shared library of g++. A text stays C++; replaced are inline PTX, the words for dynamic
// shared memory, and at the end of the text every kernel is listed. CuPy keeps what comes out in its own cache.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

using std::string, std::vector;

namespace {

struct Program { string text, log, code; vector<string> names, lowered; };

bool is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

// The place after what begins at `i`: a comment, a string, or else one character.
size_t after(const string& s, size_t i) {
    if (s.compare(i, 2, "//") == 0) return std::min(s.find('\n', i), s.size());
    if (s.compare(i, 2, "/*") == 0) { const size_t end = s.find("*/", i + 2); return end == string::npos ? s.size() : end + 2; }
    if (s[i] == '"' || s[i] == '\'') {
        if (s[i] == '\'' && i && isdigit((unsigned char)s[i - 1])) return i + 1;  // 1'000
        for (size_t k = i + 1; k < s.size(); k++) {
            if (s[k] == '\\') k++;
            else if (s[k] == s[i]) return k + 1;
        }
        return s.size();
    }
    return i + 1;
}
size_t closing(const string& s, size_t open) {  // the place after the bracket that closes the one at `open`
    int depth = 0;
    for (size_t i = open; i < s.size();) {
        if (strchr("([{", s[i])) depth++;
        if (strchr(")]}", s[i]) && --depth == 0) return i + 1;
        i = after(s, i);
    }
    return s.size();
}
vector<string> split(const string& s, char at) {
    vector<string> parts(1);
    for (size_t i = 0; i < s.size();) {
        const size_t end = s[i] == '(' ? closing(s, i) : after(s, i);
        if (s[i] == at) parts.emplace_back();
        else parts.back() += s.substr(i, end - i);
        i = end;
    }
    return parts;
}
string instruction(const string& inside) {  // "text" : "=r"(out) : "r"(in) : "memory"
    auto parts = split(inside, ':');
    string args;
    for (size_t p = 1; p < std::min<size_t>(parts.size(), 3); p++)
        for (auto& one : split(parts[p], ',')) {
            const size_t open = one.find('(');
            if (open != string::npos) args += (args.empty() ? "" : ", ") + one.substr(open, closing(one, open) - open);
        }
    return "ptx::run<" + parts[0] + ">(" + args + ")";
}
size_t blank(const string& s, size_t i) { while (i < s.size() && (isspace((unsigned char)s[i]) || s[i] == '\\')) i++; return i; }
string word(const string& s, size_t i) { size_t k = i; while (k < s.size() && is_word(s[k])) k++; return s.substr(i, k - i); }

string translated(const string& s, const vector<string>& expressions, vector<string>& lowered) {
    string out, kernels;
    size_t statement = 0;  // where the present one begins
    for (size_t i = 0; i < s.size();) {
        if (!is_word(s[i]) || (i && is_word(s[i - 1]))) {
            const size_t end = after(s, i);
            if (strchr(";}{", s[i])) statement = end;
            out += s.substr(i, end - i);
            i = end;
            continue;
        }
        const string w = word(s, i);
        size_t next = blank(s, i + w.size());
        if (w == "asm" || w == "__asm__") {
            if (word(s, next) == "volatile" || word(s, next) == "__volatile__") next = blank(s, next + word(s, next).size());
            const size_t end = closing(s, next);
            out += instruction(s.substr(next + 1, end - next - 2));
            i = end;
        } else if (w == "extern" && word(s, next) == "__shared__") {
            next = blank(s, next + strlen("__shared__"));
            if (word(s, next) == "__align__") next = blank(s, closing(s, s.find('(', next)));
            const size_t open = s.find('[', next), end = s.find(']', open) + 1;
            string words = s.substr(next, open - next);
            while (!is_word(words.back())) words.pop_back();
            size_t k = words.size();
            while (k && is_word(words[k - 1])) k--;
            out += words.substr(0, k) + "* " + words.substr(k) + " = (" + words.substr(0, k) + "*)::cuda_on_cpu::shared_memory()";
            i = end;
        } else {
            if (w == "__global__" && s.substr(statement, i - statement).find("template") == string::npos) {
                string before;
                for (size_t k = next; k < s.size();) {
                    const string name = word(s, k);
                    const size_t end = blank(s, k + std::max<size_t>(name.size(), 1));
                    if (!name.empty() && s[end] == '(') {
                        const size_t close = closing(s, end);
                        if (name != "__launch_bounds__" && name != "__cluster_dims__" && name != "__attribute__") {
                            kernels += "CUDA_ON_CPU_KERNEL(" + name + ", " + before + ")\n";
                            break;
                        }
                        before += name + s.substr(end, close - end) + " ";
                        k = blank(s, close);
                        continue;
                    }
                    if (!name.empty() && name != "void" && name != "static" && name != "inline") before += name + " ";
                    k = end;
                }
            }
            out += w;
            i += w.size();
        }
    }
    out += "\n#undef __launch_bounds__\n#undef __cluster_dims__\n#define __launch_bounds__(threads_, ...) cuda_on_cpu_k.threads = (threads_);\n"
           "#define __cluster_dims__(blocks_, ...) cuda_on_cpu_k.cluster = (blocks_);\n" + kernels;
    for (auto& expression : expressions) {
        lowered.push_back("name" + std::to_string(lowered.size()));
        out += "CUDA_ON_CPU_KERNEL_(" + lowered.back() + ", (" + expression + "),)\n";
    }
    return out;
}

string home() {  // the folder of this library
    Dl_info info;
    dladdr((void*)home, &info);
    return std::filesystem::canonical(info.dli_fname).parent_path().parent_path().string();
}
string read(const string& path) { std::ifstream f(path, std::ios::binary); return {std::istreambuf_iterator<char>(f), {}}; }

int compile(Program& p, int count, const char* const* options) {
    string head, folders, arch = "900";
    for (int i = 0; i < count; i++) {
        string o = options[i];
        if (o.rfind("--", 0) == 0) o = o.substr(1);
        if (o.rfind("-D", 0) == 0) {
            string d = o.substr(2);
            const size_t equals = d.find('=');
            head += "#define " + (equals == string::npos ? d + " 1" : d.substr(0, equals) + " " + d.substr(equals + 1)) + "\n";
        } else if (o.rfind("-I", 0) == 0) folders += " '" + o + "'";
        else if (o.rfind("-arch=", 0) == 0) arch = o.substr(o.find('_') + 1) + "0";
    }
    const char* more = getenv("CUDA_ON_CPU_FLAGS");
    if (p.text.find_first_not_of(" \n") == string::npos) {  // CuPy asks so for the version, which its cache goes by
        size_t version = 0;
        for (auto file : {"command", "include/cuda_on_cpu.hpp", "include/ptx.hpp"}) version = version * 31 + std::hash<string>()(read(home() + "/" + file));
        p.code = "// cuda_on_cpu " + std::to_string(version) + (more ? more : "") + "\n";
        return 0;
    }
    char folder[] = "/tmp/cuda_on_cpu-XXXXXX";
    if (!mkdtemp(folder)) return 6;
    const string at = folder, with = p.text.find("cupy/carray.cuh") == string::npos ? "plain" : "cupy";
    {
        std::ofstream f(at + "/kernel.cpp");
        f << "#define __CUDA_ARCH__ " << arch << "\n" << head << "#line 1 \"kernel.cu\"\n" << translated(p.text, p.names, p.lowered);
    }
    const string command = read(home() + "/command") + " -include " + home() + "/include/" + with + ".hpp" + folders + " " + (more ? more : "") +
                           " -shared -o " + at + "/kernel.so " + at + "/kernel.cpp > " + at + "/log 2>&1";
    const int failed = system(command.c_str());
    p.log = read(at + "/log");
    p.code = read(at + "/kernel.so");
    if (failed && getenv("CUDA_ON_CPU_KEEP")) fprintf(stderr, "cuda_on_cpu: %s\n%s\n", command.c_str(), p.log.c_str());
    else std::filesystem::remove_all(at);
    return failed ? 6 : 0;
}

}  // namespace

extern "C" {
const char* nvrtcGetErrorString(int e) { return e == 0 ? "NVRTC_SUCCESS" : e == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
int nvrtcVersion(int* major, int* minor) { *major = 12, *minor = 9; return 0; }
int nvrtcGetNumSupportedArchs(int* n) { *n = 6; return 0; }
int nvrtcGetSupportedArchs(int* a) { const int all[] = {75, 80, 89, 90, 100, 120}; memcpy(a, all, sizeof all); return 0; }
int nvrtcCreateProgram(Program** p, const char* text, const char*, int, const char* const*, const char* const*) { *p = new Program{text}; return 0; }
int nvrtcDestroyProgram(Program** p) { delete *p; *p = nullptr; return 0; }
int nvrtcAddNameExpression(Program* p, const char* name) { p->names.push_back(name); return 0; }
int nvrtcGetLoweredName(Program* p, const char* name, const char** lowered) {
    for (size_t i = 0; i < p->lowered.size(); i++) if (p->names[i] == name) { *lowered = p->lowered[i].c_str(); return 0; }
    return 10;
}
int nvrtcCompileProgram(Program* p, int count, const char* const* options) { return compile(*p, count, options); }
int nvrtcGetCUBINSize(Program* p, size_t* n) { *n = p->code.size(); return 0; }
int nvrtcGetCUBIN(Program* p, char* to) { memcpy(to, p->code.data(), p->code.size()); return 0; }
int nvrtcGetPTXSize(Program* p, size_t* n) { return nvrtcGetCUBINSize(p, n); }
int nvrtcGetPTX(Program* p, char* to) { return nvrtcGetCUBIN(p, to); }
int nvrtcGetLTOIRSize(Program* p, size_t* n) { return nvrtcGetCUBINSize(p, n); }
int nvrtcGetLTOIR(Program* p, char* to) { return nvrtcGetCUBIN(p, to); }
int nvrtcGetProgramLogSize(Program* p, size_t* n) { *n = p->log.size() + 1; return 0; }
int nvrtcGetProgramLog(Program* p, char* to) { memcpy(to, p->log.c_str(), p->log.size() + 1); return 0; }
}
