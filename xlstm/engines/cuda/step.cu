// One step of a cell, one launch per step: the array library computes the product with h. A block has one sequence, or a part of
// its units if the cell takes no means along them.
//
// The state is (sequences, units). The product (rows, ...) is only that of this step.

extern "C" __global__ void KERNEL(PARAMETERS) {
    __shared__ double memory[THREADS];
    const Arrays a = ARRAYS;
    sync_units(a, row0 + blockIdx.x, blockIdx.x, memory);
}
