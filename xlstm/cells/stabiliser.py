"""What the mLSTM's two forms share: m, the logarithm that C and n are divided by, and the denominator of h."""

from __future__ import annotations

import functools
import math
from typing import Any

from xlstm.arrays.backend import Array, Namespace
from xlstm.cells.activations import clamp, known_dtype


def floor(xp: Namespace, m: Array, low: float) -> Array:
    """m, but no less than `low`: where nothing was written, what C and n are multiplied by is exp(low - low) = 1."""
    return xp.maximum(m, xp.full_like(m, low))


@functools.cache
def low_of(xp: Namespace, dtype: Any) -> float:
    """A logarithm in place of -inf, which could not be subtracted from itself; differences from it are finite."""
    return -math.pow(xp.finfo(known_dtype(xp, dtype)).max, 0.8)


def one_of(xp: Namespace, m: Array, limit: float, dtype: Any) -> Array:
    """1 / exp(m), within what the dtype has: it is neither infinite nor 0."""
    one = xp.exp(clamp(xp, -m, limit))
    return one if m.dtype == dtype else xp.astype(one, dtype)


def sign_of(xp: Namespace, s: Array, one: Array, dtype: Any) -> Array:
    """Of s, where that is larger than `one`, else 0."""
    return xp.astype(s > one, dtype) - xp.astype(s < -one, dtype)


@functools.cache
def limit_of(xp: Namespace, dtype: Any) -> float:
    """The largest of logarithms whose exponentials, and one over them, the dtype has."""
    return -math.log(float(xp.finfo(known_dtype(xp, dtype)).smallest_normal)) - 1


def denominator(xp: Namespace, s: Array, m: Array, eps: float, limit: float, dtype: Any) -> Array:
    return xp.maximum(xp.abs(s), one_of(xp, m, limit, dtype)) + eps
