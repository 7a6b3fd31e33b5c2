/* Functions that a written file has if it uses them; PREFIX_ becomes the name of the model. */

/* The larger number, or NaN where one is. */
static inline float PREFIX_max(float a, float b)
{
    return (a > b || a != a) ? a : b;
}

/* The smaller number, or NaN where one is. */
static inline float PREFIX_min(float a, float b)
{
    return (a < b || a != a) ? a : b;
}
