// CUDA C++ as a host's compiler sees it. nvrtc.cpp puts this in front of every kernel; threads.cpp runs the threads.
#pragma once
#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#include "crt/host_defines.h"
#include "vector_types.h"
#include "vector_functions.h"

namespace cuda_on_cpu {
struct Barrier { int come = 0; long turn = 0; };
struct Warp {
    struct Group { unsigned mask, come; long turn; } groups[40];  // of lanes that wait for one another
    int count = 0;
    unsigned there = 0;                       // lanes that are not done
    alignas(16) unsigned char slots[32][48];  // what lanes show one another
};
struct Cluster { Barrier barrier; int alive; };
struct Block {
    uint3 index;
    unsigned char *shared, *statics, *statics_at;  // its variables while another block runs, and while it does
    Barrier barrier;
    int alive, rank;
    Cluster* cluster;
};
struct Thread { uint3 index; int lane; Block* block; Warp* warp; long cluster_turn = -1; };
struct Kernel { void (*call)(void**); int count; const int* sizes; int threads, cluster; };

extern Thread* now;
extern dim3 block_dim, grid_dim;
extern long progress, run_number;  // of anything; a thread that waits for memory makes none
void yield();
void fail(const char* why);
void block_barrier();
void warp_barrier(unsigned mask);
void cluster_arrive();
void cluster_wait();

template <class... A> constexpr int count_of(void (*)(A...)) { return sizeof...(A); }
template <class... A> inline const int sizes[] = {(int)sizeof(A)..., 0};
template <class... A> const int* sizes_of(void (*)(A...)) { return sizes<A...>; }
template <class... A, size_t... I> void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)args[I]...);
}
template <class... A> void run(void (*kernel)(A...), void** a) { call(kernel, a, std::index_sequence_for<A...>()); }

// Every lane of the mask shows a value, and reads those of others.
template <class T, class Read> inline auto exchange(unsigned mask, const T& v, Read read) {
    static_assert(sizeof(T) <= 48);
    Thread* me = now;
    memcpy(me->warp->slots[me->lane], &v, sizeof v);
    warp_barrier(mask);
    auto found = read([&](int lane) -> const T& { return *(const T*)me->warp->slots[lane]; });
    warp_barrier(mask);  // before the next value is shown
    return found;
}
template <class T, class Of> inline T reduce(unsigned mask, T v, Of both) {
    return exchange(mask, v, [&](auto of) {
        T found = v;
        for (int i = 0; i < 32; i++) if ((mask & now->warp->there) >> i & 1) found = both(found, of(i));
        return found;
    });
}
// A value that stays is what a loop sees that waits for another thread.
template <class T> inline T change(T* to, T value) {
    const T old = *to;
    if (!memcmp(&old, &value, sizeof old)) yield();
    else progress++, *to = value;
    return old;
}
template <class To, class From> inline To bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &v, sizeof to);
    return to;
}
// Addresses of shared memory have 32 bits: the block's number in its cluster, whether it is a variable, and the place.
inline unsigned char* shared_memory() { return now->block->shared; }
inline unsigned shared_address(const void* p) {
    const auto* at = (const unsigned char*)p;
    const size_t place = at - now->block->shared, variable = at - now->block->statics_at;
    return (unsigned)(place < 1 << 22 ? place : variable | 1 << 22) | (unsigned)now->block->rank << 24;
}
inline unsigned char* shared_at(unsigned address) {
    const Block* block = now->block + ((int)(address >> 24) - now->block->rank);
    const unsigned place = address & 0x3fffff;
    if (!(address & 1 << 22)) return block->shared + place;
    return (block == now->block ? block->statics_at : block->statics) + place;
}
}  // namespace cuda_on_cpu

#define threadIdx (::cuda_on_cpu::now->index)
#define blockIdx (::cuda_on_cpu::now->block->index)
#define blockDim (::cuda_on_cpu::block_dim)
#define gridDim (::cuda_on_cpu::grid_dim)
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9
#define CUDA_ON_CPU 1
#define __trap() ::cuda_on_cpu::fail("trap")
static const int warpSize = 32;
inline void __syncthreads() { cuda_on_cpu::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::warp_barrier(mask); }
inline void __nanosleep(unsigned) { cuda_on_cpu::yield(); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline unsigned __activemask() { return 1u << cuda_on_cpu::now->lane; }
inline unsigned __cvta_generic_to_shared(const void* p) { return cuda_on_cpu::shared_address(p); }

// ---- warps: the lane that a value is read from, of the part of the warp that begins at `first`
#define CUDA_ON_CPU_SHUFFLE(name, B, from) \
    template <class T> inline T name(unsigned mask, T v, B by, int width = 32) { \
        const int lane = cuda_on_cpu::now->lane, first = lane & ~(width - 1), there = from; \
        const bool outside = there < first || there >= first + width; \
        return cuda_on_cpu::exchange(mask, v, [&](auto of) { return of(outside ? lane : there); }); \
    }
CUDA_ON_CPU_SHUFFLE(__shfl_sync, int, first + (by & (width - 1)))
CUDA_ON_CPU_SHUFFLE(__shfl_xor_sync, int, lane ^ by)
CUDA_ON_CPU_SHUFFLE(__shfl_up_sync, unsigned, lane - (int)by)
CUDA_ON_CPU_SHUFFLE(__shfl_down_sync, unsigned, lane + (int)by)
inline unsigned __ballot_sync(unsigned mask, int v) {
    return cuda_on_cpu::reduce(mask, v ? 1u << cuda_on_cpu::now->lane : 0u, [](auto a, auto b) { return a | b; });
}
inline int __any_sync(unsigned mask, int v) { return __ballot_sync(mask, v) != 0; }
inline int __all_sync(unsigned mask, int v) { return __ballot_sync(mask, !v) == 0; }
#define CUDA_ON_CPU_REDUCE(name, e) \
    template <class T> inline T name(unsigned m, T v) { return cuda_on_cpu::reduce(m, v, [](T a, T b) { return e; }); }
CUDA_ON_CPU_REDUCE(__reduce_max_sync, a > b ? a : b)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, a < b ? a : b)

