"""Functions along rows, and sums over rows: one compiled loop on NumPy, one kernel on CuPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from xlstm.arrays import compiled, cores, fuse
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, device_of, reshape
from xlstm.tracing.array_functions import Formula, Lengths, listed

# The number B of sequences whose parameter gradients stay apart in a backward pass. Each B rows
# belong to one step, and sums over rows have B as their first axis. None adds up all sequences.
per_sequence: ContextVar[int | None] = ContextVar("per_sequence", default=None)


def by_rows(xp: Namespace, function: Formula, *arrays: Array, **options: Any) -> Any:
    """Return `function(xp, *arrays, **options)`, with sums, means and maxima along the last axis.

    The function keeps that axis. It runs in one compiled loop over large NumPy arrays, and in one
    kernel on CuPy; sums and maxima are for CuPy alone. If `axis` is among the options, that axis
    takes the place of the last one.
    """
    if not fuse.compiles(xp):
        results = fuse.looped(xp, function, arrays, 0, options)
        return function(xp, *arrays, **options) if results is None else results
    axis = options.get("axis", -1)
    if not isinstance(axis, int) or axis == -1:
        return summed(xp, function, *arrays, sums=0, **options)
    moved = (xp.moveaxis(a, axis, -1) for a in arrays)
    results = listed(by_rows(xp, function, *moved, **{**options, "axis": -1}))
    results = tuple(xp.moveaxis(a, -1, axis) for a in results)
    return results[0] if len(results) == 1 else results


def summed(
    xp: Namespace,
    function: Formula,
    *arrays: Array,
    sums: int = 1,
    keep: int = 1,
    leading: Lengths = (),
    last: bool = False,
    out: Sequence[Array] = (),
    **options: Any,
) -> Any:
    """Return `function(xp, *arrays, **options)` with the last results summed; on CuPy in one
    launch.

    Sums follow `per_sequence`; with it they are not part of the launch.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`; on CuPy it may take sums, means and maxima along the last axis, too.
    arrays
        Their shapes broadcast, except for leading axes that the function splits up.
    sums : int
        The number of results, counted from the last, that are summed over all axes except the last
        `keep`. On CuPy halves are summed in float32. Leading axes come last in sums.
    keep : int
        1 or, on CuPy, 2.
    leading : tuple of int or None, optional
        On CuPy the length of the leading axis that the function splits up, for each array that has
        such an axis.
    last : bool
        Whether all arrays, including `out`, have this axis as the inner part of their last axis,
        (..., N n). The function sees (n, ..., N).
    out : sequence of array, optional
        Memory for the first results, which are not summed, in any memory order.
    options
        Options of the function; hashable.

    Returns
    -------
    array or tuple of array
    """
    apart = sums and per_sequence.get() is not None
    if fuse.compiles(xp) and not apart:
        launched = compiled.module("cupy.rows").summed(
            xp, function, arrays, sums, keep, leading, last, out, options
        )
        if launched is not None:
            return launched
    if last:
        arrays = tuple(_first(xp, a, n) for a, n in zip(arrays, leading, strict=True))
    if fuse.compiles(xp):
        results = compiled.module("cupy.fuse").plain(xp, function, arrays, options, leading=leading)
    else:
        results = None if apart else fuse.looped(xp, function, arrays, sums, options)
        if results is None:
            results = fuse.fuse(xp, function, *arrays, **options)
        else:
            sums = 0
    results = list(listed(results))
    if sums:
        ndim = max(a.ndim - (n is not None) for a, n in itertools.zip_longest(arrays, leading))
        results[-sums:] = [_sum(xp, a, a.ndim - ndim, keep) for a in results[-sums:]]
    for k, room in enumerate(out):
        (_first(xp, room, results[k].shape[0]) if last else room)[...] = results[k]
        results[k] = room
    return results[0] if len(results) == 1 else tuple(results)


def _first(xp: Namespace, a: Array, n: Any) -> Array:
    """Return a view of (..., N n) as (n, ..., N)."""
    return xp.moveaxis(xp.reshape(a, (*a.shape[:-1], a.shape[-1] // n, n)), -1, 0)


def _sum(xp: Namespace, a: Array, leading: int, keep: int) -> Array:
    """Return the sum over all axes except leading axes, which come last, and the last `keep`."""
    total = xp.sum(_rows(a, leading, keep), axis=leading)
    return xp.moveaxis(total, 0, -1) if leading else total


def column_sums(xp: Namespace, a: Array) -> Array:
    """Return the sum over all axes except the last; it follows `per_sequence`.

    On CuPy halves are summed in float32.
    """
    if fuse.compiles(xp):
        return summed(xp, fuse.same, a)
    return xp.sum(_rows(a, 0, 1), axis=0)


def row_products(xp: Namespace, a: Array, b: Array) -> Array:
    """Return a^T b (..., O, I) of a (..., N, O) and b (..., N, I); it follows `per_sequence`.

    It is the sum of the products of all rows.
    """
    if per_sequence.get() is None:
        return matmul(xp, a.mT, b)
    a, b = (xp.moveaxis(_rows(d, d.ndim - 2, 1), -2, 0) for d in (a, b))  # (B, ..., T, F)
    with cores.one_thread():  # BLAS would split each of many small products
        return matmul(xp, a.mT, b)


def no_gradient(xp: Namespace, p: Array) -> Array:
    """Return zeros, the gradient of a parameter without effect; it follows `per_sequence`."""
    B = per_sequence.get()
    outer = () if B is None else (B,)
    return xp.zeros((*outer, *p.shape), dtype=p.dtype, device=device_of(p))


def _rows(a: Array, leading: int, keep: int) -> Array:
    """Return an array with its rows as one axis, after `leading` axes and before `keep` axes.

    With `per_sequence` the rows become two axes, T steps and B sequences.
    """
    end = a.ndim - keep
    N = math.prod(a.shape[leading:end])
    B = per_sequence.get()
    rows = (N,) if B is None else (N // (B or 1), B)
    return reshape(a, (*a.shape[:leading], *rows, *a.shape[end:]))
