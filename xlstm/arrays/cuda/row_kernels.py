"""The launches of kernels for functions along rows of CuPy arrays, and for sums over rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import constants, optional_imports
from xlstm.arrays.cuda import device, kernel_fallback
from xlstm.arrays.cuda.row_kernel_text import FAN, MOST, RowKernel
from xlstm.arrays.namespace import Array, Namespace, Shape, device_of
from xlstm.tracing.array_functions import Formula, Lengths, Options
from xlstm.tracing.loop_nest import contiguous_steps, loop_nest
from xlstm.tracing.symbols import UntraceableError

OUTER = 3  # the most loops over rows
# The most blocks that share sums, added in two stages: several blocks for each multiprocessor of
# any card.
BLOCKS = FAN * FAN
COUNTERS = 2 * BLOCKS  # more than these blocks need

Layout = tuple[Any, Shape, Shape]  # dtype, shape and strides of an array


def summed(
    xp: Namespace,
    function: Formula,
    arrays: tuple[Array, ...],
    sums: int,
    keep: int,
    leading: Lengths,
    last: bool,
    out: Sequence[Array],
    options: dict[str, Any],
) -> Any:
    """Return the results of `summed` in `arrays/rows.py` from one launch; None without a kernel."""
    layouts = tuple([(a.dtype, a.shape, a.strides) for a in arrays])
    rooms = tuple([(a.dtype, a.shape, a.strides) for a in out])
    key = function, layouts, tuple(options.items())
    plan = _plan(*key, sums, keep, leading, last, rooms)
    if plan is None:
        return None
    return kernel_fallback.attempt(plan.kernel.name, _launched, xp, plan, arrays, out)


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
