// The barrier of a group: its blocks have the units of one head for some columns, and exchange their results.
//
// There are rooms for two steps, used in turn. CLUSTER = 0: blocks write to global memory, and each block has a flag that counts
// its steps. CLUSTER = 1: the group is a cluster, and blocks send to each other's shared memory, and to their own. Each room has
// arrivals that count the bytes of a step, and threads wait only for these. That is enough:
//
// - A block sends the numbers of a step only after all its threads have read the room before (forward, a sync_block is between;
//   backward, a warp sends the numbers that it made from them). And every block has all numbers of a step before it sends those
//   of the next. So a block that writes to a room again has numbers from each block that were sent after that block last read it.
// - For the same reason, the count of a room is reset before the first byte of its next turn can come, and does not end a
//   second time before all threads have seen the first end.
// - A block ends after everything sent to it has come; nothing is sent at the last step.

// Deals COUNT items to the threads of a block, neighbours to neighbours: f(how many before it, item). All moves of a step go
// through here: unrolled, loads do not wait for one another, and only addresses are left to compute.
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
    unsigned step;  // the next step
    Arrivals* arrivals;  // of both rooms, in a cluster
    Late late;
};

// Before the first step; `bytes` come to a block at each.
DEVICE void begin_group(const Group& group, int bytes) {
#if CLUSTER
    if (threadIdx.x == 0) {
        init_arrivals(group.arrivals);
        init_arrivals(group.arrivals + 1);
        publish_arrivals();
        expect(group.arrivals, bytes);
        expect(group.arrivals + 1, bytes);
    }
    arrive_cluster();  // no block sends to a block that has not begun
    wait_cluster();
#endif
}

// After waiting, all blocks see everything that any of them wrote or sent before arriving. Between the two, a thread keeps no
// other waiting: this is the place for stores that only later steps, or no block of the group, read.
DEVICE void arrive_group(Group& group) {
#if !CLUSTER
    sync_block();
    if (BLOCKS > 1 && threadIdx.x == 0) set_flag(group.flags + group.rank, group.step + 1);
#endif
    group.step++;
}

DEVICE void wait_group(const Group& group, int bytes) {
#if CLUSTER
    Arrivals* arrivals = group.arrivals + (group.step - 1) % 2;
    wait_arrivals(arrivals, (group.step - 1) / 2 % 2, group.late);
    if (threadIdx.x == 0) expect(arrivals, bytes);
#else
    if (BLOCKS > 1)
        deal<BLOCKS>([&](int, unsigned block) {
            if (block != group.rank) wait_flag(group.flags + block, group.step, group.late);
        });
    sync_block();
#endif
}

#if CLUSTER
// Sends to the same place of another block, before arriving.
template <class T>
DEVICE void send(const Group& group, T* to, int rank, const T& v) {
    send_remote(to, rank, v, group.arrivals + group.step % 2);
}
#endif
