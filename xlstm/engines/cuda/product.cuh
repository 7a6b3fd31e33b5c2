// The product of weights that stay on the chip with a few columns, V (K, NB), by one block.
//
// MMA = 0: ordinary arithmetic multiplies them; all weights are in shared memory.
// MMA = 1: tensor cores multiply them (2: float32 as two float16, see factors.cuh); weights are fragments in registers, those
// beyond CHUNKS_KEPT of each warp in shared memory.
//
// With tensor cores, a row is read in chunks of 64 bytes, 16 by each of four lanes: the words w0..w3 of a lane. Two products of
// tensor cores take w0, w1 and w2, w3 of two rows of weights and of a column. The order of k differs from the order in memory,
// but it is the same for both factors, so the sum is the same. Weights lie in the order of the instruction's registers, two rows
// in turn, so that nothing is moved between a load and a product.

constexpr int VECTORS = M * K / VECTOR;  // of a block
DEVICE REAL weight(const IO* Wh, int head, int block, int row, int k);  // 0 outside of the matrix

#if MMA

constexpr int WARPS = THREADS / 32, WARPS_K = WARPS / WARPS_M;
constexpr int TILES = M / 16 / WARPS_M, CHUNKS = K * SIZE / 64 / WARPS_K;  // of a warp
constexpr int SPARE = CHUNKS - CHUNKS_KEPT;
// Rows are dealt to tiles so that a lane has neighbouring ones: both of its rows of a tile, or of two tiles.
constexpr int TOGETHER = TILES % 2 ? 2 : 4;
constexpr int SUMS = MMA == 1 && TILES <= 2 ? 2 : 1;  // with few tiles, so that no product waits for another
#if MMA == 2
// Chunks with the same scale, which share a sum; and chunks from shared memory in a turn of a loop: the compiler begins as many
// sums as it finds, and registers suffice for no more.
constexpr int SPAN = SCALE_CHUNKS == 2 && (CHUNKS % 2 || (CHUNKS_KEPT % 2 && SPARE)) ? 1 : SCALE_CHUNKS;
constexpr int TURN = SPARE < 6 ? SPARE + !SPARE : SPARE % 4 ? SPARE % 2 ? 1 : 2 : 4;
#else
constexpr int TURN = SPARE ? SPARE : 1;
#endif
constexpr int WEIGHT_BYTES = WARPS * TILES * SPARE * 1024;
static_assert(M % (16 * WARPS_M) == 0 && K * SIZE % (64 * WARPS_K) == 0 && NB % 8 == 0, "tiles");

DEVICE int first_row(int warp, int tiles, int lane) {
    return ((warp % WARPS_M + tiles * WARPS_M) * 8 + lane / 4) * TOGETHER;
}

struct Weights {
    uint4 kept[TILES][CHUNKS_KEPT][2];  // of two products; with MMA = 2 large parts, then small ones
#if MMA == 2
    float down[TILES];  // by which sums are multiplied
#endif
};

DEVICE void place(int vector, int element, int& row, int& k) {
    constexpr int WORD = 4 / SIZE;  // elements
    const int lane = vector % 32, second = vector / 32 % 2, j = vector / 64 % CHUNKS, word = element / WORD;
    const int i = vector / (64 * CHUNKS) % TILES, warp = vector / (64 * CHUNKS * TILES);
    row = first_row(warp, i / (TOGETHER / 2), lane) + i % (TOGETHER / 2) * 2 + word % 2;
    k = ((warp / WARPS_M * CHUNKS + j) * 4 + lane % 4) * VECTOR + (second * 2 + word / 2) * WORD + element % WORD;
}

DEVICE void load_weights(Weights& weights, uint4* spare, const uint4* arranged, int block) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint4* from = arranged + (long long)block * VECTORS + warp * TILES * CHUNKS * 64 + lane;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
            for (int which = 0; which < 2; which++) {
                const uint4 v = from[((i * CHUNKS + j) * 2 + which) * 32];
                if (j < CHUNKS_KEPT) weights.kept[i][j < CHUNKS_KEPT ? j : 0][which] = v;
                else spare[(((warp * TILES + i) * SPARE + j - CHUNKS_KEPT) * 2 + which) * 32 + lane] = v;
            }
        }
#if MMA == 2
        weights.down[i] = ((const float*)(arranged + (long long)HEADS * BLOCKS * VECTORS))[(block * WARPS + warp) * TILES + i];
#endif
    }
}

// Calls put(part, row, column, values) for all elements, TOGETHER rows from `row` on, in WARPS_K parts to be added.
template <class Put>
DEVICE void product(const Weights& weights, const uint4* spare, const uint4* V, const float* scales, Put put) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp / WARPS_M;
#pragma unroll 1
    for (int at = 0; at < NB / 8; at++) {
        float c[TILES][SUMS][4] = {};
        auto add = [&](auto chunks, int first_chunk, auto weights_of) {
            constexpr int COUNT = sizeof(*chunks);
#if MMA == 2
            float sums[TILES][4];  // not yet multiplied by their scale
#endif
#pragma unroll
            for (int j = 0; j < COUNT; j++) {
#if MMA == 2
                if (j % 4 == 3) sync_warp();  // no earlier loads: those of all chunks at once need too many registers
#endif
                const int chunk = part * CHUNKS + first_chunk + j;
                const uint4 v = V[(at * 8 + lane / 4) * V_ROW + chunk * 4 + lane % 4];
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    uint4 first, second;
                    weights_of(i, j, first, second);
#if MMA == 1
                    mma(operand_t(), c[i][0], first, v.x, v.y);
                    mma(operand_t(), c[i][SUMS - 1], second, v.z, v.w);
#else
                    float(&sum)[4] = sums[i];
                    if (j % SPAN == 0) sum[0] = sum[1] = sum[2] = sum[3] = 0;
                    mma(half_t(), sum, second, v.x, v.y);  // the smallest first
                    mma(half_t(), sum, first, v.z, v.w);
                    mma(half_t(), sum, first, v.x, v.y);
                    if (j % SPAN == SPAN - 1 || j == COUNT - 1) {
                        const float* down = scales + chunk * NB + at * 8 + lane % 4 * 2;
#pragma unroll
                        for (int e = 0; e < 4; e++) c[i][0][e] += sum[e] * down[e % 2];
                    }
#endif
                }
            }
        };
        add((char(*)[CHUNKS_KEPT])0, 0, [&](int i, int j, uint4& first, uint4& second) {
            first = weights.kept[i][j][0];
            second = weights.kept[i][j][1];
        });
