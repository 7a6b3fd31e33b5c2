// Gradients with respect to w and b through the maximum (3): the largest w so far, or the maximum before the chunk. Equal ones
// share the gradient. A block has a chunk of a group, and each of its threads a step.

extern "C" __global__ void KERNEL(const Arrays a) {
    SHARED_MEMORY(memory);
    auto& w = *(double(*)[L])memory;
    auto& most = *(double(*)[L])(&w + 1);
    auto& shares = *(float(*)[L])(&most + 1);
    static_assert(sizeof(w) + sizeof(most) + sizeof(shares) == SHARED_PLANNED, "shared memory as planned");
    const long long chunk = blockIdx.x % a.chunks, group = blockIdx.x / a.chunks, at0 = blockIdx.x * (long long)L;
    const int step = threadIdx.x;
    auto largest_of = [&](int wrote, int reads) {
        float largest;
        is_largest(w[wrote], most[reads], wrote, reads, largest);
        return largest;
    };
    if (step < L) {
        w[step] = a.w[at0 + step];
        most[step] = a.most[at0 + step];
    }
    sync_block();
    float dm = 0;
    if (step < L) {
        float old, count = 0;
        add_to_last(dm_of(a, group, chunk * L + step), a.dm[blockIdx.x], step, L - 1, dm);
        from_before(a.m[blockIdx.x], most[step], old);
        for (int wrote = 0; wrote <= step; wrote++) count += largest_of(wrote, step);
        share(old, dm, count, shares[step]);
    }
    sync_block();
    if (step < L) {
        float sum = 0;
        for (int reads = step; reads < L; reads++) sum += shares[reads] * largest_of(step, reads);
        a.more_w[at0 + step] = sum;
        a.more_b[at0 + step] = dm - sum;
    }
}
