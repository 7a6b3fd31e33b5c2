"""Chains of element-wise operations over NumPy arrays, each compiled as one loop and shared out among threads.

NumPy makes a pass over memory on one core for every operation. A chain is the function that NumPy would run, traced and
written as one loop, so no formula stands here. `arrays/fuse.py` calls `run`.
"""

from __future__ import annotations

import functools
import linecache
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import fuse, threads
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import jit, maths
from xlstm.engines.numba.codegen import FORMS, LIBM
from xlstm.tracing.symbols import CONDITIONS, Line, SymbolicNamespace, Symbols, UntraceableError, trace

SMALL = 1 << 14  # elements below which NumPy's calls cost less than the way to a compiled loop
SHARED = 1 << 19  # elements from which on threads share a loop; less takes about as long as to wake one
NARROW = 16  # columns below which a row is not worth its loop
KINDS = {np.dtype("float32"): "4", np.dtype("float64"): "8"}

Options = tuple[tuple[str, Any], ...]


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
    """Return what `fuse` returns, or None where this is no work for a compiled loop; see `fuse.loops`."""
    most = max([a.size for a in arrays])
    if most * len(arrays) < SMALL or not jit.enabled():
        return None
    signature = tuple([(a.shape, a.strides, a.dtype) for a in arrays])
    target = None if out is None else (out.shape, out.strides, out.dtype)
    same = next((k for k, a in enumerate(arrays) if a is out), None)
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
            numbers += (a.__array_interface__["data"][0], s, t)
        chain(n0, n1, columns, *numbers)
        return found[0] if kept == 1 else tuple(found)
    flat = n0 == 1
    whole = columns if flat else n0
    size = min(threads.wanted(), whole) if work >= SHARED else 1
    rooms = [np.zeros((size, columns), dtype) for dtype, _ in dtypes[kept:]]

    def part(k: int) -> None:
        first, last = whole * k // size, whole * (k + 1) // size
        numbers: list[int] = []
        for a, (s, t, c) in zip((*arrays, *found), steps, strict=True):
            numbers += (a.__array_interface__["data"][0] + first * (c if flat else s), s, t)
        for room in rooms:
            numbers += (room[k].__array_interface__["data"][0] + (first * room.itemsize if flat else 0), 0, 0)
        chain(*((1, 1, last - first) if flat else (last - first, n1, columns)), *numbers)

    if size > 1:  # compiled here: a worker would wait for the compiler, and with it a fork
        chain(0, 0, 0, *(0,) * (3 * (len(steps) + sums)))
    threads.team(size).run([functools.partial(part, k) for k in range(size)])
    every = (*found, *(room.sum(axis=0) for room in rooms))
    return every[0] if len(every) == 1 else every


@functools.lru_cache(maxsize=1024)
def _plan(
    function: Callable[..., Any],
    arrays: tuple[tuple[Any, ...], ...],
    out: tuple[Any, ...] | None,
    same: int | None,
    sums: int,
    options: Options,
) -> Plan | None:
    """Return how to run a function over arrays of these shapes, strides and dtypes, or None where it is not to be."""
    dtypes = tuple(dtype for _, _, dtype in arrays)
    traced = _traced(function, dtypes, options)
    if traced is None:
        return None
    apart = sums > 0 or any(line.op == "mean" for line in traced.lines)
    layout = _layout([*arrays, *(() if out is None else (out,))], apart)
    if layout is None or math.prod(layout.sizes) < SMALL :
        return None
    rows = tuple(step[2] == 0 for step in layout.steps)
    chain, single = _compiled(function, dtypes, options, rows[: len(arrays)], sums, same)
    results = list(zip(traced.results, single, strict=True))
    kept = len(results) - sums
    if any(single[kept:]) or (out is not None and (len(results) != 1 or (out[2], rows[-1]) != results[0])):
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
    steps = []
    for own, step, _ in arrays:
        steps.append([0] * (len(shape) - len(own)) + [0 if n == 1 else s for n, s in zip(own, step, strict=True)])
    order = list(range(len(shape)))
    for (own, _, _), step in zip(arrays, steps, strict=True):
        if own == shape:
            order.sort(key=lambda axis: -step[axis] if shape[axis] > 1 else -math.inf)  # noqa: B023
            break
    sizes: list[int] = []
    along: list[list[int]] = [[] for _ in arrays]
    for axis in order:
        n, new = shape[axis], [step[axis] for step in steps]
        if n == 1:
            continue
        alone = apart and axis == len(shape) - 1
        if sizes and not alone and all(far[-1] == s * n for far, s in zip(along, new, strict=True)):
            sizes[-1] *= n
            for far, s in zip(along, new, strict=True):
                far[-1] = s
        else:
            sizes.append(n)
            for far, s in zip(along, new, strict=True):
                far.append(s)
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


