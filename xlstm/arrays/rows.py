"""Functions along rows, and sums over rows: one compiled loop on NumPy, one kernel on CuPy."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import cores, fuse, optional_imports
from xlstm.arrays.cuda import constants, device, kernel_fallback
from xlstm.arrays.cuda.row_kernel_text import FAN, MOST, RowKernel
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, Shape, device_of, reshape
from xlstm.tracing.array_functions import Formula, Lengths, Options, listed
from xlstm.tracing.loop_nest import contiguous_steps, loop_nest
from xlstm.tracing.symbols import UntraceableError

OUTER = 3  # the most loops over rows
# The most blocks that share sums, added in two stages: several blocks for each multiprocessor of
# any card.
BLOCKS = FAN * FAN
COUNTERS = 2 * BLOCKS  # more than these blocks need

Layout = tuple[Any, Shape, Shape]  # dtype, shape and strides of an array

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
        layouts = tuple([(a.dtype, a.shape, a.strides) for a in arrays])
        rooms = tuple([(a.dtype, a.shape, a.strides) for a in out])
        key = function, layouts, tuple(options.items())
        plan = _plan(*key, sums, keep, leading, last, rooms)
        if plan is not None:
            name = plan.kernel.name
            launched = kernel_fallback.attempt(name, _launched, xp, plan, arrays, out)
            if launched is not None:
                return launched
    if last:
        arrays = tuple(_first(xp, a, n) for a, n in zip(arrays, leading, strict=True))
    if fuse.compiles(xp):
        results = fuse.plain(xp, function, arrays, options, leading=leading)
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


class RowLaunch(NamedTuple):
    """A launch, except for the addresses of its arrays."""

    kernel: Any
    grid: tuple[int, int]
    threads: int
    layout: Any
    results: list[tuple[Shape, Any]]  # shapes and dtypes, summed results last
    partial_sums: tuple[int, Any]  # size and dtype of the partial sums of all blocks


def _launched(xp: Namespace, plan: RowLaunch, arrays: Sequence[Array], out: Sequence[Array]) -> Any:
    new = optional_imports.cupy().ndarray
    results = (*out, *[new(shape, dtype) for shape, dtype in plan.results[len(out) :]])
    more: tuple[Any, ...] = ()
    if plan.partial_sums[0]:
        counters = constants.counters(xp, COUNTERS, device_of(arrays[0]))
        more = (new(*plan.partial_sums), counters)
    plan.kernel(plan.grid, (plan.threads,), (plan.layout, *arrays, *results, *more))
    return results[0] if len(results) == 1 else results


@functools.lru_cache(maxsize=1024)
def _plan(
    function: Formula,
    arrays: tuple[Layout, ...],
    options: Options,
    sums: int,
    keep: int,
    leading: Lengths,
    last: bool,
    out: tuple[Layout, ...],
) -> RowLaunch | None:
    """Return the launch for arrays of these layouts, or None if there is no kernel for them."""
    leading = (*leading, *[None] * (len(arrays) - len(leading)))
    if last:
        arrays = _with_first(arrays, leading)
    apart = [n is not None for n in leading]
    rows = [shape[n:] for (_, shape, _), n in zip(arrays, apart, strict=True)]
    dtypes = tuple(dtype for dtype, _, _ in arrays)
    shape = np.broadcast_shapes(*rows)
    single = tuple(not axes or axes[-1] == 1 for axes in rows)
    computable = all(map(device.known, dtypes)) and not all(single)
    if not computable or not 0 < math.prod(shape) < 2**31 * shape[-1]:
        return None
    try:
        kernel = _row_kernel(function, dtypes, options, single, leading, sums)
    except UntraceableError:
        return None
    results = [(result.shape(shape, keep), result.dtype) for result in kernel.results.values()]
    lengths = [result.length for result in kernel.results.values()]
    apart += [n is not None for n in lengths]
    out = _with_first(out, lengths) if last else out
    new = results[len(out) : len(results) - sums]
    lying = [(size, _in_elements(strides, dtype)) for dtype, size, strides in (*arrays, *out)]
    lying += [(size, contiguous_steps(size)) for size, _ in new]
    of_rows = [(size[n:], steps[n:]) for (size, steps), n in zip(lying, apart, strict=False)]
    nest = loop_nest(shape, of_rows, keep)
    heads = math.prod(shape[-keep:-1])
    columns = shape[-1]
    count = math.prod(shape[:-keep])
    threads, tiles, chunk = _division(kernel, count, heads, columns, sums)
    if len(nest.sizes) > OUTER or heads * tiles > 65535:
        return None
    numbers = [count, columns, chunk, tiles, *(nest.sizes or [1])]
    for steps, (_, strides), n in zip(nest.steps, lying, apart, strict=False):
        head = steps[-2] if keep > 1 else 0
        numbers += [*(steps[:-keep] or (0,)), head, steps[-1], strides[0] if n else 0]
    inputs = enumerate(nest.steps[: len(arrays)])
    fixed = frozenset(k for k, steps in inputs if not any(steps[:-keep]))
    grid = -(-count // chunk), heads * tiles
    return RowLaunch(
        device.kernel(kernel.text(max(1, len(nest.sizes)), fixed), kernel.name),
        grid,
        threads,
        device.struct(numbers),
        results,
        (
            grid[0] * len(kernel.slots) * heads * columns,
            np.float64 if kernel.real == "double" else np.float32,
        ),
    )


def _with_first(arrays: Sequence[Layout], lengths: Sequence[Any]) -> tuple[Layout, ...]:
    """Return the layouts of arrays (..., N n) seen as (n, ..., N)."""
    return tuple(
        (dtype, (n, *shape[:-1], shape[-1] // n), (step, *steps, n * step))
        for (dtype, shape, (*steps, step)), n in zip(arrays, lengths, strict=False)
    )


def _in_elements(strides: Shape, dtype: Any) -> Shape:
    return tuple([step // dtype.itemsize for step in strides])


def _division(
    kernel: RowKernel, count: int, heads: int, columns: int, sums: int
) -> tuple[int, int, int]:
    """Return the threads of a block, the tiles of a row, and the rows of a block."""
    threads = min(MOST, 1 << max(5, (columns - 1).bit_length()))
    tiles = 1 if kernel.whole else -(-columns // threads)
    if kernel.whole and not sums:
        return threads, tiles, 1
    # Each block's sums are written and read once more, so with many sums a block takes more rows.
    many = max(8, len(kernel.slots))
    blocks = max(1, BLOCKS * 8 // many // (heads * tiles))
    return threads, tiles, max(8, many // 2, -(-count // blocks))


_row_kernel = functools.cache(RowKernel)
