// How the blocks of a group, which have the units of one head and of some columns, give each other what they computed.
//
// CLUSTER = 1: they are a cluster and write to each other's shared memory. CLUSTER = 0: through global memory, each block
// with a flag that counts its steps. Either way room is double: what is written at a step is read before the next but one.

struct Group {
    int rank, head, column0;
    unsigned* flags;  // of all blocks of the group
    unsigned step;
};

// Everything that the blocks wrote before is seen by all of them afterwards.
DEVICE void sync_group(Group& group) {
#if CLUSTER
    sync_cluster();
#else
    sync_block();
    group.step++;
    if (threadIdx.x == 0) set_flag(group.flags + group.rank, group.step);
    if (threadIdx.x < 32)
        for (int block = threadIdx.x; block < BLOCKS; block += 32) wait_flag(group.flags + block, group.step);
    sync_block();
#endif
}
