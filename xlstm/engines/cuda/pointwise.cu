// One step of the cell for all units of all its rows, one launch a step: the product of h is cuBLAS's.

// The state (sequences, units) is that of sequence0 and those after; zh and dh (rows, ...) are of this step alone.
#define CELL                                                                                       \
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x;                            \
    if (at >= (long long)count * (HEADS * WIDTH)) return;                                          \
    const int column = (int)(at / (HEADS * WIDTH)), unit = (int)(at % (HEADS * WIDTH));            \
    const Arrays a = ARRAYS;                                                                       \
    State state;                                                                                   \
    Constant constant;                                                                             \
    Fetched fetched;                                                                               \
    Result result;                                                                                 \
    constants(constant, a, unit);                                                                  \
    fetch(fetched, a, row0 + column, unit)

#if BACKWARD
extern "C" __global__ void KERNEL(PARAMETERS) {
    CELL;
    resume(state, a, column, unit);
    REAL dz[GATES];
    step(state, constant, fetched, a.product ? REAL(widen(a.product[at])) : REAL(0), dz, result);
    keep(result, a, row0 + column, unit);
    suspend(state, a, column, unit);
}
#else
extern "C" __global__ void KERNEL(PARAMETERS) {
    CELL;
#if AGAIN
    recall(state, a, row0 + column, unit);
#else
    resume(state, a, column, unit);
#endif
    REAL zh[GATES];
#pragma unroll
    for (int gate = 0; gate < GATES; gate++)
        zh[gate] = widen(a.product[((long long)column * GATES + gate) * (HEADS * WIDTH) + unit]);
    step(state, constant, fetched, zh, result);
    keep(result, a, row0 + column, unit);
#if !AGAIN
    suspend(state, a, column, unit);
#endif
}
#endif
