// CUDA C++ as a host's compiler sees it. The fake NVRTC puts this in front of every kernel; driver.cpp runs the
// threads.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <initializer_list>
#include <limits>
#include <tuple>
#include <type_traits>
#include <string_view>
#include <utility>
#include <vector>
#include "crt/host_defines.h"
#include "vector_types.h"
#include "vector_functions.h"

namespace cuda_on_cpu {
struct Barrier {
    int come = 0;
    long turn = 0;
};
struct Warp {
    static constexpr int GROUPS = 40;
    struct Group {
        unsigned mask, come;
        long turn;
    } groups[GROUPS];  // of lanes that wait for one another
    int count = 0;
    unsigned there = 0;                       // lanes that are not done
    alignas(16) unsigned char slots[32][48];  // what lanes show one another
};
struct Cluster {
    Barrier barrier;
    int alive;
};
struct Block {
    uint3 index;
    unsigned char *shared, *statics,
        *statics_at;  // its __shared__ variables while another block runs, and while it does
    Barrier barrier;
    int alive, rank;
    Cluster* cluster;
};
struct Thread {
    uint3 index;
    int lane;
    Block* block;
    Warp* warp;
    long cluster_turn = -1;
};
struct Kernel {
    void (*call)(void**);
    int count;
    const int* sizes;
    int threads, cluster;
};

extern Thread* now;
extern dim3 block_dim, grid_dim;
extern long progress;  // of anything; a thread that waits for memory makes none
void yield();
void fail(const char* why);
void block_barrier();
void warp_barrier(unsigned mask);
void cluster_arrive();
void cluster_wait();

template <class... A, size_t... I>
inline void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)args[I]...);
}
template <class... A>
constexpr int count_of(void (*)(A...)) {
    return sizeof...(A);
}
template <class... A>
inline const int* sizes_of(void (*)(A...)) {
    static const int sizes[] = {(int)sizeof(A)..., 0};
    return sizes;
}
template <class... A>
inline void run(void (*kernel)(A...), void** args) {
    call(kernel, args, std::index_sequence_for<A...>());
}
// Every lane of the mask shows a value, and reads those of others.
template <class T, class Read>
inline auto exchange(unsigned mask, const T& v, Read read) {
    static_assert(sizeof(T) <= 48);
    Thread* me = now;
    memcpy(me->warp->slots[me->lane], &v, sizeof v);
    warp_barrier(mask);
    auto found = read([&](int lane) -> const T& { return *(const T*)me->warp->slots[lane]; });
    warp_barrier(mask);  // before the next value is shown
    return found;
}
}  // namespace cuda_on_cpu

#define threadIdx (::cuda_on_cpu::now->index)
#define blockIdx (::cuda_on_cpu::now->block->index)
#define blockDim (::cuda_on_cpu::block_dim)
#define gridDim (::cuda_on_cpu::grid_dim)
static const int warpSize = 32;
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9
#define CUDA_ON_CPU 1

