// The instructions of PTX in which lanes or blocks meet: compiled here once, not with every kernel.
#include "driver.hpp"
#include "include/ptx.hpp"

namespace ptx {
using namespace cuda_on_cpu;

static constexpr auto half_of = [](U word, int i) { return (F)std::bit_cast<_Float16>((unsigned short)(word >> 16 * i)); };
static constexpr auto bf16_of = [](U word, int i) { return __uint_as_float(word >> 16 * i << 16); };
static constexpr auto tf32_of = [](U word, int) { return __uint_as_float(word & ~0x1fffu); };  // the hardware reads no more

// mma.sync as the PTX manual draws it: matrices by element, from the words of the lanes.
struct Words { U at[6]; };
template <int WORD, int DEPTH, class Read>
static void multiply(F* const (&c)[4], const Words& words, Read read) {
    struct { F at[6][WORD]; } own;
    for (int i = 0; i < 6; i++) for (int w = 0; w < WORD; w++) own.at[i][w] = read(words.at[i], w);
    const int lane = now->lane;
    exchange(~0u, own, [&](auto of, unsigned) {
        F a[2][DEPTH], b[2][DEPTH];  // two rows and two columns; registers are by halves of rows, then of k
        for (int k = 0; k < DEPTH; k += WORD)
            for (int i = 0; i < 2; i++) {
                const int part = k / (4 * WORD), within = k % (4 * WORD) / WORD;  // a lane has WORD neighbours of four
                const auto &row = of(lane / 4 * 4 + within).at[i + 2 * part],
                           &column = of((lane % 4 * 2 + i) * 4 + within).at[4 + part];
                for (int w = 0; w < WORD; w++) a[i][k + w] = row[w], b[i][k + w] = column[w];
            }
        for (int e = 0; e < 4; e++) for (int k = 0; k < DEPTH; k++) *c[e] += a[e / 2][k] * b[e % 2][k];
        return 0;
    });
}
void mma_sync_aligned(const char* text, F& c0, F& c1, F& c2, F& c3, U a0, U a1, U a2, U a3, U b0, U b1) {
    F* const c[] = {&c0, &c1, &c2, &c3};
    const Words words = {{a0, a1, a2, a3, b0, b1}};
    static const char* last;  // to look at the text again takes as long as to multiply
    static char kind;
    if (text != last) last = text, kind = strstr(text, ".tf32") ? 't' : strstr(text, ".bf16") ? 'b' : 'h';
    if (kind == 't') multiply<1, 8>(c, words, tf32_of);
    else if (kind == 'b') multiply<2, 16>(c, words, bf16_of);
    else multiply<2, 16>(c, words, half_of);
}
void mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(F& c0, F& c1, F& c2, F& c3, U a0, U a1, U b) {
    multiply<2, 8>({&c0, &c1, &c2, &c3}, {{a0, a1, 0, 0, b, 0}}, half_of);
}

static void load_matrices(bool transposed, U* const (&to)[4], U row) {
    if (row % 16) fail("ldmatrix of rows that do not begin at multiples of 16 bytes");
    exchange(~0u, row, [&](auto of, unsigned) {
        for (int k = 0; k < 8; k++) {
            const int lane = now->lane, matrix = k / 2, i = lane / 4, j = lane % 4 * 2 + k % 2;
            const auto* there = shared_at(of(matrix * 8 + (transposed ? j : i)));
            ((unsigned short*)to[matrix])[k % 2] = ((const unsigned short*)there)[transposed ? i : j];
        }
        return 0;
    });
    warp_barrier(~0u);  // what was read may be written now
}
#define LOAD(name, transposed) void name(U& a, U& b, U& c, U& d, U row) { load_matrices(transposed, {&a, &b, &c, &d}, row); }
LOAD(ldmatrix_sync_aligned_m8n8_x4_shared_b16, false) LOAD(ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16, true)

void shfl_sync_bfly_b32(U& found, U v, int mask) { found = __shfl_xor_sync(~0u, v, mask); }
void redux_sync_max_u32(U& found, U v) { found = __reduce_max_sync(~0u, v); }

static Arrivals& arrivals(U at) { return *(Arrivals*)shared_at(at); }
void mbarrier_init_shared_cta_b64(U at) { arrivals(at) = {}; }
void mbarrier_arrive_expect_tx_shared_cta_b64(U at, int bytes) {
    Arrivals& a = arrivals(at);
    if (a.said) fail("an mbarrier is told what to expect of two turns at once");
    a.said = 1, a.missing += bytes, a.check();
}
void mbarrier_try_wait_parity_acquire_cluster_shared_cta_b64(U& done, U at, U odd) {
    done = (((volatile Arrivals&)arrivals(at)).turn & 1) != (int)odd;
    if (!done) receive_one(), yield();
}
void st_async_shared_cluster_mbarrier_complete_tx_bytes_v2_b32(U to, U a, U b, U at) {
    send({shared_at(to), &arrivals(at), 8, {a, b}});
}
void st_async_shared_cluster_mbarrier_complete_tx_bytes_v4_b32(U to, U a, U b, U c, U d, U at) {
    send({shared_at(to), &arrivals(at), 16, {a, b, c, d}});
}
}  // namespace ptx
