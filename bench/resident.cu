// How many clusters run at once.

// counts[0]: clusters that are there now, counts[1]: the most that ever were. Each stays for so many nanoseconds.
extern "C" __global__ void CLUSTER_DIMENSIONS __launch_bounds__(THREADS, 1) KERNEL(long long stay, unsigned* counts) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        atomicMax(counts + 1, atomicAdd(counts, 1u) + 1);
        const long long begin = nanoseconds();
        while (nanoseconds() - begin < stay) {}
        atomicSub(counts, 1u);
    }
    arrive_cluster();
    wait_cluster();
}
