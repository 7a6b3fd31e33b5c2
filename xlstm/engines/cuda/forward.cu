// The time loop forward: one launch for all steps. A block has UNITS units of a head and NB sequences; it keeps the rows of
// Wh of its units on the chip, and gets h of all units of the head at every step.

constexpr int Z_ROW = M + 4;  // of a column, so that a warp's tile writes without conflicts
constexpr int V_BYTES = NB * V_ROW * 16 + SCALES * 4, V_ROOMS = CLUSTER ? 2 : 1;
constexpr int Z_BYTES = WARPS_K * NB * Z_ROW * (int)sizeof(REAL);
constexpr int OUT_SCALES = SCALES ? NB * UNITS / 16 : 0;  // scales that a block computes
constexpr int OUT_BYTES = NB * UNITS * SIZE + OUT_SCALES * 4;
constexpr int ARRIVAL_BYTES = CLUSTER ? 16 : 0;
constexpr int SHARED_BYTES = V_ROOMS * V_BYTES + Z_BYTES + OUT_BYTES + WEIGHT_BYTES + ARRIVAL_BYTES;
static_assert(SHARED_BYTES == SHARED_PLANNED, "shared memory as planned");
static_assert(UNITS * SIZE % 16 == 0 && K >= BLOCKS * UNITS && M == GATES * UNITS, "units");

// Rows are the gates of the block's units, k are all units of the head.
DEVICE REAL weight(const IO* Wh, int head, int block, int row, int k) {
    const int gate = row / UNITS, unit = block * UNITS + row % UNITS;
    if (unit >= WIDTH || k >= WIDTH) return 0;
    return widen(Wh[(((long long)gate * HEADS + head) * WIDTH + unit) * WIDTH + k]);
}

