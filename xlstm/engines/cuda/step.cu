// One step of a cell, one launch a step: the array library makes the product of h. A block has one sequence, or a part of its
// units where the cell takes no means along them.
//
// The state is (sequences, units), the product (rows, ...) is that of this step alone.

extern "C" __global__ void KERNEL(PARAMETERS) {
    __shared__ double memory[THREADS];
    const Arrays a = ARRAYS;
    sync_units(a, row0 + blockIdx.x, blockIdx.x, memory);
}
