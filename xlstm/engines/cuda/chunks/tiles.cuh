// Products of matrices in shared memory, on tensor cores, by the warps of a block.
//
// A number is kept as PLANES numbers of 16 bits that add up to it. A half is one. A float32 is three bfloat16, which keep all its
// digits and its range, or two if 16 digits are enough. The product of two numbers leaves out products of parts below the last
// digit.

constexpr int WARPS = 8;
static_assert(THREADS == 32 * WARPS, "threads");
struct Yes {
    static constexpr bool value = true;
};
struct No {
    static constexpr bool value = false;
};

// PACK neighbours are read at once to fill tiles, and pairs of results are written.
using Pair = Pack<IO, 2>;
DEVICE Pair pair_of(float first, float second) {
    Pair both;
    narrow(both.at[0], first);
    narrow(both.at[1], second);
    return both;
}

template <int ROWS, int COLS>
struct Tile {
    operand_t at[PLANES][ROWS][COLS + 8];  // rows begin in different banks

    template <int COUNT>
    DEVICE void put(int row, int col, float (&values)[COUNT]) {
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++) {
            Pack<operand_t, COUNT> parts;
#pragma unroll
            for (int e = 0; e < COUNT; e++) {
                narrow(parts.at[e], values[e]);
                values[e] -= widen(parts.at[e]);
            }
            *(Pack<operand_t, COUNT>*)&at[plane][row][col] = parts;
        }
    }
    DEVICE void put(int row, int col, float first, float second) {
        float both[2] = {first, second};
        put(row, col, both);
    }
    DEVICE float get(int row, int col) const {
        float sum = 0;
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++) sum += widen(at[plane][row][col]);
        return sum;
    }
};

// The value of a number in a tile: the number itself, or `value(row, number)`.
struct Same {
    DEVICE float operator()(int, float v) const { return v; }
};
using Packed = Pack<IO, PACK>;
template <int ROWS, int COLS, class Value>
DEVICE void put(Tile<ROWS, COLS>& tile, int row, int col, const Packed& numbers, Value value) {
    float values[PACK];
#pragma unroll
    for (int e = 0; e < PACK; e++) values[e] = value(row, widen(numbers.at[e]));
    tile.put(row, col, values);
}
#if HALVES
template <int ROWS, int COLS>
DEVICE void put(Tile<ROWS, COLS>& tile, int row, int col, const Packed& numbers, Same) {
    *(Packed*)&tile.at[0][row][col] = numbers;
}
#endif

// A tile that is loaded from global memory. `at(row, col)` is the address of numbers, or 0 for zeros.
template <int ROWS, int COLS>
struct Coming {
    static constexpr int PACKS = ROWS * COLS / PACK, EACH = (PACKS + THREADS - 1) / THREADS;
    Packed packs[EACH];

    template <class At>
    DEVICE void fetch(At at) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const unsigned item = threadIdx.x + i * THREADS;
            const IO* from = item < PACKS ? at(item / (COLS / PACK), item % (COLS / PACK) * PACK) : nullptr;
            packs[i] = from ? *(const Packed*)from : Packed{};
        }
    }
    template <class Value>
    DEVICE void give(Tile<ROWS, COLS>& tile, Value value) const {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const unsigned item = threadIdx.x + i * THREADS;
            if (item < PACKS) put(tile, item / (COLS / PACK), item % (COLS / PACK) * PACK, packs[i], value);
        }
    }
};

// The same at once, a few at a time.
template <int ROWS, int COLS, class At, class Value>
DEVICE void fill(Tile<ROWS, COLS>& tile, At at, Value value) {
    constexpr int PACKS = ROWS * COLS / PACK;
#pragma unroll 4
    for (int i = 0; i < (PACKS + THREADS - 1) / THREADS; i++) {
        const unsigned item = threadIdx.x + i * THREADS, row = item / (COLS / PACK), col = item % (COLS / PACK) * PACK;
        if (PACKS % THREADS && item >= PACKS) continue;
        const IO* from = at(row, col);
        put(tile, row, col, from ? *(const Packed*)from : Packed{}, value);
    }
}

// A matrix (M, N) in the registers of a block, in pieces of 16 by 16: each warp has 16 rows and regularly spaced columns.
template <int M, int N>
struct Sums {
    static constexpr int ROWS = M / 16, BESIDE = WARPS / ROWS, COUNT = (N / 16 + BESIDE - 1) / BESIDE;
    static_assert(M % 16 == 0 && N % 16 == 0 && WARPS % ROWS == 0, "warps have rows of their own");
    float part[COUNT][2][4] = {};

    static DEVICE int row() { return threadIdx.x / 32 % ROWS * 16; }
    static DEVICE int column(int i) { return (threadIdx.x / 32 / ROWS + i * BESIDE) * 16; }

    // f(row, column, first, second) for pairs of neighbours.
    template <class F>
    DEVICE void each(F f) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (column(i) >= N) continue;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float* pair = part[i][e / 2] + e % 2 * 2;
                f(row() + lane / 4 + e % 2 * 8, column(i) + e / 2 * 8 + lane % 4 * 2, pair[0], pair[1]);
            }
        }
    }
};

// Four matrices of 8 x 8 from (row, col) on, the second below or beside the first, as `mma` takes them.
template <bool TRANSPOSED, bool DOWN, int ROWS, int COLS>
DEVICE uint4 fragment(const Tile<ROWS, COLS>& tile, int plane, int row, int col) {
    const int lane = threadIdx.x % 32, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
    return load_matrices<TRANSPOSED>(&tile.at[plane][row + (DOWN ? first : second) + lane % 8][col + (DOWN ? second : first)]);
}

// sums (M, N) += A (M, DEPTH) B (DEPTH, N). Columns of A and rows of B lie along the columns of their tiles; with A_DOWN or
// B_DOWN, along the rows. They begin at a_at and b_at.
template <bool A_DOWN, bool B_DOWN, int DEPTH, int M, int N, class A, class B>
DEVICE void multiply(Sums<M, N>& sums, const A& a, int a_at, const B& b, int b_at) {
    const int row = sums.row();
#pragma unroll 1
    for (int k = 0; k < DEPTH; k += 16) {
        uint4 left[PLANES];
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            left[plane] = A_DOWN ? fragment<true, false>(a, plane, a_at + k, row) : fragment<false, true>(a, plane, row, a_at + k);
#pragma unroll
        for (int i = 0; i < sums.COUNT; i++) {
            const int column = sums.column(i);
            if (column >= N) continue;
#pragma unroll
            for (int plane = PLANES - 1; plane >= 0; plane--) {  // the smallest first
                const uint4 right =
                    B_DOWN ? fragment<true, true>(b, plane, b_at + k, column) : fragment<false, false>(b, plane, column, b_at + k);
#pragma unroll
                for (int other = PLANES - 1 - plane; other >= 0; other--) {
                    mma(operand_t(), sums.part[i][0], left[other], right.x, right.y);
                    mma(operand_t(), sums.part[i][1], left[other], right.z, right.w);
                }
            }
        }
    }
}
