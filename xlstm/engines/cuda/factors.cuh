// The factors of the recurrent product: weights, and h or dz of some columns, V (NB, K), in the type of products.
//
// MMA = 2: a float32 is the sum of two float16, each with 11 bits, in the same four bytes. A product is three products: that of
// the two small parts is left out, since it is below 2^-22 of the whole. Numbers are multiplied by a power of two, so that the
// largest of their group is in [2^14, 2^15). Then a large and a small part are off by at most 2^-23 of a number. If a number is so
// much smaller that its small part leaves the range of float16, they are off by at most 2^-39 of the largest of the group. The
// weights of a warp's tile are a group. So are LANES neighbouring units of a sequence, whose scale is kept for every 16 of k
// (K / 16, NB). Sums are multiplied by the scales of both factors.

constexpr int SIZE = sizeof(operand_t);
constexpr int VECTOR = 16 / SIZE;  // elements of a lane
constexpr int V_ROW = (K * SIZE / 64 % 2 ? K * SIZE : K * SIZE + 64) / 16;  // of a column, in 16 bytes: without conflicts

DEVICE operand_t to_operand(REAL v) {
    operand_t found;
#if TF32
    narrow(found, v != v ? v : round_tf32(v));  // round_tf32 would turn a GPU's NaN, with all bits of its fraction set, into -0
#else
    narrow(found, v);
#endif
    return found;
}

#if MMA == 2
constexpr int LANES = UNITS % 32 ? 16 : 32, SCALES = K / 16 * NB;
static_assert(UNITS % 16 == 0, "units of a scale");

DEVICE unsigned greater(unsigned a, unsigned b) { return a > b ? a : b; }

DEVICE void split(float v, half_t& large, half_t& small) {
    narrow(large, v);
    narrow(small, v - widen(large));
}

struct Scale {
    float up, down;
};
DEVICE Scale scale_of(unsigned largest) {  // from the bits of an absolute value
    const unsigned exponent = largest >> 23 < 15 ? 15 : largest >> 23;
    return {float_of((268 - exponent) << 23), float_of((exponent - 14) << 23)};
}
#else
constexpr int SCALES = 0;
#endif

// Writes COUNT factors of a sequence, STRIDE apart from k on, into its column, where `scales` are those of this column.
// All threads of a warp call it, each with the unit after that of the thread before it.
template <int STRIDE, int COUNT>
DEVICE void put_factors(operand_t* to, float* scales, int k, const REAL (&values)[COUNT]) {
#if MMA == 2
    unsigned most = 0;
#pragma unroll
    for (int n = 0; n < COUNT; n++) most = greater(most, bits_of(values[n]) & 0x7fffffffu);
    const Scale scale = scale_of(largest<LANES>(most));
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
        half_t* at = (half_t*)to + (k + n * STRIDE) / 4 * 8 + k % 4;  // large parts of four, then their small parts
        split(scale.up * values[n], at[0], at[4]);
        if (threadIdx.x % 16 == 0) scales[(k + n * STRIDE) / 16 * NB] = scale.down;
    }
#else
#pragma unroll
    for (int n = 0; n < COUNT; n++) to[k + n * STRIDE] = to_operand(values[n]);
#endif
}

union Words {
    uint4 vector;
    unsigned word[4];
    operand_t element[VECTOR];
};

