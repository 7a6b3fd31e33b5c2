// The instructions of PTX that kernels have as text: asm("..." : outs : ins) is made ptx::run<"...">(outs..., ins...).
// Every kernel sees this header, which is compiled once.
#pragma once
#include "cuda_on_cpu.hpp"
#include "cuda_fp16.h"
#include "cuda_bf16.h"

namespace ptx {

template <size_t N> struct Text {
    char at[N];
    constexpr Text(const char (&text)[N]) { for (size_t i = 0; i < N; i++) at[i] = text[i]; }
    constexpr bool has(const char* part) const {
        for (size_t i = 0, k = 0; i < N; at[i + k] == part[k] ? k++ : (k = 0, i++)) if (!part[k]) return true;
        return false;
    }
};

inline float half_of(unsigned word, int i) { return std::bit_cast<_Float16>((unsigned short)(word >> 16 * i)); }
inline float bf16_of(unsigned word, int i) { return __uint_as_float(word >> 16 * i << 16); }
inline float tf32_of(unsigned word, int) { return __uint_as_float(word & ~0x1fffu); }  // the hardware reads no more

// mma.sync as the PTX manual draws it: matrices by element, from the words of the lanes.
struct Words { unsigned at[6]; };
template <int WORD, int DEPTH, class Read>
inline void mma(float* const (&c)[4], const Words& words, Read read) {
    const int lane = cuda_on_cpu::now->lane;
    cuda_on_cpu::exchange(~0u, words, [&](auto of) {
        float a[2][DEPTH], b[2][DEPTH];  // two rows and two columns; registers are by halves of rows, then of k
        for (int k = 0; k < DEPTH; k += WORD)
            for (int i = 0; i < 2; i++) {
                const int part = k / (4 * WORD), within = k % (4 * WORD) / WORD;  // a lane has WORD neighbours of four
                const unsigned row = of(lane / 4 * 4 + within).at[i + 2 * part],
                               column = of((lane % 4 * 2 + i) * 4 + within).at[4 + part];
                for (int w = 0; w < WORD; w++) a[i][k + w] = read(row, w), b[i][k + w] = read(column, w);
            }
        for (int e = 0; e < 4; e++) for (int k = 0; k < DEPTH; k++) *c[e] += a[e / 2][k] * b[e % 2][k];
        return 0;
    });
}

template <bool TRANSPOSED> inline void load_matrices(unsigned* const (&to)[4], unsigned row) {
    const int lane = cuda_on_cpu::now->lane;
    if (row % 16) cuda_on_cpu::fail("ldmatrix of rows that do not begin at multiples of 16 bytes");
    cuda_on_cpu::exchange(~0u, row, [&](auto of) {
        for (int k = 0; k < 8; k++) {
            const int matrix = k / 2, i = lane / 4, j = lane % 4 * 2 + k % 2;
            const auto* there = cuda_on_cpu::shared_at(of(matrix * 8 + (TRANSPOSED ? j : i)));
            ((unsigned short*)to[matrix])[k % 2] = ((const unsigned short*)there)[TRANSPOSED ? i : j];
        }
        return 0;
    });
    cuda_on_cpu::warp_barrier(~0u);  // what was read may be written now
}

template <int SIZE> void store(void* to, const unsigned (&words)[SIZE / 4]) {
    if ((uintptr_t)to % SIZE) cuda_on_cpu::fail(SIZE == 16 ? "16 bytes are not aligned" : "8 bytes are not aligned");
    memcpy(to, words, SIZE);
}

template <Text T, class... A> inline void run(A&&... given) {
    auto args = std::forward_as_tuple(given...);
#define ARG(i) std::get<i>(args)
    if constexpr (T.has("mma.sync")) {
        float* const c[] = {&ARG(0), &ARG(1), &ARG(2), &ARG(3)};
        constexpr bool eight = T.has("m16n8k8") && T.has(".f16.f16");  // of sm_75, with two registers of a and one of b
        if constexpr (eight) mma<2, 8>(c, {{ARG(4), ARG(5), 0, 0, ARG(6), 0}}, half_of);
        else {
            const Words words = {{ARG(4), ARG(5), ARG(6), ARG(7), ARG(8), ARG(9)}};
            if constexpr (T.has(".tf32")) mma<1, 8>(c, words, tf32_of);
            else if constexpr (T.has(".bf16")) mma<2, 16>(c, words, bf16_of);
            else mma<2, 16>(c, words, half_of);
        }
    } else if constexpr (T.has("ldmatrix.")) {
        unsigned* const to[4] = {&ARG(0), &ARG(1), &ARG(2), &ARG(3)};
        load_matrices<T.has(".trans.")>(to, ARG(4));
    } else if constexpr (T.has("cvt.f32.f16")) ARG(0) = (float)__ushort_as_half(ARG(1));
    else if constexpr (T.has("cvt.rn.f16.f32")) ARG(0) = __half_as_ushort(__float2half_rn(ARG(1)));
    else if constexpr (T.has("cvt.rn.bf16.f32")) ARG(0) = __bfloat16_as_ushort(__float2bfloat16_rn(ARG(1)));
    else if constexpr (T.has("shfl.sync.bfly")) ARG(0) = __shfl_xor_sync(~0u, ARG(1), ARG(2));
    else if constexpr (T.has("redux.sync.max.u32")) ARG(0) = __reduce_max_sync(~0u, ARG(1));
    else if constexpr (T.has("barrier.cluster.arrive")) cuda_on_cpu::cluster_arrive();
    else if constexpr (T.has("barrier.cluster.wait")) cuda_on_cpu::cluster_wait();
    else if constexpr (T.has("mapa.")) ARG(0) = (ARG(1) & 0xffffff) | (unsigned)ARG(2) << 24;
    else if constexpr (T.has("mbarrier.init")) *(cuda_on_cpu::Arrivals*)cuda_on_cpu::shared_at(ARG(0)) = {};
    else if constexpr (T.has("fence.")) cuda_on_cpu::progress++;
    else if constexpr (T.has("mbarrier.arrive.expect_tx")) {
        auto* a = (cuda_on_cpu::Arrivals*)cuda_on_cpu::shared_at(ARG(0));
        if (a->said) cuda_on_cpu::fail("an mbarrier is told what to expect of two turns at once");
        a->said = 1, a->missing += ARG(1);
        a->check();
    } else if constexpr (T.has("mbarrier.try_wait.parity")) {
        ARG(0) = (((volatile cuda_on_cpu::Arrivals*)cuda_on_cpu::shared_at(ARG(1)))->turn & 1) != (int)ARG(2);
        if (!ARG(0)) cuda_on_cpu::receive_one(), cuda_on_cpu::yield();
    } else if constexpr (T.has("st.async.")) {
        constexpr int n = T.has(".v4.") ? 4 : 2;
        auto* arrivals = (cuda_on_cpu::Arrivals*)cuda_on_cpu::shared_at(ARG(n + 1));
        cuda_on_cpu::Sent words = {cuda_on_cpu::shared_at(ARG(0)), arrivals, 4 * n, {ARG(1), ARG(2)}};
        if constexpr (n == 4) words.words[2] = ARG(3), words.words[3] = ARG(4);
        cuda_on_cpu::send(words);
    } else if constexpr (T.has("st.release")) {
        *(unsigned*)ARG(0) = ARG(1);
        cuda_on_cpu::progress++;
    } else if constexpr (T.has("ld.acquire")) {
        cuda_on_cpu::yield();
        ARG(0) = *(volatile const unsigned*)ARG(1);
    } else if constexpr (T.has("ld.shared::cluster"))
        memcpy(&ARG(0), cuda_on_cpu::shared_at(ARG(1)), 4);
    else if constexpr (T.has("st.global.v4")) store<16>((void*)ARG(0), {ARG(1), ARG(2), ARG(3), ARG(4)});
    else if constexpr (T.has("st.global.v2")) store<8>((void*)ARG(0), {ARG(1), ARG(2)});
    else if constexpr (T.has("ld.global.cg.v4")) {
        const unsigned* from = (const unsigned*)ARG(4);
        ARG(0) = from[0], ARG(1) = from[1], ARG(2) = from[2], ARG(3) = from[3];
    } else if constexpr (T.has("globaltimer")) {
        ARG(0) = cuda_on_cpu::time_ns();
    } else static_assert(T.has("?"), "an instruction that ptx.hpp lacks");
#undef ARG
}
}  // namespace ptx

// What kernels of CuPy's own include.
#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
