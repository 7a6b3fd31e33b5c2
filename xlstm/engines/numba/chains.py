"""Chains of element-wise operations over NumPy arrays, each compiled as one loop and shared out among threads.

NumPy makes a pass over memory on one core for every operation. A chain is the function that NumPy would run, traced and
written as one loop, so no formula stands here. `arrays/fuse.py` calls `run`.
"""

from __future__ import annotations

import functools
import linecache
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import fuse, threads
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import jit, maths
from xlstm.engines.numba.codegen import FORMS, LIBM
from xlstm.tracing.symbols import CONDITIONS, Line, Symbols, UntraceableError, trace

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
    dtypes: tuple[Any, ...]  # of results, sums last
    sizes: tuple[int, int, int]
    steps: tuple[tuple[int, int, int], ...]


def run(
    function: Callable[..., Any], arrays: Sequence[Array], out: Array | None, sums: int, options: dict[str, Any]
) -> Any:
    """Return what `fuse` returns, or None where this is no work for a compiled loop.

    Of the results the last `sums` are summed over all axes but the last.
    """
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
    found = [out] if out is not None else [np.empty(memory, dtype).transpose(back) for dtype in dtypes[:kept]]
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
    rooms = [np.zeros((size, columns), dtype) for dtype in dtypes[kept:]]

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
    if not all(dtype in KINDS for _, _, dtype in arrays):
        return None
    layout = _layout([*arrays, *(() if out is None else (out,))])
    if layout is None or math.prod(layout.sizes) < SMALL or (sums and layout.sizes[2] != layout.shape[-1]):
        return None
    rows = tuple(step[2] == 0 for step in layout.steps)
    dtypes = tuple(dtype for _, _, dtype in arrays)
    chain, results = _compiled(function, dtypes, rows[: len(arrays)], options, sums, same) or (None, ())
    if chain is None or (out is not None and (len(results) != 1 or out[2] != results[0] or rows[-1])):
        return None
    memory, back = tuple(layout.shape[axis] for axis in layout.order), tuple(map(int, np.argsort(layout.order)))
    if out is None:  # results lie as the arrays do
        given = list(arrays)
        for dtype in results[: len(results) - sums]:
            made = np.empty(memory, dtype).transpose(back)
            given.append((made.shape, made.strides, dtype))
        again = _layout(given)
        if again is None or again.sizes[2] != layout.sizes[2] or again.order != layout.order:
            return None
        layout = again
    return Plan(chain, memory, back, tuple(results), layout.sizes, layout.steps)


def _layout(arrays: Sequence[tuple[Any, ...]]) -> Layout | None:
    """Return how to go over arrays that are broadcast together, or None where three axes do not do."""
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
        if sizes and all(far[-1] == s * n for far, s in zip(along, new, strict=True)):
            sizes[-1] *= n
            for far, s in zip(along, new, strict=True):
                far[-1] = s
        else:
            sizes.append(n)
            for far, s in zip(along, new, strict=True):
                far.append(s)
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
def _compiled(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    rows: tuple[bool, ...],
    options: Options,
    sums: int,
    same: int | None,
) -> tuple[Callable[..., None], list[Any]] | None:
    """Return the compiled loop of a function and the dtypes of its results, or None where there is no such loop.

    `same` is the array whose place the result takes, if any.
    """
    if not all(dtype in KINDS for dtype in dtypes):
        return None
    results = fuse._results(function, dtypes, dict(options))
    inputs = [f"x{k}" for k in range(len(dtypes))]

    def named(xp: Any, **symbols: Symbols) -> dict[str, Symbols]:
        return {f"y{k}": a for k, a in enumerate(fuse.listed(function(xp, *symbols.values(), **dict(options))))}

    try:
        lines, _ = trace(named, dict.fromkeys(inputs))
    except UntraceableError:
        return None
    if any(line.op in LIBM for line in lines) or not all(dtype in KINDS for dtype in results):
        return None
    outputs = [f"y{k}" for k in range(len(results))]
    to = {y: y for y in outputs} | ({} if same is None else {"y0": f"x{same}"})
    kinds = dict(zip((*inputs, *outputs), map(KINDS.__getitem__, (*dtypes, *results)), strict=True))
    uniform = {x for x, one in zip(inputs, rows, strict=True) if one}
    every = [*inputs, *outputs]
    text = [f"def chain(n0, n1, columns, {', '.join(f'{a}, {a}_s, {a}_t' for a in every)}):"]
    text += ["    for i in range(n0):", "        for j in range(n1):"]
    text += [
        f"            a_{a} = carray(at{kinds[a]}({a} + i * {a}_s + j * {a}_t), {'1' if a in uniform else 'columns'})"
        for a in every
        if to.get(a, a) == a
    ]
    text += ["            for unit in range(U(columns)):"]
    summed = set(outputs[len(outputs) - sums :])
    text += [f"                {line}" for line in _statements(lines, kinds, uniform, to, summed)]
    return _bound("\n".join(text) + "\n"), results


def _statements(
    lines: Sequence[Line], kinds: dict[str, str], uniform: set[str], to: dict[str, str], summed: set[str]
) -> list[str]:
    """Return the statements for one element; an operation is in the widest dtype of its operands, as on CuPy."""
    types: dict[str, str | None] = {}
    numbers: dict[str, float] = {}
    found = []

    def operand(name: str, kind: str) -> str:
        if name in numbers:
            return f"F{kind}({numbers[name]!r})"
        return name if types[name] in (kind, "bool") else f"F{kind}({name})"

    for variable, _, op, args in lines:
        if op == "number":
            numbers[variable], types[variable] = args[0], None
        elif op == "input":
            types[variable] = kinds[args[0]]
            found.append(f"{variable} = a_{args[0]}[{'0' if args[0] in uniform else 'unit'}]")
        elif op == "store":
            sign = "+=" if variable in summed else "="
            found.append(f"a_{to[variable]}[unit] {sign} {operand(args[0], kinds[variable])}")
        else:
            kind = {"double": "8", "single": "4"}.get(op) or max((types[a] or "4" for a in args if types[a] != "bool"), default="4")
            if op in ("double", "single"):
                found.append(f"{variable} = {operand(args[0], kind)}")
            else:
                form = FORMS[op].replace("F(", f"F{kind}(")
                form = {"exp": f"exp{kind}({{}})", "tanh": f"tanh{kind}({{}})"}.get(op, form)
                found.append(f"{variable} = {form.format(*(operand(a, kind) for a in args))}")
            types[variable] = "bool" if op in CONDITIONS else kind
    return found


def _bound(text: str) -> Callable[..., None]:
    """Return the compiled function of a text."""
    with jit._lock:
        found = jit._module(text + _helpers().__name__)
        found.__dict__.update({name: value for name, value in vars(_helpers()).items() if not name.startswith("__")})
        name = f"<{found.__name__}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # for what Numba says
        exec(compile(text, name, "exec"), found.__dict__)
        jit._bind(found, (found.chain,))
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
