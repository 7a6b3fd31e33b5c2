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

// Makes the compiler take it for another value each time, so that it does not make ahead what is made of it.
DEVICE void forget(uint4& v) { asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)); }

DEVICE unsigned bits_of(float v) { return __float_as_uint(v); }
DEVICE float float_of(unsigned v) { return __uint_as_float(v); }

// Rounds to the nearest that has 11 bits, as cvt.rna.tf32.f32 does, which takes more instructions.
DEVICE float round_tf32(float v) { return __uint_as_float((__float_as_uint(v) + 0x1000u) & ~0x1fffu); }

// c (16 x 8) += a (16 x k) b (k x 8) by a warp. a0 and a2 are of row lane / 4, a1 and a3 of row lane / 4 + 8, b of column
// lane / 4; c0 and c1 are in row lane / 4, c2 and c3 in row lane / 4 + 8, in columns 2 (lane % 4) and the next.
#define DEFINE_MMA(type, shape)                                                                                           \
    DEVICE void mma(type, float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) { \
        asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                  \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                             \
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                                                     \
    }
DEFINE_MMA(half_t, "m16n8k16.row.col.f32.f16.f16.f32")
DEFINE_MMA(bf16_t, "m16n8k16.row.col.f32.bf16.bf16.f32")
DEFINE_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")

DEVICE void sync_block() { __syncthreads(); }

// The barrier of a cluster: what its blocks wrote before arriving, also to others' shared memory, is seen after waiting.
DEVICE void arrive_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void wait_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The place of `local` in the shared memory of another block of the cluster.
DEVICE unsigned remote(const void* local, int rank) {
    unsigned found;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"((unsigned)__cvta_generic_to_shared(local)), "r"(rank));
    return found;
}
DEVICE void store_remote(uint4* local, int rank, uint4 v) {
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1,%2,%3,%4};"
                 ::"r"(remote(local, rank)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEVICE void store_remote(float* local, int rank, float v) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote(local, rank)), "f"(v) : "memory");
}

// Flags in global memory: what the thread and, after sync_block, its block wrote before is seen by the thread that waited
// for the flag, and after sync_block by its block, with load_fresh.
DEVICE void set_flag(unsigned* flag, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
DEVICE void wait_flag(const unsigned* flag, unsigned value) {
    unsigned found;
    do {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(flag) : "memory");
    } while (found < value);
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}
DEVICE uint4 load_fresh(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}
#define DEFINE_LOAD_FRESH(type, kind, place)                                                     \
    DEVICE type load_fresh(const type* from) {                                                   \
        type v;                                                                                  \
        asm volatile("ld.global.cg." kind " %0, [%1];" : place(v) : "l"(from) : "memory");       \
        return v;                                                                                \
    }
DEFINE_LOAD_FRESH(float, "f32", "=f")
DEFINE_LOAD_FRESH(double, "f64", "=d")

// The time of the device, which the benchmarks read.
DEVICE long long nanoseconds() {
    long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
