// Packed rows: all of the first step, then all of the second, each with as many as there are sequences that long.

struct Offsets {
    const int* offsets;  // of the first row of each step and of the end, or none where all steps are `same` wide
    int same;
    DEVICE int first(int t) const { return offsets ? offsets[t] : t * same; }
    DEVICE int width(int t) const { return offsets ? offsets[t + 1] - offsets[t] : same; }
};
