"""Which axes and which values a tensor of an ONNX graph has, as far as that follows from the graph.

An axis is the tuple of the symbols that it joins, without those of size 1: Y (T, B, directions*H) has the axes ("T",),
("B",) and ("directions", "H"). Every symbol has a size. Sizes that the graph leaves open are primes beyond the numbers
that a file can hold, so that equal products of sizes have the same factors, and a shape that is computed while the
model runs can be compared with the one that it must have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from xlstm.arrays.checks import shown
from xlstm.interop.onnx.files import RANK
from xlstm.interop.onnx.graph import Graph, attributes

Axes = list[tuple[str, ...]]

OPEN = {"T": 2**89 - 1, "B": 2**107 - 1}  # the sizes of these symbols where the graph leaves them open
LARGEST = OPEN["B"] ** RANK  # of a factor, since numbers that are squared again and again would fill all memory
DEEPEST = 32  # nodes between a tensor and what it is made of
WHOLE, NUMBERS = (6, 7), (1, 6, 7, 10, 11)  # types: INT32 and INT64, and FLOAT, FLOAT16 and DOUBLE too
MOVING = ("Dropout", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # operators that keep all elements
# Operators whose output has no other values than their first input has, and those that compute whole numbers.
KEEPING = (*MOVING, "Cast", "Expand", "Flatten", "Slice", "Split", "Tile")
COUNTING = ("Cast", "Concat", "Gather", "Mul", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze")


class UnprovenError(ValueError):
    """The graph alone does not say it."""


@dataclass
class Values:
    """The axes and the values of the tensors of a graph, by name."""

    graph: Graph
    sizes: dict[str, int]  # of every symbol
    roots: dict[str, Axes]  # the axes of tensors from which those of others follow
    _vectors: dict[str, list[int]] = field(default_factory=dict)
    _depth: int = 0

    def axes(self, name: str) -> tuple[str, Axes]:
        """Return the root that a tensor is a new arrangement of, all its elements in it once, and the axes."""
        chain: list[Any] = []
        name = self.graph.origin(name)
        while name not in self.roots:
            node = self.graph.producer(name, *MOVING)
            if node is None:
                raise UnprovenError(self.graph.described(name))
            if len(chain) == DEEPEST:
                raise UnprovenError(f"behind more than {DEEPEST} nodes, {shown(name)}")
            chain.append(node)
            name = self.graph.origin(node.input[0])
        axes = self.roots[name]
        for node in reversed(chain):
            moved = self._moved(node, axes)
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

    def _moved(self, node: Any, axes: Axes) -> Axes | None:
        """Return the axes to which a node moves those of its input, None if that is not known."""
        rank = len(axes)
        match node.op_type:
            case "Dropout":
                return None if _changes(node) else axes
            case "Transpose":
                perm = permutation(node)
                return [axes[k] for k in perm] if sorted(perm) == list(range(rank)) else None
            case "Reshape":
                return self._reshaped(node, axes)
        places = self._option(node, 1, "axes")
        if node.op_type == "Squeeze":
            if not places or any(not -rank <= k < rank or self.size(axes[k]) != 1 for k in places):
                return None
            return [axis for k, axis in enumerate(axes) if k not in places and k - rank not in places]
        rank += len(places)
        new = {k % rank for k in places if -rank <= k < rank}
        if not new or rank > RANK or len(new) != len(places):
            return None
        rest = iter(axes)
        return [() if k in new else next(rest) for k in range(rank)]

    def _reshaped(self, node: Any, axes: Axes) -> Axes | None:
        if len(node.input) < 2:
            return None
        sizes, symbols = self.vector(node.input[1]), [symbol for axis in self.plain(axes) for symbol in axis]
        if not _integer(node, "allowzero"):
            if any(n == 0 and k >= len(axes) for k, n in enumerate(sizes)):
                return None
            sizes = [n or self.size(axes[k]) for k, n in enumerate(sizes)]
        if sizes.count(-1) == 1:
            whole, known = self.size(symbols), math.prod(n for n in sizes if n != -1)
            if known < 1 or whole % known:
                return None
            sizes = [whole // known if n == -1 else n for n in sizes]
        found: Axes = []
        for size in sizes:  # every new axis joins the next of the symbols until it has its size
            joined: list[str] = []
            while symbols and self.size(joined) != size:
                joined.append(symbols.pop(0))
            if self.size(joined) != size:
                return None
            found.append(tuple(joined))
        return None if symbols else found

    def vector(self, name: str) -> list[int]:
        """Return a few whole numbers, constant or computed from shapes."""
        name = self.graph.origin(name)
        if name not in self._vectors:
            if self._depth == DEEPEST:
                raise UnprovenError(f"computed by more than {DEEPEST} nodes, {shown(name)}")
            self._depth += 1
            try:
                found = self._integers(name) if self.graph.is_constant(name) else self._counted(name)
            finally:
                self._depth -= 1
            if found is None or len(found) > RANK:
                raise UnprovenError(self.graph.described(name))
            self._vectors[name] = found
        return self._vectors[name]

    def _counted(self, name: str) -> list[int] | None:
        """Return the whole numbers that a node computes, None if they are not known."""
        node = self.graph.producer(name, *COUNTING)
        if node is None or len(node.input) > RANK:
            return None
        if node.op_type == "Shape":
            sizes = [self.size(axis) for axis in self.axes(node.input[0])[1]]
            return sizes[_integer(node, "start") : _integer(node, "end")]
        first = self.vector(node.input[0])
        match node.op_type, len(node.input):
            case "Concat", _:
                return [n for one in node.input for n in self.vector(one)] if _integer(node, "axis") == 0 else None
            case "Mul", 2:
                second = self.vector(node.input[1])
                known = len(first) == len(second) == 1 and max(abs(first[0]), abs(second[0])) <= LARGEST
                return [first[0] * second[0]] if known else None
            case "Gather", 2 if not _integer(node, "axis"):
                places = self.vector(node.input[1])
                return [first[k] for k in places] if all(-len(first) <= k < len(first) for k in places) else None
            case "Slice", _:
                starts, ends = self._option(node, 1, "starts"), self._option(node, 2, "ends")
                along, steps = self._option(node, 3, "axes", [0]), self._option(node, 4, "steps", [1])
                if (
                    not starts
                    or not ends
                    or not steps
                    or len(starts + ends + steps) > 3
                    or along != [0]
                    or steps == [0]
                ):
                    return None
                return first[starts[0] : ends[0] : steps[0]]
            case "Cast", _:
                return first if _integer(node, "to") in WHOLE else None
            case "Reshape", 2 if self.vector(node.input[1]) == [-1]:
                return first
        # The other operators do not change one number.
        return first if len(first) == 1 and node.op_type in ("Reshape", "Squeeze", "Unsqueeze") else None

    def _integers(self, name: str) -> list[int]:
        """Return the values of a small constant of whole numbers."""
        what = f"{self.graph.where}: {shown(name)}"
        tensor = self.graph.tensor(what, name)
        shape, values = self.graph.constants.shape(what, tensor), None
        if len(shape) < 2 and math.prod(shape) <= RANK:
            values = self.graph.constants.values(what, tensor)
        if values is None or values.dtype.kind != "i":
            raise UnprovenError(f"a constant of shape {shape}, {shown(name)}")
        return [int(n) for n in values.ravel()]

    def _option(self, node: Any, position: int, attribute: str, default: list[int] | None = None) -> list[int]:
        """Return whole numbers that are an input of a node, or an attribute in older opsets."""
        if len(node.input) > position and node.input[position]:
            return self.vector(node.input[position])
        found = attributes(node).get(attribute)
        return default or [] if found is None else list(found.ints[: RANK + 1])

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
                values = self.graph.constants.values(what, self.graph.tensor(what, name))
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


def permutation(node: Any) -> list[int]:
    """Return the permutation of a Transpose node, empty if it gives none."""
    perm = attributes(node).get("perm") if node else None
    return list(perm.ints[: RANK + 1]) if perm else []


def _changes(node: Any) -> bool:
    """Say whether a node may change values after all: a Dropout in training, or a Cast to a narrow type."""
    training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
    return bool(training) or (node.op_type == "Cast" and _integer(node, "to") not in NUMBERS)


def _integer(node: Any, name: str) -> int | None:
    """Return an attribute that is a whole number, None if it is not there."""
    found = attributes(node).get(name)
    return None if found is None else int(found.i)
