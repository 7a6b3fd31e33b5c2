"""Normalisation along an axis, forward and backward."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xlstm.arrays.fuse import looped
from xlstm.arrays.namespace import Array, Namespace, finfo, root_of
from xlstm.arrays.rows import by_rows

Axis: TypeAlias = "int | tuple[int, ...]"

EPS = 1e-5  # the default of torch.nn.LayerNorm


def _centred(xp: Namespace, x: Array, axis: Axis, eps: float) -> tuple[Array, Array]:
    return _by_root(xp, x - xp.mean(x, axis=axis, keepdims=True), axis, eps)  # (1)


def _centred_bwd(xp: Namespace, dn: Array, n: Array, r: Array, axis: Axis) -> Array:
    mean, along = (xp.mean(a, axis=axis, keepdims=True) for a in (dn, dn * n))  # (1), (2)
    return r * (dn - mean - n * along)  # (3) (2) (1)


def _by_root(xp: Namespace, x: Array, axis: Axis, eps: float) -> tuple[Array, Array]:
    """Return x scaled to mean square 1, and 1 / the root of its mean square."""
    r = 1 / xp.sqrt(xp.mean(x * x, axis=axis, keepdims=True) + eps)  # (2)
    return x * r, r  # (3)


def _by_root_bwd(xp: Namespace, dn: Array, n: Array, r: Array, axis: int) -> Array:
    return r * (dn - n * xp.mean(dn * n, axis=axis, keepdims=True))  # (3) (2)


class Normal(NamedTuple):
    """A norm: its formulas for a row, forward and backward."""

    row: Any
    row_bwd: Any


MEAN_AND_VARIANCE = Normal(_centred, _centred_bwd)  # Ba et al. 2016, eq. 3
MEAN_SQUARE = Normal(_by_root, _by_root_bwd)  # Zhang & Sennrich 2019, eq. 4


def normalize(
    xp: Namespace, x: Array, axis: Axis, norm: Normal = MEAN_AND_VARIANCE, eps: float = EPS
) -> tuple[Array, Array]:
    """Return x normalised along `axis`, and 1 / the root of its variance or mean square.

    The result has mean 0 and variance 1, or mean square 1, as `norm` says.
    """
    return normed(xp, scaled, x, formula=norm.row, axis=axis, eps=eps)  # type: ignore[no-any-return]


def normalize_bwd(
    xp: Namespace, dn: Array, n: Array, r: Array, axis: Axis, norm: Normal = MEAN_AND_VARIANCE
) -> Array:
    """Return the gradient with respect to x from that with respect to n, for `n, r = normalize(xp,
    x, axis, norm)`.
    """
    return by_rows(xp, norm.row_bwd, dn, n, r, axis=axis)


def layer_norm(
    xp: Namespace, x: Array, gain: Array, axis: Axis
) -> tuple[Array, tuple[Array, Array]]:
    """Return x normalised and multiplied by a gain, and the results of `normalize`."""
    n, r = normalize(xp, x, axis)
    return gain * n, (n, r)  # (4)


def layer_norm_bwd(xp: Namespace, dy: Array, gain: Array, n: Array, r: Array, axis: Axis) -> Array:
    """Return the gradient with respect to x from that with respect to y, for `y, (n, r) =
    layer_norm(xp, x, gain, axis)`.
    """
    return normalize_bwd(xp, gain * dy, n, r, axis)  # (4)


def normed(xp: Namespace, function: Any, x: Array, *arrays: Array, **options: Any) -> Any:
    """Return `function(xp, x, *arrays, limit=limit, **options)`: n and r, which are the norm and
    its factor, and perhaps more.

    With a `limit`, `function` scales x like `scaled`. NumPy needs no limit unless a square is
    infinite.
    """
    if root_of(xp) is not np:
        return _within(xp, function, x, *arrays, **options)
    outputs = looped(xp, function, (x, *arrays), 0, {**options, "limit": None})
    if outputs is None:
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = function(xp, x, *arrays, limit=None, **options)
    finite = outputs[1] > 0  # r is 0 or NaN if a square is infinite
    if finite.all():
        return outputs
    within = _within(xp, function, x, *arrays, **options)
    return tuple(xp.where(finite, *pair) for pair in zip(outputs, within, strict=True))


def _within(xp: Namespace, function: Any, x: Array, *arrays: Array, **options: Any) -> Any:
    """Return the results of a function with a limit, within which no square is infinite."""
    return by_rows(xp, function, x, *arrays, limit=fourth_root(xp, x.dtype), **options)


def scaled(
    xp: Namespace, x: Array, formula: Any, axis: Axis, eps: float, limit: float | None
) -> tuple[Array, Array]:
    """Return the results of a formula for c x, with its factor multiplied by c.

    c makes all squares finite; without a limit it is 1.
    """
    if limit is None:
        return formula(xp, x, axis, eps)  # type: ignore[no-any-return]
    most = xp.max(xp.abs(x), axis=axis, keepdims=True)
    # c is 1 unless an element exceeds the limit; eps is negligible then
    c = limit / xp.maximum(most, xp.full_like(most, limit))  # (5)
    n, r = formula(xp, x * c, axis, eps)  # (5)
    return n, r * c  # (5)


@functools.lru_cache
def fourth_root(xp: Namespace, dtype: Any) -> float:
    """Return the fourth root of the largest number of a dtype.

    A sum of many products of three numbers up to this size does not overflow.
    """
    return math.pow(finfo(xp, dtype).max, 0.25)
