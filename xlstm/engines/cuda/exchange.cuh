// The barrier of a group: its blocks have the units of one head for some columns, and give each other what they computed.
//
// CLUSTER = 1: the group is a cluster, and blocks write to each other's shared memory. CLUSTER = 0: they write to global
// memory, and each block has a flag that counts its steps. Either way there is room for two steps in turn.

// Deals COUNT items to the threads of a block, neighbours to neighbours: f(how many before it, item). Everything that a step
// moves goes through here: unrolled, loads do not wait for one another, and nothing is left to compute but addresses.
template <int COUNT, class F>
DEVICE void deal(F f) {
#pragma unroll
    for (int i = 0; i < (COUNT + THREADS - 1) / THREADS; i++) {
        const unsigned at = threadIdx.x + i * THREADS;
        if ((i + 1) * THREADS <= COUNT || at < COUNT) f(i, at);
    }
}

struct Group {
    int rank, head, column0;
    unsigned* flags;  // of all blocks of the group
    unsigned step;
};

// All blocks see after waiting what any of them wrote before arriving. Nobody waits for what a thread does in between: that
// is the place for stores that only later steps, or no block of the group, will read.
DEVICE void arrive_group(Group& group) {
#if CLUSTER
    arrive_cluster();
#else
    sync_block();
    group.step++;
    if (BLOCKS > 1 && threadIdx.x == 0) set_flag(group.flags + group.rank, group.step);
#endif
}

DEVICE void wait_group(const Group& group) {
#if CLUSTER
    wait_cluster();
#else
    if (BLOCKS > 1)
        deal<BLOCKS>([&](int, unsigned block) {
            if (block != group.rank) wait_flag(group.flags + block, group.step);
        });
    sync_block();
#endif
}
