// How long blocks wait for one another in the barriers of the loops.

// Blocks (BLOCKS, groups): each group meets `steps` times.
extern "C" __global__ void CLUSTER_DIMENSIONS __launch_bounds__(THREADS, 1) KERNEL(int steps, unsigned* flags, unsigned* met) {
    Group group = {(int)blockIdx.x, 0, 0, flags + blockIdx.y * BLOCKS, 0};
    unsigned count = 0;
    for (int t = 0; t < steps; t++) {
        arrive_group(group);
        wait_group(group);
        count++;
    }
    if (threadIdx.x == 0) met[blockIdx.y * BLOCKS + blockIdx.x] = count;
}