extern "C" __global__ void CLUSTER_DIMENSIONS __launch_bounds__(THREADS, 1) KERNEL(PARAMETERS) {
    SHARED_MEMORY(memory);
    uint4* V = (uint4*)memory;  // h (NB, K) and its scales, twice in a cluster
    REAL* Z = (REAL*)(memory + V_ROOMS * V_BYTES);  // Wh h (WARPS_K, NB, M)
    operand_t* out = (operand_t*)(memory + V_ROOMS * V_BYTES + Z_BYTES);  // h of this block (NB, UNITS), and its scales
    uint4* spare = (uint4*)(memory + V_ROOMS * V_BYTES + Z_BYTES + OUT_BYTES);
    const Arrays a = ARRAYS;

    Group group = group_of(group0, flags, (Arrivals*)(memory + SHARED_BYTES - ARRIVAL_BYTES), {late, number});
    const Offsets offset = {offsets, steps, width};
    int row = offset(0), end = offset(1), next_end = offset(2);  // rows of step t and of the next one

    Weights weights;
    load_weights(weights, spare, (const uint4*)arranged, group.head * BLOCKS + group.rank);
    for (int at = threadIdx.x; at < V_ROOMS * V_BYTES / 16; at += THREADS) V[at] = uint4{0, 0, 0, 0};
    for (int at = threadIdx.x; at < OUT_BYTES / 16; at += THREADS) ((uint4*)out)[at] = uint4{0, 0, 0, 0};
    sync_block();
#pragma unroll 1
    for (int at = threadIdx.x; at < NB * K; at += THREADS) {
        const int column = at / K, k = at % K;
        const long long from = (long long)(group.column0 + column) * HEADS * WIDTH + group.head * WIDTH + k;
        const REAL h[] = {group.column0 + column < width && k < WIDTH ? first_h(a, from) : 0};
        put_factors<0>((operand_t*)V + column * V_ROW * VECTOR, (float*)(V + NB * V_ROW) + column, k, h);
    }

    State state[CELLS];
    Constant constant[CELLS];
    Fetched fetched[CELLS];
    Result result[CELLS];
    cells(group, width, [&](int i, int column, int, int unit) {
        start(state[i], a, group.column0 + column, unit);
        constants(constant[i], a, unit);
        fetch(fetched[i], a, group.column0 + column, unit);
    });
    sync_block();
    begin_group(group, BLOCKS * OUT_BYTES);

    for (int t = 0; end - row > group.column0; t++) {
        const uint4* h = V + (CLUSTER ? t % 2 : 0) * (V_BYTES / 16);
        product(weights, spare, h, (const float*)(h + NB * V_ROW), [&](int part, int row, int column, auto values) {
            *(decltype(values)*)(Z + (part * NB + column) * Z_ROW + row) = values;
        });
        sync_block();
        const long long row0 = row + group.column0;
        all_cells(group, end - row, [&](int i, int column, int unit, int, bool there) {
            REAL zh[GATES], made[] = {0};
#pragma unroll
            for (int gate = 0; gate < GATES; gate++) {
                zh[gate] = 0;
#pragma unroll
                for (int part = 0; part < WARPS_K; part++)
                    zh[gate] += Z[(part * NB + column) * Z_ROW + gate * UNITS + unit];
            }
            if (there) {
                step(state[i], constant[i], fetched[i], zh, result[i]);
                made[0] = masked(state[i], state[i].h);
            }
            put_factors<0>(out + column * UNITS, (float*)(out + NB * UNITS) + column, unit, made);
        });
        auto keep_all = [&] {
            cells(group, end - row, [&](int i, int column, int, int all) { keep(result[i], a, row0 + column, all); });
        };
        if (next_end - end <= group.column0) {
            keep_all();
            break;
        }
        sync_block();

        constexpr int PIECES = UNITS * SIZE / 16, SCALE_PIECES = OUT_SCALES / 4;  // of a column; of all scales
#if CLUSTER
        uint4* to = V + (t + 1) % 2 * (V_BYTES / 16);
        deal<BLOCKS * NB * PIECES>([&](int, unsigned at) {
            const int piece = at % PIECES, column = at / PIECES % NB;
            send(group, to + column * V_ROW + group.rank * PIECES + piece, at / (PIECES * NB),
                 ((uint4*)out)[column * PIECES + piece]);
        });
        deal<BLOCKS * SCALE_PIECES>([&](int, unsigned at) {
            const int piece = at % SCALE_PIECES;
            send(group, to + NB * V_ROW + group.rank * SCALE_PIECES + piece, at / SCALE_PIECES,
                 ((uint4*)out)[NB * PIECES + piece]);
        });
#else
        constexpr int ROW = BLOCKS * PIECES, ALL_SCALES = BLOCKS * SCALE_PIECES;
        uint4* through = (uint4*)exchange + ((t + 1) % 2 * (long long)gridDim.y + blockIdx.y) * (NB * ROW + ALL_SCALES);
        deal<NB * PIECES>([&](int, unsigned at) {
            through[at / PIECES * ROW + group.rank * PIECES + at % PIECES] = ((uint4*)out)[at];
        });
        deal<SCALE_PIECES>([&](int, unsigned at) {
            through[NB * ROW + group.rank * SCALE_PIECES + at] = ((uint4*)out)[NB * PIECES + at];
        });
#endif
        arrive_group(group);
        keep_all();
        const int following = offset(t + 3);
        const long long next = end + group.column0;
        cells(group, next_end - end, [&](int i, int column, int, int all) { fetch(fetched[i], a, next + column, all); });
        wait_group(group, BLOCKS * OUT_BYTES);
#if !CLUSTER
        constexpr int FRESH = NB * ROW + ALL_SCALES;
        uint4 fresh[(FRESH + THREADS - 1) / THREADS];  // all loads are issued before the first wait
        deal<FRESH>([&](int i, unsigned at) { fresh[i] = load_fresh(through + at); });
        deal<FRESH>([&](int i, unsigned at) {
            V[at < NB * ROW ? at / ROW * V_ROW + at % ROW : NB * V_ROW + at - NB * ROW] = fresh[i];
        });
        sync_block();
#endif
        row = end, end = next_end, next_end = following;
    }
    cells(group, width, [&](int i, int column, int, int unit) { finish(state[i], a, group.column0 + column, unit); });
}
