// The instructions of PTX that kernels have as text: asm("name ..." : outs : ins) is made ptx::name(outs..., ins...).
// Every kernel sees this header, which is compiled once; ptx.cpp has those in which lanes or blocks meet.
#pragma once
#include "cuda_on_cpu.hpp"
#include "cuda_fp16.h"
#include "cuda_bf16.h"

namespace ptx {
// A macro of kernels puts this name together, so that it is in the text.
void mma_sync_aligned(const char* text, float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1,
                      unsigned a2, unsigned a3, unsigned b0, unsigned b1);
void mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(float& c0, float& c1, float& c2, float& c3, unsigned a0,
                                                      unsigned a1, unsigned b);
void ldmatrix_sync_aligned_m8n8_x4_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned row);
void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned row);
void shfl_sync_bfly_b32(unsigned& found, unsigned v, int mask);
void redux_sync_max_u32(unsigned& found, unsigned v);
void mbarrier_init_shared_cta_b64(unsigned at);
void mbarrier_arrive_expect_tx_shared_cta_b64(unsigned at, int bytes);
void mbarrier_try_wait_parity_acquire_cluster_shared_cta_b64(unsigned& done, unsigned at, unsigned odd);
void st_async_shared_cluster_mbarrier_complete_tx_bytes_v2_b32(unsigned to, unsigned a, unsigned b, unsigned at);
void st_async_shared_cluster_mbarrier_complete_tx_bytes_v4_b32(unsigned to, unsigned a, unsigned b, unsigned c,
                                                               unsigned d, unsigned at);

inline void cvt_f32_f16(float& to, unsigned short v) { to = (float)__ushort_as_half(v); }
inline void cvt_rn_f16_f32(unsigned short& to, float v) { to = __half_as_ushort(__float2half_rn(v)); }
inline void cvt_rn_bf16_f32(unsigned short& to, float v) { to = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
inline void barrier_cluster_arrive_release_aligned() { cuda_on_cpu::cluster_arrive(); }
inline void barrier_cluster_wait_acquire_aligned() { cuda_on_cpu::cluster_wait(); }
inline void fence_mbarrier_init_release_cluster() { cuda_on_cpu::progress++; }
inline void mapa_shared_cluster_u32(unsigned& to, unsigned at, int rank) { to = (at & 0xffffff) | (unsigned)rank << 24; }
inline void mov_u64(long long& to) { to = cuda_on_cpu::time_ns(); }  // from the register globaltimer

// These are compiled with a kernel that tells what it reads and writes.
inline void st_release_gpu_global_u32(unsigned* to, unsigned v) { *to = v, cuda_on_cpu::progress++; }
inline void ld_acquire_gpu_global_u32(unsigned& to, const unsigned* from) {
    cuda_on_cpu::yield();
    to = *(volatile const unsigned*)from;
}
inline void st_global_v4_u32(void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    if ((uintptr_t)to % 16) cuda_on_cpu::fail("16 bytes are not aligned");
    const unsigned words[] = {a, b, c, d};
    memcpy(to, words, 16);
}
inline void st_global_v2_u32(void* to, unsigned a, unsigned b) {
    if ((uintptr_t)to % 8) cuda_on_cpu::fail("8 bytes are not aligned");
    const unsigned words[] = {a, b};
    memcpy(to, words, 8);
}
inline void ld_global_cg_v4_u32(unsigned& a, unsigned& b, unsigned& c, unsigned& d, const void* from) {
    const unsigned* words = (const unsigned*)from;
    a = words[0], b = words[1], c = words[2], d = words[3];
}
}  // namespace ptx

// What kernels of CuPy's own include.
#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
