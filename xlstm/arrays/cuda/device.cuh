// The instructions that the kernels use, as PTX: no header is included, so that NVRTC alone compiles this. A device that
// lacks one compiles the others: a function that no kernel calls is left out. The tests have the same names for a CPU.

#define DEVICE __device__ __forceinline__
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

struct half_t { unsigned short bits; };
struct bf16_t { unsigned short bits; };

DEVICE float widen(half_t v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
}
DEVICE float widen(bf16_t v) { return __uint_as_float((unsigned)v.bits << 16); }
DEVICE float widen(float v) { return v; }
DEVICE double widen(double v) { return v; }

DEVICE void narrow(half_t& to, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v)); }
DEVICE void narrow(bf16_t& to, float v) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
#else
    const unsigned u = __float_as_uint(v);
    to.bits = v != v ? 0x7fff : (u + 0x7fffu + (u >> 16 & 1)) >> 16;  // to the nearest, ties to even
#endif
}
DEVICE void narrow(float& to, float v) { to = v; }
DEVICE void narrow(double& to, double v) { to = v; }

// Numbers next to each other in memory, which are read or written at once.
template <class T, int COUNT>
struct alignas(COUNT * sizeof(T)) Pack {
    T at[COUNT];
};

DEVICE unsigned bits_of(float v) { return __float_as_uint(v); }
DEVICE float float_of(unsigned v) { return __uint_as_float(v); }

// Rounds to the nearest that has 11 bits, as cvt.rna.tf32.f32 does, which takes more instructions.
DEVICE float round_tf32(float v) { return __uint_as_float((__float_as_uint(v) + 0x1000u) & ~0x1fffu); }

// c (16 x 8) += a (16 x k) b (k x 8) by a warp. a.x and a.z are of row lane / 4, a.y and a.w of row lane / 4 + 8, b of column
// lane / 4; c0 and c1 are in row lane / 4, c2 and c3 in row lane / 4 + 8, in columns 2 (lane % 4) and the next.
#define DEFINE_MMA(type, shape)                                                                                           \
    DEVICE void mma(type, float (&c)[4], uint4 a, unsigned b0, unsigned b1) {                                            \
        asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                  \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                             \
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));                                                 \
    }
#if __CUDA_ARCH__ >= 800
DEFINE_MMA(half_t, "m16n8k16.row.col.f32.f16.f16.f32")
#else  // sm_75 has half of it
DEVICE void mma_of_8(float (&c)[4], unsigned a0, unsigned a1, unsigned b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b));
}
DEVICE void mma(half_t, float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
    mma_of_8(c, a.x, a.y, b0);
    mma_of_8(c, a.z, a.w, b1);
}
#endif
DEFINE_MMA(bf16_t, "m16n8k16.row.col.f32.bf16.bf16.f32")
DEFINE_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")

// Four 8 x 8 matrices of 16 bits from shared memory, as `mma` takes them: lane i gives the address of row i % 8 of matrix i / 8,
// and gets of each matrix, or of its transpose, two neighbours in row lane / 4 from column 2 (lane % 4) on.
template <bool TRANSPOSED>
DEVICE uint4 load_matrices(const void* row) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    uint4 v;
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}

DEVICE void sync_warp() { __syncwarp(); }
DEVICE void sync_block() { __syncthreads(); }

DEVICE unsigned from_lane_xor(unsigned v, int mask) {
    unsigned found;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(found) : "r"(v), "r"(mask));
    return found;
}
// The largest of so many neighbouring lanes, 16 or 32 from a multiple of that on.
template <int LANES>
DEVICE unsigned largest(unsigned v) {
#if __CUDA_ARCH__ >= 800
    if constexpr (LANES == 32) {
        unsigned found;
        asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(found) : "r"(v));
        return found;
    }
#endif
#pragma unroll
    for (int mask = LANES / 2; mask; mask /= 2) {
        const unsigned other = from_lane_xor(v, mask);
        v = other > v ? other : v;
    }
    return v;
}

// The barrier of a cluster: what its blocks wrote before arriving, also to others' shared memory, is seen after waiting.
DEVICE void arrive_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void wait_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The place of `local` in the shared memory of another block of the cluster.
DEVICE unsigned remote(const void* local, int rank) {
    unsigned found;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"((unsigned)__cvta_generic_to_shared(local)), "r"(rank));
    return found;
}

// The number of a kernel, and the word in memory of the host to which it writes this number where it gives up a wait. It does
// so after two seconds, since what it waits for may never come; nothing that it makes after that counts.
struct Late {
    unsigned* word;
    unsigned number;
};
struct Patience {
    unsigned turns = 0, begin = 0;
    // Asked in every turn of a wait. Both the clock and the word are far away, so they are looked at in few turns.
    DEVICE bool ends(const Late& late) {
        if (++turns % 1024) return false;
        unsigned now;
        asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(now));
        if (turns == 1024) begin = now;
        if (now - begin > 2000000000u) *(volatile unsigned*)late.word = late.number;
        return *(volatile unsigned*)late.word;  // also where another wait was given up
    }
};

// An mbarrier: a thread says how many bytes it expects, and a turn ends when they have come from any block of the cluster.
using Arrivals = unsigned long long;
DEVICE unsigned shared_address(const void* local) { return (unsigned)__cvta_generic_to_shared(local); }
DEVICE void init_arrivals(Arrivals* a) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(a)) : "memory");
}
// To the other blocks of the cluster, which then wait at its barrier.
DEVICE void publish_arrivals() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void expect(Arrivals* a, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(a)), "r"(bytes) : "memory");
}
// Sends 8 or 16 bytes to their place in another block of the cluster, or in this one. They count in that block's arrivals:
// whoever waited for these sees the bytes.
template <class T>
DEVICE void send_remote(T* local, int rank, const T& v, Arrivals* arrivals) {
    const unsigned to = remote(local, rank), at = remote(arrivals, rank), *w = (const unsigned*)&v;
    static_assert(sizeof(T) == 8 || sizeof(T) == 16, "two words or four");
    if constexpr (sizeof(T) == 8)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];"
                     ::"r"(to), "r"(w[0]), "r"(w[1]), "r"(at) : "memory");
    else
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];"
                     ::"r"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(at) : "memory");
}
// Waits for the end of an even or an odd turn.
DEVICE void wait_arrivals(Arrivals* a, unsigned odd, const Late& late) {
    Patience patience;
    unsigned done;
    do {
        asm volatile(
            "{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
            : "=r"(done) : "r"(shared_address(a)), "r"(odd) : "memory");
    } while (!done && !patience.ends(late));
}

// Flags in global memory: what the thread and, after sync_block, its block wrote before is seen by the thread that waited
// for the flag, and after sync_block by its block, with load_fresh.
DEVICE void set_flag(unsigned* flag, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
DEVICE void wait_flag(const unsigned* flag, unsigned value, const Late& late) {
    Patience patience;
    unsigned found;
    do {
        // Not a relaxed load and a fence: a fence would also wait for the stores that this thread has on their way.
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(flag) : "memory");
    } while (found < value && !patience.ends(late));
}
// Stores 8 or 16 bytes to global memory at once; the compiler makes two or four stores of a struct.
template <class T>
DEVICE void store_wide(T* to, const T& v) {
    const unsigned* w = (const unsigned*)&v;
    if constexpr (sizeof(T) == 16)
        asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(to), "r"(w[0]), "r"(w[1]) : "memory");
    else
        *to = v;
}
DEVICE uint4 load_fresh(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}

// The time of the device, which the benchmarks read.
DEVICE long long nanoseconds() {
    long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
