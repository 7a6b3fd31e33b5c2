"""Chains of elementwise operations over NumPy arrays, each compiled as one loop that threads share.

NumPy makes a pass over memory on one core for every operation. A chain is the function that NumPy
would run, traced and written as a loop over rows and, within it, over columns. So this file has no
formula. A loop gets each array as the address of its first number and its strides along two axes of
rows, so one compilation serves all shapes. `arrays/compiled.py` names this file, and
`arrays/fuse.py` calls it.
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

from xlstm.arrays import cores
from xlstm.arrays.namespace import DOUBLE, SINGLE, Array
from xlstm.engines.numba import jit
from xlstm.engines.numba.team import address, run_parallel
from xlstm.tracing.array_functions import ArrayFunction, Options, kind_of, traced
from xlstm.tracing.loop_nest import loop_nest
from xlstm.tracing.reductions import RowWriter
from xlstm.tracing.symbols import Line, UntraceableError
from xlstm.tracing.writers import LIBM, Python

SMALL = 1 << 14  # elements below which NumPy's calls cost less than the call of a compiled loop
# least elements for threads to share a loop; fewer take about as long as to wake a thread
SHARED = 1 << 19
SUMS = 16  # parts of sums over rows, so that their bits do not depend on the number of threads
NARROW = 16  # columns below which a row is not worth its own loop


class ChainPlan(NamedTuple):
    """The compiled loop for arrays of some shapes and strides, and its arguments."""

    chain: Callable[..., None]
    # shapes and dtypes of results; summed results come last
    results: tuple[tuple[tuple[int, ...], Any], ...]
    sizes: tuple[int, int, int]  # rows of two axes, and columns
    # Strides in bytes along these axes, of each array and of each result that is not a sum.
    steps: tuple[tuple[int, ...], ...]


def run(
    function: Callable[..., Any],
    arrays: Sequence[Array],
    sums: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return the results of `fuse`, or None if a compiled loop does not pay or is not possible.

    Parameters
    ----------
    function, arrays, options
        As for `fuse`; the function may also take means along the last axis, which the results keep.
    sums : int
        The number of last results that are summed over all axes except the last.
    """
    if not jit.enabled():
        return None
    layouts = tuple([(a.shape, a.strides, a.dtype) for a in arrays])
    plan = _plan(function, layouts, sums, tuple(options.items()))
    if plan is None:
        return None
    whole = len(plan.results) - sums
    results = [np.empty(shape, dtype) for shape, dtype in plan.results[:whole]]
    n0, n1, columns = plan.sizes
    flat = n0 == 1
    shared = columns if flat else n0  # threads share rows of the first axis, or else columns
    large = n0 * n1 * columns >= SHARED
    threads = cores.threads() if large else 1
    parts = min(SUMS if large and sums and not flat else threads, shared)
    rooms = [np.zeros((parts, columns), dtype) for _, dtype in plan.results[whole:]]
    pieces = []
    for k in range(parts):
        first = shared * k // parts
        size = shared * (k + 1) // parts - first
        numbers = [n1, size if flat else columns]
        for a, (s, t, c) in zip((*arrays, *results), plan.steps, strict=True):
            numbers += (address(a) + first * (c if flat else s), s, t)
        for room in rooms:
            numbers += (address(room[k]) + (first * room.itemsize if flat else 0), 0, 0)
        pieces.append((array.array("q", numbers), 0, 1 if flat else size))
    run_parallel([(plan.chain, pieces)], threads)
    results += [room.sum(axis=0) for room in rooms]
    return results[0] if len(results) == 1 else tuple(results)


@functools.lru_cache(maxsize=1024)
def _plan(
    function: Callable[..., Any], arrays: tuple[tuple[Any, ...], ...], sums: int, options: Options
) -> ChainPlan | None:
    """Return how to run a function over arrays of these shapes, strides and dtypes, or None if no
    loop should run it.

    The loop goes over two axes of rows and one axis of contiguous columns.
    """
    dtypes = tuple(dtype for _, _, dtype in arrays)
    formula = _formula(function, dtypes, options)
    if formula is None:
        return None
    apart = sums > 0 or has_means(formula.lines)  # the columns are only the last axis
    shape = np.broadcast_shapes(*(own for own, _, _ in arrays))
    nest = loop_nest(shape, [(own, strides) for own, strides, _ in arrays], int(apart))
    sizes = [*nest.sizes, *shape[-1:] * apart]
    if not 1 <= len(sizes) <= 3 or math.prod(sizes) < SMALL or sizes[-1] < NARROW:
        return None
    if any(
        min(steps) < 0 or steps[-1] not in (0, dtype.itemsize)
        for steps, dtype in zip(nest.steps, dtypes, strict=True)
    ):
        return None
    missing = (0,) * (3 - len(sizes))
    n0, n1, columns = [1] * len(missing) + sizes
    along = [(*missing, *steps) for steps in nest.steps]
    if n0 == 1:  # threads share the first axis
        n0, n1 = n1, n0
        along = [(t, s, c) for s, t, c in along]
    chain, single = _compiled(formula, tuple([c == 0 for _, _, c in along]), sums)
    whole = len(single) - sums
    if any(single[whole:] if apart else single):
        return None
    results = []
    for dtype, is_single in zip(formula.outputs.values(), single, strict=True):
        width = 1 if is_single else columns
        steps = (
            n1 * width * dtype.itemsize,
            width * dtype.itemsize,
            0 if is_single else dtype.itemsize,
        )
        results.append(((*shape[:-1], 1) if is_single else shape, dtype))
        along.append(steps)
    along = along[: len(along) - sums]
    return ChainPlan(chain, tuple(results), (n0, n1, columns), tuple(along))


