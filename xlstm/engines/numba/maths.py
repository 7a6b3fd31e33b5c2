"""tanh and exp in arithmetic alone, so that LLVM makes vectors of them: libm's functions make none.

These functions are compiled by `jit.functions`, which binds the names below to a dtype's own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

F: Any = np.float32  # the dtype
I: Any = np.int32  # the integer of its size  # noqa: E741
LOG2E = MAGIC = HIGH = LOW = LIMIT = LOWEST = HIGHEST = 0.0
MANTISSA = BIAS = 0


def constants(dtype: str) -> dict[str, Any]:
    """Return what the functions here need to know of a dtype.

    MANTISSA is the number of bits of the mantissa, BIAS that of the exponent, tanh(LIMIT) is 1, exp(x) is neither 0 nor
    infinite from LOWEST to HIGHEST, and HIGH + LOW is ln 2.
    """
    single = dtype == "float32"
    real, integer = (np.float32, np.int32) if single else (np.float64, np.int64)
    mantissa, bias, limit, lowest, highest = (
        (23, 127, 10.0, -104.0, 89.0) if single else (52, 1023, 20.0, -746.0, 710.0)
    )
    high, low = (0.693359375, -2.12194440e-4) if single else (6.93147180369123816490e-01, 1.90821492927058770002e-10)
    numbers = {"LOG2E": 1 / math.log(2), "MAGIC": 1.5 * 2.0**mantissa, "HIGH": high, "LOW": low, "LIMIT": limit}
    numbers |= {"LOWEST": lowest, "HIGHEST": highest}
    found = {name: real(value) for name, value in numbers.items()}
    return {"F": real, "I": integer, "MANTISSA": integer(mantissa), "BIAS": integer(bias), **found}


def series_single(r: Any) -> Any:
    """Return exp(r) - 1 for |r| <= ln(2)/2 in float32, by its series."""
    p = F(1 / 120) + r * (F(1 / 720) + r * F(1 / 5040))
    return r * (F(1) + r * (F(1 / 2) + r * (F(1 / 6) + r * (F(1 / 24) + r * p))))


def series_double(r: Any) -> Any:
    """Return exp(r) - 1 for |r| <= ln(2)/2 in float64, by its series."""
    p = F(1 / 39916800) + r * (F(1 / 479001600) + r * F(1 / 6227020800))
    p = F(1 / 40320) + r * (F(1 / 362880) + r * (F(1 / 3628800) + r * p))
    p = F(1 / 120) + r * (F(1 / 720) + r * (F(1 / 5040) + r * p))
    return r * (F(1) + r * (F(1 / 2) + r * (F(1 / 6) + r * (F(1 / 24) + r * p))))


series: Any = series_single


def tanh(x: Any) -> Any:
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


def exp(x: Any) -> Any:
    """Return 2^k (1 + p(r)) with x = k ln 2 + r; 2^k is made of two factors, for one has too few exponents."""
    a = HIGHEST if x > HIGHEST else x
    a = LOWEST if a < LOWEST else a
    w = a * LOG2E + MAGIC  # leaves k in the last bits
    k = w - MAGIC
    r = (a - k * HIGH) - k * LOW
    n = I(I(F(w).view(I) - F(MAGIC).view(I)) + BIAS + BIAS)
    m = I(n >> I(1))
    return (series(r) + F(1)) * I(m << MANTISSA).view(F) * I(I(n - m) << MANTISSA).view(F)
