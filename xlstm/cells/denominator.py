"""The stabilised denominator of the mLSTM's h, max(|n q|, exp(-m)) + eps, which both of its forms share.

C and n are kept divided by exp(m) (Beck et al. 2024, appendix A.3), so the 1 of eq. 21 becomes exp(-m). The running
maximum m itself is computed in `_begin` of `mlstm.py` and in `_logs` of `mlstm_chunks.py`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from xlstm.arrays.namespace import Array, Namespace, finfo
from xlstm.cells.activations import clamp


def at_least(xp: Namespace, m: Array, low: float) -> Array:
    """Return max(m, low).

    Before the first write, where m is -inf, the factor of the state is then exp(low - low) = 1 and not nan.
    """
    return xp.maximum(m, xp.full_like(m, low))


@functools.cache
def low_of(xp: Namespace, dtype: Any) -> float:
    """Return the finite number that takes the place of -inf in differences of logarithms."""
    return -math.pow(finfo(xp, dtype).max, 0.8)


@functools.cache
def limit_of(xp: Namespace, dtype: Any) -> float:
    """Return a bound of |x| up to which exp(x) and exp(-x) are normal numbers of the dtype."""
    return -math.log(float(finfo(xp, dtype).smallest_normal)) - 1


def exp_minus(xp: Namespace, m: Array, limit: float, dtype: Any) -> Array:
    """Return exp(-m) within the range of the dtype, neither infinite nor 0."""
    one = xp.exp(clamp(xp, -m, limit))
    return one if m.dtype == dtype else xp.astype(one, dtype)


def denominator(xp: Namespace, s: Array, m: Array, eps: float, limit: float, dtype: Any) -> Array:
    """Return max(|s|, exp(-m)) + eps with s = n q."""
    return xp.maximum(xp.abs(s), exp_minus(xp, m, limit, dtype)) + eps  # (21)


def sign_beyond(xp: Namespace, s: Array, one: Array, dtype: Any) -> Array:
    """Return the derivative of max(|s|, one) by s: the sign of s where |s| is larger, else 0."""
    return xp.astype(s > one, dtype) - xp.astype(s < -one, dtype)  # (21)
