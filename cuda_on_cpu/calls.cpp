// Settings, counts and problems, and what Python reads of them.
#include "driver.hpp"

static int given(const char* name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
map<string, int> settings = {
    {"sm", given("CUDA_ON_CPU_SM", 90)}, {"devices", given("CUDA_ON_CPU_DEVICES", 1)},
    {"seed", given("CUDA_ON_CPU_SEED", 0)}, {"lazy", given("CUDA_ON_CPU_LAZY", 0)},
    {"cluster", given("CUDA_ON_CPU_CLUSTER", 16)}, {"nccl_error", given("CUDA_ON_CPU_NCCL_ERROR", 0)},
    {"idle", given("CUDA_ON_CPU_IDLE", 0)}, {"part", given("CUDA_ON_CPU_PART", 100)}};
map<string, long> counts;
std::recursive_mutex mutex;
string refused;
static vector<string> names, problems;
static int keep_names;

void note(const string& name) { if (keep_names) names.push_back(name); }
void problem(const string& what) { problems.push_back(what); }

extern "C" {
void cuda_on_cpu_keep_names(int more) { LOCK; if (!(keep_names += more)) names.clear(); }
const char* cuda_on_cpu_lines(char which) {  // names, problems or counts
    LOCK;
    static string lines;
    lines.clear();
    if (which == 'c') for (auto& [name, count] : counts) lines += name + " " + to_string(count) + "\n";
    else for (auto& line : which == 'n' ? names : problems) lines += line + "\n";
    return lines.c_str();
}
void cuda_on_cpu_refuse(const char* name) { LOCK; refused = name; }
int cuda_on_cpu_set(const char* name, int value) {  // returns what it was
    LOCK;
    finish_all();  // what lazy streams were asked for comes before all that follows
    return settings.count(name) ? std::exchange(settings[name], value) : -1;
}
}
