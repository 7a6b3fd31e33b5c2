"""Chains of element-wise operations over NumPy arrays, each compiled as one loop and shared out
among threads.

NumPy makes a pass over memory on one core for every operation. A chain is the function that NumPy
would run, traced and written as a loop over rows, and within it over columns; so no formula stands
here. An array is given by the address of its first number and by its steps along two axes of rows,
so one compilation serves all shapes. `arrays/fuse.py` calls `run`.
"""

from __future__ import annotations

import array
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import cores, fuse
from xlstm.arrays.namespace import DOUBLE, SINGLE, Array
from xlstm.engines.numba import jit
from xlstm.engines.numba.team import address, run_parallel
from xlstm.tracing.reductions import RowNamespace, RowWriter, SingleRowNamespace
from xlstm.tracing.symbols import Line, UntraceableError
from xlstm.tracing.writers import LIBM, Python

SMALL = 1 << 14  # elements below which NumPy's calls cost less than the way to a compiled loop
# elements from which on threads share a loop; less takes about as long as to wake one
SHARED = 1 << 19
SUMS = 16  # parts of sums over rows, whatever the number of threads: their bits do not depend on it
NARROW = 16  # columns below which a row is not worth its loop


Options = tuple[tuple[str, Any], ...]


class Plan(NamedTuple):
    """The compiled loop for arrays of some shapes and strides, and what it is called with."""

    chain: Callable[..., None]
    shape: tuple[int, ...]  # that of the results
    # their dtypes, sums last, and whether there is one number for a row
    results: tuple[tuple[Any, bool], ...]
    sizes: tuple[int, int, int]  # rows of two axes, and columns
    # of each array, and of each result but sums, along these, in bytes
    steps: tuple[tuple[int, ...], ...]


