"""Recurrences of few steps over NumPy arrays, element by element: chains that carry values from one step to the next.

Along the axis of steps, the carried values of a chain stay in their place. `arrays/scan.py` calls `run`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import fuse
from xlstm.arrays.matmul import line
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import jit
from xlstm.engines.numba.chains import compiled, traced
from xlstm.engines.numba.team import address

SMALL = 1 << 10  # elements of all steps below which NumPy's calls cost less than to compile a loop
WIDE = np.dtype("float64")  # of the numbers that are carried into the first step

Signature = tuple[tuple[Any, ...], ...]  # shapes, strides and dtypes


class Plan(NamedTuple):
    """The compiled loop for arrays of some shapes and strides."""

    chain: Callable[..., None]
    sizes: tuple[int, int, int]  # rows, steps and columns
    shape: tuple[int, ...]  # of carried values
    steps: tuple[tuple[int, int], ...]  # of each array from row to row, and from step to step, in bytes


def run(
    function: Callable[..., Any],
    start: Sequence[Array | float],
    arrays: Sequence[Array],
    axis: int,
    reverse: bool,
    after: bool,
) -> list[tuple[Array, Array]] | None:
    """Return what `scan` returns, or None where this is no work for a compiled loop."""
    if max([a.size for a in arrays]) < SMALL or not jit.enabled():
        return None
    given = tuple(((), (), WIDE) if isinstance(s, float) else (s.shape, s.strides, s.dtype) for s in start)
    plan = _plan(function, given, tuple((a.shape, a.strides, a.dtype) for a in arrays), axis, after)
    if plan is None:
        return None
    chain, sizes, shape, steps = plan
    n, at = sizes[1], len(shape) + axis + 1
    carried = [np.empty(shape, dtype) for _, _, dtype in given]
    for room, s in zip(carried, start, strict=True):
        room[...] = s
    kept = [np.empty((*shape[:at], n, *shape[at:]), a.dtype) for a in carried]
    numbers: list[int] = []
    for a, (row, step) in zip((*carried, *arrays, *carried, *kept), steps, strict=True):
        first = address(a)
        numbers += (first + (n - 1) * step, row, -step) if reverse else (first, row, step)
    chain(*sizes, *numbers)
    return list(zip(kept, carried, strict=True))


@functools.lru_cache(maxsize=1024)
def _plan(function: Callable[..., Any], start: Signature, arrays: Signature, axis: int, after: bool) -> Plan | None:
    """Return how to run a recurrence, or None where rows and columns of an array are no two axes."""
    n = arrays[0][0][axis]
    apart = [
        (own[:axis] + own[len(own) + axis + 1 :], far[:axis] + far[len(far) + axis + 1 :]) for own, far, _ in arrays
    ]
    shape = np.broadcast_shapes(*(own for own, _, _ in start), *(own for own, _ in apart))
    at = len(shape) + axis + 1
    chain = _stepped(function, len(start), after)
    dtypes = tuple(dtype for _, _, dtype in (*start, *arrays))
    found = traced(chain, dtypes, ())
    if found is None or found.results != dtypes[: len(start)] * 2:
        return None
    columns = int(np.prod(shape[at:]))
    steps, rows = [], []
    for (own, far), (_, every, dtype) in zip(apart, arrays, strict=True):
        k = max(0, len(own) + axis + 1)
        row, column = line(own[:k], far[:k], shape[:at]), line(own[k:], far[k:], shape[at:])
        if row is None or column not in (0, dtype.itemsize):
            return None
        steps.append((row, every[axis]))
        rows.append(column == 0 and columns > 1)
    widths = [columns * dtype.itemsize for _, _, dtype in start]
    carried = [(width, 0) for width in widths]
    kept = [(n * width, width) for width in widths]
    loop, single = compiled(chain, dtypes, (), (*(False,) * len(start), *rows), 0, tuple(range(len(start))))
    if any(single):
        return None
    return Plan(loop, (int(np.prod(shape[:at])), n, columns), shape, (*carried, *steps, *carried, *kept))


@functools.cache
def _stepped(function: Callable[..., Any], count: int, after: bool) -> Callable[..., tuple[Any, ...]]:
    """Return the function of a step that gives the values to carry on, `count` of them, and then those to keep."""

    def step(xp: Any, *arrays: Any) -> tuple[Any, ...]:
        new = fuse.listed(function(xp, *arrays))
        return *new, *(new if after else arrays[:count])

    return step
