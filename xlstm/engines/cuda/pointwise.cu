// One step of the cell for all units of all its rows, one launch a step: the array library makes the product of h.
//
// The state is (sequences, units), the product (rows, ...) is that of this step alone.

extern "C" __global__ void KERNEL(PARAMETERS) {
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (long long)count * ALL) return;
    const int column = (int)(at / ALL), unit = (int)(at % ALL);
    const Arrays a = ARRAYS;
    State state;
    Constant constant;
    Fetched fetched;
    Result result;
    constants(constant, a, unit);
    fetch(fetched, a, row0 + column, unit);
    start(state, a, column, unit);
    REAL product[GATES];
#if BACKWARD
    step(state, constant, fetched, widen(a.product[at]), product, result);
#else
#pragma unroll
    for (int gate = 0; gate < ROWS; gate++)
        product[gate] = widen(a.product[((long long)column * ROWS + gate) * ALL + unit]);
    step(state, constant, fetched, product, result);
#endif
    keep(result, a, row0 + column, unit);
    finish(state, a, column, unit);
}
