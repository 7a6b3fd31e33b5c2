// The common part of the kernels that go through the gates of all steps.

// Numbers of BATCH steps are loaded together, before the first of them is used.
constexpr int BATCH = 8;
template <class F>
DEVICE void batch(F f) {
#pragma unroll
    for (int n = 0; n < BATCH; n++) f(n);
}

#if BACKWARD
// The sum of C dC + n dn of the state before a chunk, or of the final state.
DEVICE float inner_of(const Arrays& a, long long group, long long place) {
    float sum = 0;
    for (int tile = 0; tile < TILES; tile++) sum += a.inner[(tile * a.groups + group) * (a.chunks + 1) + place];
    return sum;
}
#endif
#if THROUGH_MAXIMUM
// The gradient with respect to m of a step, through eps.
DEVICE float dm_of(const Arrays& a, long long group, long long t) {
    float dm = 0;
    if (t < a.T) m_bwd(a.dh_h[group * a.T + t], a.den[group * a.chunks * L + t], dm);
    return dm;
}
#endif
