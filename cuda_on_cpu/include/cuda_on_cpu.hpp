// CUDA C++ as a host's compiler sees it; threads.cpp runs the threads.
#pragma once
#include <bit>
#include <cassert>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // every kernel would make its templates again, and those of strings and vectors
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>
#include "crt/host_defines.h"
#include "vector_types.h"
#include "vector_functions.h"

namespace cuda_on_cpu {
struct Barrier { int come = 0; long turn = 0; };
struct Warp {
    struct Group { unsigned mask, come, came; long turn; } groups[40];  // of lanes that wait for one another; first all
    int count = 1;
    unsigned there = 0;                          // lanes that are not done
    alignas(16) unsigned char slots[3][32][48];  // what lanes show one another: all in turn, and some
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
extern long progress;  // of anything; a thread that waits for memory makes none
extern long rounds;  // in which every thread that waits has asked once
void yield();
void fail(const char* why);
void block_barrier();
void warp_barrier(unsigned mask);
void cluster_arrive();
void cluster_wait();
long time_ns();

// An mbarrier: a turn ends when a thread has said what to expect and as many bytes have come.
struct Arrivals {
    short turn, said;
    int missing;
    void check() {
        if (said && missing == 0) turn++, said = 0;
        progress++;
    }
};
struct Sent { unsigned char* to; Arrivals* arrivals; int size; unsigned words[4]; };
void send(const Sent& words);
void receive_one();

template <class... A> constexpr int count_of(void (*)(A...)) { return sizeof...(A); }
// Negative for an index of CuPy's, which has a part that nobody writes and no address.
template <class A> constexpr int size_of = (requires(A a) { a.get(); }) ? -(int)sizeof(A) : (int)sizeof(A);
template <class... A> inline const int sizes[] = {size_of<A>..., 0};
template <class... A> const int* sizes_of(void (*)(A...)) { return sizes<A...>; }
template <class... A, size_t... I> void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)args[I]...);
}
template <class... A> void run(void (*kernel)(A...), void** a) { call(kernel, a, std::index_sequence_for<A...>()); }

// Every lane of the mask shows a value, and reads those of others. Where all lanes meet, the next value goes elsewhere,
// and the one after it is shown when all have read this one.
template <class T, class Read> inline auto exchange(unsigned mask, const T& v, Read read) {
    static_assert(sizeof(T) <= 48);
    Warp* warp = now->warp;
    const bool all = mask == ~0u;
    auto* slots = warp->slots[all ? warp->groups[0].turn & 1 : 2];
    memcpy(slots[now->lane], &v, sizeof v);
    warp_barrier(mask);
    const unsigned lanes = all ? warp->groups[0].came : mask & warp->there;
    auto found = read([&](int lane) -> const T& { return *(const T*)slots[lane]; }, lanes);
    if (!all) warp_barrier(mask);
    return found;
}
// A value that stays is what a loop sees that waits for another thread.
template <class T> inline T change(T* to, T value) {
    const T old = *to;
    if (!memcmp(&old, &value, sizeof old)) yield();
    else progress++, *to = value;
    return old;
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
static const int warpSize = 32;
inline void __syncthreads() { cuda_on_cpu::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::warp_barrier(mask); }
inline void __nanosleep(unsigned) { cuda_on_cpu::yield(); }
inline void __threadfence() {}
inline unsigned __cvta_generic_to_shared(const void* p) { return cuda_on_cpu::shared_address(p); }

// ---- warps: the lane that a value is read from, of the part of the warp that begins at `first`
#define CUDA_ON_CPU_SHUFFLE(name, B, from) \
    template <class T> inline T name(unsigned mask, T v, B by, int width = 32) { \
        const int lane = cuda_on_cpu::now->lane, first = lane & ~(width - 1), there = from; \
        const bool outside = there < first || there >= first + width; \
        return cuda_on_cpu::exchange(mask, v, [&](auto of, unsigned) { return of(outside ? lane : there); }); \
    }
CUDA_ON_CPU_SHUFFLE(__shfl_xor_sync, int, lane ^ by)
CUDA_ON_CPU_SHUFFLE(__shfl_up_sync, unsigned, lane - (int)by)
template <class T> inline T __reduce_max_sync(unsigned mask, T v) {
    return cuda_on_cpu::exchange(mask, v, [&](auto of, unsigned lanes) {
        for (int i = 0; i < 32; i++) if (lanes >> i & 1 && of(i) > v) v = of(i);
        return v;
    });
}

// ---- atomics: threads take turns only where they wait
template <class T> T atomicAdd(T* to, std::type_identity_t<T> v) { return cuda_on_cpu::change(to, (T)(*to + v)); }
template <class T> T atomicSub(T* to, std::type_identity_t<T> v) { return cuda_on_cpu::change(to, (T)(*to - v)); }
template <class T> T atomicMax(T* to, std::type_identity_t<T> v) { return cuda_on_cpu::change(to, *to > v ? *to : v); }
template <class T> inline T atomicCAS(T* to, std::type_identity_t<T> is, std::type_identity_t<T> v) {
    return cuda_on_cpu::change(to, *to == is ? v : *to);
}

// ---- numbers
#define CUDA_ON_CPU_BITS(name, To, From) inline To name(From v) { return std::bit_cast<To>(v); }
CUDA_ON_CPU_BITS(__float_as_int, int, float) CUDA_ON_CPU_BITS(__float_as_uint, unsigned, float)
CUDA_ON_CPU_BITS(__int_as_float, float, int) CUDA_ON_CPU_BITS(__uint_as_float, float, unsigned)
CUDA_ON_CPU_BITS(__double_as_longlong, long long, double) CUDA_ON_CPU_BITS(__longlong_as_double, double, long long)
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
template <class T> inline T rsqrt(T x) { return 1 / std::sqrt(x); }
using std::abs, std::fabs, std::sqrt, std::cbrt, std::exp, std::exp2, std::expm1, std::log, std::log2, std::log10,
    std::log1p, std::pow, std::sin, std::cos, std::tan, std::asin, std::acos, std::atan, std::atan2, std::sinh,
    std::cosh, std::tanh, std::erf, std::erfc, std::floor, std::ceil, std::trunc, std::round, std::rint, std::fmod,
    std::copysign, std::fma, std::fmin, std::fmax, std::ldexp, std::frexp, std::isnan, std::isinf, std::isfinite,
    std::signbit;
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
    extern "C" __attribute__((visibility("default"), externally_visible)) void* cuda_on_cpu_kernel_##name() { \
        static ::cuda_on_cpu::Kernel cuda_on_cpu_k = {[](void** args) { ::cuda_on_cpu::run(function, args); }, \
            ::cuda_on_cpu::count_of(function), ::cuda_on_cpu::sizes_of(function), 0, 1}; \
        __VA_ARGS__ return &cuda_on_cpu_k; \
    }
