// Sorting on the host, in the place of CuPy's cupy_thrust.cu.
#include <numeric>
#include "include/cuda_on_cpu.hpp"
#include "cuda_fp16.h"
#include "cupy_thrust.h"
#include "library.hpp"

namespace {

enum Kind { SORT, ARGSORT, LEXSORT };
struct Job { Kind kind; int type; char* data; size_t *found, rows, n; };
using Shape = std::vector<ptrdiff_t>;

template <class T> bool less(const T& a, const T& b) {  // NaN last
    if constexpr (std::is_floating_point_v<T>) return a < b || (!std::isnan(a) && std::isnan(b));
    else return a < b;
}
bool less(const __half& a, const __half& b) { return less((float)a, (float)b); }
template <class T> bool less(const std::complex<T>& a, const std::complex<T>& b) {
    if (less(a.real(), b.real()) || less(b.real(), a.real())) return less(a.real(), b.real());
    return less(a.imag(), b.imag());
}
template <class T> void sort(const Job& job) {
    for (size_t row = 0; row < job.rows; row++) {
        T* at = (T*)job.data + row * job.n;
        size_t* found = job.kind == LEXSORT ? job.found : job.found + row * job.n;  // the last key counts most
        if (job.kind == ARGSORT || (job.kind == LEXSORT && !row)) std::iota(found, found + job.n, 0);
        auto by_value = [](const T& a, const T& b) { return less(a, b); };
        auto by_place = [&](size_t i, size_t j) { return less(at[i], at[j]); };
        if (job.kind != SORT) std::stable_sort(found, found + job.n, by_place);
        if (job.kind != LEXSORT) std::stable_sort(at, at + job.n, by_value);
    }
}
void work(void* data) {
    Job job;
    memcpy(&job, data, sizeof job);
    void (*const sorts[])(const Job&) = {  // in the order of CuPy's numbers of types
        sort<int8_t>, sort<uint8_t>, sort<int16_t>, sort<uint16_t>, sort<int32_t>, sort<uint32_t>, sort<int64_t>,
        sort<uint64_t>, sort<__half>, sort<float>, sort<double>, sort<std::complex<float>>, sort<std::complex<double>>,
        sort<bool>};
    sorts[job.type](job);
}
void submit(const Job& job, intptr_t to) { cuda_on_cpu_submit((void*)to, "sort", false, work, &job, sizeof job); }
size_t rows_of(const Shape& s) { return std::accumulate(s.begin(), s.end() - 1, size_t(1), std::multiplies()); }

}  // namespace

void thrust_sort(int type, void* data, size_t*, const Shape& shape, intptr_t stream, void*) {
    submit({SORT, type, (char*)data, nullptr, rows_of(shape), (size_t)shape.back()}, stream);
}
void thrust_lexsort(int type, size_t* found, void* keys, size_t k, size_t n, intptr_t stream, void*) {
    submit({LEXSORT, type, (char*)keys, found, k, n}, stream);
}
void thrust_argsort(int type, size_t* found, void* data, void*, const Shape& shape, intptr_t stream, void*) {
    submit({ARGSORT, type, (char*)data, found, rows_of(shape), (size_t)shape.back()}, stream);
}
