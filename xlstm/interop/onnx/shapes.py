"""Which axes and which values a tensor of an ONNX graph has, as far as that follows from the graph.

Sizes that the graph leaves open are symbols, so that a shape which is computed while the model runs can be compared
with the one that it must have. An axis is the tuple of the symbols that it joins, without those of size 1: Y (T, B,
directions*H) has the axes ("T",), ("B",) and ("directions", "H").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xlstm.arrays.checks import shown
from xlstm.interop.onnx.graph import DOMAINS, RANK, Graph

Axes = list[tuple[str, ...]]
Size = tuple[int, tuple[str, ...]]  # a product: a number, and symbols in alphabetic order

DEEPEST = 32  # nodes between a tensor and what it is made of
# Operators whose output has no other values than their first input has; Concat has those of all its inputs.
KEEPING = (
    *("Cast", "Dropout", "Expand", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
    "Unsqueeze",
)
WIDE = (1, 6, 7, 10, 11)  # types that a Cast may go to: FLOAT, INT32, INT64, FLOAT16, DOUBLE


class UnprovenError(ValueError):
    """The graph alone does not say it."""


@dataclass
class Shapes:
    """Axes and values, by name.

    Parameters
    ----------
    graph : Graph
    sizes : dict of str to int or None
        The size of every symbol, None where it is open.
    roots : dict of str to list
        The axes of tensors from which those of others follow.
    """

    graph: Graph
    sizes: dict[str, int | None]
    roots: dict[str, Axes]
    _vectors: dict[str, list[Size]] = field(default_factory=dict)
    _depth: int = 0

    def axes(self, name: str) -> tuple[str, Axes]:
        """The root that a tensor is a new arrangement of, all its elements in it once, and the axes."""
        chain: list[Any] = []
        name = self.graph.origin(name)
        while name not in self.roots:
            node = self.graph.producer(name)
            if node is None or node.op_type not in MOVES or node.domain not in DOMAINS or not node.input:
                raise UnprovenError(self.graph.described(name))
            if len(chain) == DEEPEST:
                raise UnprovenError(f"behind more than {DEEPEST} nodes, {shown(name)}")
            chain.append(node)
            name = self.graph.origin(node.input[0])
        axes = self.roots[name]
        for node in reversed(chain):
            moved = MOVES[node.op_type](self, node, axes)
            if moved is None:
                raise UnprovenError(f"{self.graph.described(node.output[0])}, whose axes are not known to be these")
            axes = moved
        return name, self.plain(axes)

    def plain(self, axes: Axes) -> Axes:
        """Axes without the symbols of size 1."""
        return [tuple(symbol for symbol in axis if self.sizes[symbol] != 1) for axis in axes]

    def size(self, *symbols: str) -> Size:
        """The product of symbols, as a number where they are known."""
        known = math.prod(n for symbol in symbols if (n := self.sizes[symbol]) is not None)
        return known, tuple(sorted(symbol for symbol in symbols if self.sizes[symbol] is None))

    def vector(self, name: str) -> list[Size]:
        """A few whole numbers, constant or computed from shapes."""
        name = self.graph.origin(name)
        if name not in self._vectors:
            if self._depth == DEEPEST:
                raise UnprovenError(f"computed by more than {DEEPEST} nodes, {shown(name)}")
            self._depth += 1
            try:
                found = self._vector(name)
            finally:
                self._depth -= 1
            if len(found) > RANK:
                raise UnprovenError(f"{len(found)} numbers, {shown(name)}")
            self._vectors[name] = found
        return self._vectors[name]

    def _vector(self, name: str) -> list[Size]:
        if self.graph.is_constant(name):
            return [(n, ()) for n in self.integers(name)]
        node = self.graph.producer(name)
        compute = VECTORS.get(node.op_type) if node is not None and node.domain in DOMAINS and node.input else None
        found = compute(self, node) if compute else None
        if found is None:
            raise UnprovenError(self.graph.described(name))
        return found

    def integers(self, name: str) -> list[int]:
        """The values of a small constant of whole numbers."""
        shape = self.graph.shape(self.graph.where, shown(name), name)
        values = self.graph.constant(self.graph.where, shown(name), name) if math.prod(shape) <= RANK else None
        if values is None or values.dtype.kind != "i" or values.ndim > 1:
            raise UnprovenError(f"a constant of shape {shape}, {shown(name)}")
        return [int(n) for n in values.ravel()]

    def option(self, node: Any, position: int, attribute: str, default: list[int] | None = None) -> list[int] | None:
        """Constant integers that are an input of a node, or an attribute in older opsets; None if they are neither."""
        if len(node.input) > position and node.input[position]:
            return self.integers(node.input[position]) if self.graph.is_constant(node.input[position]) else None
        found = attributes(node).get(attribute)
        return default if found is None else list(found.ints[: RANK + 1])

    def fill(self, what: str, name: str) -> Size | float | None:
        """The one value that all elements of a tensor have, None if that is not known."""
        ahead, seen = [name], set()
        found: set[Size | float] = set()
        while ahead:
            name = self.graph.origin(ahead.pop())
            if name in seen:
                continue
            seen.add(name)
            node = self.graph.producer(name)
            if len(seen) > DEEPEST:
                return None
            if self.graph.is_constant(name):
                values = self.graph.constant(self.graph.where, what, name).ravel()
                if values.size and not (values == values[0]).all():
                    return None
                found |= {_number(n) for n in values[:1]}
            elif node is None or node.domain not in DOMAINS or not node.input:
                return None
            elif node.op_type == "ConstantOfShape":
                value = self._filling(node)
                if value is None:
                    return None
                found.add(value)
            elif node.op_type in KEEPING and not _changes(node):
                try:
                    found |= set(self.vector(name))
                except UnprovenError:
                    ahead.append(node.input[0])
            elif node.op_type == "Concat":
                ahead += node.input
            else:
                try:
                    found |= set(self.vector(name))
                except UnprovenError:
                    return None
        return found.pop() if len(found) == 1 else None

    def _filling(self, node: Any) -> Size | float | None:
        value = attributes(node).get("value")
        if value is None:
            return (0, ())
        numbers = self.graph.values(self.graph.where, "value", value.t).ravel()
        return _number(numbers[0]) if numbers.size == 1 else None


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node by name."""
    return {entry.name: entry for entry in node.attribute}


