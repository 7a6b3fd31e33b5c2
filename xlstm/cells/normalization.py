"""Normalisation along an axis, forward and backward."""

from __future__ import annotations

import functools
import math
from typing import Any

from xlstm.arrays.fuse import by_rows
from xlstm.arrays.namespace import Array, Namespace, finfo, squares_below

EPS = 1e-5  # that of torch.nn.LayerNorm


def normalize(xp: Namespace, x: Array, axis: int, eps: float = EPS) -> tuple[Array, Array]:
    """Return x with mean 0 and variance 1 along `axis` (Ba et al. 2016, eq. 3), and 1 / its standard deviation."""
    x, c = _scaled(xp, x, axis)
    n, r = by_rows(xp, _centred, x, axis=axis, eps=eps)
    return n, r * c


def normalize_bwd(xp: Namespace, dn: Array, n: Array, r: Array, axis: int) -> Array:
    """Return the gradient of x from that of n, with `n, r = normalize(xp, x, axis)`."""
    return by_rows(xp, _centred_bwd, dn, n, r, axis=axis)


def normalize_root(xp: Namespace, x: Array, axis: int, eps: float = EPS) -> tuple[Array, Array]:
    """Return x with mean square 1 along `axis` (Zhang & Sennrich 2019, eq. 4), and 1 / the root of the mean square."""
    x, c = _scaled(xp, x, axis)
    n, r = by_rows(xp, _by_root, x, axis=axis, eps=eps)
    return n, r * c


def normalize_root_bwd(xp: Namespace, dn: Array, n: Array, r: Array, axis: int) -> Array:
    """Return the gradient of x from that of n, with `n, r = normalize_root(xp, x, axis)`."""
    return by_rows(xp, _by_root_bwd, dn, n, r, axis=axis)


def _centred(xp: Namespace, x: Array, axis: int, eps: float) -> tuple[Array, Array]:
    return _by_root(xp, x - xp.mean(x, axis=axis, keepdims=True), axis, eps)


def _centred_bwd(xp: Namespace, dn: Array, n: Array, r: Array, axis: int) -> Array:
    mean, along = (xp.mean(a, axis=axis, keepdims=True) for a in (dn, dn * n))
    return r * (dn - mean - n * along)


def _by_root(xp: Namespace, x: Array, axis: int, eps: float) -> tuple[Array, Array]:
    """Return x with mean square 1, and 1 / the root of its mean square."""
    r = 1 / xp.sqrt(xp.mean(x * x, axis=axis, keepdims=True) + eps)
    return x * r, r


def _by_root_bwd(xp: Namespace, dn: Array, n: Array, r: Array, axis: int) -> Array:
    return r * (dn - n * xp.mean(dn * n, axis=axis, keepdims=True))


def _scaled(xp: Namespace, x: Array, axis: int) -> tuple[Array, Array | float]:
    """Return c x, whose squares are finite, and c, one factor for each vector along `axis`.

    c is 1 unless x has elements larger than `fourth_root`, beside which eps does not matter.
    """
    if squares_below(xp, x, math.inf):
        return x, 1.0
    most, limit = xp.max(xp.abs(x), axis=axis, keepdims=True), fourth_root(xp, x.dtype)
    c = limit / xp.maximum(most, xp.full_like(most, limit))
    return x * c, c


@functools.cache
def fourth_root(xp: Namespace, dtype: Any) -> float:
    """Return the fourth root of the largest number of a dtype.

    A sum of many products of three numbers that are no larger does not overflow.
    """
    return math.pow(finfo(xp, dtype).max, 0.25)
