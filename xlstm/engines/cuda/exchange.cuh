// The barrier of a group: its blocks have the units of one head for some columns, and give each other what they computed.
//
// There is room for two steps in turn. CLUSTER = 0: blocks write to global memory, and each block has a flag that counts its
// steps. CLUSTER = 1: the group is a cluster, and blocks send to each other's shared memory, also to their own. Each room has
// arrivals that count the bytes of a step, and nobody waits for anything but these. That is enough:
//
// - A block sends a step's numbers after all of its threads have read what the room before held (forward a sync_block is
//   between, backward a warp sends what it made of it), and every block has all numbers of a step before it sends the next
//   one's. So whoever writes to a room again has numbers from each block that were sent after that block's last look at it.
// - For the same reason the count of a room is set anew before the first byte of its next turn can come, and does not end a
//   second time before all threads have seen the first end.
// - A block ends after all that was sent to it has come; nothing is sent at the last step.

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
    unsigned step;  // that comes next
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
    arrive_cluster();  // nobody sends to a block that has not begun
    wait_cluster();
#endif
}

// All blocks see after waiting what any of them wrote or sent before arriving. Nobody waits for what a thread does in between:
// that is the place for stores that only later steps, or no block of the group, will read.
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