def named(size: Size) -> str:
    """A size as text."""
    number, symbols = size
    return "*".join([*([str(number)] if number != 1 or not symbols else []), *symbols])


def _number(value: Any) -> Size | float:
    """A value of a constant, so that equal whole numbers are equal whatever their dtype."""
    return (int(value), ()) if math.isfinite(value) and value == int(value) else float(value)


def _drops(node: Any) -> bool:
    """Whether a node is a Dropout that may be in training."""
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])


def _changes(node: Any) -> bool:
    """Whether a node may have other values than its input after all: a Dropout, or a Cast to a narrow type."""
    to = attributes(node).get("to")
    return _drops(node) or (node.op_type == "Cast" and (to is None or to.i not in WIDE))


# ---- where an operator moves axes to, None if that is not known


def _transpose(shapes: Shapes, node: Any, axes: Axes) -> Axes | None:
    perm = permutation(node)
    return [axes[k] for k in perm] if sorted(perm) == list(range(len(axes))) else None


def _squeeze(shapes: Shapes, node: Any, axes: Axes) -> Axes | None:
    gone = shapes.option(node, 1, "axes")
    if not gone or any(not -len(axes) <= k < len(axes) for k in gone):
        return None
    gone = [k % len(axes) for k in gone]
    if any(shapes.plain([axes[k]]) != [()] for k in gone):
        return None
    return [axis for k, axis in enumerate(axes) if k not in gone]


def _unsqueeze(shapes: Shapes, node: Any, axes: Axes) -> Axes | None:
    new = shapes.option(node, 1, "axes")
    rank = len(axes) + len(new or ())
    if not new or rank > RANK or {k % rank for k in new if -rank <= k < rank} != {k % rank for k in new}:
        return None
    places = {k % rank for k in new}
    rest = iter(axes)
    return [() if k in places else next(rest) for k in range(rank)] if len(places) == len(new) else None