@functools.cache
def _formula(
    function: Callable[..., Any], dtypes: tuple[Any, ...], options: Options
) -> ArrayFunction | None:
    """Return the trace of a function, or None if no compiled loop should run it."""
    if not all(dtype in (SINGLE, DOUBLE) for dtype in dtypes):
        return None
    try:
        formula = ArrayFunction(function, dtypes, options, rows=True)
    except UntraceableError:
        return None
    floats = all(dtype in (SINGLE, DOUBLE) for dtype in formula.outputs.values())
    ops = {line.op for line in formula.lines}
    return formula if floats and not ops & {*LIBM, "max", "sum"} else None


def has_means(lines: list[Line]) -> bool:
    """Return whether a trace takes a mean along a row."""
    return any(line.op == "mean" for line in lines)


@functools.cache
def _compiled(
    formula: ArrayFunction, rows: tuple[bool, ...], sums: int
) -> tuple[Callable[..., None], list[bool]]:
    """Return the compiled loop of a function, and for each result whether it has one number per
    row.

    `rows` says the same of the arrays.
    """
    names = *formula.inputs, *formula.outputs
    added = names[len(names) - sums :]

    def load(x: str, _: int | None) -> str:
        return f"a_{x}[{'0' if x in row.single else 'unit'}]"

    def store(y: str, _: int | None, value: str) -> str:
        if y in row.single:
            return f"a_{y}[0] = {value}"
        return f"a_{y}[unit] {'+=' if y in added else '='} {value}"

    singles = {x for x, single in zip(formula.inputs, rows, strict=True) if single}
    row = RowWriter(Python(formula.lines, load, store, formula.kinds), singles)
    views = [
        f"a_{a} = carray(at{Python.SUFFIXES[formula.kinds[a]]}({a} + i * {a}_s + j * {a}_t), "
        f"{'1' if a in row.single else 'columns'})"
        for a in names
    ]
    head = ", ".join(f"{a}, {a}_s, {a}_t" for a in names)
    # It takes the address of its numbers, since threads call it. A function around it would have
    # its own copy, in which LLVM sums means in another order.
    text = [
        "def chain(at, first, last):",
        f"    n1, columns, {head} = carray(at_integer(at), ({2 + 3 * len(names)},))",
        "    for i in range(first, last):",
        "        for j in range(n1):",
        *(f"            {line}" for line in (*views, *row.body())),
    ]
    # sums are in the fastest order
    flags = jit.FLAGS | ({"reassoc"} if has_means(formula.lines) else set())
    return _bound(text, "chain", flags), [y in row.single for y in formula.outputs]


def _bound(text: list[str], name: str, flags: set[str]) -> Callable[..., None]:
    """Return the compiled function of a source."""
    with jit.lock:
        formulas = jit.formulas()
        module = jit.new_module(formulas.__name__, vars(formulas), "\n".join(text) + "\n")
        jit.bind(module, (getattr(module, name),), flags, counted=True)
    compiled: Callable[..., None] = getattr(module, name)
    return compiled


def walk(
    function: Callable[..., Any],
    operands: Sequence[tuple[Array, ...]],
    lags: tuple[int, ...],
    results: int,
    reverse: bool,
) -> Any:
    """Return the results of `fuse.walk`, or None if nothing is compiled."""
    if not jit.enabled():
        return None
    arrays, states, _ = operands
    rooms = tuple(np.empty_like(arrays[0]) for _ in range(results))
    loop = _walk(function, (*map(len, operands), results), arrays[0].dtype, reverse)
    # it is compiled for the memory order of each array
    loop(np.array(lags), *itertools.chain(*operands, rooms))
    return states, rooms


@functools.cache
def _walk(
    function: Callable[..., Any], counts: tuple[int, ...], dtype: Any, reverse: bool
) -> Callable[..., None]:
    """Return the compiled loop of `walk` for these numbers of arrays, states, numbers and
    results.
    """
    arrays, states, numbers, results = (
        [f"{name}{k}" for k in range(count)] for name, count in zip("xsny", counts, strict=True)
    )
    at_lag = "[t + lags[{}], b]"
    before, after = (at_lag, "[t, b]") if reverse else ("[t, b]", at_lag)
    reads = [f"{a}[t, b]" for a in arrays]
    reads += [s + before.format(k) for k, s in enumerate(states)] + [f"{n}[0]" for n in numbers]
    writes = [f"{y}[t, b] =" for y in results]
    writes += [f"{s}{after.format(k)} +=" for k, s in enumerate(states)]

    def load(x: str, _: int | None) -> str:
        return reads[int(x[1:])]

    def store(y: str, _: int | None, value: str) -> str:
        return f"{writes[int(y[1:])]} {value}"

    body = Python(traced(function, len(reads), ()), load, store, kind_of(dtype)).statements()
    text = [
        f"def walk(lags, {', '.join((*arrays, *states, *numbers, *results))}):",
        "    T, B = x0.shape",
        "    for b in range(B):",
        f"        for t in range({'T - 1, -1, -1' if reverse else 'T'}):",
        *(f"            {line}" for line in body),
    ]
    return _bound(text, "walk", jit.FLAGS)
