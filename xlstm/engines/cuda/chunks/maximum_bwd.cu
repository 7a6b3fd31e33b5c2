// Gradients through the running maximum (3), of which eps and the final m depend on: more_w, more_b and more_m. A block has a
// group. The maximum is that before the chunk, or the largest w so far, which equal ones share.

extern "C" __global__ void KERNEL(const Arrays a) {
    const long long group = blockIdx.x, first = group * a.chunks * L, steps = a.chunks * L;
    auto old_of = [&](long long t) {
        float old;
        from_before(a.m[group * a.chunks + t / L], a.most[first + t], old);
        return old;
    };
    auto largest_of = [&](long long wrote, long long reads) {
        float largest;
        is_largest(a.w[first + wrote], a.most[first + reads], (float)(wrote % L), (float)(reads % L), largest);
        return largest;
    };
    for (long long t = threadIdx.x; t < steps; t += blockDim.x) {
        float dm = 0;
        if (t < a.T) m_bwd(a.dh_h[group * a.T + t], a.den[first + t], dm);
        a.more_b[first + t] = dm;
    }
    sync_block();
    if (threadIdx.x == 0) {  // the gradient of m before each chunk, which is that of the last m of the chunk before
        float dm = 0;
        if (a.dend_m) {
            dm = a.dend_m[group];
            for (int tile = 0; tile < TILES; tile++) dm -= a.inner[(tile * a.groups + group) * (a.chunks + 1) + a.chunks];
        }
        for (long long chunk = a.chunks - 1; chunk >= 0; chunk--) {
            float sum = 0;
            for (long long t = chunk * L; t < chunk * L + L; t++) sum += old_of(t) * a.more_b[first + t];
            const long long last = chunk * L + L - 1;
            add_to_last(a.more_b[first + last], dm, L - 1, L - 1, a.more_b[first + last]);
            state(dm, old_of(last), sum, dm);
        }
        a.more_m[group] = dm;
    }
    sync_block();
    for (long long t = threadIdx.x; t < steps; t += blockDim.x) {
        float count = 0;
        for (long long s = t / L * L; s < t / L * L + L; s++) count += largest_of(s, t);
        share(old_of(t), a.more_b[first + t], count, a.share[first + t]);
    }
    sync_block();
    for (long long s = threadIdx.x; s < steps; s += blockDim.x) {
        float sum = 0;
        for (long long t = s / L * L; t < s / L * L + L; t++) sum += a.share[first + t] * largest_of(s, t);
        a.more_w[first + s] = sum;
        a.more_b[first + s] -= sum;
    }
}