def _reshape(shapes: Shapes, node: Any, axes: Axes) -> Axes | None:
    if len(node.input) < 2:
        return None
    sizes = shapes.vector(node.input[1])
    zero = attributes(node).get("allowzero")
    if not (zero and zero.i):
        if any(size == (0, ()) and k >= len(axes) for k, size in enumerate(sizes)):
            return None
        sizes = [shapes.size(*axes[k]) if size == (0, ()) else size for k, size in enumerate(sizes)]
    symbols = [symbol for axis in shapes.plain(axes) for symbol in axis]
    if sizes.count((-1, ())) == 1:
        rest = _quotient(shapes.size(*symbols), [size for size in sizes if size != (-1, ())])
        sizes = [rest if size == (-1, ()) else size for size in sizes]
    found: Axes = []
    for size in sizes:  # every new axis joins the next of the symbols until it has its size
        joined: list[str] = []
        while symbols and shapes.size(*joined) != size:
            joined.append(symbols.pop(0))
        if shapes.size(*joined) != size:
            return None
        found.append(tuple(joined))
    return None if symbols else found


def _quotient(whole: Size, sizes: list[Size]) -> Size:
    """The size that is left for one axis when the others are `sizes`; raise UnprovenError if that is not known."""
    number, symbols = whole[0], list(whole[1])
    for n, names in sizes:
        if n < 1 or number % n or any(names.count(name) > symbols.count(name) for name in names):
            raise UnprovenError(f"reshaped to {' x '.join(map(named, sizes))} and the rest of {named(whole)}")
        number //= n
        for name in names:
            symbols.remove(name)
    return number, tuple(symbols)


def _dropout(shapes: Shapes, node: Any, axes: Axes) -> Axes | None:
    return None if _drops(node) else axes


MOVES: dict[str, Callable[[Shapes, Any, Axes], Axes | None]] = {
    "Dropout": _dropout,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


# ---- arithmetic of shapes, None if the result is not known


def _shape(shapes: Shapes, node: Any) -> list[Size] | None:
    _, axes = shapes.axes(node.input[0])
    given = attributes(node)
    start, end = (given[key].i if key in given else None for key in ("start", "end"))
    return [shapes.size(*axis) for axis in axes][start:end]


def _slice(shapes: Shapes, node: Any) -> list[Size] | None:
    values = shapes.vector(node.input[0])
    starts, ends = shapes.option(node, 1, "starts"), shapes.option(node, 2, "ends")
    along, steps = shapes.option(node, 3, "axes", [0]), shapes.option(node, 4, "steps", [1])
    if not starts or not ends or not steps or len(starts + ends + steps) > 3 or along != [0] or steps == [0]:
        return None
    return values[starts[0] : ends[0] : steps[0]]


def _gather(shapes: Shapes, node: Any) -> list[Size] | None:
    axis = attributes(node).get("axis")
    if len(node.input) < 2 or (axis and axis.i) or not shapes.graph.is_constant(node.input[1]):
        return None
    values, places = shapes.vector(node.input[0]), shapes.integers(node.input[1])
    return [values[k] for k in places] if all(-len(values) <= k < len(values) for k in places) else None


def _concat(shapes: Shapes, node: Any) -> list[Size] | None:
    axis = attributes(node).get("axis")
    if axis is None or axis.i or len(node.input) > RANK:
        return None
    return [size for name in node.input for size in shapes.vector(name)]


def _mul(shapes: Shapes, node: Any) -> list[Size] | None:
    factors = [shapes.vector(name) for name in node.input]
    if [len(factor) for factor in factors] != [1, 1]:
        return None
    ((n, names),), ((m, others),) = factors
    return [(n * m, tuple(sorted(names + others)))]


def _same(shapes: Shapes, node: Any) -> list[Size] | None:
    """The same numbers: the result has one axis, or one element."""
    values = shapes.vector(node.input[0])
    flat = node.op_type == "Reshape" and len(node.input) > 1 and shapes.vector(node.input[1]) == [(-1, ())]
    return values if flat or len(values) == 1 else None


def _cast(shapes: Shapes, node: Any) -> list[Size] | None:
    to = attributes(node).get("to")
    return shapes.vector(node.input[0]) if to and to.i in (6, 7) else None  # INT32, INT64


VECTORS: dict[str, Callable[[Shapes, Any], list[Size] | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Mul": _mul,
    "Reshape": _same,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _same,
    "Unsqueeze": _same,
}


def permutation(node: Any) -> list[int]:
    """The permutation of a Transpose node, empty if it gives none."""
    perm = attributes(node).get("perm") if node else None
    return list(perm.ints[: RANK + 1]) if perm else []
