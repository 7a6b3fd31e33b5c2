// The instructions of PTX in which lanes or blocks meet: compiled here once, not with every kernel.
#include "driver.hpp"
#include "include/ptx.hpp"

namespace ptx {
using namespace cuda_on_cpu;

static float half_of(unsigned word, int i) { return std::bit_cast<_Float16>((unsigned short)(word >> 16 * i)); }
static float bf16_of(unsigned word, int i) { return __uint_as_float(word >> 16 * i << 16); }
static float tf32_of(unsigned word, int) { return __uint_as_float(word & ~0x1fffu); }  // the hardware reads no more

// mma.sync as the PTX manual draws it: matrices by element, from the words of the lanes.
struct Words { unsigned at[6]; };
template <int WORD, int DEPTH, class Read>
static void multiply(float* const (&c)[4], const Words& words, Read read) {
    const int lane = now->lane;
    exchange(~0u, words, [&](auto of) {
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
void mma_sync_aligned(const char* text, float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1,
                      unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    float* const c[] = {&c0, &c1, &c2, &c3};
    const Words words = {{a0, a1, a2, a3, b0, b1}};
    if (strstr(text, ".tf32")) multiply<1, 8>(c, words, tf32_of);
    else if (strstr(text, ".bf16")) multiply<2, 16>(c, words, bf16_of);
    else multiply<2, 16>(c, words, half_of);
}
void mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(float& c0, float& c1, float& c2, float& c3, unsigned a0,
                                                      unsigned a1, unsigned b) {
    float* const c[] = {&c0, &c1, &c2, &c3};
    multiply<2, 8>(c, {{a0, a1, 0, 0, b, 0}}, half_of);
}

static void load_matrices(bool transposed, unsigned* const (&to)[4], unsigned row) {
    const int lane = now->lane;
    if (row % 16) fail("ldmatrix of rows that do not begin at multiples of 16 bytes");
    exchange(~0u, row, [&](auto of) {
        for (int k = 0; k < 8; k++) {
            const int matrix = k / 2, i = lane / 4, j = lane % 4 * 2 + k % 2;
            const auto* there = shared_at(of(matrix * 8 + (transposed ? j : i)));
            ((unsigned short*)to[matrix])[k % 2] = ((const unsigned short*)there)[transposed ? i : j];
        }
        return 0;
    });
    warp_barrier(~0u);  // what was read may be written now
}
void ldmatrix_sync_aligned_m8n8_x4_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned row) {
    load_matrices(false, {&a, &b, &c, &d}, row);
}
void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned row) {
    load_matrices(true, {&a, &b, &c, &d}, row);
}

void shfl_sync_bfly_b32(unsigned& found, unsigned v, int mask) { found = __shfl_xor_sync(~0u, v, mask); }
void redux_sync_max_u32(unsigned& found, unsigned v) { found = __reduce_max_sync(~0u, v); }

static Arrivals& arrivals(unsigned at) { return *(Arrivals*)shared_at(at); }
void mbarrier_init_shared_cta_b64(unsigned at) { arrivals(at) = {}; }
void mbarrier_arrive_expect_tx_shared_cta_b64(unsigned at, int bytes) {
    Arrivals& a = arrivals(at);
    if (a.said) fail("an mbarrier is told what to expect of two turns at once");
    a.said = 1, a.missing += bytes;
    a.check();
}
void mbarrier_try_wait_parity_acquire_cluster_shared_cta_b64(unsigned& done, unsigned at, unsigned odd) {
    done = (((volatile Arrivals&)arrivals(at)).turn & 1) != (int)odd;
    if (!done) receive_one(), yield();
}
void st_async_shared_cluster_mbarrier_complete_tx_bytes_v2_b32(unsigned to, unsigned a, unsigned b, unsigned at) {
    send({shared_at(to), &arrivals(at), 8, {a, b}});
}
void st_async_shared_cluster_mbarrier_complete_tx_bytes_v4_b32(unsigned to, unsigned a, unsigned b, unsigned c,
                                                               unsigned d, unsigned at) {
    send({shared_at(to), &arrivals(at), 16, {a, b, c, d}});
}
}  // namespace ptx
