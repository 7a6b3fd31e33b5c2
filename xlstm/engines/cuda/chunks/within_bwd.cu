// The gradients with respect to q, k and v of a chunk, and to w of its steps: a block has a chunk of a group. It computes P (5)
// again, and dS, the gradient with respect to Q K^T, and keeps both in shared memory. Then it goes through the columns of q and
// k, and then of v.

constexpr int SHARES = Sums<L, COLUMNS>::BESIDE * 4;  // threads with numbers of a row of L, in Sums

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const Arrays a) {
    SHARED_MEMORY(memory);
    auto& P = *(Tile<L, L>*)memory;
    auto& dS = *(Tile<L, L>*)(&P + 1);
    auto& left = *(Tile<L, SLAB>*)(&dS + 1);
    auto& other = *(Tile<L, SLAB>*)(&left + 1);  // these three take turns
    auto& down = *(Tile<COLUMNS, SLAB>*)&other;
    auto& across = *(Tile<SLAB, COLUMNS>*)&other;
    auto& sums = *(float(*)[L][SHARES])((unsigned char*)&other + ROOM);
    static_assert(2 * sizeof(P) + sizeof(left) + ROOM + sizeof(sums) == SHARED_PLANNED, "shared memory as planned");
    static_assert(sizeof(other) <= ROOM && sizeof(down) <= ROOM && sizeof(across) <= ROOM, "room for each");
    const long long chunk = blockIdx.x % a.chunks, group = blockIdx.x / a.chunks, step0 = chunk * L, at0 = blockIdx.x * (long long)L;
    const IO *C = a.C + (group * (a.chunks + 1) + chunk) * K * V, *dC = a.dC + blockIdx.x * (long long)K * V;
    const float *n = a.n + (group * (a.chunks + 1) + chunk) * K, *dn = a.dn + blockIdx.x * (long long)K;

    auto rows = [&](const View& view) { return [&](int row) { return row_of(a, view, group, step0 + row); }; };
    auto of_q = rows(a.q), of_k = rows(a.k), of_v = rows(a.v), of_dh = rows(a.dh);
    auto by_den = [&](int first) {
        return [&a, first, at = at0 + first](int row, float v) {
            if (first + row < L) quotient(v, a.den[at + row], v);
            return v;
        };
    };
    auto by_write = [&](int row, float v) { return v * a.write[at0 + row]; };
    auto ds = [&](int t) { return step0 + t < a.T ? a.ds[group * a.T + step0 + t] : 0; };
    // Tiles: some columns of all steps, all columns of a slab of some steps, some columns of a slab of a state, and reverse.
    auto steps = [&](auto& tile, auto row_of, int first, int width, auto value) {
        fill(tile, [&](int row, int col) { return beside(row_of(row), first + col, width); }, value);
    };
    auto some_steps = [&](auto row_of, int row0, int first, int width, auto value) {
        fill(across, [&](int row, int col) { return row < DEPTH ? beside(row_of(row0 + row), first + col, width) : nullptr; }, value);
    };
    auto state = [&](auto& tile, const IO* state, int k0, int v0) {
        fill(tile, [&](int row, int col) { return beside(k0 + row < K ? state + (long long)(k0 + row) * V : nullptr, v0 + col, V); }, Same());
    };
    // sums += product of a slab (L, SLAB) of `row_of` and rows of a state, over all columns of values
    auto add_values = [&](auto& sums, auto row_of, auto value, const IO* of, int k0) {
        for (int v0 = 0; v0 < V; v0 += SLAB) {
            steps(left, row_of, v0, V, value);
            state(down, of, k0, v0);
            sync_block();
            multiply<false, false, SLAB>(sums, left, 0, down, 0);
            sync_block();
        }
    };
    // sums += weights (L, L), or their transpose, times rows of all steps
    auto add_steps = [&](auto& sums, auto transposed, const auto& weights, auto row_of, int first, int width, auto value_from) {
        for (int row0 = 0; row0 < L; row0 += DEPTH) {
            some_steps(row_of, row0, first, width, value_from(row0));
            sync_block();
            multiply<decltype(transposed)::value, true, DEPTH>(sums, weights, row0, across, 0);
            sync_block();
        }
    };
    auto store = [&](IO* to, int width, int step, int column, float first, float second) {
        if (step0 + step >= a.T || column >= width) return;
        *(Pair*)(to + ((step0 + step) * a.groups + group) * width + column) = pair_of(first, second);
    };
    auto as_it_is = [&](int) { return Same(); };

    {
        Sums<L, L> scores, dscores;
        for (int k0 = 0; k0 < K; k0 += SLAB) {
            steps(left, of_q, k0, K, Same());
            steps(other, of_k, k0, K, Same());
            sync_block();
            multiply<false, false, SLAB>(scores, left, 0, other, 0);
            sync_block();
        }
        for (int v0 = 0; v0 < V; v0 += SLAB) {
            steps(left, of_dh, v0, V, by_den(0));
            steps(other, of_v, v0, V, Same());
            sync_block();
            multiply<false, false, SLAB>(dscores, left, 0, other, 0);
            sync_block();
        }
        auto times_D = [&](int t, int s, float& first, float& second) {
            const double r = a.r[at0 + t];
            float D;
            decay(a.w[at0 + s], r, s, t, D);
            first *= D;
            decay(a.w[at0 + s + 1], r, s + 1, t, D);
            second *= D;
        };
        scores.each([&](int t, int s, float& first, float& second) {
            times_D(t, s, first, second);
            P.put(t, s, first, second);
        });
        dscores.each([&](int t, int s, float& first, float& second) {
            first += ds(t), second += ds(t);
            times_D(t, s, first, second);
            dS.put(t, s, first, second);
        });
    }
    float low = 0, high = 0;  // of k dk of this thread's two rows
    for (int k0 = 0; k0 < K; k0 += COLUMNS) {
        Sums<L, COLUMNS> dQ;
        add_values(dQ, of_dh, by_den(0), C, k0);
        dQ.each([&](int t, int col, float& first, float& second) {
            if (k0 + col >= K) return;
            scale_add(first + ds(t) * n[k0 + col], a.read[at0 + t], 0, first);
            scale_add(second + ds(t) * n[k0 + col + 1], a.read[at0 + t], 0, second);
        });
        add_steps(dQ, No(), dS, of_k, k0, K, as_it_is);
        dQ.each([&](int t, int col, float first, float second) { store(a.dq, K, t, k0 + col, first, second); });

        Sums<L, COLUMNS> dK;
        add_values(dK, of_v, Same(), dC, k0);
        dK.each([&](int s, int col, float& first, float& second) {
            if (k0 + col >= K) return;
            scale_add(first + dn[k0 + col], a.write[at0 + s], 0, first);
            scale_add(second + dn[k0 + col + 1], a.write[at0 + s], 0, second);
        });
        add_steps(dK, Yes(), dS, of_q, k0, K, as_it_is);
        dK.each([&](int s, int col, float first, float second) {
            store(a.dk, K, s, k0 + col, first, second);
            const IO* key = beside(of_k(s), k0 + col, K);
            const float sum = key ? first * widen(key[0]) + second * widen(key[1]) : 0;
            (s & 8 ? high : low) += sum;
        });
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = Sums<L, COLUMNS>::row() + lane / 4;
    const int share = warp / Sums<L, COLUMNS>::ROWS * 4 + lane % 4;
    sums[row][share] = low;
    sums[row + 8][share] = high;
    sync_block();
    if (threadIdx.x < L) {
        float sum = 0;
        for (int share = 0; share < SHARES; share++) sum += sums[threadIdx.x][share];
        a.dw[at0 + threadIdx.x] = sum;
    }
    for (int v0 = 0; v0 < V; v0 += COLUMNS) {
        Sums<L, COLUMNS> dV;
        add_steps(dV, Yes(), P, of_dh, v0, V, by_den);
        for (int k0 = 0; k0 < K; k0 += SLAB) {
            steps(left, of_k, k0, K, by_write);
            state(across, dC, k0, v0);
            sync_block();
            multiply<false, true, SLAB>(dV, left, 0, across, 0);
            sync_block();
        }
        dV.each([&](int s, int col, float first, float second) { store(a.dv, V, s, v0 + col, first, second); });
    }
}
