// The instructions of PTX that kernels have as text: asm("..." : outs : ins) is made ptx::run<"...">(outs..., ins...).
#pragma once
#include "cuda_on_cpu.hpp"
#include "cuda_fp16.h"
#include "cuda_bf16.h"

namespace ptx {

template <size_t N> struct Text {
    char at[N];
    constexpr Text(const char (&text)[N]) { std::copy_n(text, N, at); }
    constexpr bool has(const char* part) const { return std::string_view(at, N - 1).find(part) < N; }
};

// An mbarrier: a turn ends when a thread has said what to expect and as many bytes have come.
struct Arrivals {
    short turn, said;
    int missing;
    void check() {
        if (said && missing == 0) turn++, said = 0;
        cuda_on_cpu::progress++;
    }
};
// What is sent comes later, in an order of its own: while somebody waits, one after the other.
struct Sent { unsigned char* to; Arrivals* arrivals; int size; unsigned words[4]; };
inline std::vector<Sent>& sent() {  // of the kernel that runs
    static std::vector<Sent> all;
    static long run;
    if (std::exchange(run, cuda_on_cpu::run_number) != cuda_on_cpu::run_number) all.clear();
    return all;
}
inline void receive_one() {
    static uint64_t drawn = 1;
    if (sent().empty()) return;
    drawn = drawn * 6364136223846793005u + 1442695040888963407u;
    std::swap(sent()[(drawn >> 33) % sent().size()], sent().back());
    const Sent one = sent().back();
    sent().pop_back();
    memcpy(one.to, one.words, one.size);
    one.arrivals->missing -= one.size;
    one.arrivals->check();
}

inline float half_of(unsigned word, int i) { return std::bit_cast<_Float16>((unsigned short)(word >> 16 * i)); }
inline float bf16_of(unsigned word, int i) { return __uint_as_float(word >> 16 * i << 16); }
inline float tf32_of(unsigned word, int) { return __uint_as_float(word & ~0x1fffu); }  // the hardware reads no more

// mma.sync as the PTX manual draws it: matrices by element, from the words of the lanes.
using Words = std::array<unsigned, 6>;
template <int WORD, int DEPTH, class Read>
inline void mma(float* const (&c)[4], const Words& words, Read read) {
    const int lane = cuda_on_cpu::now->lane;
    cuda_on_cpu::exchange(~0u, words, [&](auto of) {
        float a[2][DEPTH], b[2][DEPTH];  // two rows and two columns; registers are by halves of rows, then of k
        for (int k = 0; k < DEPTH; k += WORD)
            for (int i = 0; i < 2; i++) {
                const int part = k / (4 * WORD), within = k % (4 * WORD) / WORD;  // a lane has WORD neighbours of four
                const unsigned row = of(lane / 4 * 4 + within)[i + 2 * part],
                               column = of((lane % 4 * 2 + i) * 4 + within)[4 + part];
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

template <int SIZE> void store(void* to, std::array<unsigned, SIZE / 4> words) {
    if ((uintptr_t)to % SIZE) cuda_on_cpu::fail(SIZE == 16 ? "16 bytes are not aligned" : "8 bytes are not aligned");
    memcpy(to, words.data(), SIZE);
}

template <Text T, class... A> inline void run(A&&... given) {
    auto args = std::forward_as_tuple(given...);
    [[maybe_unused]] auto arg = [&]<int I>(std::integral_constant<int, I>) -> auto& { return std::get<I>(args); };
#define ARG(i) arg(std::integral_constant<int, i>())
    if constexpr (T.has("mma.sync")) {
        float* const c[] = {&ARG(0), &ARG(1), &ARG(2), &ARG(3)};
        constexpr bool eight = T.has("m16n8k8") && T.has(".f16.f16");  // of sm_75, with two registers of a and one of b
        if constexpr (eight) mma<2, 8>(c, {ARG(4), ARG(5), 0, 0, ARG(6), 0}, half_of);
        else {
            const Words words = {ARG(4), ARG(5), ARG(6), ARG(7), ARG(8), ARG(9)};
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
    else if constexpr (T.has("mbarrier.init")) *(Arrivals*)cuda_on_cpu::shared_at(ARG(0)) = Arrivals{0, 0, 0};
    else if constexpr (T.has("fence.")) cuda_on_cpu::progress++;
    else if constexpr (T.has("mbarrier.arrive.expect_tx")) {
        auto* a = (Arrivals*)cuda_on_cpu::shared_at(ARG(0));
        if (a->said) cuda_on_cpu::fail("an mbarrier is told what to expect of two turns at once");
        a->said = 1, a->missing += ARG(1);
        a->check();
    } else if constexpr (T.has("mbarrier.try_wait.parity")) {
        ARG(0) = (((volatile Arrivals*)cuda_on_cpu::shared_at(ARG(1)))->turn & 1) != (int)ARG(2);
        if (!ARG(0)) receive_one(), cuda_on_cpu::yield();
    } else if constexpr (T.has("st.async.")) {
        constexpr int n = T.has(".v4.") ? 4 : 2;
        auto* arrivals = (Arrivals*)cuda_on_cpu::shared_at(ARG(n + 1));
        sent().push_back({cuda_on_cpu::shared_at(ARG(0)), arrivals, 4 * n, {ARG(1), ARG(2)}});
        if constexpr (n == 4) sent().back().words[2] = ARG(3), sent().back().words[3] = ARG(4);
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
        ARG(0) = std::chrono::steady_clock::now().time_since_epoch().count();
    } else static_assert(T.has("?"), "an instruction that ptx.hpp lacks");
#undef ARG
}
}  // namespace ptx
