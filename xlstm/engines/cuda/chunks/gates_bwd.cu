// The gradients with respect to i~ and f~ of all steps, and to m0: a block has a group, and each thread goes back through the
// steps of some chunks. After each chunk comes the gradient with respect to its total decay: the sum of C dC + n dn of the state
// after it.

extern "C" __global__ void KERNEL(const Arrays a) {
    const long long group = blockIdx.x;
    for (long long chunk = threadIdx.x; chunk < a.chunks; chunk += THREADS) {
        float total = inner_of(a, group, chunk + 1);
        for (int step0 = L - BATCH; step0 >= 0; step0 -= BATCH) {
            float db[BATCH], di[BATCH], f[BATCH], logf[BATCH];
            batch([&](int n) {
                const long long t = chunk * L + step0 + n, at = group * a.chunks * L + t, in = group * a.T + t;
                db[n] = di[n] = f[n] = logf[n] = 0;
                if (t < a.T) {
                    di[n] = a.dw[at];
                    f[n] = widen(*a.f(t, group, HEADS));
                    logf[n] = a.logf[at];
                    b_bwd(a.dh_h[in], a.ds[in], a.s[at], di[n], db[n]);
                }
                if (a.more_b) {
                    db[n] += a.more_b[at];
                    di[n] += a.more_w[at];
                }
            });
            batch([&](int back) {
                const int n = BATCH - 1 - back;
                const long long t = chunk * L + step0 + n, out = t * a.groups + group;
                float df;
                add(total, db[n], total);
                forget_bwd(total, f[n], logf[n], df);
                if (t >= a.T) return;
                narrow(a.df[out], df);
                narrow(a.di[out], di[n]);
            });
        }
    }
    if (threadIdx.x == 0) a.dm0[group] = inner_of(a, group, 0) + (a.more_m ? a.more_m[group] : 0);
}
