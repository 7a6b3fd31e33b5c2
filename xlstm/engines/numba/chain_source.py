"""The source of a chain of element-wise operations, made from its trace: a loop over rows, and within it over columns.

An array is given by the address of its first number and by its steps along two axes of rows, so one compilation serves
all shapes. No formula stands here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import fuse
from xlstm.engines.numba import jit
from xlstm.engines.numba.codegen import LIBM
from xlstm.engines.numba.typed import KINDS, Writer, helpers
from xlstm.tracing.rows import Rows, SingleRows
from xlstm.tracing.symbols import Line, Symbols, UntraceableError, trace

Options = tuple[tuple[str, Any], ...]


class Traced(NamedTuple):
    """The trace of a function, and the dtypes of its results."""

    lines: list[Line]
    results: tuple[Any, ...]

    @property
    def means(self) -> bool:
        """Whether there is a mean along a row."""
        return any(line.op == "mean" for line in self.lines)


@functools.cache
def traced(function: Callable[..., Any], dtypes: tuple[Any, ...], options: Options) -> Traced | None:
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
    known = all(dtype in KINDS for dtype in results) and not any(line.op in (*LIBM, "max", "sum") for line in lines)
    return Traced(lines, results) if known else None


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

    `same` has the arrays whose places the first results take.
    """
    found = traced(function, dtypes, options)
    assert found is not None
    inputs, outputs = ([f"{name}{k}" for k in range(len(some))] for name, some in (("x", dtypes), ("y", found.results)))
    places = {name: name for name in (*inputs, *outputs)} | {f"y{k}": f"x{x}" for k, x in enumerate(same)}
    kinds = {name: KINDS[dtype] for name, dtype in zip(places, (*dtypes, *found.results), strict=True)}
    writer = _Writer(found.lines, kinds, {x for x, one in zip(inputs, rows, strict=True) if one}, places)
    head = ", ".join(f"{a}, {a}_s, {a}_t" for a in places)
    text = [f"def chain(n0, n1, columns, {head}):", "    for i in range(n0):", "        for j in range(n1):"]
    body = [
        f"a_{a} = carray(at{kinds[a]}({a} + i * {a}_s + j * {a}_t), {'1' if a in writer.single else 'columns'})"
        for a in places
        if places[a] == a
    ]
    body += writer.body(outputs[len(outputs) - sums :])
    text += [f"            {line}" for line in body]
    return _bound("\n".join(text) + "\n", found.means), [y in writer.single for y in outputs]


class _Writer(Writer):
    """Writes a trace as the statements for one row.

    A mean needs a loop over the row before whatever depends on it. `stage` is the number of these loops.
    """

    def __init__(self, lines: Sequence[Line], kinds: dict[str, str], single: set[str], places: dict[str, str]) -> None:
        super().__init__()
        self.lines, self.kinds, self.single, self.places = lines, kinds, set(single), places
        self.stage: dict[str, int] = {}
        self.varies: dict[str, bool] = {}
        self.args: dict[str, tuple[str, ...]] = {}
        self.text: dict[str, str] = {}
        for line in lines:
            self._read(line)

    def _read(self, line: Line) -> None:
        to, _, op, args = line
        if op == "number":
            self.number(line)
            self.stage[to], self.varies[to] = 0, False
        elif op == "input":
            name = args[0]
            self.types[to], self.stage[to], self.varies[to] = self.kinds[name], 0, name not in self.single
            self.text[to] = f"{to} = a_{name}[{'unit' if self.varies[to] else '0'}]"
            self.args[to] = ()
        elif op == "store":
            if not self.varies[args[0]]:
                self.single.add(to)
        else:
            self.stage[to], self.varies[to] = max(self.stage[a] for a in args), any(self.varies[a] for a in args)
            self.args[to] = args
            self.text[to] = f"{to} {'+=' if op == 'mean' else '='} {self.expression(line)}"
            if op == "mean":
                self.stage[to], self.varies[to] = self.stage[to] + 1, False

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
                        found.append(f"    a_{self.places[y]}[unit] {sign} {self.operand(v, self.kinds[y])}")
            if found[-1].endswith(":"):
                found.pop()
            found += [f"{m} /= F{self.types[m]}(columns)" for m in now]
        found += [f"a_{y}[0] = {self.operand(v, self.kinds[y])}" for y, _, _, (v,) in stores if y in self.single]
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
    with jit.lock:
        found = jit.generated(helpers(), text)
        jit.bind(found, (found.chain,), jit.FLAGS | ({"reassoc"} if means else set()), counted=True)
        chain: Callable[..., None] = found.chain
        return chain