class Traced(NamedTuple):
    """The trace of a function, and the dtypes of its results."""

    lines: list[Line]
    results: tuple[Any, ...]


class Rows(SymbolicNamespace):
    """A namespace with a mean along a row, which a chain takes in a loop of its own."""

    def mean(self, x: Symbols, axis: int = -1, keepdims: bool = True) -> Symbols:
        if axis != -1 or not keepdims:
            raise UntraceableError("tracing: a mean along another axis than the last one")
        return self._graph.apply("mean", x)


class SingleRows(Rows):
    """The same where all arrays are float32."""

    float32 = Symbols.dtype


@functools.cache
def _traced(function: Callable[..., Any], dtypes: tuple[Any, ...], options: Options) -> Traced | None:
    """Return the trace of a function, or None where no compiled loop is to run it."""
    if not all(dtype in KINDS for dtype in dtypes):
        return None

    def named(xp: Any, **symbols: Symbols) -> dict[str, Symbols]:
        return {f"y{k}": a for k, a in enumerate(fuse.listed(function(xp, *symbols.values(), **dict(options))))}

    library = SingleRows if all(dtype == np.float32 for dtype in dtypes) else Rows
    try:
        lines, _ = trace(named, dict.fromkeys(f"x{k}" for k in range(len(dtypes))), library)
    except UntraceableError:
        return None
    results = tuple(fuse.results(function, dtypes, dict(options)))
    known = all(dtype in KINDS for dtype in results) and not any(line.op in LIBM for line in lines)
    return Traced(lines, results) if known else None


@functools.cache
def _compiled(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    options: Options,
    rows: tuple[bool, ...],
    sums: int,
    same: int | None,
) -> tuple[Callable[..., None], list[bool]]:
    """Return the compiled loop of a function, and of each result whether there is one number for a row.

    `same` is the array whose place the result takes, if any.
    """
    traced = _traced(function, dtypes, options)
    assert traced is not None
    inputs, outputs = ([f"{name}{k}" for k in range(len(some))] for name, some in (("x", dtypes), ("y", traced.results)))
    places = {name: name for name in (*inputs, *outputs)} | ({} if same is None else {"y0": f"x{same}"})
    kinds = {name: KINDS[dtype] for name, dtype in zip(places, (*dtypes, *traced.results), strict=True)}
    writer = _Writer(traced.lines, kinds, {x for x, one in zip(inputs, rows, strict=True) if one}, places)
    head = ", ".join(f"{a}, {a}_s, {a}_t" for a in places)
    text = [f"def chain(n0, n1, columns, {head}):", "    for i in range(n0):", "        for j in range(n1):"]
    body = [
        f"a_{a} = carray(at{kinds[a]}({a} + i * {a}_s + j * {a}_t), {'1' if a in writer.single else 'columns'})"
        for a in places
        if places[a] == a
    ]
    body += writer.body(outputs[len(outputs) - sums :])
    text += [f"            {line}" for line in body]
    means = any(line.op == "mean" for line in traced.lines)
    return _bound("\n".join(text) + "\n", means), [y in writer.single for y in outputs]


