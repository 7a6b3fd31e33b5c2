"""Functions that work element by element but for sums, means and maxima along a row, which they keep as an axis."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from xlstm.tracing.symbols import SymbolicNamespace, Symbols, UntraceableError

REDUCTIONS = ("sum", "mean", "max")  # operations along a row
GATES_AND_UNITS = (-3, -2)


class Rows(SymbolicNamespace):
    """A namespace with a sum, a mean and a maximum along a row, which a loop of its own finds."""

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


class SingleRows(Rows):
    """The same where all arrays are float32."""

    float32 = Symbols.dtype


class Units(Rows):
    """A namespace in which a row are the units of a cell, whose arrays are (gates, H, B) or (H, B).

    Sums, means and maxima are along the axis H of each array, or along those of gates and of H together.
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
