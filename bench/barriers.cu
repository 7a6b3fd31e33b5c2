// How long blocks wait for one another in the barriers of the loops.

// Blocks (BLOCKS, groups): each group meets `steps` times.
extern "C" __global__ void CLUSTER_DIMENSIONS __launch_bounds__(THREADS, 1) KERNEL(int steps, unsigned* flags, unsigned* met,
    unsigned* late) {
    SHARED_MEMORY(memory);  // two rooms with 16 bytes from each block, and their arrivals
    Group group = {(int)blockIdx.x, 0, 0, flags + blockIdx.y * BLOCKS, 0, (Arrivals*)memory, {late, 1}};
    unsigned count = 0;
    begin_group(group, BLOCKS * 16);
    for (unsigned t = 0; t < steps; t++) {
#if CLUSTER
        sync_block();
        uint4* room = (uint4*)memory + 1 + t % 2 * BLOCKS;
        deal<BLOCKS>([&](int, unsigned block) { send(group, room + group.rank, block, uint4{t, t, t, t}); });
#endif
        arrive_group(group);
        wait_group(group, BLOCKS * 16);
        count++;
    }
    if (threadIdx.x == 0) met[blockIdx.y * BLOCKS + blockIdx.x] = count;
}
