// Settings, counts and problems, and what Python reads of them.
#include "driver.hpp"

map<string, int> settings = {{"sm", 90}, {"devices", 1}, {"seed", 0}, {"lazy", 0}, {"cluster", 16}};
map<string, long> counts;
std::recursive_mutex mutex;
static vector<string> names, problems;
static int keep_names;

[[maybe_unused]] static const bool from_environment = [] {
    for (auto& [key, value] : settings) {
        string name = "CUDA_ON_CPU_" + key;
        std::transform(name.begin(), name.end(), name.begin(), ::toupper);
        if (const char* given = getenv(name.c_str())) value = atoi(given);
    }
    return true;
}();

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
int cuda_on_cpu_set(const char* name, int value) {  // returns what it was
    LOCK;
    return settings.count(name) ? std::exchange(settings[name], value) : -1;
}
}
