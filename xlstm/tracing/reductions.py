"""Functions with sums, means and maxima along a row: traced, and written as loops."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from xlstm.tracing.symbols import Line, SymbolicNamespace, Symbols, UntraceableError
from xlstm.tracing.writers import Writer

REDUCTIONS = ("sum", "mean", "max")  # operations along a row
GATES_AND_UNITS = (-3, -2)


class RowNamespace(SymbolicNamespace):
    """A namespace with a sum, a mean and a maximum along a row, each in a loop of its own."""

    def sum(self, x: Symbols, axis: int = -1, keepdims: bool = True) -> Symbols:
        return self._along("sum", x, axis, keepdims)

    def mean(self, x: Symbols, axis: int = -1, keepdims: bool = True) -> Symbols:
        return self._along("mean", x, axis, keepdims)

    def max(self, x: Symbols, axis: int = -1, keepdims: bool = True) -> Symbols:
        return self._along("max", x, axis, keepdims)

    def _along(self, op: str, x: Symbols, axis: int, keepdims: bool) -> Symbols:
        if axis != -1 or not keepdims:
            raise UntraceableError(f"tracing: a {op} along another axis than the last one")
        return self._graph.apply(op, x)


class SingleRowNamespace(RowNamespace):
    """The same namespace for functions of float32 arrays only."""

    float32 = Symbols.dtype


class UnitNamespace(RowNamespace):
    """A namespace in which a row is the units of a cell, with arrays (gates, H, B) or (H, B).

    Sums, means and maxima run along the axis H of each array, or along the axes of gates and H
    together.
    """

    __name__ = "units"
    float32 = Symbols.dtype

    def finfo(self, dtype: Any) -> Any:
        """Return the limits of float32, which all kernels can compute in."""
        return np.finfo(np.float32)

    def _along(self, op: str, x: Symbols, axis: Any, keepdims: bool) -> Symbols:
        if axis == GATES_AND_UNITS and keepdims:
            rows = [x[k, ...] for k in range(len(x.nodes))]
            both = {"max": "maximum"}.get(op, "add")
            x = functools.reduce(functools.partial(self._graph.apply, both), rows)
            if op == "mean":
                x = x / len(rows)
        elif axis != -2 or not keepdims:
            raise UntraceableError(f"tracing: a {op} along another axis than that of units")
        return self._graph.apply(op, x)


class RowWriter:
    """Writes a trace for one row of `columns` units.

    A reduction needs the whole row before the operations that depend on it. So the trace is divided
    into stages, each a loop over the row.

    Parameters
    ----------
    writer : Writer
    single : set of str
        The inputs that have one number for a row.
    everywhere : bool
        Whether outputs that are one number for a row are stored for every unit, instead of once.

    Attributes
    ----------
    single : set of str
        Inputs and outputs that have one number for a row.
    """

    def __init__(self, writer: Writer, single: Collection[str], everywhere: bool = False) -> None:
        self.writer = writer
        self.single = set(single)
        self.stores = [line for line in writer.lines if line.op == "store"]
        self.lines = {line.to: line for line in writer.lines if line.op != "store"}
        self.stage: dict[str, int] = {}  # the number of reductions that a variable must wait for
        self.varies: dict[str, bool] = {}
        for to, line in self.lines.items():
            args = () if line.op in ("input", "number") else line.args
            self.stage[to] = max((self.stage[a] for a in args), default=0)
            self.varies[to] = any(self.varies[a] for a in args)
            if line.op == "input":
                self.varies[to] = line.args[0] not in single
            elif line.op in REDUCTIONS:
                self.stage[to] = self.stage[to] + 1
                self.varies[to] = False
        if not everywhere:
            varying = {line.to for line in self.stores if self.varies[line.args[0]]}
            self.single |= {line.to for line in self.stores} - varying

    def body(self) -> list[str]:
        """Return the statements."""
        writer = self.writer
        statements = list[str]()
        last = max(self.stage.values())
        reductions = [line for line in self.lines.values() if line.op in REDUCTIONS]
        for stage in range(last + 1):
            alone = [v for v, n in self.stage.items() if n == stage and not self.varies[v]]
            statements += writer.statements(
                self.lines[v] for v in alone if self.lines[v].op not in REDUCTIONS
            )
            now = [line for line in reductions if self.stage[line.to] == stage + 1]
            stores = [line for line in self.stores if stage == last and line.to not in self.single]
            inner = writer.statements(self._needed([line.args[0] for line in (*now, *stores)]))
            parts = [writer.reduction(line) for line in now]
            inner += [gather for _, gather, _ in parts] + writer.statements(stores)
            statements += (
                [begin for begin, _, _ in parts]
                + _within(writer.LOOP, inner)
                + [end for _, _, end in parts]
            )
        return statements + _within(
            writer.ONCE, writer.statements(line for line in self.stores if line.to in self.single)
        )

    def _needed(self, roots: Sequence[str]) -> list[Line]:
        """Return the lines that these variables depend on and that change along a row.

        They are in the order of the trace.
        """
        todo = list(roots)
        needed = set()
        while todo:
            v = todo.pop()
            if self.varies[v] and v not in needed:
                needed.add(v)
                todo += [] if self.lines[v].op == "input" else self.lines[v].args
        return [line for v, line in self.lines.items() if v in needed]


def _within(around: tuple[str, ...], body: list[str]) -> list[str]:
    """Return statements inside a head, with an end if there is one; without statements, none."""
    if not body or not around:
        return body
    head, *end = around
    return [head, *(f"    {line}" for line in body), *end]
