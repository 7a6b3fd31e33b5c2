"""Functions along rows, and sums over rows: one compiled loop over NumPy arrays, one kernel on
CuPy.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import fuse, optional_imports
from xlstm.arrays.cuda import constants, device, kernel_fallback
from xlstm.arrays.cuda.row_kernel_text import FAN, MOST, Source
from xlstm.arrays.namespace import Array, Namespace, device_of
from xlstm.tracing.symbols import UntraceableError

OUTER = 3  # axes of rows at most
# that share sums at most: several for each multiprocessor of any card, added up in two stages
BLOCKS = FAN * FAN
COUNTERS = 2 * BLOCKS  # more than so many blocks have


def by_rows(xp: Namespace, function: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
    """Return `function(xp, *arrays, **options)`, which may take sums, means and maxima along the
    last axis.

    It keeps that axis. It runs in one compiled loop where NumPy's arrays are large, and in one
    kernel on CuPy; sums and maxima are for CuPy alone. Where `axis` is among the options, that axis
    takes the place of the last one.
    """
    axis = options.get("axis", -1)
    if isinstance(axis, int) and axis != -1 and fuse.compiles(xp):
        found = by_rows(
            xp, function, *(xp.moveaxis(a, axis, -1) for a in arrays), **{**options, "axis": -1}
        )
        back = tuple(xp.moveaxis(a, -1, axis) for a in fuse.listed(found))
        return back[0] if len(back) == 1 else back
    if fuse.compiles(xp):
        return summed(xp, function, *arrays, sums=0, **options)
    found = fuse.looped(xp, function, arrays, 0, options)
    return function(xp, *arrays, **options) if found is None else found


def summed(
    xp: Namespace,
    function: Callable[..., Any],
    *arrays: Array,
    sums: int = 1,
    keep: int = 1,
    leading: tuple[int | None, ...] = (),
    last: bool = False,
    out: Sequence[Array] = (),
    **options: Any,
) -> Any:
    """Return `function(xp, *arrays, **options)`, the last results summed; on CuPy from one launch.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`; on CuPy it may take sums, means and maxima along the last axis, too.
    arrays
        Their shapes broadcast, but for leading axes that the function takes apart.
    sums : int
        So many of the results are summed over all axes but the last `keep`, on CuPy halves in
        float32. Leading axes come last in sums.
    keep : int
        1 or, on CuPy, 2.
    leading : tuple of int or None, optional
        On CuPy the length of the leading axis that the function takes apart, for each array that
        has one.
    last : bool
        All arrays and those of `out` have such an axis as the inner part of their last one, (..., N
        n), and the function sees (n, ..., N).
    out : sequence of array, optional
        Room for other results, the first of all, in any memory order.
    options
        Options of the function; hashable.

    Returns
    -------
    array or tuple of array
    """
    if fuse.compiles(xp):
        given = tuple([(a.dtype, a.shape, a.strides) for a in arrays])
        room = tuple([(a.dtype, a.shape, a.strides) for a in out])
        plan = _plan(function, given, tuple(options.items()), sums, keep, leading, last, room)
        found = (
            None
            if plan is None
            else kernel_fallback.attempt(plan.kernel.name, _run, xp, plan, arrays, out)
        )
        if found is not None:
            return found
    if last:
        arrays = tuple(_leading(xp, a, n) for a, n in zip(arrays, leading, strict=True))
    if fuse.compiles(xp):
        found = list(fuse.listed(fuse.plain(xp, function, arrays, options, leading=leading)))
    else:
        looped = fuse.looped(xp, function, arrays, sums, options)
        found = list(
            fuse.listed(fuse.fuse(xp, function, *arrays, **options) if looped is None else looped)
        )
        sums = sums if looped is None else 0
    if sums:
        ndim = max(a.ndim - (n is not None) for a, n in itertools.zip_longest(arrays, leading))
        for k in range(len(found) - sums, len(found)):
            before = found[k].ndim - ndim
            found[k] = xp.sum(found[k], axis=tuple(range(before, found[k].ndim - keep)))
            found[k] = xp.moveaxis(found[k], 0, -1) if before else found[k]
    for k, to in enumerate(out):
        (_leading(xp, to, found[k].shape[0]) if last else to)[...] = found[k]
        found[k] = to
    return found[0] if len(found) == 1 else tuple(found)


def _leading(xp: Namespace, a: Array, n: Any) -> Array:
    """Return (..., N n) seen as (n, ..., N)."""
    return xp.moveaxis(xp.reshape(a, (*a.shape[:-1], a.shape[-1] // n, n)), -1, 0)


def column_sums(xp: Namespace, a: Array) -> Array:
    """Return the sum over all axes but the last, on CuPy halves in float32."""
    if fuse.compiles(xp):
        return summed(xp, _same, a)
    return xp.sum(xp.reshape(a, (math.prod(a.shape[:-1]), a.shape[-1])), axis=0)


def _same(xp: Namespace, a: Array) -> Array:
    return a


def _run(xp: Namespace, plan: Plan, arrays: Sequence[Array], out: Sequence[Array]) -> Any:
    made = optional_imports.cupy().ndarray
    found = (*out, *[made(shape, dtype) for shape, dtype in plan.results[len(out) :]])
    more = (
        [made(*plan.parts), constants.counters(xp, COUNTERS, device_of(arrays[0]))]
        if plan.parts[0]
        else []
    )
    plan.kernel(plan.grid, (plan.threads,), (plan.layout, *arrays, *found, *more))
    return found[0] if len(found) == 1 else found


class Plan(NamedTuple):
    """A launch, but for the addresses of its arrays."""

    kernel: Any
    grid: tuple[int, int]
    threads: int
    layout: Any
    results: list[tuple[tuple[int, ...], Any]]  # shapes and dtypes, those that are summed last
    parts: tuple[int, Any]  # size and dtype of the sums of all blocks


@functools.lru_cache(maxsize=1024)
def _plan(
    function: Callable[..., Any],
    arrays: tuple[tuple[Any, ...], ...],
    options: tuple[tuple[str, Any], ...],
    sums: int,
    keep: int,
    leading: tuple[int | None, ...],
    last: bool,
    out: tuple[tuple[Any, ...], ...],
) -> Plan | None:
    """Return the plan for the dtypes, shapes and strides of arrays, or None where there is no
    kernel for them.
    """
    leading = (*leading, *[None] * (len(arrays) - len(leading)))
    if last:
        arrays = _apart(arrays, leading)
    own = [
        shape if n is None else shape[1:] for (_, shape, _), n in zip(arrays, leading, strict=True)
    ]
    dtypes = tuple(dtype for dtype, _, _ in arrays)
    shape = np.broadcast_shapes(*own)
    single = tuple(not axes or axes[-1] == 1 for axes in own)
    if (
        not all(map(device.known, dtypes))
        or not 0 < math.prod(shape) < 2**31 * shape[-1]
        or all(single)
    ):
        return None
    try:
        made = _source(function, dtypes, options, single, leading, sums)
    except UntraceableError:
        return None
    lengths = [one.length for one in made.results.values()]
    results = [(one.shape(shape, keep), one.dtype) for one in made.results.values()]
    out = _apart(out, lengths) if last else out
    lying = [
        (size, tuple(step // dtype.itemsize for step in far))
        for dtype, size, far in (*arrays, *out)
    ]
    lying += [
        (size, fuse.contiguous_steps(size)) for size, _ in results[len(out) : len(results) - sums]
    ]
    apart = [n is not None for n in (*leading, *lengths)]
    steps = [
        fuse.broadcast_steps(shape, size[n:], far[n:])
        for (size, far), n in zip(lying, apart, strict=False)
    ]
    sizes, along = fuse.joined_axes(range(len(shape) - keep), shape, steps)
    heads = math.prod(shape[-keep:-1])
    columns = shape[-1]
    rows = math.prod(shape[:-keep])
    threads = min(MOST, 1 << max(5, (columns - 1).bit_length()))
    tiles = 1 if made.whole else -(-columns // threads)
    # Sums of a block are written and read once more, so that many of them are those of more rows.
    many = max(8, len(made.slots))
    blocks = max(1, BLOCKS * 8 // many // (heads * tiles))
    chunk = 1 if made.whole and not sums else max(8, many // 2, -(-rows // blocks))
    if len(sizes) > OUTER or heads * tiles > 65535:
        return None
    numbers = [rows, columns, chunk, tiles, *(sizes or [1])]
    for far, step, (_, whole), n in zip(along, steps, lying, apart, strict=False):
        numbers += [*(far or [0]), step[-2] if keep > 1 else 0, step[-1], whole[0] if n else 0]
    fixed = frozenset(k for k, far in enumerate(along[: len(arrays)]) if not any(far))
    grid = -(-rows // chunk), heads * tiles
    return Plan(
        device.kernel(made.text(max(1, len(sizes)), fixed), made.name),
        *(grid, threads, device.struct(numbers), results),
        (
            grid[0] * len(made.slots) * heads * columns,
            np.float64 if made.real == "double" else np.float32,
        ),
    )


def _apart(
    arrays: Sequence[tuple[Any, ...]], lengths: Sequence[Any]
) -> tuple[tuple[Any, ...], ...]:
    """Return dtypes, shapes and strides of arrays (..., N n) as those of (n, ..., N)."""
    return tuple(
        (dtype, (n, *shape[:-1], shape[-1] // n), (far[-1], *far[:-1], far[-1] * n))
        for (dtype, shape, far), n in zip(arrays, lengths, strict=False)
    )


_source = functools.cache(Source)
