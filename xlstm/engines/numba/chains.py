"""Chains of element-wise operations over NumPy arrays, each compiled as one loop and shared out among threads.

NumPy makes a pass over memory on one core for every operation. A chain is the function that NumPy would run, traced and
written as a loop over rows, and within it over columns; so no formula stands here. An array is given by the address of
its first number and by its steps along two axes of rows, so one compilation serves all shapes. `arrays/fuse.py` calls
`run`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import cores, fuse, strides
from xlstm.arrays.namespace import DOUBLE, SINGLE, Array
from xlstm.engines.numba import jit
from xlstm.engines.numba.team import address, together
from xlstm.tracing.reductions import Rows, RowWriter, SingleRows
from xlstm.tracing.symbols import Line, UntraceableError
from xlstm.tracing.writers import LIBM, Python

SMALL = 1 << 14  # elements below which NumPy's calls cost less than the way to a compiled loop
SHARED = 1 << 19  # elements from which on threads share a loop; less takes about as long as to wake one
NARROW = 16  # columns below which a row is not worth its loop


Options = tuple[tuple[str, Any], ...]


class Traced(NamedTuple):
    """The trace of a function, and the dtypes of its results."""

    lines: list[Line]
    results: tuple[Any, ...]
    means: bool  # whether there is a mean along a row


class Layout(NamedTuple):
    """How a chain goes over its arrays: two axes of rows and one of columns, whichever order memory has."""

    order: tuple[int, ...]  # the axes of the arrays from the widest steps in memory to the narrowest
    shape: tuple[int, ...]  # that of the results
    sizes: tuple[int, int, int]  # rows of both axes, and columns
    steps: tuple[tuple[int, int, int], ...]  # of each array along these, in bytes


class Plan(NamedTuple):
    """The compiled loop for arrays of some shapes and strides, and what it is called with."""

    chain: Callable[..., None]
    memory: tuple[int, ...]  # the shape of a result as it lies in memory
    back: tuple[int, ...]  # its axes in the order of the arrays
    dtypes: tuple[tuple[Any, bool], ...]  # of results, sums last, and whether there is one number for a row
    sizes: tuple[int, int, int]
    steps: tuple[tuple[int, int, int], ...]


def run(
    function: Callable[..., Any],
    arrays: Sequence[Array],
    out: Array | None = None,
    sums: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return what `fuse` returns, or None where this is no work for a compiled loop.

    Parameters
    ----------
    function, arrays, out, options
        As of `fuse`; the function may also take means along the last axis, which the results keep.
    sums : int
        The last so many results are summed over all axes but the last.
    """
    if max([a.size for a in arrays]) < SMALL >> 3 or not jit.enabled():  # results may be larger than any array
        return None
    if out is not None and any(a is not out and np.may_share_memory(a, out) for a in arrays):
        return None
    signature = tuple([(a.shape, a.strides, a.dtype) for a in arrays])
    target = None if out is None else (out.shape, out.strides, out.dtype)
    same = tuple([k for k, a in enumerate(arrays) if a is out][:1])
    plan = _plan(function, signature, target, same, sums, tuple(options.items()))
    if plan is None:
        return None
    chain, memory, back, dtypes, (n0, n1, columns), steps = plan
    kept = len(dtypes) - sums
    found = [out] if out is not None else [_result(memory, back, dtype, one) for dtype, one in dtypes[:kept]]
    work = n0 * n1 * columns
    if work < SHARED and not sums:
        numbers: list[int] = []
        for a, (s, t, _) in zip((*arrays, *found), steps, strict=True):
            numbers += (address(a), s, t)
        chain(n0, n1, columns, *numbers)
        return found[0] if kept == 1 else tuple(found)
    flat = n0 == 1
    whole = columns if flat else n0
    size = min(cores.threads(), whole) if work >= SHARED else 1
    rooms = [np.zeros((size, columns), dtype) for dtype, _ in dtypes[kept:]]

    def part(k: int) -> tuple[int, ...]:
        first, last = whole * k // size, whole * (k + 1) // size
        numbers: list[int] = []
        for a, (s, t, c) in zip((*arrays, *found), steps, strict=True):
            numbers += (address(a) + first * (c if flat else s), s, t)
        for room in rooms:
            numbers += (address(room[k]) + (first * room.itemsize if flat else 0), 0, 0)
        return (*((1, 1, last - first) if flat else (last - first, n1, columns)), *numbers)

    together(chain, [part(k) for k in range(size)])
    every = (*found, *(room.sum(axis=0) for room in rooms))
    return every[0] if len(every) == 1 else every


@functools.lru_cache(maxsize=1024)
def _plan(
    function: Callable[..., Any],
    arrays: tuple[tuple[Any, ...], ...],
    out: tuple[Any, ...] | None,
    same: tuple[int, ...],
    sums: int,
    options: Options,
) -> Plan | None:
    """Return how to run a function over arrays of these shapes, strides and dtypes, or None where it is not to be."""
    dtypes = tuple(dtype for _, _, dtype in arrays)
    found = traced(function, dtypes, options)
    if found is None:
        return None
    apart = sums > 0 or found.means
    layout = _layout([*arrays, *(() if out is None else (out,))], apart)
    if layout is None or math.prod(layout.sizes) < SMALL:
        return None
    rows = tuple(step[2] == 0 for step in layout.steps)
    chain, single = compiled(function, dtypes, options, rows[: len(arrays)], sums, same)
    results = list(zip(found.results, single, strict=True))
    kept = len(results) - sums
    if any(single if not apart else single[kept:]):
        return None
    if out is not None and (len(results) != 1 or (out[2], rows[-1]) != results[0]):
        return None
    memory, back = tuple(layout.shape[axis] for axis in layout.order), tuple(map(int, np.argsort(layout.order)))
    if out is None:  # results lie as the arrays do
        made = [_result(memory, back, dtype, one) for dtype, one in results[:kept]]
        again = _layout([*arrays, *((a.shape, a.strides, a.dtype) for a in made)], apart)
        if again is None or again.sizes[2] != layout.sizes[2] or again.order != layout.order:
            return None
        layout = again
    return Plan(chain, memory, back, tuple(results), layout.sizes, layout.steps)


