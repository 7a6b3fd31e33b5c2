// One step of a cell that takes means along its units, one launch a step and one block a sequence: the array library makes
// the product of h. Arrays are those of `pointwise.cu`.

extern "C" __global__ void KERNEL(PARAMETERS) {
    __shared__ double memory[THREADS];
    const Arrays a = ARRAYS;
    sync_units(a, row0 + blockIdx.x, blockIdx.x, memory);
}
