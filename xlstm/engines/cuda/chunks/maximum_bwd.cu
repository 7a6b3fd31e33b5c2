// The gradient with respect to the maximum before each chunk, and to m0. If it is the largest (3), m of all steps depends on it,
// and so do h, through eps, and the final m. A block has a group: each thread adds up the steps of some chunks, then one thread
// goes back through all chunks.

extern "C" __global__ void KERNEL(const Arrays a) {
    SHARED_MEMORY(memory);
    auto& sums = *(float(*)[THREADS])memory;  // of some chunks; then the gradient with respect to m after each
    auto& olds = *(float(*)[THREADS])(&sums + 1);
    auto& dm = *(float(*)[1])(&olds + 1);  // the gradient with respect to m before the last chunk so far
    static_assert(sizeof(sums) + sizeof(olds) + sizeof(dm) == SHARED_PLANNED, "shared memory as planned");
    const long long group = blockIdx.x;
    if (threadIdx.x == 0) dm[0] = a.dend_m ? a.dend_m[group] - inner_of(a, group, a.chunks) : 0;
    for (long long end = a.chunks; end > 0; end -= THREADS) {
        const long long chunk = end - 1 - threadIdx.x;
        float sum = 0, old = 0;
        for (int step0 = 0; chunk >= 0 && step0 < L; step0 += BATCH) {
            float d[BATCH], olds[BATCH];
            batch([&](int n) {
                const long long t = chunk * L + step0 + n;
                d[n] = dm_of(a, group, t);
                from_before(a.m[group * a.chunks + chunk], a.most[group * a.chunks * L + t], olds[n]);
            });
            batch([&](int n) { sum += olds[n] * d[n]; });
            old = olds[BATCH - 1];
        }
        sums[threadIdx.x] = sum;
        olds[threadIdx.x] = old;
        sync_block();
        if (threadIdx.x == 0) {
            for (int n = 0; n < THREADS && end - 1 - n >= 0; n++) {
                const float after = dm[0];
                state(after, olds[n], sums[n], dm[0]);
                sums[n] = after;
            }
        }
        sync_block();
        if (chunk >= 0) a.dm[group * a.chunks + chunk] = sums[threadIdx.x];
        sync_block();
    }
    if (threadIdx.x == 0) a.more_m[group] = dm[0];
}