// ---- atomics: threads take turns only where they wait
#define CUDA_ON_CPU_ATOMIC(name, T, e) \
    inline T name(T* to, T v) { const T old = *to; return cuda_on_cpu::change(to, (T)(e)); }
#define CUDA_ON_CPU_ATOMICS(name, e) \
    CUDA_ON_CPU_ATOMIC(name, int, e) CUDA_ON_CPU_ATOMIC(name, unsigned, e) \
    CUDA_ON_CPU_ATOMIC(name, unsigned long long, e)
CUDA_ON_CPU_ATOMICS(atomicAdd, old + v)
CUDA_ON_CPU_ATOMIC(atomicAdd, float, old + v)
CUDA_ON_CPU_ATOMIC(atomicAdd, double, old + v)
CUDA_ON_CPU_ATOMICS(atomicSub, old - v)
CUDA_ON_CPU_ATOMICS(atomicExch, v)
CUDA_ON_CPU_ATOMIC(atomicExch, float, v)
CUDA_ON_CPU_ATOMICS(atomicMin, old < v ? old : v)
CUDA_ON_CPU_ATOMICS(atomicMax, old > v ? old : v)
CUDA_ON_CPU_ATOMIC(atomicMin, long long, old < v ? old : v)
CUDA_ON_CPU_ATOMIC(atomicMax, long long, old > v ? old : v)
CUDA_ON_CPU_ATOMICS(atomicAnd, old & v)
CUDA_ON_CPU_ATOMICS(atomicOr, old | v)
CUDA_ON_CPU_ATOMICS(atomicXor, old ^ v)
CUDA_ON_CPU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
CUDA_ON_CPU_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
#define CUDA_ON_CPU_CAS(T) inline T atomicCAS(T* to, T is, T v) { return cuda_on_cpu::change(to, *to == is ? v : *to); }
CUDA_ON_CPU_CAS(int) CUDA_ON_CPU_CAS(unsigned) CUDA_ON_CPU_CAS(unsigned long long) CUDA_ON_CPU_CAS(unsigned short)

// ---- numbers
#define CUDA_ON_CPU_FUNCTION(To, name, From, e) inline To name(From x) { return e; }
#define CUDA_ON_CPU_BITS(name, To, From) inline To name(From v) { return cuda_on_cpu::bits<To>(v); }
#define CUDA_ON_CPU_READ(name) template <class T> inline T name(const T* p) { return *p; }
#define CUDA_ON_CPU_WRITE(name) template <class T> inline void name(T* p, T v) { *p = v; }
#define CUDA_ON_CPU_ROUNDED(op, sign) \
    inline float __f##op##_rn(float x, float y) { return x sign y; } \
    inline double __d##op##_rn(double x, double y) { return x sign y; }
