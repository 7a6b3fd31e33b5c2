// The gradients of i~ and f~ of all steps, and of m0: a block has a group, and each of its threads goes back through the steps
// of some chunks. Behind a chunk is the gradient of all that it forgot, the sum of C dC + n dn of the state after it.

extern "C" __global__ void KERNEL(const Arrays a) {
    const long long group = blockIdx.x;
    auto all = [&](long long place) {
        float sum = 0;
        for (int tile = 0; tile < TILES; tile++) sum += a.inner[(tile * a.groups + group) * (a.chunks + 1) + place];
        return sum;
    };
    for (long long chunk = threadIdx.x; chunk < a.chunks; chunk += blockDim.x) {
        float total = all(chunk + 1);
        for (int step = L - 1; step >= 0; step--) {
            const long long t = chunk * L + step, at = group * a.chunks * L + t, out = t * a.groups + group, in = group * a.T + t;
            if (t >= a.T) {  // its gradients are 0, but for those through the maximum
                if (a.more_b) total += a.more_b[at];
                continue;
            }
            float db, df;
            b_bwd(a.dh_h[in], a.ds[in], a.s[at], a.dw[at], db);
            if (a.more_b) db += a.more_b[at];
            add(total, db, total);
            forget_bwd(total, widen(*a.f(t, group, HEADS)), a.logf[at], df);
            narrow(a.df[out], df);
            narrow(a.di[out], a.dw[at] + (a.more_w ? a.more_w[at] : 0));
        }
    }
    if (threadIdx.x == 0) a.dm0[group] = all(0) + (a.more_m ? a.more_m[group] : 0);
}
