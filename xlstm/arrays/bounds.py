"""Whether the numbers of an array are small, where that is cheap to know."""

from __future__ import annotations

import numpy as np

from xlstm.arrays.backend import Array, Namespace


def surely_within(xp: Namespace, x: Array, limit: float) -> bool:
    """Return True if every |x| is at most `limit`; False may be said of small numbers too, and of all on a GPU."""
    return bool(xp is np and squares(x) < limit * limit)


def squares(x: Array) -> float:
    """Return the sum of all x^2 of a NumPy array, infinite where it overflows, by one pass over it and in silence."""
    if x.flags.c_contiguous:
        return float(np.vdot(x, x))
    axes = list(range(x.ndim))
    return float(np.einsum(x, axes, x, axes, []))
