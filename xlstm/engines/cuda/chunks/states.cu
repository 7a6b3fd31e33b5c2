// The states [C, n] before all chunks (9); backward, the gradients with respect to the states after them. A block holds a tile of
// C of a group in registers, and goes from chunk to chunk. Forward it adds (write K)^T [V, 1], backward (read Q)^T [dnum, ds].

constexpr int TILES_V = (V + TILE_V - 1) / TILE_V;

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const Arrays a) {
    SHARED_MEMORY(memory);
    auto& left = *(Tile<L, STATE_K>*)memory;
    auto& right = *(Tile<L, TILE_V>*)(&left + 1);
    float* room = (float*)(&right + 1);  // of sync_row
    static_assert(sizeof(left) + sizeof(right) + THREADS * 4 == SHARED_PLANNED, "shared memory as planned");
    const long long group = blockIdx.x % a.groups;
    const int tile = (int)(blockIdx.x / a.groups), k0 = tile / TILES_V * STATE_K, v0 = tile % TILES_V * TILE_V;
    const int column = k0 + threadIdx.x;  // of n, which belongs to the blocks of the first columns of C
    const bool has_n = v0 == 0 && threadIdx.x < STATE_K && column < K;
#if BACKWARD
    const View &from_left = a.q, &from_right = a.dh;
    const float *weights = a.read, *C0 = a.dend_C, *n0 = a.dend_n;
    IO* kept_C = a.dC;
    float *kept_n = a.dn, *end_C = a.dC0, *end_n = a.dn0;
#else
    const View &from_left = a.k, &from_right = a.v;
    const float *weights = a.write, *C0 = a.C0, *n0 = a.n0;
    IO* kept_C = a.C;
    float *kept_n = a.n, *end_C = a.end_C, *end_n = a.end_n;
#endif
    const long long kept = a.chunks + !BACKWARD;  // kept states of a group

    Sums<STATE_K, TILE_V> C;
    float n = n0 && has_n ? n0[group * K + column] : 0;
    C.each([&](int row, int col, float& first, float& second) {
        if (!C0 || k0 + row >= K || v0 + col >= V) return;
        const float* from = C0 + (group * K + k0 + row) * V + v0 + col;
        first = from[0];
        second = from[1];
    });
    auto keep_state = [&](long long place) {
        C.each([&](int row, int col, float first, float second) {
            if (k0 + row >= K || v0 + col >= V) return;
            *(Pair*)(kept_C + ((group * kept + place) * K + k0 + row) * V + v0 + col) = pair_of(first, second);
        });
        if (has_n) kept_n[(group * kept + place) * K + column] = n;
    };
#if BACKWARD
    // This block's share of the sum of the state before a chunk times its gradient.
    auto multiply_states = [&](long long place) {
        float sum = has_n ? n * a.n[(group * (a.chunks + 1) + place) * K + column] : 0;
        C.each([&](int row, int col, float first, float second) {
            if (k0 + row >= K || v0 + col >= V) return;
            const Pair both = *(const Pair*)(a.C + ((group * (a.chunks + 1) + place) * K + k0 + row) * V + v0 + col);
            sum += first * widen(both.at[0]) + second * widen(both.at[1]);
        });
        sum = sync_row(sum, room, false);
        if (threadIdx.x == 0) a.inner[(tile * a.groups + group) * (a.chunks + 1) + place] = sum;
    };
#endif
    Coming<L, STATE_K> next_left;
    Coming<L, TILE_V> next_right;
    auto fetch = [&](long long chunk) {
        auto of = [&](const View& view, int row) { return row_of(a, view, group, chunk * L + row); };
        next_left.fetch([&](int row, int col) { return beside(of(from_left, row), k0 + col, K); });
        next_right.fetch([&](int row, int col) { return beside(of(from_right, row), v0 + col, V); });
    };
    auto chunk_at = [&](long long turn) { return BACKWARD ? a.chunks - 1 - turn : turn; };
    fetch(chunk_at(0));
    for (long long turn = 0; turn < a.chunks; turn++) {
        const long long chunk = chunk_at(turn), step = (group * a.chunks + chunk) * L;
        next_left.give(left, [&](int row, float v) { return v * weights[step + row]; });
#if BACKWARD
        next_right.give(right, [&](int row, float v) {
            quotient(v, a.den[step + row], v);
            return v;
        });
#else
        next_right.give(right, Same());
#endif
        sync_block();
        if (turn + 1 < a.chunks) fetch(chunk_at(turn + 1));  // loads meanwhile
        keep_state(chunk);
#if BACKWARD
        multiply_states(chunk + 1);
#endif
        const float keep = a.keep[group * a.chunks + chunk];
        Sums<STATE_K, TILE_V> written;
        multiply<true, true, L>(written, left, 0, right, 0);
#pragma unroll
        for (int e = 0; e < sizeof(C.part) / 4; e++) state((&C.part[0][0][0])[e], keep, (&written.part[0][0][0])[e], (&C.part[0][0][0])[e]);
        if (has_n) {
            float sum = 0;
            for (int row = 0; row < L; row++) {
#if BACKWARD
                const float one = chunk * L + row < a.T ? a.ds[group * a.T + chunk * L + row] : 0;
#else
                const float one = 1;
#endif
                sum += left.get(row, threadIdx.x) * one;
            }
            state(n, keep, sum, n);
        }
        sync_block();
    }
#if BACKWARD
    multiply_states(0);
#else
    keep_state(a.chunks);
#endif
    C.each([&](int row, int col, float first, float second) {
        if (k0 + row >= K || v0 + col >= V) return;
        float* to = end_C + (group * K + k0 + row) * V + v0 + col;
        to[0] = first;
        to[1] = second;
    });
    if (has_n) end_n[group * K + column] = n;
}
