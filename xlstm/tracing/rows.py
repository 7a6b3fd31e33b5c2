"""Functions that work element by element but for sums, means and maxima along a row, which they keep as an axis."""

from __future__ import annotations

from xlstm.tracing.symbols import SymbolicNamespace, Symbols, UntraceableError

REDUCTIONS = ("sum", "mean", "max")  # operations along a row


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
