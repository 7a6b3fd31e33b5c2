// The time loop backward: one launch for all steps. A block has UNITS units of a head and NB sequences; it keeps the rows of
// Wh of its units on the chip, transposed, and multiplies its own dz by them. It gets a part of dh of its units from every
// block, and adds these parts always in the same order. Only dz leaves the chip.

constexpr int PART_ROW = CLUSTER ? UNITS + 4 : UNITS;  // without conflicts in shared memory
constexpr int PART = NB * PART_ROW;
constexpr int V_BYTES = NB * V_ROW * 16 + SCALES * 4;
// Parts of a grid are in global memory: all threads read them, each a share of the blocks, 16 bytes at a time.
constexpr int WIDE = 16 / (int)sizeof(REAL), PIECES = PART / WIDE;
constexpr int SHARES = THREADS / PIECES < 1 ? 1 : THREADS / PIECES < BLOCKS ? THREADS / PIECES : BLOCKS;
constexpr int SHARE = (BLOCKS + SHARES - 1) / SHARES;
constexpr int PARTS_BYTES = (CLUSTER ? 2 * BLOCKS : SHARES) * PART * (int)sizeof(REAL);
constexpr int ARRIVAL_BYTES = CLUSTER ? 16 : 0, STEP_BYTES = BLOCKS * NB * UNITS * (int)sizeof(REAL);
constexpr int SHARED_BYTES = V_BYTES + PARTS_BYTES + WEIGHT_BYTES + ARRIVAL_BYTES;
static_assert(SHARED_BYTES == SHARED_PLANNED, "shared memory as planned");
static_assert(PARTS_BYTES % 16 == 0 && K >= GATES * UNITS && M == BLOCKS * UNITS && WARPS_K == 1, "units");

// Rows are all units of the head, k are the gates of the block's units.
DEVICE REAL weight(const IO* Wh, int head, int block, int row, int k) {
    const int gate = k / UNITS, unit = block * UNITS + k % UNITS;
    if (gate >= GATES || unit >= WIDTH || row >= WIDTH) return 0;
    return widen(Wh[(((long long)gate * HEADS + head) * WIDTH + unit) * WIDTH + row]);
}

extern "C" __global__ void CLUSTER_DIMENSIONS __launch_bounds__(THREADS, 1) KERNEL(PARAMETERS) {
    SHARED_MEMORY(memory);
    uint4* V = (uint4*)memory;  // dz of this block (NB, K), and its scales
    float* scales = (float*)(V + NB * V_ROW);
    REAL* parts = (REAL*)(memory + V_BYTES);  // of dh: (BLOCKS, NB, UNITS), twice, in a cluster; (SHARES, NB, UNITS) in a grid
    uint4* spare = (uint4*)(memory + V_BYTES + PARTS_BYTES);
    const Arrays a = ARRAYS;

    Group group = group_of(group0, flags, (Arrivals*)(memory + SHARED_BYTES - ARRIVAL_BYTES), {late, number});
    const Offsets offset = {offsets, steps, width};

    Weights weights;
    load_weights(weights, spare, (const uint4*)arranged, group.head * BLOCKS + group.rank);
    for (int at = threadIdx.x; at < V_BYTES / 16; at += THREADS) V[at] = uint4{0, 0, 0, 0};

    State state[CELLS];
    Constant constant[CELLS];
    Fetched fetched[CELLS];
    Result result[CELLS];
    int last = steps - 1;
    while (last >= 0 && offset(last + 1) - offset(last) <= group.column0) last--;
    int row = offset(last), end = offset(last + 1), before = offset(last - 1);  // rows of step t and of the one before it
    cells(group, width, [&](int i, int column, int, int unit) {
        start(state[i], a, group.column0 + column, unit);
        constants(constant[i], a, unit);
    });
    if (last >= 0) {
        const long long row0 = row + group.column0;
        cells(group, end - row, [&](int i, int column, int, int all) { fetch(fetched[i], a, row0 + column, all); });
    }
    sync_block();
    begin_group(group, STEP_BYTES);

#if !CLUSTER
    // Adds the results of all blocks at step t to one part per share.
    auto receive = [&](int t) {
        const uint4* from = (const uint4*)exchange
            + ((t % 2 * (long long)gridDim.y + blockIdx.y) * BLOCKS + group.rank) * BLOCKS * PIECES;
        deal<SHARES * PIECES>([&](int, unsigned at) {
            const int first = at / PIECES * SHARE;
            Pack<REAL, WIDE> sum = {};
#pragma unroll 8
            for (int n = 0; n < SHARE; n++) {
                if (SHARES * SHARE > BLOCKS && first + n >= BLOCKS) break;
                const uint4 v = load_fresh(from + (first + n) * PIECES + at % PIECES);
#pragma unroll
                for (int e = 0; e < WIDE; e++) sum.at[e] += ((const REAL*)&v)[e];
            }
            ((Pack<REAL, WIDE>*)parts)[at] = sum;
        });
        sync_block();
    };
#endif
    // The sum of all blocks' parts of a cell's dh at step t.
    auto received = [&](int t, int column, int unit) {
        const REAL* from = parts + (CLUSTER ? t % 2 * BLOCKS * PART : 0) + column * PART_ROW + unit;
        REAL sum = 0;
#pragma unroll 16
        for (int part = 0; part < (CLUSTER ? BLOCKS : SHARES); part++) sum += from[part * PART];
        return sum;
    };
    for (int t = last; t >= 0; t--) {
        const long long row0 = row + group.column0;
        all_cells(group, end - row, [&](int i, int column, int unit, int, bool there) {
            REAL dz[GATES] = {};
            if (there) step(state[i], constant[i], fetched[i], t == last ? REAL(0) : received(t + 1, column, unit), dz, result[i]);
            put_factors<UNITS>((operand_t*)V + column * V_ROW * VECTOR, scales + column, unit, dz);
        });
        sync_block();
        product(weights, spare, V, scales, [&](int, int row, int column, auto values) {
            const int to = row / UNITS, place = column * PART_ROW + row % UNITS;
#if CLUSTER
            send(group, (decltype(values)*)(parts + (t % 2 * BLOCKS + group.rank) * PART + place), to, values);
#else
            const long long part = ((t % 2 * (long long)gridDim.y + blockIdx.y) * BLOCKS + to) * BLOCKS + group.rank;
            store_wide((decltype(values)*)((REAL*)exchange + part * PART + place), values);
#endif
        });
        arrive_group(group);
        cells(group, end - row, [&](int i, int column, int, int all) { keep(result[i], a, row0 + column, all); });
        const int preceding = offset(t - 2);
        const long long next = before + group.column0;
        cells(group, row - before, [&](int i, int column, int, int all) { fetch(fetched[i], a, next + column, all); });
        end = row, row = before, before = preceding;
        wait_group(group, STEP_BYTES);
#if !CLUSTER
        receive(t);
#endif
    }
    cells(group, width, [&](int i, int column, int unit, int all) {
        if (last >= 0) state[i].h += masked(state[i], received(0, column, unit));
        finish(state[i], a, group.column0 + column, all);
    });
}
