// The rows and cells of a block and of each of its threads, forward and backward.

DEVICE Group group_of(int group0, unsigned* flags, Arrivals* arrivals, const Late& late) {
    const int number = group0 + blockIdx.y;
    return {(int)blockIdx.x, number % HEADS, number / HEADS * NB, flags + blockIdx.y * BLOCKS, 0, arrivals, late};
}

// The cells of this thread, with consecutive units next to each other: f(cell, column, unit of the block and of all, whether
// it is one of the first `columns` sequences of the batch and a unit of the head). The group is passed by value: by
// reference it needed more registers than there are.
constexpr int CELLS = (UNITS * NB + THREADS - 1) / THREADS;
template <class F>
DEVICE void all_cells(const Group group, int columns, F f) {
    const int unit0 = group.rank * UNITS;
    deal<UNITS * NB>([&](int i, unsigned at) {
        const int column = at / UNITS, unit = at % UNITS;
        const bool there = group.column0 + column < columns && unit0 + unit < WIDTH;
        f(i, column, unit, group.head * WIDTH + unit0 + unit, there);
    });
}

// The same, only for cells that exist.
template <class F>
DEVICE void cells(const Group group, int columns, F f) {
    all_cells(group, columns, [&](int i, int column, int unit, int all, bool there) {
        if (there) f(i, column, unit, all);
    });
}
