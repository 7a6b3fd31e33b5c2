/* Functions for programs, each of which has those that it calls; PREFIX_ stands for its name. A
   block ends before an empty line. */

/* The larger number; NaN where one is NaN. */
static inline float PREFIX_max(float a, float b)
{
    return (a > b || a != a) ? a : b;
}

/* The smaller number; NaN where one is NaN. */
static inline float PREFIX_min(float a, float b)
{
    return (a < b || a != a) ? a : b;
}

/* The absolute value. */
static inline float PREFIX_abs(float x)
{
    return x < 0.0f ? -x : x;
}

/* 2 to the power of n, from -126 to 127: the bits of its exponent. */
static inline float PREFIX_power(int32_t n)
{
    union {
        uint32_t bits;
        float value;
    } number;
    number.bits = (uint32_t)(n + 127) << 23;
    return number.value;
}

/* exp(x) by 2^n exp(r) with |r| < 0.35, and the polynomial of Cephes (Moshier) for exp(r). */
static inline float PREFIX_exp(float x)
{
    if (x != x) {
        return x;
    }
    if (x > 89.0f) {
        return INFINITY;
    }
    if (x < -104.0f) {
        return 0.0f;
    }
    const int32_t n = (int32_t)(x * 1.44269504f + (x < 0.0f ? -0.5f : 0.5f));
    const float r = (x - (float)n * 0.693359375f) + (float)n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r * r + r) + 1.0f;
    /* in two factors, as 2^n itself may be too large or too small */
    return p * PREFIX_power(n / 2) * PREFIX_power(n - n / 2);
}

/* tanh(x): the polynomial of Cephes below 0.625, and 1 - 2 / (exp(2 x) + 1) above. */
static inline float PREFIX_tanh(float x)
{
    const float size = PREFIX_abs(x);
    if (size < 0.625f) {
        const float z = x * x;
        float p = -5.70498872745e-3f;
        p = p * z + 2.06390887954e-2f;
        p = p * z - 5.37397155531e-2f;
        p = p * z + 1.33314422036e-1f;
        p = p * z - 3.33332819422e-1f;
        return p * z * x + x;
    }
    const float y = 1.0f - 2.0f / (PREFIX_exp(2.0f * size) + 1.0f);
    return x < 0.0f ? -y : y;
}

/* log(x) by n log(2) + log(m) with m from 0.7 to 1.4, and the polynomial of Cephes for log(m). */
static inline float PREFIX_log(float x)
{
    if (!(x > 0.0f) || x == INFINITY) {
        return x == 0.0f ? -INFINITY : x > 0.0f ? x : NAN;
    }
    union {
        float value;
        uint32_t bits;
    } number;
    int32_t n = 0;
    if (x < 1.17549435e-38f) { /* subnormal */
        x *= 8388608.0f;
        n = -23;
    }
    number.value = x;
    n += (int32_t)(number.bits >> 23) - 126;
    number.bits = (number.bits & 0x007fffffu) | 0x3f000000u;
    float m = number.value;
    if (m < 0.707106781f) {
        n -= 1;
        m *= 2.0f;
    }
    m -= 1.0f;
    const float z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const float low = p * m * z - 2.12194440e-4f * (float)n - 0.5f * z;
    return (m + low) + 0.693359375f * (float)n;
}

/* log(1 + x), accurate for small x (Kahan). */
static inline float PREFIX_log1p(float x)
{
    const float u = 1.0f + x;
    if (u == 1.0f || u == INFINITY) {
        return x;
    }
    return u > 0.0f ? PREFIX_log(u) * (x / (u - 1.0f)) : PREFIX_log(u);
}

/* exp(x) - 1, accurate for small x (Kahan). */
static inline float PREFIX_expm1(float x)
{
    const float u = PREFIX_exp(x);
    if (u == 1.0f || u == INFINITY) {
        return u == 1.0f ? x : u;
    }
    return u - 1.0f == -1.0f ? -1.0f : (u - 1.0f) * (x / PREFIX_log(u));
}

/* The square root, by four steps of Newton from half the exponent. */
static inline float PREFIX_sqrt(float x)
{
    if (!(x > 0.0f) || x == INFINITY) {
        return x < 0.0f ? NAN : x;
    }
    const int32_t is_subnormal = x < 1.17549435e-38f;
    union {
        float value;
        uint32_t bits;
    } number;
    number.value = is_subnormal ? x * 16777216.0f : x;
    const float scaled = number.value;
    number.bits = (number.bits >> 1) + 0x1fbd1df5u;
    float y = number.value;
    y = 0.5f * (y + scaled / y);
    y = 0.5f * (y + scaled / y);
    y = 0.5f * (y + scaled / y);
    y = 0.5f * (y + scaled / y);
    return is_subnormal ? y * 2.44140625e-4f : y;
}

/* Return the number of the largest output. */
int32_t PREFIX_largest(const float *y)
{
    int32_t best = 0;
    for (int32_t k = 1; k < CAPITAL_OUTPUTS; k++) {
        if (y[k] > y[best]) {
            best = k;
        }
    }
    return best;
}

/* Draw a symbol from softmax(y / temperature), or take the largest where the temperature is 0. */
int32_t PREFIX_sample(const float *y, float temperature, uint32_t *random)
{
    const int32_t largest = PREFIX_largest(y);
    if (!(temperature > 0.0f)) {
        return largest;
    }
    float total = 0.0f;
    for (int32_t k = 0; k < CAPITAL_OUTPUTS; k++) {
        total += PREFIX_exp((y[k] - y[largest]) / temperature);
    }
    /* xorshift32 (Marsaglia 2003), multiplied so that small seeds give numbers of all sizes */
    uint32_t bits = *random == 0u ? 1u : *random;
    bits ^= bits << 13;
    bits ^= bits >> 17;
    bits ^= bits << 5;
    *random = bits;
    float left = total * ((float)((bits * 2654435769u) >> 8) * 5.96046448e-8f);
    for (int32_t k = 0; k < CAPITAL_OUTPUTS - 1; k++) {
        left -= PREFIX_exp((y[k] - y[largest]) / temperature);
        if (left < 0.0f) {
            return k;
        }
    }
    return CAPITAL_OUTPUTS - 1;
}
