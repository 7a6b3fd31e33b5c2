// Sorting on the host, in the place of CuPy's cupy_thrust.cu.
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>
#include "cupy_thrust.h"
#include "cuda_fp16.h"

extern "C" int cuda_on_cpu_submit(void* stream, const char* what, void (*go)(void*), const void* data, size_t size);

namespace {

enum { SORT, ARGSORT, LEXSORT };
struct Job { int kind, type; char* data; size_t *found, rows, n; };

template <class T> bool less(const T& a, const T& b) {  // NaN last
    if constexpr (std::is_floating_point_v<T>) return a < b || (!std::isnan(a) && std::isnan(b));
    else return a < b;
}
bool less(const __half& a, const __half& b) { return less((float)a, (float)b); }
template <class T> bool less(const std::complex<T>& a, const std::complex<T>& b) {
    if (less(a.real(), b.real()) || less(b.real(), a.real())) return less(a.real(), b.real());
    return less(a.imag(), b.imag());
}
template <class T> void work(const Job& job) {
    for (size_t row = 0; row < job.rows; row++) {
        T* at = (T*)job.data + row * job.n;
        size_t* found = job.kind == LEXSORT ? job.found : job.found + row * job.n;  // the last key counts most
        if (job.kind != SORT && (job.kind == ARGSORT || !row)) std::iota(found, found + job.n, 0);
        if (job.kind != SORT) std::stable_sort(found, found + job.n, [&](size_t a, size_t b) { return less(at[a], at[b]); });
        if (job.kind != LEXSORT) std::stable_sort(at, at + job.n, [](const T& a, const T& b) { return less(a, b); });
    }
}
void go(void* data) {
    Job job;
    memcpy(&job, data, sizeof job);
    void (*const kinds[])(const Job&) = {work<int8_t>, work<uint8_t>, work<int16_t>, work<uint16_t>, work<int32_t>, work<uint32_t>,
        work<int64_t>, work<uint64_t>, work<__half>, work<float>, work<double>, work<std::complex<float>>, work<std::complex<double>>, work<bool>};
    kinds[job.type](job);
}
void submit(int kind, int type, void* data, size_t* found, size_t rows, size_t n, intptr_t stream) {
    const Job job = {kind, type, (char*)data, found, rows, n};
    cuda_on_cpu_submit((void*)stream, "sort", go, &job, sizeof job);
}
size_t rows_of(const std::vector<ptrdiff_t>& shape) {
    size_t rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); i++) rows *= shape[i];
    return rows;
}

}  // namespace

void thrust_sort(int type, void* data, size_t*, const std::vector<ptrdiff_t>& shape, intptr_t stream, void*) {
    submit(SORT, type, data, nullptr, rows_of(shape), shape.back(), stream);
}
void thrust_lexsort(int type, size_t* found, void* keys, size_t k, size_t n, intptr_t stream, void*) {
    submit(LEXSORT, type, keys, found, k, n, stream);
}
void thrust_argsort(int type, size_t* found, void* data, void*, const std::vector<ptrdiff_t>& shape, intptr_t stream, void*) {
    submit(ARGSORT, type, data, found, rows_of(shape), shape.back(), stream);
}
