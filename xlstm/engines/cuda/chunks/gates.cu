// The logarithms and weights of all steps, (1) to (3): a block has a group. Each of its threads goes through the steps of
// some chunks, then one thread through all chunks, and then each step knows the maximum before its chunk.

extern "C" __global__ void KERNEL(const Arrays a) {
    SHARED_MEMORY(memory);
    const long long group = blockIdx.x, first = group * a.chunks * L;
    double* before = (double*)memory;  // m before the next chunk, of one thread
    for (long long chunk = threadIdx.x; chunk < a.chunks; chunk += blockDim.x) {
        double b = 0, most = -1.0 / 0.0;
#pragma unroll 4
        for (int step = 0; step < L; step++) {
            const long long t = chunk * L + step, at = first + t;
            float logf = 0, i = -1.0f / 0.0f;  // past the end: nothing is written, nothing forgotten
            if (t < a.T) {
                i = widen(*a.i(t, group, HEADS));
                forget(widen(*a.f(t, group, HEADS)), logf);
            }
            accumulate(b, most, i, logf, b, most);
            a.logf[at] = logf;
            a.b[at] = b;
            a.most[at] = most;
            written(i, b, a.w[at]);
        }
    }
    sync_block();
    if (threadIdx.x == 0) {
        *before = a.m0[group];
        for (long long chunk = 0; chunk < a.chunks; chunk++) {
            const long long last = first + chunk * L + L - 1;
            a.m[group * a.chunks + chunk] = *before;
            m_after(*before, a.b[last], a.most[last], *before);
        }
        a.end_m[group] = (float)*before;
    }
    sync_block();
    for (long long t = threadIdx.x; t < a.chunks * L; t += blockDim.x) {
        const long long at = first + t, chunk = group * a.chunks + t / L;
        double last;
        stabilise(a.most[at], a.m[chunk], a.r[at]);
        stabilise(a.most[first + t / L * L + L - 1], a.m[chunk], last);
        read_write(a.w[at], a.r[at], a.m[chunk], last, a.read[at], a.write[at]);
        if (t % L == 0) keep(a.m[chunk], last, a.keep[chunk]);
    }
}
