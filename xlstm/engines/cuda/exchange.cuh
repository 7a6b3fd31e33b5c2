// The barrier of a group: its blocks have the units of one head for some columns, and give each other what they computed.
//
// CLUSTER = 1: the group is a cluster, and blocks write to each other's shared memory. CLUSTER = 0: they write to global
// memory, and each block has a flag that counts its steps. Either way there is room for two steps in turn.

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
    if (BLOCKS > 1 && threadIdx.x < 32)
        for (int block = threadIdx.x; block < BLOCKS; block += 32)
            if (block != group.rank) wait_flag(group.flags + block, group.step);
    sync_block();
#endif
}
