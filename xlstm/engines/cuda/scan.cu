// The time loop of a cell without a product with h, forward or backward: one launch for all steps. A thread has one unit of one
// sequence, and waits for no other thread. It loads the values of a step AHEAD steps earlier.

constexpr int AHEAD = 4;

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(PARAMETERS) {
    const Arrays a = ARRAYS;
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (long long)width * ALL) return;
    const int column = (int)(at / ALL), unit = (int)(at % ALL);
    const Offsets offset = {offsets, steps, width};
    int count = steps;  // of this sequence
    while (count > 0 && offset(count) - offset(count - 1) <= column) count--;
    auto row = [&](int turn) { return (long long)offset(BACK ? count - 1 - turn : turn) + column; };

    State state;
    Constant constant;
    Fetched fetched[AHEAD];
    start(state, a, column, unit);
    constants(constant, a, unit);
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        if (i < count) fetch(fetched[i], a, row(i), unit);
#pragma unroll 1
    for (int first = 0; first < count; first += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int turn = first + i;
            if (turn >= count) break;
            Result result;
            REAL product[GATES] = {};
#if BACK
            step(state, constant, fetched[i], 0, product, result);
#else
            step(state, constant, fetched[i], product, result);
#endif
            if (turn + AHEAD < count) fetch(fetched[i], a, row(turn + AHEAD), unit);
            keep(result, a, row(turn), unit);
        }
    }
    finish(state, a, column, unit);
}