def run(
    function: Callable[..., Any],
    arrays: Sequence[Array],
    sums: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return what `fuse` returns, or None where this is no work for a compiled loop.

    Parameters
    ----------
    function, arrays, options
        As of `fuse`; the function may also take means along the last axis, which the results keep.
    sums : int
        The last so many results are summed over all axes but the last.
    """
    # results may be larger than any array
    if max([a.size for a in arrays]) < SMALL >> 3 or not jit.enabled():
        return None
    signature = tuple([(a.shape, a.strides, a.dtype) for a in arrays])
    plan = _plan(function, signature, sums, tuple(options.items()))
    if plan is None:
        return None
    shape = plan.shape
    n0, n1, columns = plan.sizes
    kept = len(plan.results) - sums
    results = [
        np.empty((*shape[:-1], 1) if one else shape, dtype) for dtype, one in plan.results[:kept]
    ]
    flat = n0 == 1
    work = n0 * n1 * columns
    whole = columns if flat else n0
    threads = cores.threads() if work >= SHARED else 1
    parts = min(SUMS if sums and not flat and work >= SHARED else threads, whole)
    rooms = [np.zeros((parts, columns), dtype) for dtype, _ in plan.results[kept:]]
    pieces = []
    for k in range(parts):
        first = whole * k // parts
        last = whole * (k + 1) // parts
        numbers = [n1, last - first if flat else columns]
        for a, (s, t, c) in zip((*arrays, *results), plan.steps, strict=True):
            numbers += (address(a) + first * (c if flat else s), s, t)
        for room in rooms:
            numbers += (address(room[k]) + (first * room.itemsize if flat else 0), 0, 0)
        pieces.append((array.array("q", numbers), 0, 1 if flat else last - first))
    run_parallel([(plan.chain, pieces)], threads)
    results += [room.sum(axis=0) for room in rooms]
    return results[0] if len(results) == 1 else tuple(results)


@functools.lru_cache(maxsize=1024)
def _plan(
    function: Callable[..., Any], arrays: tuple[tuple[Any, ...], ...], sums: int, options: Options
) -> Plan | None:
    """Return how to run a function over arrays of these shapes, strides and dtypes, or None where
    it is not to be.

    The loop goes over two axes of rows and one of columns, whose numbers follow each other.
    """
    dtypes = tuple(dtype for _, _, dtype in arrays)
    found = traced(function, dtypes, options)
    if found is None:
        return None
    apart = sums > 0 or has_means(found[0])  # the columns are the last axis alone
    shape = np.broadcast_shapes(*(own for own, _, _ in arrays))
    if apart and shape[-1] == 1:
        return None
    along = [fuse.broadcast_steps(shape, own, step) for own, step, _ in arrays]
    sizes, along = fuse.joined_axes(
        range(len(shape)), shape, along, len(shape) - 1 if apart else None
    )
    if not 1 <= len(sizes) <= 3 or math.prod(sizes) < SMALL or sizes[-1] < NARROW:
        return None
    if any(
        min(far) < 0 or far[-1] not in (0, dtype.itemsize)
        for far, (_, _, dtype) in zip(along, arrays, strict=True)
    ):
        return None
    n0, n1, columns = [1] * (3 - len(sizes)) + sizes
    steps = [tuple([0] * (3 - len(far)) + far) for far in along]
    if n0 == 1:  # threads share the first axis
        n0, n1, steps = n1, n0, [(t, s, c) for s, t, c in steps]
    chain, single = compiled(function, dtypes, options, tuple(step[2] == 0 for step in steps), sums)
    results = tuple(zip(found[1], single, strict=True))
    kept = len(results) - sums
    if any(single[kept:] if apart else single):
        return None
    for dtype, one in results[:kept]:
        far = 1 if one else columns
        steps.append(
            (n1 * far * dtype.itemsize, far * dtype.itemsize, 0 if one else dtype.itemsize)
        )
    return Plan(chain, shape, results, (n0, n1, columns), tuple(steps))


@functools.cache
def traced(
    function: Callable[..., Any], dtypes: tuple[Any, ...], options: Options
) -> tuple[list[Line], tuple[Any, ...]] | None:
    """Return the trace of a function and the dtypes of its results, or None where no compiled loop
    is to run it.
    """
    if not all(dtype in (SINGLE, DOUBLE) for dtype in dtypes):
        return None
    try:
        lines = fuse.traced(
            function,
            len(dtypes),
            options,
            SingleRowNamespace if set(dtypes) == {SINGLE} else RowNamespace,
        )
    except UntraceableError:
        return None
    results = tuple(fuse.results(function, dtypes, dict(options)))
    ops = {line.op for line in lines}
    known = all(dtype in (SINGLE, DOUBLE) for dtype in results) and not ops & {*LIBM, "max", "sum"}
    return (lines, results) if known else None


def has_means(lines: list[Line]) -> bool:
    """Whether a trace has a mean along a row."""
    return any(line.op == "mean" for line in lines)


@functools.cache
def compiled(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    options: Options,
    rows: tuple[bool, ...],
    sums: int,
) -> tuple[Callable[..., None], list[bool]]:
    """Return the compiled loop of a function, and of each result whether there is one number for a
    row.

    `rows` says of which arrays there is.
    """
    found = traced(function, dtypes, options)
    assert found is not None
    lines, results = found
    inputs, outputs = (
        [f"{name}{k}" for k in range(len(some))] for name, some in (("x", dtypes), ("y", results))
    )
    names = *inputs, *outputs
    kinds = {name: fuse.real(dtype) for name, dtype in zip(names, (*dtypes, *results), strict=True)}
    added = outputs[len(outputs) - sums :]

    def load(x: str, _: int | None) -> str:
        return f"a_{x}[{'0' if x in row.single else 'unit'}]"

    def store(y: str, _: int | None, value: str) -> str:
        if y in row.single:
            return f"a_{y}[0] = {value}"
        return f"a_{y}[unit] {'+=' if y in added else '='} {value}"

    row = RowWriter(
        Python(lines, load, store, kinds), {x for x, one in zip(inputs, rows, strict=True) if one}
    )
    body = [
        f"a_{a} = carray(at{Python.SUFFIXES[kinds[a]]}({a} + i * {a}_s + j * {a}_t), "
        f"{'1' if a in row.single else 'columns'})"
        for a in names
    ]
    head = ", ".join(f"{a}, {a}_s, {a}_t" for a in names)
    # It takes the address of its numbers, as threads call it: a function around it would have a
    # copy of its own, whose means LLVM adds up in another order.
    text = [
        "def chain(at, first, last):",
        f"    n1, columns, {head} = carray(at_integer(at), ({2 + 3 * len(names)},))",
        "    for i in range(first, last):",
        "        for j in range(n1):",
    ]
    text += [f"            {line}" for line in (*body, *row.body())]
    with jit.lock:
        made = jit.new_module(jit.formulas().__name__, vars(jit.formulas()), "\n".join(text) + "\n")
        # sums are in the order that is quickest
        flags = jit.FLAGS | ({"reassoc"} if has_means(lines) else set())
        jit.bind(made, (made.chain,), flags, counted=True)
    return made.chain, [y in row.single for y in outputs]


def walk(
    function: Callable[..., Any],
    given: Sequence[tuple[Array, ...]],
    lags: tuple[int, ...],
    results: int,
    reverse: bool,
) -> Any:
    """Return what `fuse.walk` does, or None where nothing is compiled."""
    if not jit.enabled():
        return None
    found = tuple(np.empty_like(given[0][0]) for _ in range(results))
    loop = _walk(function, (*map(len, given), results), given[0][0].dtype, reverse)
    # it is compiled for the memory order of each array
    loop(np.array(lags), *itertools.chain(*given, found))
    return given[1], found


@functools.cache
def _walk(
    function: Callable[..., Any], counts: tuple[int, ...], dtype: Any, reverse: bool
) -> Callable[..., None]:
    """Return the compiled loop of `walk` over so many arrays, states, numbers and results."""
    names = [
        [f"{name}{k}" for k in range(count)] for name, count in zip("xsny", counts, strict=True)
    ]
    arrays, states, numbers, results = names
    kind = fuse.real(dtype)
    before, after = ("[t + lags[{}], b]", "[t, b]") if reverse else ("[t, b]", "[t + lags[{}], b]")
    reads = [f"{a}[t, b]" for a in arrays]
    reads += [s + before.format(k) for k, s in enumerate(states)] + [f"{n}[0]" for n in numbers]
    writes = [f"{y}[t, b] =" for y in results] + [
        f"{s}{after.format(k)} +=" for k, s in enumerate(states)
    ]

    def load(x: str, _: int | None) -> str:
        return reads[int(x[1:])]

    def store(y: str, _: int | None, value: str) -> str:
        return f"{writes[int(y[1:])]} {value}"

    body = Python(fuse.traced(function, len(reads), ()), load, store, kind).statements()
    text = [
        f"def walk(lags, {', '.join(itertools.chain(*names))}):",
        "    T, B = x0.shape",
        "    for b in range(B):",
        f"        for t in range({'T - 1, -1, -1' if reverse else 'T'}):",
        *(f"            {line}" for line in body),
    ]
    with jit.lock:
        made = jit.new_module(jit.formulas().__name__, vars(jit.formulas()), "\n".join(text) + "\n")
        jit.bind(made, (made.walk,), counted=True)
    found: Callable[..., None] = made.walk
    return found
