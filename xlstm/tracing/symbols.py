"""The trace of a pointwise function: a list of assignments, from a run of the function on symbols.

A cell's functions take their namespace as an argument, and work element by element except on the
leading axis of gates. With `Symbols` instead of arrays, and `SymbolicNamespace` instead of the
namespace, they unroll that axis. The trace is a list of scalar operations, without duplicates.
Compiled loops are made from it, so nobody writes a formula twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

Operand: TypeAlias = "Symbols | float"

# Functions of the namespace that are operations; all other operations are operators.
OPERATIONS = ("tanh", "exp", "expm1", "log", "log1p", "sqrt", "abs", "maximum", "minimum", "where")
CONDITIONS = ("equal", "less", "less_equal", "and")  # operations with boolean results


class UntraceableError(TypeError):
    """The function is not element by element, or no target language can express it."""


class Node(NamedTuple):
    """An operation; its arguments are numbers of nodes.

    "input" has a name and a row instead, and "number" a value.
    """

    op: str
    args: tuple[Any, ...]


def _operator(op: str, swapped: bool = False) -> Callable[..., Symbols]:
    """Return the method that applies an operation.

    Operands are swapped in reflected operators and in > and >=.
    """

    def method(self: Symbols, *other: Any) -> Any:
        if other and hasattr(other[0], "tangent"):  # a dual number of symbols has its own operators
            return NotImplemented
        return self.graph.apply(op, *((*other, self) if swapped else (self, *other)))

    return method


class Symbols:
    """A stand-in for an array: one node, or one node for each row of a leading axis."""

    dtype = "the dtype of the inputs"
    shape = property(lambda self: _refuse("shape"))

    def __init__(self, graph: Graph, nodes: Sequence[int], scalar: bool = False) -> None:
        self.graph = graph
        self.nodes = list(nodes)
        self.scalar = scalar

    def __array_ufunc__(self, ufunc: Any, *arguments: Any, **options: Any) -> Any:
        """Refuse functions of NumPy: the traced array library has its own."""
        _refuse(f"np.{ufunc.__name__}")

    def __getitem__(self, key: Any) -> Symbols:
        first = (
            key[0]
            if isinstance(key, tuple) and key[1:] == (Ellipsis,)
            else _refuse(f"the index {key!r}")
        )
        if first is None and self.scalar:
            return Symbols(self.graph, self.nodes)
        if isinstance(first, slice):
            return Symbols(self.graph, self.nodes[first])
        return Symbols(self.graph, [self.nodes[first]], scalar=True)

    def __setitem__(self, key: Any, value: Symbols) -> None:
        if key is Ellipsis:
            self.nodes = list(value.nodes)
            return
        rows = range(len(self.nodes))[key[0]]
        if isinstance(rows, int):
            (self.nodes[rows],) = value.nodes
        else:
            self.nodes[key[0]] = value.nodes

    __add__ = __radd__ = _operator("add")
    __mul__ = __rmul__ = _operator("multiply")
    __sub__ = _operator("subtract")
    __rsub__ = _operator("subtract", swapped=True)
    __truediv__ = _operator("divide")
    __rtruediv__ = _operator("divide", swapped=True)
    __lt__ = _operator("less")
    __gt__ = _operator("less", swapped=True)
    __le__ = _operator("less_equal")
    __ge__ = _operator("less_equal", swapped=True)
    __eq__ = _operator("equal")  # type: ignore[assignment]
    __and__ = _operator("and")
    __neg__ = _operator("negative")

    def __repr__(self) -> str:
        return "an array"

    def __matmul__(self, other: Operand) -> Symbols:
        return _refuse("a matrix product")  # type: ignore[no-any-return]

    __rmatmul__ = __matmul__

    def __bool__(self) -> bool:
        raise UntraceableError("tracing: a branch on a value; xp.where takes its place")


class Graph:
    """The nodes of a trace; equal nodes are merged."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.numbers: dict[Node, int] = {}

    def number(self, op: str, *args: Any) -> int:
        """Return the number of a node, and make the node if there is none like it."""
        node = Node(op, args)
        if node not in self.numbers:
            self.numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self.numbers[node]

    def input(self, name: str, rows: int | None) -> Symbols:
        """Return an input with `rows` rows, or with None an input without that axis."""
        numbers = [None] if rows is None else range(rows)
        return Symbols(
            self, [self.number("input", name, row) for row in numbers], scalar=rows is None
        )

    def apply(self, op: str, *operands: Operand) -> Symbols:
        """Apply an operation row by row; an operand with one row serves all rows."""
        symbols = [a for a in operands if isinstance(a, Symbols)]
        rows = max(len(a.nodes) for a in symbols)
        if any(len(a.nodes) not in (1, rows) for a in symbols):
            raise UntraceableError(
                f"tracing: {op} of {' and '.join(str(len(a.nodes)) for a in symbols)} rows"
            )
        nodes = [self.number(op, *(self.node(a, row) for a in operands)) for row in range(rows)]
        return Symbols(self, nodes, scalar=all(a.scalar for a in symbols))

    def node(self, operand: Operand, row: int) -> int:
        """Return the number of an operand's node in a row."""
        if isinstance(operand, Symbols):
            return operand.nodes[row if len(operand.nodes) > 1 else 0]
        return self.number("number", float(operand))


