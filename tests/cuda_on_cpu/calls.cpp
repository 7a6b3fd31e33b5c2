// Settings, counts and problems, and what Python reads of them.
#include "driver.hpp"

static const char* const SETTING_NAMES[] = {"sm", "devices", "seed", "lazy", "cluster", "idle", "verbose"};
static const char* const KIND_NAMES[] = {
    "launches", "gemm", "memcpyAsync", "memset", "graphs", "cooperative", "memcpy", "sync", "eventRecord", "eventQuery",
    "to_device", "to_host", "mallocs", "mallocs_in_capture", "allocations", "captured", "modules", "illegal"};
static_assert(std::size(SETTING_NAMES) == SETTINGS && std::size(KIND_NAMES) == KINDS);

int settings[SETTINGS] = {90, 1, 0, 0, 16, 0, 0};
long counts[KINDS + 1];
std::recursive_mutex mutex;
static vector<string> names, problems;
static int keep_names;

[[maybe_unused]] static const bool from_environment = [] {
    for (int i = 0; i < SETTINGS; i++) {
        string name = string("CUDA_ON_CPU_") + SETTING_NAMES[i];
        std::transform(name.begin(), name.end(), name.begin(), ::toupper);
        if (const char* value = getenv(name.c_str())) settings[i] = atoi(value);
    }
    return true;
}();

void note(const string& name) { if (keep_names) names.push_back(name); }
void problem(const string& what) {
    counts[ILLEGAL]++;
    problems.push_back(what);
    if (settings[VERBOSE]) fprintf(stderr, "cuda_on_cpu: %s\n", what.c_str());
}

extern "C" {
long cuda_on_cpu_count(int kind) { return counts[kind]; }
const char* cuda_on_cpu_count_name(int kind) { return kind < KINDS ? KIND_NAMES[kind] : nullptr; }
void cuda_on_cpu_keep_names(int more) { LOCK; if (!(keep_names += more)) names.clear(); }
const char* cuda_on_cpu_lines(int of_problems) {
    LOCK;
    static string lines;
    lines.clear();
    for (auto& line : of_problems ? problems : names) lines += line + "\n";
    return lines.c_str();
}
int cuda_on_cpu_set(const char* name, int value) {  // returns what it was
    LOCK;
    for (int i = 0; i < SETTINGS; i++) if (name == string(SETTING_NAMES[i])) return std::exchange(settings[i], value);
    return -1;
}
}
