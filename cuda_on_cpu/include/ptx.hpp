// The instructions of PTX that kernels have as text: asm("name ..." : outs : ins) is made ptx::name(outs..., ins...).
// Every kernel sees this header, which is compiled once; ptx.cpp has those in which lanes or blocks meet.
#pragma once
#include "cuda_on_cpu.hpp"
#include "cuda_fp16.h"
#include "cuda_bf16.h"

namespace ptx {
using U = unsigned;
using F = float;
// A macro of kernels puts this name together, so that it is in the text.
void mma_sync_aligned(const char* text, F& c0, F& c1, F& c2, F& c3, U a0, U a1, U a2, U a3, U b0, U b1);
void mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(F& c0, F& c1, F& c2, F& c3, U a0, U a1, U b);
void ldmatrix_sync_aligned_m8n8_x4_shared_b16(U& a, U& b, U& c, U& d, U row);
void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(U& a, U& b, U& c, U& d, U row);
void shfl_sync_bfly_b32(U& found, U v, int mask);
void redux_sync_max_u32(U& found, U v);
void mbarrier_init_shared_cta_b64(U at);
void mbarrier_arrive_expect_tx_shared_cta_b64(U at, int bytes);
void mbarrier_try_wait_parity_acquire_cluster_shared_cta_b64(U& done, U at, U odd);
void st_async_shared_cluster_mbarrier_complete_tx_bytes_v2_b32(U to, U a, U b, U at);
void st_async_shared_cluster_mbarrier_complete_tx_bytes_v4_b32(U to, U a, U b, U c, U d, U at);

inline void cvt_f32_f16(F& to, unsigned short v) { to = (float)__ushort_as_half(v); }
inline void cvt_rn_f16_f32(unsigned short& to, F v) { to = __half_as_ushort(__float2half_rn(v)); }
inline void cvt_rn_bf16_f32(unsigned short& to, F v) { to = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
inline void barrier_cluster_arrive_release_aligned() { cuda_on_cpu::cluster_arrive(); }
inline void barrier_cluster_wait_acquire_aligned() { cuda_on_cpu::cluster_wait(); }
inline void fence_mbarrier_init_release_cluster() { cuda_on_cpu::progress++; }
inline void mapa_shared_cluster_u32(U& to, U at, int rank) { to = (at & 0xffffff) | (U)rank << 24; }
inline void mov_u64(long long& to) { to = cuda_on_cpu::time_ns(); }  // from the register globaltimer
inline void mov_u32(U& to) { to = cuda_on_cpu::rounds << 20; }  // from globaltimer_lo, for those who wait: a round is a ms

// These are compiled with a kernel that tells what it reads and writes.
inline void st_release_gpu_global_u32(U* to, U v) { *to = v, cuda_on_cpu::progress++; }
inline void ld_acquire_gpu_global_u32(U& to, const U* from) { cuda_on_cpu::yield(), to = *(volatile const U*)from; }
template <class T> void store(void* to, const T& v) {
    if ((uintptr_t)to % sizeof v) cuda_on_cpu::fail(sizeof v == 16 ? "16 bytes are not aligned" : "8 bytes are not aligned");
    memcpy(to, &v, sizeof v);
}
inline void st_global_v4_u32(void* to, U a, U b, U c, U d) { store(to, uint4{a, b, c, d}); }
inline void st_global_v2_u32(void* to, U a, U b) { store(to, uint2{a, b}); }
inline void ld_global_cg_v4_u32(U& a, U& b, U& c, U& d, const void* from) {
    const auto* v = (const uint4*)from;
    a = v->x, b = v->y, c = v->z, d = v->w;
}
}  // namespace ptx

// What kernels of CuPy's own include.
#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