class SymbolicNamespace:
    """A stand-in for an array library, with the functions that a pointwise function may use.

    Any other function raises an error with its name.
    """

    __name__ = "symbols"
    float32 = "float32"
    float64 = "float64"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __getattr__(self, name: str) -> Callable[..., Symbols]:
        if name not in OPERATIONS:
            _refuse(name)
        return functools.partial(self._graph.apply, name)

    def isdtype(self, dtype: Any, kind: str) -> bool:
        """Tell whether numbers are of a kind: all symbols are real and floating-point."""
        return kind == "real floating"

    def zeros_like(self, x: Symbols) -> Symbols:
        return self.full_like(x, 0.0)

    def ones_like(self, x: Symbols) -> Symbols:
        return self.full_like(x, 1.0)

    def full_like(self, x: Symbols, value: Operand) -> Symbols:
        return Symbols(
            self._graph, [self._graph.node(value, row) for row in range(len(x.nodes))], x.scalar
        )

    def stack(self, arrays: Sequence[Symbols]) -> Symbols:
        return Symbols(
            self._graph, [a.nodes[0] if a.scalar else _refuse("stack of rows") for a in arrays]
        )

    def concat(self, arrays: Sequence[Symbols]) -> Symbols:
        rows = [_refuse("concat of scalars") if a.scalar else a.nodes for a in arrays]
        return Symbols(self._graph, [node for some in rows for node in some])

    def asarray(self, x: Symbols, copy: bool = False) -> Symbols:
        return Symbols(self._graph, x.nodes, x.scalar)

    def astype(self, x: Symbols, dtype: Any) -> Symbols:
        """Return conditions as 1 and 0; operations "double" and "single" change numbers' width."""
        if all(self._graph.nodes[node].op in CONDITIONS for node in x.nodes):
            return self._graph.apply("where", x, 1.0, 0.0)
        if dtype == Symbols.dtype:
            return x
        return self._graph.apply("double" if "float64" in str(dtype) else "single", x)


class Line(NamedTuple):
    """An assignment to `to`: the name of a new variable, or an output and its row.

    The row is None for an output without that axis.
    """

    to: str
    row: int | None
    op: str
    args: tuple[Any, ...]


def trace(
    function: Callable[..., Mapping[str, Symbols]],
    inputs: Mapping[str, int | None],
    library: type[SymbolicNamespace] = SymbolicNamespace,
) -> tuple[list[Line], dict[str, int | None]]:
    """Return the trace of `function(xp, **inputs)`, and the rows of each output by name.

    Parameters
    ----------
    function
        A pure function, element by element, from arrays to arrays by name.
    inputs : dict of str to int or None
        The rows of the leading axis of each input, None for one without it.
    library : type
        The namespace that the function gets.

    Returns
    -------
    lines : list of Line
        Assignments in a valid order: loads ("input", with the args name and row), operations on
        variables, and stores ("store") to outputs, after all loads. Assignments that no output
        needs are left out.
    outputs : dict of str to int or None
        The rows of each output, as in `inputs`.

    Raises
    ------
    UntraceableError
        The function is not element by element, or uses something that cannot be traced.
    """
    graph = Graph()
    results = function(
        library(graph), **{name: graph.input(name, rows) for name, rows in inputs.items()}
    )
    needed = {n for symbols in results.values() for n in symbols.nodes}
    for number in range(len(graph.nodes) - 1, -1, -1):  # arguments have lower numbers
        op, args = graph.nodes[number]
        if number in needed and op not in ("input", "number"):
            needed |= set(args)
    lines = []
    for number in sorted(needed):
        op, args = graph.nodes[number]
        named = args if op in ("input", "number") else tuple(f"v{n}" for n in args)
        lines.append(Line(f"v{number}", None, op, named))
    for name, symbols in results.items():
        for row, number in enumerate(symbols.nodes):
            lines.append(Line(name, None if symbols.scalar else row, "store", (f"v{number}",)))
    return lines, {name: None if s.scalar else len(s.nodes) for name, s in results.items()}


def _refuse(what: str) -> Any:
    raise UntraceableError(f"tracing: {what} cannot be traced, it is not element by element")