class _Writer:
    """Writes a trace as the statements for one row; an operation is in the widest dtype of its operands, as on CuPy.

    A mean needs a loop over the row before whatever depends on it. `stage` is the number of these loops.
    """

    def __init__(self, lines: Sequence[Line], kinds: dict[str, str], single: set[str], places: dict[str, str]) -> None:
        self.lines, self.kinds, self.single, self.places = lines, kinds, set(single), places
        self.types: dict[str, str | None] = {}
        self.numbers: dict[str, float] = {}
        self.stage: dict[str, int] = {}
        self.varies: dict[str, bool] = {}
        self.args: dict[str, tuple[str, ...]] = {}
        self.text: dict[str, str] = {}
        for line in lines:
            self._read(line)

    def _read(self, line: Line) -> None:
        to, _, op, args = line
        if op == "number":
            self.numbers[to], self.types[to], self.stage[to], self.varies[to] = args[0], None, 0, False
        elif op == "input":
            name = args[0]
            self.types[to], self.stage[to], self.varies[to] = self.kinds[name], 0, name not in self.single
            self.text[to] = f"{to} = a_{name}[{'unit' if self.varies[to] else '0'}]"
            self.args[to] = ()
        elif op == "store":
            if not self.varies[args[0]]:
                self.single.add(to)
        else:
            wide = max((self.types[a] or "4" for a in args if self.types[a] != "bool"), default="4")
            kind = {"double": "8", "single": "4"}.get(op, wide)
            self.stage[to], self.varies[to] = max(self.stage[a] for a in args), any(self.varies[a] for a in args)
            self.types[to], self.args[to] = "bool" if op in CONDITIONS else kind, args
            if op == "mean":
                self.text[to] = f"{to} += {self._operand(args[0], kind)}"
                self.stage[to], self.varies[to] = self.stage[to] + 1, False
                return
            form = {"exp": f"exp{kind}({{}})", "tanh": f"tanh{kind}({{}})", "double": "{}", "single": "{}"}.get(op)
            form = form or FORMS[op].replace("F(", f"F{kind}(")
            self.text[to] = f"{to} = {form.format(*(self._operand(a, kind) for a in args))}"

    def _operand(self, name: str, kind: str) -> str:
        if name in self.numbers:
            return f"F{kind}({self.numbers[name]!r})"
        return name if self.types[name] in (kind, "bool") else f"F{kind}({name})"

    def body(self, summed: Collection[str]) -> list[str]:
        """Return the statements for a row; results of these names are added to what is there."""
        found = []
        means = [line.to for line in self.lines if line.op == "mean"]
        stores = [line for line in self.lines if line.op == "store"]
        for stage in range(max(self.stage.values()) + 1):
            found += [
                self.text[v] for v, n in self.stage.items() if n == stage and v in self.text and self._alone(v, means)
            ]
            now = [m for m in means if self.stage[m] == stage + 1]
            last = stage == max(self.stage.values())
            wanted = self._needed([self.args[m][0] for m in now] + [line.args[0] for line in stores if last])
            found += [f"{m} = F{self.types[m]}(0)" for m in now]
            found.append("for unit in range(U(columns)):")
            found += [f"    {self.text[v]}" for v in wanted] + [f"    {self.text[m]}" for m in now]
            if last:
                for y, _, _, (v,) in stores:
                    if y not in self.single:
                        sign = "+=" if y in summed else "="
                        found.append(f"    a_{self.places[y]}[unit] {sign} {self._operand(v, self.kinds[y])}")
            if found[-1].endswith(":"):
                found.pop()
            found += [f"{m} /= F{self.types[m]}(columns)" for m in now]
        found += [f"a_{y}[0] = {self._operand(v, self.kinds[y])}" for y, _, _, (v,) in stores if y in self.single]
        return found

    def _alone(self, v: str, means: Collection[str]) -> bool:
        return not self.varies[v] and v not in means

    def _needed(self, roots: Sequence[str]) -> list[str]:
        """Return the variables that change along a row and on which these depend, in the order of the trace."""
        todo, found = list(roots), set()
        while todo:
            v = todo.pop()
            if self.varies[v] and v not in found:
                found.add(v)
                todo += self.args[v]
        return [v for v in self.text if v in found]


def _bound(text: str, means: bool) -> Callable[..., None]:
    """Return the compiled function of a text; sums of a mean are in the order that is quickest."""
    with jit._lock:
        found = jit._module(f"{text}{means}{_helpers().__name__}")
        found.__dict__.update({name: value for name, value in vars(_helpers()).items() if not name.startswith("__")})
        name = f"<{found.__name__}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # for what Numba says
        exec(compile(text, name, "exec"), found.__dict__)
        jit._bind(found, (found.chain,), jit.FLAGS | ({"reassoc"} if means else set()))
        chain: Callable[..., None] = found.chain
        return chain


@functools.cache
def _helpers() -> Any:
    """Return a module with the functions that chains call; their names end in 4 or 8, the bytes of a number."""
    import inspect

    import numba

    from xlstm.engines.numba import pointers

    found = jit._module("".join(inspect.getsource(module) for module in (maths, pointers)))
    for dtype, kind in KINDS.items():
        own = jit._module(f"{found.__name__} {dtype}")
        own.__dict__.update(maths.constants(str(dtype)))
        series = maths.series_single if kind == "4" else maths.series_double
        jit._bind(own, (series,))
        own.__dict__["series"] = own.__dict__[series.__name__]
        jit._bind(own, (maths.tanh, maths.exp))
        found.__dict__.update({f"F{kind}": dtype.type, f"tanh{kind}": own.tanh, f"exp{kind}": own.exp})
    found.__dict__.update(at4=pointers.at4, at8=pointers.at8, carray=numba.carray, U=np.uintp, math=math)
    return found
