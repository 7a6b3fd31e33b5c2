// The logarithms and weights of all steps, (1) to (3): a block has a group. Each thread goes through the steps of some chunks,
// then one thread through all chunks. After that, each step knows the maximum before its chunk.

extern "C" __global__ void KERNEL(const Arrays a) {
    SHARED_MEMORY(memory);
    auto& b = *(double(*)[THREADS])memory;  // (1) of some chunks, and the largest w of each; then m before each
    auto& most = *(double(*)[THREADS])(&b + 1);
    auto& m = *(double(*)[1])(&most + 1);  // before the next chunk
    static_assert(sizeof(b) + sizeof(most) + sizeof(m) == SHARED_PLANNED, "shared memory as planned");
    const long long group = blockIdx.x, first = group * a.chunks * L;
    if (threadIdx.x == 0) m[0] = a.m0[group];
    for (long long chunk0 = 0; chunk0 < a.chunks; chunk0 += THREADS) {
        const long long chunk = chunk0 + threadIdx.x;
        double b_here = 0, most_here = -1.0 / 0.0;
        for (int step0 = 0; chunk < a.chunks && step0 < L; step0 += BATCH) {
            float i[BATCH], logf[BATCH];
            batch([&](int n) {  // past the end, nothing is written or forgotten
                const long long t = chunk * L + step0 + n;
                i[n] = -1.0f / 0.0f, logf[n] = 0;
                if (t < a.T) {
                    i[n] = widen(*a.i(t, group, HEADS));
                    forget(widen(*a.f(t, group, HEADS)), logf[n]);
                }
            });
            batch([&](int n) {
                const long long at = first + chunk * L + step0 + n;
                accumulate(b_here, most_here, i[n], logf[n], b_here, most_here);
                a.logf[at] = logf[n];
                a.b[at] = b_here;
                a.most[at] = most_here;
                written(i[n], b_here, a.w[at]);
            });
        }
        b[threadIdx.x] = b_here;
        most[threadIdx.x] = most_here;
        sync_block();
        if (threadIdx.x == 0) {
            for (int n = 0; n < THREADS && chunk0 + n < a.chunks; n++) {
                const double before = m[0];
                m_after(before, b[n], most[n], m[0]);
                b[n] = before;
            }
        }
        sync_block();
        if (chunk < a.chunks) a.m[group * a.chunks + chunk] = b[threadIdx.x];
        sync_block();
    }
    if (threadIdx.x == 0) a.end_m[group] = (float)m[0];
    for (long long t = threadIdx.x; t < a.chunks * L; t += THREADS) {
        const long long at = first + t, chunk = group * a.chunks + t / L;
        double last;
        stabilise(a.most[at], a.m[chunk], a.r[at]);
        stabilise(a.most[first + t / L * L + L - 1], a.m[chunk], last);
        read_write(a.w[at], a.r[at], a.m[chunk], last, a.read[at], a.write[at]);
        if (t % L == 0) keep(a.m[chunk], last, a.keep[chunk]);
    }
}