#pragma unroll 1
        for (int j0 = 0; j0 < SPARE; j0 += TURN)
            add((char(*)[TURN])0, CHUNKS_KEPT + j0, [&](int i, int j, uint4& first, uint4& second) {
                const uint4* from = spare + ((warp * TILES + i) * SPARE + j0 + j) * 64 + lane;
                first = from[0];
                second = from[32];
            });
#pragma unroll
        for (int i = 0; i < TILES; i += TOGETHER / 2) {
            const int row = first_row(warp, i / (TOGETHER / 2), lane);
            Pack<REAL, TOGETHER> sums[2];  // of two columns
#pragma unroll
            for (int e = 0; e < 2 * TOGETHER; e++) {
                const float(&parts)[SUMS][4] = c[i + e / 4];
#if MMA == 2
                sums[e % 2].at[e / 2] = parts[0][e % 4] * weights.down[i + e / 4];
#else
                sums[e % 2].at[e / 2] = SUMS == 1 ? parts[0][e % 4] : parts[0][e % 4] + parts[SUMS - 1][e % 4];
#endif
            }
            const int column = at * 8 + lane % 4 * 2;
            put(part, row, column, sums[0]);
            put(part, row, column + 1, sums[1]);
        }
    }
}

#else

constexpr int WARPS_K = 1, TOGETHER = 1;
constexpr int WEIGHT_ROW = K * SIZE / 16 + 1;
constexpr int WEIGHT_BYTES = M * WEIGHT_ROW * 16;

struct Weights {};

DEVICE void place(int vector, int element, int& row, int& k) {
    row = vector / (K / VECTOR);
    k = vector % (K / VECTOR) * VECTOR + element;
}

DEVICE void load_weights(Weights&, uint4* all, const uint4* arranged, int block) {
    const uint4* from = arranged + (long long)block * VECTORS;
    for (int at = threadIdx.x; at < VECTORS; at += THREADS)
        all[at / (K / VECTOR) * WEIGHT_ROW + at % (K / VECTOR)] = from[at];
}

template <class Put>
DEVICE void product(const Weights&, const uint4* all, const uint4* V, const float*, Put put) {
    for (int at = threadIdx.x; at < M * NB; at += THREADS) {
        const int row = at % M, column = at / M;
        const uint4 *w = all + row * WEIGHT_ROW, *v = V + column * V_ROW;
        REAL sums[VECTOR] = {};  // no sum waits for another
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

// A separate kernel lays out the weights in the order in which blocks read them, 16 bytes per thread, in the type of products.
extern "C" __global__ void ARRANGE(const IO* __restrict__ Wh, uint4* to) {
#if MMA == 2
    // A block of this kernel has the chunks of one tile of one warp, and their scale.
    SHARED_MEMORY(memory);
    unsigned most = 0, *of_warps = (unsigned*)memory;
    const int tile = blockIdx.x % (WARPS * TILES), block = blockIdx.x / (WARPS * TILES);
    auto element = [&](int vector, int e) {
        int row, k;
        place(tile * CHUNKS * 64 + vector, e, row, k);
        return (float)weight(Wh, block / BLOCKS, block % BLOCKS, row, k);
    };
    for (int at = threadIdx.x; at < CHUNKS * 64 * 4; at += blockDim.x)
        most = greater(most, bits_of(element(at / 4, at % 4)) & 0x7fffffffu);
    most = largest<32>(most);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = most;
    sync_block();
    for (int warp = 0; warp < blockDim.x / 32; warp++) most = greater(most, of_warps[warp]);
    const Scale scale = scale_of(most);
    if (threadIdx.x == 0) ((float*)(to + (long long)HEADS * BLOCKS * VECTORS))[blockIdx.x] = scale.down;
    for (int at = threadIdx.x; at < CHUNKS * 32; at += blockDim.x) {
        const int first = at / 32 * 64 + at % 32;  // of two vectors, from which large and small parts are made
        half_t large[8], small[8];
#pragma unroll
        for (int e = 0; e < 8; e++)  // a word has two k of one row
            split(scale.up * element(first + e / 4 * 32, e % 2 * 2 + e / 2 % 2), large[e], small[e]);
        uint4* found = to + (long long)blockIdx.x * CHUNKS * 64 + first;
        found[0] = *(const uint4*)large;
        found[32] = *(const uint4*)small;
    }
#else
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)HEADS * BLOCKS * VECTORS) return;
    const int block = (int)(at / VECTORS);
    Words found;
#pragma unroll
    for (int e = 0; e < VECTOR; e++) {
        int row, k;
        place((int)(at % VECTORS), e, row, k);
        found.element[e] = to_operand(weight(Wh, block / BLOCKS, block % BLOCKS, row, k));
    }
    to[at] = found.vector;
#endif
}
