// Packed rows: all rows of the first step, then all of the second. A step has a row for each sequence that is long enough. The
// loops keep the first rows of two neighbouring steps, and of the next one, in registers, and load one more while others work.
struct Offsets {
    const int* offsets;  // the first row of each step and the end, or none if all steps are `same` wide
    int steps, same;
    DEVICE int operator()(int t) const {
        t = t < 0 ? 0 : t < steps ? t : steps;  // steps before the first and after the last have no rows
        return offsets ? offsets[t] : t * same;
    }
};
