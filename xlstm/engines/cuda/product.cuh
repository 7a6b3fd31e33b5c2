// The product of weights that stay on the chip with a few columns, V (K, NB), by one block.
//
// MMA = 0: all weights are in shared memory and are multiplied by ordinary arithmetic. MMA = 1: tensor cores multiply them
// (2: float32 as the sum of two TF32); weights are fragments in registers, those beyond CHUNKS_KEPT of each warp in shared
// memory.
//
// A row is read in chunks of 64 bytes, 16 by each of four lanes, which are words w0..w3 of a lane: two products of tensor
// cores take w0, w1 and w2, w3 of two rows of weights and of a column. The order of k differs from that in memory, but is
// the same for both factors, and nothing else matters in a sum.

constexpr int SIZE = sizeof(operand_t);
constexpr int VECTOR = 16 / SIZE;  // elements of a lane
constexpr int V_ROW = (K * SIZE / 64 % 2 ? K * SIZE : K * SIZE + 64) / 16;  // of a column, in 16 bytes: without conflicts

DEVICE operand_t to_operand(REAL v) {
    operand_t found;
#if TF32
    narrow(found, round_tf32(v));
#else
    narrow(found, v);
#endif
    return found;
}

union Words {
    uint4 vector;
    unsigned word[4];
    operand_t element[VECTOR];
};

// Numbers next to each other in memory, which go there at once.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
    T value[N];
};

// A kernel of its own lays the weights out as the blocks read them, 16 bytes a thread, in the type of products.
// weight(Wh, head, block, row, k) is 0 outside of the matrix.
constexpr int VECTORS = M * K / VECTOR;  // of a block
DEVICE REAL weight(const IO* Wh, int head, int block, int row, int k);
DEVICE void place(int vector, int& row, int& k);

extern "C" __global__ void ARRANGE(const IO* __restrict__ Wh, uint4* to) {
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)HEADS * BLOCKS * VECTORS) return;
    const int block = (int)(at / VECTORS);
    int row, k;
    place((int)(at % VECTORS), row, k);
    Words found;
#pragma unroll
    for (int e = 0; e < VECTOR; e++)
        found.element[e] = to_operand(weight(Wh, block / BLOCKS, block % BLOCKS, row, k + e));
    to[at] = found.vector;
}

#if MMA

constexpr int WARPS = THREADS / 32, WARPS_K = WARPS / WARPS_M;
constexpr int TILES = M / 16 / WARPS_M, CHUNKS = K * SIZE / 64 / WARPS_K;  // of a warp
constexpr int COLUMNS = NB / 8;
constexpr int SPARE = CHUNKS - CHUNKS_KEPT;
// Rows are dealt to tiles so that a lane has some next to each other: both of its rows of a tile, or of two.
constexpr int TOGETHER = TILES % 2 ? 2 : 4;
// Where there are few tiles, each of the three products has a sum of its own, so that none waits for another.
constexpr int SUMS = TILES * COLUMNS_AT_ONCE <= (MMA == 2 ? 4 : 2) ? MMA + 1 : 1;
constexpr int WEIGHT_BYTES = WARPS * TILES * SPARE * 1024;
static_assert(M % (16 * WARPS_M) == 0 && K * SIZE % (64 * WARPS_K) == 0 && NB % (8 * COLUMNS_AT_ONCE) == 0, "tiles");

DEVICE int first_row(int warp, int tiles, int lane) {
    return ((warp % WARPS_M + tiles * WARPS_M) * 8 + lane / 4) * TOGETHER;
}

struct Weights {
    uint4 kept[TILES][CHUNKS_KEPT][2];
};

DEVICE void place(int vector, int& row, int& k) {
    const int lane = vector % 32, half = vector / 32 % 2, j = vector / 64 % CHUNKS;
    const int i = vector / (64 * CHUNKS) % TILES, warp = vector / (64 * CHUNKS * TILES);
    row = first_row(warp, i / (TOGETHER / 2), lane) + i % (TOGETHER / 2) * 2 + half;
    k = ((warp / WARPS_M * CHUNKS + j) * 4 + lane % 4) * VECTOR;
}

DEVICE void load_weights(Weights& weights, uint4* spare, const uint4* from) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint4 v = from[(((warp * TILES + i) * CHUNKS + j) * 2 + half) * 32 + lane];
                if (j < CHUNKS_KEPT) weights.kept[i][j < CHUNKS_KEPT ? j : 0][half] = v;
                else spare[(((warp * TILES + i) * SPARE + j - CHUNKS_KEPT) * 2 + half) * 32 + lane] = v;
            }
        }
    }
}

