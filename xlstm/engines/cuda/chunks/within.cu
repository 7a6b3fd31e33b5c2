// h of all steps of a chunk, (4) to (8): a block has some columns of the values, for a chunk of a group.

constexpr int TILES_V = (V + TILE_V - 1) / TILE_V, SHARES = THREADS / L;

extern "C" __global__ void __launch_bounds__(THREADS, 2) KERNEL(const Arrays a) {
    SHARED_MEMORY(memory);
    auto& P = *(Tile<L, L>*)memory;
    auto& left = *(Tile<L, SLAB>*)(&P + 1);
    auto& keys = *(Tile<L, SLAB>*)(&left + 1);  // these two take turns
    auto& right = *(Tile<SLAB, TILE_V>*)&keys;
    auto& sums = *(float(*)[SHARES][L])((unsigned char*)&keys + ROOM);
    auto& s = *(float(*)[L])(&sums + 1);
    static_assert(sizeof(P) + sizeof(left) + ROOM + sizeof(sums) + sizeof(s) == SHARED_PLANNED, "shared memory as planned");
    static_assert(sizeof(keys) <= ROOM && sizeof(right) <= ROOM, "room for each");
    const long long place = blockIdx.x / TILES_V, chunk = place % a.chunks, group = place / a.chunks;
    const int v0 = blockIdx.x % TILES_V * TILE_V;
    const long long step0 = chunk * L, at0 = place * L;
    auto rows = [&](const View& view) { return [&](int row) { return row_of(a, view, group, step0 + row); }; };
    auto of_q = rows(a.q), of_k = rows(a.k), of_v = rows(a.v);

    Sums<L, L> scores;
    for (int k0 = 0; k0 < K; k0 += SLAB) {
        fill(left, [&](int row, int col) { return beside(of_q(row), k0 + col, K); }, Same());
        fill(keys, [&](int row, int col) { return beside(of_k(row), k0 + col, K); }, Same());
        sync_block();
        multiply<false, false, SLAB>(scores, left, 0, keys, 0);
        sync_block();
    }
    scores.each([&](int t, int s, float first, float second) {
        const double r = a.r[at0 + t];
        float D;
        decay(a.w[at0 + s], r, s, t, D);
        first *= D;
        decay(a.w[at0 + s + 1], r, s + 1, t, D);
        P.put(t, s, first, second * D);
    });
    sync_block();
    // Each row of [.., s] (6) is added up by SHARES threads.
    const int row = threadIdx.x % L, share = threadIdx.x / L;
    float sum = 0;
    for (int col = share; col < L; col += SHARES) sum += P.get(row, col);

    Sums<L, TILE_V> num;
    for (int s0 = 0; s0 < L; s0 += DEPTH) {
        fill(right, [&](int row, int col) { return row < DEPTH ? beside(of_v(s0 + row), v0 + col, V) : nullptr; }, Same());
        sync_block();
        multiply<false, true, DEPTH>(num, P, s0, right, 0);
        sync_block();
    }
    const IO* C = a.C + (group * (a.chunks + 1) + chunk) * K * V;
    const float* n = a.n + (group * (a.chunks + 1) + chunk) * K;
    for (int k0 = 0; k0 < K; k0 += SLAB) {
        fill(left, [&](int row, int col) { return beside(of_q(row), k0 + col, K); },
             [&](int row, float v) { return v * a.read[at0 + row]; });
        fill(right, [&](int row, int col) { return beside(k0 + row < K ? C + (long long)(k0 + row) * V : nullptr, v0 + col, V); },
             Same());
        sync_block();
        multiply<false, true, SLAB>(num, left, 0, right, 0);
        for (int col = share; col < SLAB && k0 + col < K; col += SHARES) sum += left.get(row, col) * n[k0 + col];
        sync_block();
    }
    sums[share][row] = sum;
    sync_block();
    if (threadIdx.x < L) {
        float all = 0, den;
        for (int share = 0; share < SHARES; share++) all += sums[share][row];
        denominator(all, a.b[at0 + row], a.r[at0 + row], den);
        s[row] = den;
        if (v0 == 0) {
            a.s[at0 + row] = all;
            a.den[at0 + row] = den;
        }
    }
    sync_block();
    num.each([&](int t, int col, float first, float second) {
        if (step0 + t >= a.T || v0 + col >= V) return;
        quotient(first, s[t], first);
        quotient(second, s[t], second);
        *(Pair*)(a.h + ((step0 + t) * a.groups + group) * V + v0 + col) = pair_of(first, second);
    });
}
