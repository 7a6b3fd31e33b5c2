"""tanh, exp and log1p from arithmetic alone, which LLVM can vectorise, unlike calls of libm.

`jit.functions` compiles these functions, and binds the names below for a dtype.
"""

# Numba finds the types of these functions.
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import math
from typing import Any

import numpy as np

F: Any = np.float32  # the dtype
I: Any = np.int32  # the integer of its size  # noqa: E741
LOG2E = MAGIC = HIGH = LOW = LIMIT = LOWEST = HIGHEST = 0.0
MANTISSA = BIAS = MIDDLE = 0


NUMBERS: dict[str, Any] = {
    "float32": (
        np.float32,
        np.int32,
        23,
        127,
        (0.693359375, -2.12194440e-4, 10.0, -104.0, 89.0),
    ),
    "float64": (
        np.float64,
        np.int64,
        52,
        1023,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10, 20.0, -746.0, 710.0),
    ),
}


def constants(dtype: str) -> dict[str, Any]:
    """Return the constants that the functions here need for a dtype.

    MANTISSA is the number of bits of the mantissa, and BIAS the bias of the exponent. tanh(LIMIT)
    is 1, and exp(x) is neither 0 nor infinite from LOWEST to HIGHEST. HIGH + LOW is ln 2, and
    MIDDLE are the bits of sqrt(1/2).
    """
    real, integer, mantissa, bias, numbers = NUMBERS[dtype]
    names = ("HIGH", "LOW", "LIMIT", "LOWEST", "HIGHEST")
    return {
        "np": np,
        "F": real,
        "I": integer,
        "LOG2E": real(1 / math.log(2)),
        "MAGIC": real(1.5 * 2.0**mantissa),
        **{name: real(number) for name, number in zip(names, numbers, strict=True)},
        "MANTISSA": integer(mantissa),
        "BIAS": integer(bias),
        "MIDDLE": real(math.sqrt(0.5)).view(integer),
    }


def series_single(r):
    """Return exp(r) - 1 for |r| <= ln(2)/2 in float32, by its series."""
    p = F(1 / 120) + r * (F(1 / 720) + r * F(1 / 5040))
    return r * (F(1) + r * (F(1 / 2) + r * (F(1 / 6) + r * (F(1 / 24) + r * p))))


def series_double(r):
    """Return exp(r) - 1 for |r| <= ln(2)/2 in float64, by its series."""
    p = F(1 / 39916800) + r * (F(1 / 479001600) + r * F(1 / 6227020800))
    p = F(1 / 40320) + r * (F(1 / 362880) + r * (F(1 / 3628800) + r * p))
    p = F(1 / 120) + r * (F(1 / 720) + r * (F(1 / 5040) + r * p))
    return r * (F(1) + r * (F(1 / 2) + r * (F(1 / 6) + r * (F(1 / 24) + r * p))))


series: Any = series_single


def atanh_single(z):
    """Return 2 (atanh(s) / s - 1) for z = s^2 <= 0.03 in float32, by its series."""
    return z * (F(2 / 3) + z * (F(2 / 5) + z * (F(2 / 7) + z * F(2 / 9))))


def atanh_double(z):
    """Return 2 (atanh(s) / s - 1) for z = s^2 <= 0.03 in float64, by its series."""
    p = F(2 / 15) + z * (F(2 / 17) + z * (F(2 / 19) + z * (F(2 / 21) + z * F(2 / 23))))
    return z * (
        F(2 / 3)
        + z
        * (F(2 / 5) + z * (F(2 / 7) + z * (F(2 / 9) + z * (F(2 / 11) + z * (F(2 / 13) + z * p)))))
    )


atanh: Any = atanh_single


def tanh(x):
    """Return e / (e + 2) with e = exp(2x) - 1 = 2^k p(r) + (2^k - 1) and 2x = k ln 2 + r."""
    a = LIMIT if x > LIMIT else x
    a = -LIMIT if a < -LIMIT else a
    a = a + a
    w = a * LOG2E + MAGIC  # leaves k in the last bits
    k = w - MAGIC
    r = (a - k * HIGH) - k * LOW
    s = I((F(w).view(I) + BIAS) << MANTISSA).view(F)
    e = s * series(r) + (s - F(1))
    return e / (e + F(2))


def exp(x):
    """Return 2^k (1 + p(r)) with x = k ln 2 + r; 2^k is a product of two factors, since one has too
    small a range of exponents.
    """
    a = HIGHEST if x > HIGHEST else x
    a = LOWEST if a < LOWEST else a
    w = a * LOG2E + MAGIC  # leaves k in the last bits
    k = w - MAGIC
    r = (a - k * HIGH) - k * LOW
    n = I(I(F(w).view(I) - F(MAGIC).view(I)) + BIAS + BIAS)
    m = I(n >> I(1))
    return (series(r) + F(1)) * I(m << MANTISSA).view(F) * I(I(n - m) << MANTISSA).view(F)


def log1p(x):
    """Return k ln 2 + log(1 + f) with 1 + x = 2^k (1 + f), and log(1 + f) = 2 atanh(s) with s = f /
    (2 + f).

    The part of x that 1 + x loses is added last. As in libm, log1p(-1) is -inf, and log1p(x) is NaN
    below.
    """
    u = F(1) + x
    lost = (x - (u - F(1))) / u
    bits = I(F(u).view(I) - MIDDLE)
    k = I(bits >> MANTISSA)
    f = I(F(u).view(I) - I(k << MANTISSA)).view(F) - F(1)
    s = f / (F(2) + f)
    y = F(k) * HIGH + (f - (s * (f - atanh(s * s)) - (F(k) * LOW + lost)))
    y = y if u < F(np.inf) else u
    return y if u > F(0) else F(-np.inf) if u == F(0) else F(np.nan)