// ---- barriers
inline void __syncthreads() { cuda_on_cpu::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::warp_barrier(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { cuda_on_cpu::yield(); }
inline unsigned __activemask() { return 1u << cuda_on_cpu::now->lane; }
#define __trap() ::cuda_on_cpu::fail("trap")

// ---- warps
template <class T>
inline T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    const int lane = cuda_on_cpu::now->lane;
    return cuda_on_cpu::exchange(mask, v, [&](auto of) { return of((lane & ~(width - 1)) + (from & (width - 1))); });
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
    const int lane = cuda_on_cpu::now->lane, from = lane ^ with;
    return cuda_on_cpu::exchange(mask, v, [&](auto of) { return of(from / width > lane / width ? lane : from); });
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = cuda_on_cpu::now->lane, from = lane - (int)by;
    return cuda_on_cpu::exchange(mask, v, [&](auto of) { return of(from < (lane & ~(width - 1)) ? lane : from); });
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = cuda_on_cpu::now->lane, from = lane + (int)by;
    return cuda_on_cpu::exchange(mask, v, [&](auto of) { return of(from > (lane | (width - 1)) ? lane : from); });
}
template <class T, class Of>
inline T cuda_on_cpu_reduce(unsigned mask, T v, Of both) {
    return cuda_on_cpu::exchange(mask, v, [&](auto of) {
        T found = v;
        for (int i = 0; i < 32; i++)
            if ((mask & cuda_on_cpu::now->warp->there) >> i & 1) found = both(found, of(i));
        return found;
    });
}
inline unsigned __ballot_sync(unsigned mask, int v) {
    return cuda_on_cpu_reduce(mask, v ? 1u << cuda_on_cpu::now->lane : 0u,
                              [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int v) { return __ballot_sync(mask, v) != 0; }
inline int __all_sync(unsigned mask, int v) { return __ballot_sync(mask, !v) == 0; }
template <class T>
inline T __reduce_max_sync(unsigned m, T v) {
    return cuda_on_cpu_reduce(m, v, [](T a, T b) { return a > b ? a : b; });
}
template <class T>
inline T __reduce_min_sync(unsigned m, T v) {
    return cuda_on_cpu_reduce(m, v, [](T a, T b) { return a < b ? a : b; });
}

// ---- atomics: threads take turns only where they wait
// A value that stays is what a loop sees that waits for another thread.
template <class T>
inline T cuda_on_cpu_atomic(T* to, T value) {
    const T old = *to;
    if (!memcmp(&old, &value, sizeof old)) cuda_on_cpu::yield();
    else cuda_on_cpu::progress++, *to = value;
    return old;
}
#define CUDA_ON_CPU_ATOMIC(name, T, expression) \
    inline T name(T* to, T v) { \
        const T old = *to; \
        return cuda_on_cpu_atomic(to, (T)(expression)); \
    }
#define CUDA_ON_CPU_INTEGERS(name, e) \
    CUDA_ON_CPU_ATOMIC(name, int, e) \
    CUDA_ON_CPU_ATOMIC(name, unsigned, e) CUDA_ON_CPU_ATOMIC(name, unsigned long long, e)
CUDA_ON_CPU_INTEGERS(atomicAdd, old + v)
CUDA_ON_CPU_ATOMIC(atomicAdd, float, old + v)
CUDA_ON_CPU_ATOMIC(atomicAdd, double, old + v)
CUDA_ON_CPU_ATOMIC(atomicSub, int, old - v)
CUDA_ON_CPU_ATOMIC(atomicSub, unsigned, old - v)
CUDA_ON_CPU_INTEGERS(atomicExch, v)
CUDA_ON_CPU_ATOMIC(atomicExch, float, v)
CUDA_ON_CPU_INTEGERS(atomicMin, old < v ? old : v)
CUDA_ON_CPU_ATOMIC(atomicMin, long long, old < v ? old : v)
CUDA_ON_CPU_INTEGERS(atomicMax, old > v ? old : v)
CUDA_ON_CPU_ATOMIC(atomicMax, long long, old > v ? old : v)
CUDA_ON_CPU_INTEGERS(atomicAnd, old& v)
CUDA_ON_CPU_INTEGERS(atomicOr, old | v)
CUDA_ON_CPU_INTEGERS(atomicXor, old ^ v)
CUDA_ON_CPU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
CUDA_ON_CPU_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
#define CUDA_ON_CPU_CAS(T) \
    inline T atomicCAS(T* to, T is, T v) { return cuda_on_cpu_atomic(to, *to == is ? v : *to); }
CUDA_ON_CPU_CAS(int)
CUDA_ON_CPU_CAS(unsigned) CUDA_ON_CPU_CAS(unsigned long long) CUDA_ON_CPU_CAS(unsigned short)

    // ---- numbers
    template <class To, class From>
    inline To cuda_on_cpu_bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To w;
    memcpy(&w, &v, sizeof w);
    return w;
}
inline int __float_as_int(float v) { return cuda_on_cpu_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return cuda_on_cpu_bits<unsigned>(v); }
inline float __int_as_float(int v) { return cuda_on_cpu_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return cuda_on_cpu_bits<float>(v); }
inline long long __double_as_longlong(double v) { return cuda_on_cpu_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return cuda_on_cpu_bits<double>(v); }
inline double __hiloint2double(int high, int low) {
    return cuda_on_cpu_bits<double>((long long)high << 32 | (unsigned)low);
}
inline int __double2hiint(double v) { return cuda_on_cpu_bits<long long>(v) >> 32; }
inline int __double2loint(double v) { return (int)cuda_on_cpu_bits<long long>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(v) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline int __mulhi(int a, int b) { return (long long)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
template <class T>
inline T __ldg(const T* p) {
    return *p;
}
template <class T>
inline T __ldcg(const T* p) {
    return *p;
}
template <class T>
inline T __ldcs(const T* p) {
    return *p;
}
template <class T>
inline void __stcs(T* p, T v) {
    *p = v;
}
template <class T>
inline void __stcg(T* p, T v) {
    *p = v;
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
#define CUDA_ON_CPU_ROUNDED(op, sign) \
    inline float __f##op##_rn(float x, float y) { return x sign y; } \
    inline double __d##op##_rn(double x, double y) { return x sign y; }
CUDA_ON_CPU_ROUNDED(add, +)
CUDA_ON_CPU_ROUNDED(sub, -) CUDA_ON_CPU_ROUNDED(mul, *)
    CUDA_ON_CPU_ROUNDED(div, /) inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double sinpi(double x) { return sin(M_PI * x); }
inline double cospi(double x) { return cos(M_PI * x); }
inline double normcdf(double x) { return erfc(-x * M_SQRT1_2) / 2; }
inline float normcdff(float x) { return erfcf(-x * (float)M_SQRT1_2) / 2; }
inline double erfcx(double x) { return exp(x * x) * erfc(x); }
inline double cyl_bessel_i0(double x) { return std::cyl_bessel_i(0., fabs(x)); }
inline double cyl_bessel_i1(double x) { return (x < 0 ? -1 : 1) * std::cyl_bessel_i(1., fabs(x)); }
using std::abs;
using std::acos;
using std::acosh;
using std::asin;
using std::asinh;
using std::atan;
using std::atan2;
using std::atanh;
using std::cbrt;
using std::ceil;
using std::copysign;
using std::cos;
using std::cosh;
using std::erf;
using std::erfc;
using std::exp;
using std::exp2;
using std::expm1;
using std::fabs;
using std::fdim;
using std::floor;
using std::fma;
using std::fmax;
using std::fmin;
using std::fmod;
using std::frexp;
using std::hypot;
using std::ilogb;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::ldexp;
using std::lgamma;
using std::llrint;
using std::log;
using std::log10;
using std::log1p;
using std::log2;
using std::logb;
using std::lrint;
using std::modf;
using std::nearbyint;
using std::nextafter;
using std::pow;
using std::remainder;
using std::rint;
using std::round;
using std::signbit;
using std::sin;
using std::sinh;
using std::sqrt;
using std::tan;
using std::tanh;
using std::tgamma;
using std::trunc;
// The smaller and larger of numbers of any two types, as CUDA has them: a NaN is left for the other number.
template <class A, class B, class C = std::common_type_t<A, B>,
          class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
inline C min(A a, B b) {
    if constexpr (std::is_floating_point_v<C>) return std::fmin((C)a, (C)b);
    else return (C)a < (C)b ? (C)a : (C)b;
}
template <class A, class B, class C = std::common_type_t<A, B>,
          class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
inline C max(A a, B b) {
    if constexpr (std::is_floating_point_v<C>) return std::fmax((C)a, (C)b);
    else return (C)a > (C)b ? (C)a : (C)b;
}

// ---- shared memory, whose addresses on a device have 32 bits: here the block's number in its cluster, and the place
inline unsigned __cvta_generic_to_shared(const void* p) {
    const auto* block = cuda_on_cpu::now->block;
    const size_t place = (const unsigned char*)p - block->shared,
                 variable = (const unsigned char*)p - block->statics_at;
    return (unsigned)(place < 1 << 22 ? place : variable | 1 << 22) | (unsigned)block->rank << 24;
}
namespace cuda_on_cpu {
inline unsigned char* shared_memory() { return now->block->shared; }
inline unsigned char* shared_at(unsigned address) {
    const Block* block = now->block + ((int)(address >> 24) - now->block->rank);
    const unsigned place = address & 0x3fffff;
    if (!(address & 1 << 22)) return block->shared + place;
    return (block == now->block ? block->statics_at : block->statics) + place;
}
}  // namespace cuda_on_cpu

// ---- the kernels of a text, with what the words before their names say
#define CUDA_ON_CPU_KERNEL(name, ...) CUDA_ON_CPU_KERNEL_(name, name, __VA_ARGS__)
#define CUDA_ON_CPU_KERNEL_(name, function, ...) \
    extern "C" __attribute__((visibility("default"))) void* cuda_on_cpu_kernel_##name() { \
        static ::cuda_on_cpu::Kernel cuda_on_cpu_k = {[](void** args) { ::cuda_on_cpu::run(function, args); }, \
                                                      ::cuda_on_cpu::count_of(function), \
                                                      ::cuda_on_cpu::sizes_of(function), 0, 1}; \
        __VA_ARGS__ return &cuda_on_cpu_k; \
    }