def _result(memory: tuple[int, ...], back: tuple[int, ...], dtype: Any, one: bool) -> Array:
    """Return room for a result, with one number for a row or as many as there are columns."""
    return np.empty((*memory[:-1], 1) if one else memory, dtype).transpose(back)


def _layout(arrays: Sequence[tuple[Any, ...]], apart: bool) -> Layout | None:
    """Return how to go over arrays that are broadcast together, or None where three axes do not do.

    If `apart`, the columns are the last axis of the arrays alone.
    """
    shape = np.broadcast_shapes(*(own for own, _, _ in arrays))
    steps = [strides.broadcast(shape, own, step) for own, step, _ in arrays]
    order = list(range(len(shape)))
    for (own, _, _), step in zip(arrays, steps, strict=True):
        if own == shape:
            order.sort(key=lambda axis: -step[axis] if shape[axis] > 1 else -math.inf)
            break
    sizes, along = strides.joined(order, shape, steps, len(shape) - 1 if apart else None)
    if apart and (order[-1] != len(shape) - 1 or shape[-1] == 1):
        return None
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1 or sizes[-1] < NARROW or any(s < 0 for far in along for s in far):
        return None
    if any(far[-1] not in (0, dtype.itemsize) for far, (_, _, dtype) in zip(along, arrays, strict=True)):
        return None
    sizes = [1] * (3 - len(sizes)) + sizes
    along = [[0] * (3 - len(far)) + far for far in along]
    n0, n1, columns = sizes
    if n0 == 1:  # threads share the first axis
        n0, n1 = n1, n0
        along = [[t, s, c] for s, t, c in along]
    every = [(s, t, c) for s, t, c in along]
    return Layout(tuple(order), shape, (n0, n1, columns), tuple(every))


@functools.cache
def traced(function: Callable[..., Any], dtypes: tuple[Any, ...], options: Options) -> Traced | None:
    """Return the trace of a function, or None where no compiled loop is to run it."""
    if not all(dtype in (SINGLE, DOUBLE) for dtype in dtypes):
        return None
    try:
        lines = fuse.traced(function, len(dtypes), options, SingleRows if set(dtypes) == {SINGLE} else Rows)
    except UntraceableError:
        return None
    results, ops = tuple(fuse.results(function, dtypes, dict(options))), {line.op for line in lines}
    known = all(dtype in (SINGLE, DOUBLE) for dtype in results) and not ops & {*LIBM, "max", "sum"}
    return Traced(lines, results, "mean" in ops) if known else None


@functools.cache
def compiled(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    options: Options,
    rows: tuple[bool, ...],
    sums: int,
    same: tuple[int, ...],
) -> tuple[Callable[..., None], list[bool]]:
    """Return the compiled loop of a function, and of each result whether there is one number for a row.

    `rows` says of which arrays there is, and `same` has the arrays whose places the first results take.
    """
    found = traced(function, dtypes, options)
    assert found is not None
    inputs, outputs = ([f"{name}{k}" for k in range(len(some))] for name, some in (("x", dtypes), ("y", found.results)))
    places = {name: name for name in (*inputs, *outputs)} | {f"y{k}": f"x{x}" for k, x in enumerate(same)}
    kinds = {name: fuse.real(dtype) for name, dtype in zip(places, (*dtypes, *found.results), strict=True)}
    added = outputs[len(outputs) - sums :]

    def load(x: str, _: int | None) -> str:
        return f"a_{x}[{'0' if x in row.single else 'unit'}]"

    def store(y: str, _: int | None, value: str) -> str:
        if y in row.single:
            return f"a_{y}[0] = {value}"
        return f"a_{places[y]}[unit] {'+=' if y in added else '='} {value}"

    row = RowWriter(Python(found.lines, load, store, kinds), {x for x, one in zip(inputs, rows, strict=True) if one})
    body = [
        f"a_{a} = carray(at{Python.SUFFIXES[kinds[a]]}({a} + i * {a}_s + j * {a}_t), "
        f"{'1' if a in row.single else 'columns'})"
        for a in places
        if places[a] == a
    ]
    head = ", ".join(f"{a}, {a}_s, {a}_t" for a in places)
    text = [f"def chain(n0, n1, columns, {head}):", "    for i in range(n0):", "        for j in range(n1):"]
    text += [f"            {line}" for line in (*body, *row.body())]
    with jit.lock:
        made = jit.generated(jit.formulas(), "\n".join(text) + "\n")
        flags = jit.FLAGS | ({"reassoc"} if found.means else set())  # sums are in the order that is quickest
        jit.bind(made, (made.chain,), flags, counted=True)
    return made.chain, [y in row.single for y in outputs]