DEVICE void multiply(float (&c)[SUMS][4], uint4 low, uint4 high, uint4 v) {
#if MMA == 1
    mma(operand_t(), c[0], low.x, high.x, low.y, high.y, v.x, v.y);
    mma(operand_t(), c[SUMS - 1], low.z, high.z, low.w, high.w, v.z, v.w);
#else
    forget(low);
    forget(high);
    Words parts[3] = {{low}, {high}, {v}}, rests[3];
#pragma unroll
    for (int p = 0; p < 3; p++) {
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const float all = float_of(parts[p].word[w]), part = round_tf32(all);
            parts[p].word[w] = bits_of(part);
            rests[p].word[w] = bits_of(all - part);  // of which a tensor core reads the 11 bits that matter
        }
    }
#pragma unroll
    for (int w = 0; w < 4; w += 2) {
        const unsigned* l = parts[0].word + w;
        const unsigned* h = parts[1].word + w;
        const unsigned* b = parts[2].word + w;
        const unsigned *lr = rests[0].word + w, *hr = rests[1].word + w, *br = rests[2].word + w;
        mma(0.0f, c[0], lr[0], hr[0], lr[1], hr[1], b[0], b[1]);
        mma(0.0f, c[SUMS / 2], l[0], h[0], l[1], h[1], br[0], br[1]);
        mma(0.0f, c[SUMS - 1], l[0], h[0], l[1], h[1], b[0], b[1]);
    }
#endif
}

// Calls put(part, row, column, values) for all elements, TOGETHER rows from `row` on, in WARPS_K parts to be added.
template <class Put>
DEVICE void product(const Weights& weights, const uint4* spare, const uint4* V, Put put) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp / WARPS_M;
#pragma unroll 1
    for (int at = 0; at < COLUMNS; at += COLUMNS_AT_ONCE) {
        float c[TILES][COLUMNS_AT_ONCE][SUMS][4] = {};
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            uint4 v[COLUMNS_AT_ONCE];
#pragma unroll
            for (int n = 0; n < COLUMNS_AT_ONCE; n++)
                v[n] = V[((at + n) * 8 + lane / 4) * V_ROW + (part * CHUNKS + j) * 4 + lane % 4];
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                uint4 low, high;
                if (j < CHUNKS_KEPT) {
                    low = weights.kept[i][j < CHUNKS_KEPT ? j : 0][0];
                    high = weights.kept[i][j < CHUNKS_KEPT ? j : 0][1];
                } else {
                    const uint4* from = spare + ((warp * TILES + i) * SPARE + j - CHUNKS_KEPT) * 64 + lane;
                    low = from[0];
                    high = from[32];
                }
#pragma unroll
                for (int n = 0; n < COLUMNS_AT_ONCE; n++) multiply(c[i][n], low, high, v[n]);
            }
        }
#pragma unroll
        for (int i = 0; i < TILES; i += TOGETHER / 2) {
            const int row = first_row(warp, i / (TOGETHER / 2), lane);
#pragma unroll
            for (int n = 0; n < COLUMNS_AT_ONCE; n++) {
                Pack<REAL, TOGETHER> sums[2];  // of two columns
#pragma unroll
                for (int e = 0; e < 2 * TOGETHER; e++) {
                    const float(&parts)[SUMS][4] = c[i + e / 4][n];
                    float sum = parts[0][e % 4];  // the smallest first
#pragma unroll
                    for (int s = 1; s < SUMS; s++) sum += parts[s][e % 4];
                    sums[e % 2].value[e / 2] = sum;
                }
                const int column = (at + n) * 8 + lane % 4 * 2;
                put(part, row, column, sums[0]);
                put(part, row, column + 1, sums[1]);
            }
        }
    }
}

#else

constexpr int WARPS_K = 1, TOGETHER = 1;
constexpr int WEIGHT_ROW = K * SIZE / 16 + 1;
constexpr int WEIGHT_BYTES = M * WEIGHT_ROW * 16;

struct Weights {};

DEVICE void place(int vector, int& row, int& k) {
    row = vector / (K / VECTOR);
    k = vector % (K / VECTOR) * VECTOR;
}

DEVICE void load_weights(Weights&, uint4* all, const uint4* from) {
    for (int at = threadIdx.x; at < VECTORS; at += THREADS)
        all[at / (K / VECTOR) * WEIGHT_ROW + at % (K / VECTOR)] = from[at];
}

template <class Put>
DEVICE void product(const Weights&, const uint4* all, const uint4* V, Put put) {
    for (int at = threadIdx.x; at < M * NB; at += THREADS) {
        const int row = at % M, column = at / M;
        const uint4 *w = all + row * WEIGHT_ROW, *v = V + column * V_ROW;
        REAL sums[VECTOR] = {};  // none waits for another
#pragma unroll 4
        for (int k = 0; k < K / VECTOR; k++) {
            const Words a = {w[k]}, b = {v[k]};
#pragma unroll
            for (int e = 0; e < VECTOR; e++) sums[e] += a.element[e] * b.element[e];
        }
        REAL sum = 0;
#pragma unroll
        for (int e = 0; e < VECTOR; e++) sum += sums[e];
        put(0, row, column, Pack<REAL, 1>{{sum}});
    }
}

#endif
