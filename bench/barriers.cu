// Kernels that measure how long blocks wait for one another in the barriers of the loops, and how many clusters run at once.

// Blocks (BLOCKS, groups): each group meets `steps` times.
extern "C" __global__ void CLUSTER_DIMENSIONS __launch_bounds__(THREADS, 1) KERNEL(int steps, unsigned* flags, unsigned* met) {
    SHARED_MEMORY(memory);  // two rooms with 16 bytes from each block, and their arrivals
    Group group = {(int)blockIdx.x, 0, 0, flags + blockIdx.y * BLOCKS, 0, (Arrivals*)memory};
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

#if RESIDENT
// counts[0]: clusters that are there now, counts[1]: the most that ever were. Each stays for so many nanoseconds.
extern "C" __global__ void CLUSTER_DIMENSIONS __launch_bounds__(THREADS, 1) xlstm_resident(long long stay, unsigned* counts) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        atomicMax(counts + 1, atomicAdd(counts, 1u) + 1);
        long long begin, now;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
        do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        while (now - begin < stay);
        atomicSub(counts, 1u);
    }
    arrive_cluster();
    wait_cluster();
}
#endif