CUDA_ON_CPU_BITS(__float_as_int, int, float) CUDA_ON_CPU_BITS(__float_as_uint, unsigned, float)
CUDA_ON_CPU_BITS(__int_as_float, float, int) CUDA_ON_CPU_BITS(__uint_as_float, float, unsigned)
CUDA_ON_CPU_BITS(__double_as_longlong, long long, double) CUDA_ON_CPU_BITS(__longlong_as_double, double, long long)
CUDA_ON_CPU_READ(__ldg) CUDA_ON_CPU_READ(__ldcg) CUDA_ON_CPU_READ(__ldcs)
CUDA_ON_CPU_WRITE(__stcs) CUDA_ON_CPU_WRITE(__stcg)
CUDA_ON_CPU_ROUNDED(add, +) CUDA_ON_CPU_ROUNDED(sub, -) CUDA_ON_CPU_ROUNDED(mul, *) CUDA_ON_CPU_ROUNDED(div, /)
inline double __hiloint2double(int high, int low) { return __longlong_as_double((int64_t)high << 32 | (unsigned)low); }
inline int __double2hiint(double v) { return __double_as_longlong(v) >> 32; }
inline int __double2loint(double v) { return (int)__double_as_longlong(v); }
CUDA_ON_CPU_FUNCTION(int, __popc, unsigned, __builtin_popcount(x))
CUDA_ON_CPU_FUNCTION(int, __popcll, unsigned long long, __builtin_popcountll(x))
CUDA_ON_CPU_FUNCTION(int, __clz, int, x ? __builtin_clz(x) : 32)
CUDA_ON_CPU_FUNCTION(int, __clzll, long long, x ? __builtin_clzll(x) : 64)
CUDA_ON_CPU_FUNCTION(int, __ffs, int, __builtin_ffs(x))
CUDA_ON_CPU_FUNCTION(int, __ffsll, long long, __builtin_ffsll(x))
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline int __mulhi(int a, int b) { return (long long)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, uint64_t b) { return (unsigned __int128)a * b >> 64; }
CUDA_ON_CPU_FUNCTION(float, __expf, float, expf(x))
CUDA_ON_CPU_FUNCTION(float, __logf, float, logf(x))
CUDA_ON_CPU_FUNCTION(float, __frcp_rn, float, 1 / x)
CUDA_ON_CPU_FUNCTION(float, __fsqrt_rn, float, sqrtf(x))
CUDA_ON_CPU_FUNCTION(float, __saturatef, float, x > 0 ? x < 1 ? x : 1 : 0)
CUDA_ON_CPU_FUNCTION(float, rsqrtf, float, 1 / sqrtf(x))
CUDA_ON_CPU_FUNCTION(float, rsqrt, float, 1 / sqrtf(x))
CUDA_ON_CPU_FUNCTION(double, rsqrt, double, 1 / sqrt(x))
CUDA_ON_CPU_FUNCTION(double, sinpi, double, sin(M_PI * x))
CUDA_ON_CPU_FUNCTION(double, cospi, double, cos(M_PI * x))
CUDA_ON_CPU_FUNCTION(float, normcdff, float, erfcf(-x * (float)M_SQRT1_2) / 2)
CUDA_ON_CPU_FUNCTION(double, normcdf, double, erfc(-x * M_SQRT1_2) / 2)
CUDA_ON_CPU_FUNCTION(double, erfcx, double, exp(x * x) * erfc(x))
CUDA_ON_CPU_FUNCTION(double, cyl_bessel_i0, double, std::cyl_bessel_i(0., fabs(x)))
CUDA_ON_CPU_FUNCTION(double, cyl_bessel_i1, double, (x < 0 ? -1 : 1) * std::cyl_bessel_i(1., fabs(x)))
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
using std::abs, std::fabs, std::sqrt, std::cbrt, std::hypot, std::exp, std::exp2, std::expm1, std::log, std::log2,
    std::log10, std::log1p, std::pow, std::sin, std::cos, std::tan, std::asin, std::acos, std::atan, std::atan2, std::sinh,
    std::cosh, std::tanh, std::asinh, std::acosh, std::atanh, std::erf, std::erfc, std::tgamma, std::lgamma, std::floor,
    std::ceil, std::trunc, std::round, std::rint, std::nearbyint, std::lrint, std::llrint, std::fmod, std::remainder,
    std::copysign, std::fma, std::fmin, std::fmax, std::fdim, std::ldexp, std::frexp, std::modf, std::ilogb, std::logb,
    std::nextafter, std::isnan, std::isinf, std::isfinite, std::signbit;
// The smaller and larger of numbers of any two types, as CUDA has them: a NaN is left for the other number.
#define CUDA_ON_CPU_EXTREME(name, sign) \
    template <class A, class B, class C = std::common_type_t<A, B>> \
    requires std::is_arithmetic_v<C> inline C name(A a, B b) { \
        if constexpr (std::is_floating_point_v<C>) return std::f##name((C)a, (C)b); \
        else return (C)a sign (C)b ? (C)a : (C)b; \
    }
CUDA_ON_CPU_EXTREME(min, <) CUDA_ON_CPU_EXTREME(max, >)

// ---- the kernels of a text, with what the words before their names say
#define CUDA_ON_CPU_KERNEL(name, ...) CUDA_ON_CPU_KERNEL_(name, name, __VA_ARGS__)
#define CUDA_ON_CPU_KERNEL_(name, function, ...) \
    extern "C" __attribute__((visibility("default"))) void* cuda_on_cpu_kernel_##name() { \
        static ::cuda_on_cpu::Kernel cuda_on_cpu_k = {[](void** args) { ::cuda_on_cpu::run(function, args); }, \
            ::cuda_on_cpu::count_of(function), ::cuda_on_cpu::sizes_of(function), 0, 1}; \
        __VA_ARGS__ return &cuda_on_cpu_k; \
    }
