// What the libraries share: settings, counts, problems, memory, and how a stream runs what it is given.
#pragma once
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>
#include "include/cuda_on_cpu.hpp"
#include "cuda.h"
#include "cuda_runtime_api.h"

using std::map, std::string, std::to_string, std::vector;

// ---- calls.cpp
extern map<string, int> settings;
extern map<string, long> counts;
extern string refused;  // what the names of kernels begin with that are not launched, where it is not ""
extern std::recursive_mutex mutex;
#define LOCK const std::lock_guard<std::recursive_mutex> guard(mutex)
void note(const string& name);     // where names are asked for
void problem(const string& what);  // that CUDA would refuse, or may do wrong

// ---- devices.cpp
struct Room { size_t size; int device; };
extern thread_local int device;
const Room* room_of(const void* p);  // nullptr where the memory is no device's
template <class T> auto holding(T& all, const void* p) {  // the item of a map by addresses that `p` is in
    auto i = all.upper_bound((char*)p);
    return i != all.begin() && (char*)p < std::prev(i)->first + std::prev(i)->second.size ? &*std::prev(i) : nullptr;
}
extern const bool measured;  // whether bytes are counted
long touched();              // those that kernels read and wrote since this was asked last
int processors();
int available();  // of the processors, where others have a part of the device
int most_shared();  // bytes that a block may have

// ---- streams.cpp
using Op = std::function<cudaError_t()>;
using Words = vector<const void*>;  // that may be addresses
cudaError_t submit(void* stream, const char* kind, const string& what, Op op, const Words& words = {});
bool idle(void* stream, const char* kind);  // whether an operation is counted and no more
cudaError_t spoil(const string& what, cudaError_t error = cudaErrorStreamCaptureUnsupported);
cudaError_t finish(void* stream);
cudaError_t finish_all();
void forget(void* from, size_t size);     // what is known of memory that somebody else gets now
void went_back(void* from, size_t size);  // to a pool, or to the device
bool capturing(bool strictly = false);
bool is_capturing(void* stream);

// ---- threads.cpp
struct Statics { char* at; size_t size; };  // the variables of a module that are __shared__
string execute(const cuda_on_cpu::Kernel*, dim3 grid, dim3 block, unsigned shared, bool together, void** args, Statics);
