"""Which axes and which values a tensor of an ONNX graph has, as far as that follows from the graph.

An axis is the tuple of the symbols that it joins, without those of size 1: Y (T, B, directions*H) has the axes ("T",),
("B",) and ("directions", "H"). Every symbol has a size. Sizes that the graph leaves open are primes beyond the numbers
that a file can hold, so that equal products of sizes have the same factors, and a shape that is computed while the
model runs can be compared with the one that it must have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from xlstm.arrays.checks import shown
from xlstm.interop.onnx.constants import RANK
from xlstm.interop.onnx.graph import Graph, attributes

Axis = tuple[str, ...]
Axes = list[Axis]

OPEN = {"T": 2**89 - 1, "B": 2**107 - 1}  # the sizes of these symbols where the graph leaves them open
LARGEST = OPEN["B"] ** RANK  # of a factor, since numbers that are squared again and again would fill all memory
DEEPEST = 32  # nodes between a tensor and what it is made of
WHOLE, NUMBERS = (6, 7), (1, 6, 7, 10, 11)  # types: INT32 and INT64, and FLOAT, FLOAT16 and DOUBLE too
# Operators whose output has no other values than their first input has.
KEEPING = ("Cast", "Dropout", "Expand", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose")
KEEPING += ("Unsqueeze",)


class UnprovenError(ValueError):
    """The graph alone does not say it."""


@dataclass
class Values:
    """The axes and the values of the tensors of a graph, by name.

    Parameters
    ----------
    graph : Graph
    sizes : dict of str to int
        The size of every symbol.
    roots : dict of str to list
        The axes of tensors from which those of others follow.
    """

    graph: Graph
    sizes: dict[str, int]
    roots: dict[str, Axes]
    _vectors: dict[str, list[int]] = field(default_factory=dict)
    _depth: int = 0

    def axes(self, name: str) -> tuple[str, Axes]:
        """Return the root that a tensor is a new arrangement of, all its elements in it once, and the axes."""
        chain: list[Any] = []
        name = self.graph.origin(name)
        while name not in self.roots:
            node = self.graph.producer(name, *MOVES)
            if node is None:
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
        """Return axes without the symbols of size 1."""
        return [tuple(symbol for symbol in axis if self.sizes[symbol] != 1) for axis in axes]

    def size(self, axis: Iterable[str]) -> int:
        """Return the product of symbols."""
        return math.prod(self.sizes[symbol] for symbol in axis)

    def vector(self, name: str) -> list[int]:
        """Return a few whole numbers, constant or computed from shapes."""
        name = self.graph.origin(name)
        if name in self._vectors:
            return self._vectors[name]
        if self._depth == DEEPEST:
            raise UnprovenError(f"computed by more than {DEEPEST} nodes, {shown(name)}")
        self._depth += 1
        try:
            node = self.graph.producer(name, *VECTORS)
            constant = self.graph.is_constant(name)
            found = self.integers(name) if constant else VECTORS[node.op_type](self, node) if node else None
        finally:
            self._depth -= 1
        if found is None or len(found) > RANK:
            raise UnprovenError(self.graph.described(name))
        self._vectors[name] = found
        return found

    def integers(self, name: str) -> list[int]:
        """Return the values of a small constant of whole numbers."""
        what = f"{self.graph.where}: {shown(name)}"
        shape = self.graph.shape(what, name)
        values = self.graph.constant(what, name) if len(shape) < 2 and math.prod(shape) <= RANK else None
        if values is None or values.dtype.kind != "i":
            raise UnprovenError(f"a constant of shape {shape}, {shown(name)}")
        return [int(n) for n in values.ravel()]

    def option(self, node: Any, position: int, attribute: str, default: list[int] | None = None) -> list[int] | None:
        """Return whole numbers that are a constant input of a node, or an attribute in older opsets; or None."""
        if len(node.input) > position and node.input[position]:
            return self.integers(node.input[position]) if self.graph.is_constant(node.input[position]) else None
        found = attributes(node).get(attribute)
        return default if found is None else list(found.ints[: RANK + 1])

    def fill(self, what: str, name: str) -> float | None:
        """Return the one value that all elements of a tensor have, None if that is not known."""
        ahead, seen, found = [name], set(), set()
        while ahead:
            name = self.graph.origin(ahead.pop())
            if name in seen:
                continue
            seen.add(name)
            if len(seen) > DEEPEST:
                return None
            if self.graph.is_constant(name):
                values = self.graph.constant(what, name)
                found |= {values.min().item(), values.max().item()} if values.size else set()
                continue
            try:
                found |= set(self.vector(name))
                continue
            except UnprovenError:
                node = self.graph.producer(name, *KEEPING, "Concat", "ConstantOfShape")
            if node is None or _changes(node):
                return None
            if node.op_type == "ConstantOfShape":
                value = attributes(node).get("value")
                found |= {0} if value is None else set(self.graph.constants.values(what, value.t).ravel()[:2].tolist())
            else:
                ahead += node.input if node.op_type == "Concat" else node.input[:1]
        return found.pop() if len(found) == 1 else None


def _drops(node: Any) -> bool:
    """Say whether a node is a Dropout that may be in training."""
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])


def _changes(node: Any) -> bool:
    """Say whether a node may have other values than its input after all: a Dropout, or a Cast to a narrow type."""
    return _drops(node) or (node.op_type == "Cast" and _integer(node, "to") not in NUMBERS)


def _integer(node: Any, name: str, default: int | None = None) -> int | None:
    """Return an attribute that is a whole number."""
    found = attributes(node).get(name)
    return default if found is None else int(found.i)


# ---- The axes to which an operator moves those of its input, None if that is not known.


def permutation(node: Any) -> list[int]:
    """Return the permutation of a Transpose node, empty if it gives none."""
    perm = attributes(node).get("perm") if node else None
    return list(perm.ints[: RANK + 1]) if perm else []


def _transpose(values: Values, node: Any, axes: Axes) -> Axes | None:
    perm = permutation(node)
    return [axes[k] for k in perm] if sorted(perm) == list(range(len(axes))) else None


def _squeeze(values: Values, node: Any, axes: Axes) -> Axes | None:
    gone = values.option(node, 1, "axes")
    if not gone or any(not -len(axes) <= k < len(axes) or values.size(axes[k]) != 1 for k in gone):
        return None
    return [axis for k, axis in enumerate(axes) if k not in gone and k - len(axes) not in gone]


def _unsqueeze(values: Values, node: Any, axes: Axes) -> Axes | None:
    new = values.option(node, 1, "axes") or []
    rank = len(axes) + len(new)
    places = {k % rank for k in new if -rank <= k < rank}
    if not new or rank > RANK or len(places) != len(new):
        return None
    rest = iter(axes)
    return [() if k in places else next(rest) for k in range(rank)]


def _reshape(values: Values, node: Any, axes: Axes) -> Axes | None:
    if len(node.input) < 2:
        return None
    sizes, symbols = values.vector(node.input[1]), [symbol for axis in values.plain(axes) for symbol in axis]
    if not _integer(node, "allowzero"):
        if any(n == 0 and k >= len(axes) for k, n in enumerate(sizes)):
            return None
        sizes = [n or values.size(axes[k]) for k, n in enumerate(sizes)]
    if sizes.count(-1) == 1:
        whole, known = values.size(symbols), math.prod(n for n in sizes if n != -1)
        if known < 1 or whole % known:
            return None
        sizes = [whole // known if n == -1 else n for n in sizes]
    found: Axes = []
    for size in sizes:  # every new axis joins the next of the symbols until it has its size
        joined: list[str] = []
        while symbols and values.size(joined) != size:
            joined.append(symbols.pop(0))
        if values.size(joined) != size:
            return None
        found.append(tuple(joined))
    return None if symbols else found


def _dropout(values: Values, node: Any, axes: Axes) -> Axes | None:
    return None if _drops(node) else axes


MOVES: dict[str, Callable[[Values, Any, Axes], Axes | None]] = {
    "Dropout": _dropout,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


# ---- The numbers that an operator computes from shapes, None if they are not known.


def _shape(values: Values, node: Any) -> list[int] | None:
    _, axes = values.axes(node.input[0])
    return [values.size(axis) for axis in axes][_integer(node, "start") : _integer(node, "end")]


def _slice(values: Values, node: Any) -> list[int] | None:
    starts, ends = values.option(node, 1, "starts"), values.option(node, 2, "ends")
    along, steps = values.option(node, 3, "axes", [0]), values.option(node, 4, "steps", [1])
    if not starts or not ends or not steps or len(starts + ends + steps) > 3 or along != [0] or steps == [0]:
        return None
    return values.vector(node.input[0])[starts[0] : ends[0] : steps[0]]


def _gather(values: Values, node: Any) -> list[int] | None:
    if len(node.input) < 2 or _integer(node, "axis") or not values.graph.is_constant(node.input[1]):
        return None
    found, places = values.vector(node.input[0]), values.integers(node.input[1])
    return [found[k] for k in places] if all(-len(found) <= k < len(found) for k in places) else None


def _concat(values: Values, node: Any) -> list[int] | None:
    if _integer(node, "axis") != 0 or len(node.input) > RANK:
        return None
    return [n for name in node.input for n in values.vector(name)]


def _mul(values: Values, node: Any) -> list[int] | None:
    factors = [values.vector(name) for name in node.input]
    if [len(factor) for factor in factors] != [1, 1] or max(abs(n) for (n,) in factors) > LARGEST:
        return None
    return [factors[0][0] * factors[1][0]]


def _same(values: Values, node: Any) -> list[int] | None:
    """Return the same numbers: the result has one axis, or one element."""
    found = values.vector(node.input[0])
    flat = node.op_type == "Reshape" and len(node.input) > 1 and values.vector(node.input[1]) == [-1]
    return found if flat or len(found) == 1 else None


def _cast(values: Values, node: Any) -> list[int] | None:
    return values.vector(node.input[0]) if _integer(node, "to") in WHOLE else None


VECTORS: dict[str, Callable[[Values, Any], list[int] | None]] = {
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
