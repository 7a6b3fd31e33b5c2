// How the blocks of a group, which have the units of one head and of some columns, give each other what they computed.
//
// CLUSTER = 1: they are a cluster and write to each other's shared memory. CLUSTER = 0: through global memory, each block
// with a flag that counts its steps. Either way room is double: what is written at a step is read before the next but one.

struct Group {
    int rank, head, column0;
    unsigned* flags;  // of all blocks of the group
    unsigned step;
};

// What the blocks wrote before arriving is seen by all of them after waiting. What a thread does in between is not waited
// for: the place for whatever only later steps, or nobody here, will read.
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
    if (BLOCKS > 1 && threadIdx.x < 32)
        for (int block = threadIdx.x; block < BLOCKS; block += 32)
            if (block != group.rank) wait_flag(group.flags + block, group.step);
    sync_block();
#endif
}
