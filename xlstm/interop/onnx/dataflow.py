"""Tensors of an ONNX graph, as far as the patterns of exporters show what they are: one pass from inputs to outputs.

Exporters put copies, transposes and reshapes between the layers of a stack, compute shapes from those of inputs, and
make states of constants. Each operator that they use has a rule here; of another one's output only the name is known.

An axis is the tuple of the factors that it joins, without those of size 1: Y (T, B, directions*H) has the axes (T,),
(B,) and (directions, H). A size is a number and the factors of unknown size that multiply it, so that a shape that is
computed while the model runs can be compared with the one that it must have.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.checks import few, shown
from xlstm.interop.onnx.onnx_files import RANK, Constants, library

DOMAINS = ("", "ai.onnx")
WHOLE, NUMBERS = (6, 7), (1, 6, 7, 10, 11)  # types: INT32 and INT64, and FLOAT, FLOAT16 and DOUBLE too
LITERALS = {"value_int": "i8", "value_ints": "i8", "value_float": "f4", "value_floats": "f4"}  # of a Constant node
# How many inputs of a node give its values. The other inputs, and all of Shape's, give no more than sizes or positions.
VALUES = {
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike"), 0),
    **dict.fromkeys(("Expand", "Reshape", "Squeeze", "Tile", "Unsqueeze"), 1),
}
# Operators whose output has no other values than their first input has.
KEEPING = ("Cast", "Dropout", "Expand", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")


class Factor(NamedTuple):
    """A part of an axis."""

    name: str
    size: int | None  # None where the model leaves it open


Axis = tuple[Factor, ...]
Size = tuple[int, tuple[str, ...]]  # a number, and the factors of unknown size that multiply it
ZERO: Size = (0, ())
REST: Size = (-1, ())


def size_of(axis: Iterable[Factor]) -> Size:
    """Return the product of factors."""
    factors = list(axis)
    known = math.prod(f.size for f in factors if f.size is not None)
    return known, tuple(sorted(f.name for f in factors if f.size is None))


class Value(NamedTuple):
    """A tensor: the node or the constant that it comes from, and what is known of it."""

    name: str  # of the tensor that others may be copies of
    node: Any = None
    tensor: Any = None
    root: str = ""  # the tensor that it is a new arrangement of, all its elements in it once
    axes: tuple[Axis, ...] | None = None
    numbers: tuple[Size, ...] | None = None  # a few whole numbers
    parts: tuple[Any, ...] = ()  # sizes and constants in which all its values are
    from_inputs: bool = False  # whether its values, and not only its shape, depend on inputs of the model
    from_layers: bool = False  # whether they depend on the outputs of layers that are read

    @property
    def described(self) -> str:
        """Where it comes from, for a message."""
        if self.node is not None:
            return f"computed by a node {shown(self.node.op_type)[1:-1]}, {shown(self.name)}"
        if self.tensor is not None:
            return f"a constant, {shown(self.name)}"
        if self.from_inputs:
            return f"an input of the model, {shown(self.name)}"
        return f"{shown(self.name)}, which nothing in the model defines"


Reader = Callable[[int, dict[str, Value]], tuple[Axis, ...]]


def values_of(where: str, graph: Any, constants: Constants, layers: Iterable[int], read: Reader) -> dict[str, Value]:
    """Return the tensors of a graph by name.

    `read` takes the number of a node, one of `layers`, and the values before it, and returns the axes of its Y.
    Raise ValueError if a name is defined twice, or nodes depend on one another in a circle.
    """
    values: dict[str, Value] = {}

    def define(name: str, value: Value) -> None:
        if name in values:
            raise ValueError(f"{where}: {shown(name)} is defined twice")
        values[name] = value

    for tensor in graph.initializer:
        define(tensor.name, _constant(tensor.name, tensor, constants))
    declared = {entry.name: _declared(entry) for entry in (*graph.value_info, *graph.input)}
    for name in (entry.name for entry in graph.input):
        if name not in values:  # an initializer of that name is its default
            values[name] = Value(name, root=name, axes=declared[name], from_inputs=True)
    layers = set(layers)
    for k in _in_order(where, graph.node):
        node = graph.node[k]
        count = VALUES.get(node.op_type) if node.domain in DOMAINS else None
        sources = [values[name] for name in _names(node, count) if name in values]
        fed, behind = any(v.from_inputs for v in sources), k in layers or any(v.from_layers for v in sources)
        outputs = [
            Value(n, node, root=n, axes=declared.get(n), from_inputs=fed, from_layers=behind) for n in node.output
        ]
        if k in layers:
            axes = read(k, values)
            outputs[:1] = [one._replace(axes=axes) for one in outputs[:1]]
        elif outputs and node.domain in DOMAINS:
            inputs = [values.get(name, Value(name)) for name in node.input[:RANK]]
            outputs[0] = _computed(node, outputs[0], inputs, constants)
        for name, value in zip(node.output, outputs, strict=True):
            if name:
                define(name, value)
    return values


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs inside a node, such as the branches of an If, and those inside their nodes."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield graph
            for inner in graph.node:
                yield from subgraphs(inner)


def _in_order(where: str, nodes: Sequence[Any]) -> list[int]:
    """Return the numbers of nodes, each behind those that it depends on."""
    producers = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    needed = {k: {producers[n] for n in _names(node) if n in producers} for k, node in enumerate(nodes)}
    try:
        return list(graphlib.TopologicalSorter(needed).static_order())
    except graphlib.CycleError as error:
        circle = few(next(iter(nodes[k].output)) for k in error.args[1])
        raise ValueError(f"{where}: the nodes of {circle} depend on one another in a circle") from None


def _names(node: Any, count: int | None = None) -> Iterator[str]:
    """Yield the names that go into a node, the first `count` of its inputs and those of graphs inside it."""
    yield from node.input[:count]
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from inner.input


def _declared(entry: Any) -> tuple[Axis, ...] | None:
    """Return the axes that the file declares for a tensor, None where it says nothing of them."""
    dims = entry.type.tensor_type.shape.dim[:RANK]
    sizes = [dim.dim_value if dim.dim_value > 0 else None for dim in dims]
    axes = tuple(() if n == 1 else (Factor(f"{entry.name} {k}", n),) for k, n in enumerate(sizes))
    return axes or None


def _constant(name: str, tensor: Any, constants: Constants) -> Value:
    """Return a constant, with its numbers if these are a few whole ones."""
    numbers = None
    if tensor.data_type in WHOLE and len(tensor.dims) < 2 and math.prod(tensor.dims) <= RANK:
        numbers = tuple((int(n), ()) for n in constants.values(name, tensor).ravel())
    return Value(name, tensor=tensor, root=name, numbers=numbers, parts=(tensor,))


def _computed(node: Any, whole: Value, inputs: list[Value], constants: Constants) -> Value:
    """Return `whole`, the first output of a node, with all that follows from its inputs."""
    operation = _Operation(node.op_type, {entry.name: entry for entry in node.attribute}, inputs)
    attributes = operation.attributes
    if node.op_type == "ConstantOfShape":
        return whole._replace(parts=(attributes["value"].t if "value" in attributes else ZERO,))
    if node.op_type == "Constant":
        for name, entry in attributes.items():
            if name == "value":
                return _constant(whole.name, entry.t, constants)
            if name in LITERALS:
                array = np.asarray(library().helper.get_attribute_value(entry), LITERALS[name])
                return _constant(whole.name, library().numpy_helper.from_array(array), constants)
    training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
    if not inputs or training or (node.op_type == "Cast" and operation.integer("to") not in NUMBERS):
        return whole
    first = inputs[0]
    if node.op_type == "Identity":
        return first
    axes, numbers = operation.axes(), operation.numbers()
    parts: tuple[Any, ...] = ()
    if node.op_type in KEEPING:
        parts = first.parts or first.numbers or ()
    elif node.op_type == "Concat" and all(one.parts for one in inputs) and len(inputs) == len(node.input):
        parts = tuple(part for one in inputs for part in one.parts)
    if axes is not None and len(axes) <= RANK:
        whole = whole._replace(root=first.root, axes=axes)
    few_numbers = numbers if numbers is not None and len(numbers) <= RANK else None
    return whole._replace(numbers=few_numbers, parts=parts if len(parts) <= RANK else ())


class _Operation(NamedTuple):
    """A node's operator, its attributes, and the first of its inputs."""

    op_type: str
    attributes: dict[str, Any]
    inputs: list[Value]

    def axes(self) -> tuple[Axis, ...] | None:
        """Return the axes to which the elements of the first input move, None if that is not known."""
        axes = self.inputs[0].axes
        if axes is None:
            return None
        rank = len(axes)
        match self.op_type:
            case "Dropout":
                return axes
            case "Transpose":
                perm = self._integers(RANK, "perm")
                return tuple(axes[k] for k in perm) if sorted(perm) == list(range(rank)) else None
            case "Reshape" if len(self.inputs) == 2 and self.inputs[1].numbers is not None:
                return self._reshaped(axes, list(self.inputs[1].numbers))
            case "Squeeze":
                places = self._places(rank)
                if not places or any(axes[k] for k in places):
                    return None
                return tuple(axis for k, axis in enumerate(axes) if k not in places)
            case "Unsqueeze":
                places, rest = self._places(rank + len(self._integers(1, "axes"))), iter(axes)
                return tuple(() if k in places else next(rest) for k in range(rank + len(places))) if places else None
        return None

    def _places(self, rank: int) -> set[int]:
        """Return the axes that a node names, all of them different; empty if there are others."""
        places = self._integers(1, "axes")
        axes = {k % rank for k in places if -rank <= k < rank}
        return axes if len(axes) == len(places) else set()

    def _reshaped(self, axes: tuple[Axis, ...], sizes: list[Size]) -> tuple[Axis, ...] | None:
        factors = [factor for axis in axes for factor in axis]
        if not self.integer("allowzero"):
            if any(n == ZERO and k >= len(axes) for k, n in enumerate(sizes)):
                return None
            sizes = [size_of(axes[k]) if n == ZERO else n for k, n in enumerate(sizes)]
        rest = sizes.index(REST) if REST in sizes else len(sizes)
        front, behind = _joined(factors, sizes[:rest]), _joined(factors, sizes[:rest:-1], -1)
        if front is None or behind is None or (factors and rest == len(sizes)):
            return None
        middle = [tuple(factors)] if rest < len(sizes) else []
        return (*front, *middle, *(axis[::-1] for axis in reversed(behind)))

    def numbers(self) -> tuple[Size, ...] | None:
        """Return the whole numbers that a node computes from shapes and constants, None if they are not known."""
        first, *others = self.inputs
        if self.op_type == "Shape" and first.axes is not None:
            return tuple(map(size_of, first.axes))[self.integer("start") : self.integer("end")]
        sizes = first.numbers
        if sizes is None or any(one.numbers is None for one in others):
            return None
        match self.op_type:
            case "Concat" if self.integer("axis") == 0:
                return sizes + tuple(n for one in others for n in one.numbers or ())
            case "Mul" if len(others) == len(sizes) == len(others[0].numbers or ()) == 1:
                (n, unknown), (m, more) = sizes[0], (others[0].numbers or ())[0]
                known = abs(n * m) < 2**63 and len(unknown + more) <= RANK
                return ((n * m, tuple(sorted(unknown + more))),) if known else None
            case "Gather" if not self.integer("axis"):
                places = self._integers(1)
                return tuple(sizes[k] for k in places) if all(-len(sizes) <= k < len(sizes) for k in places) else None
            case "Slice":
                starts, ends = self._integers(1, "starts"), self._integers(2, "ends")
                along, steps = self._integers(3, "axes", [0]), self._integers(4, "steps", [1])
                one = (len(starts), len(ends), along, steps) == (1, 1, [0], [1])
                return sizes[starts[0] : ends[0]] if one else None
            case "Cast" if self.integer("to") in WHOLE:
                return sizes
            case "Reshape" if others and others[0].numbers == (REST,):
                return sizes
            case "Reshape" | "Squeeze" | "Unsqueeze" if len(sizes) == 1:
                return sizes
        return None

    def _integers(self, position: int, attribute: str = "", default: Sequence[int] = ()) -> list[int]:
        """Return whole numbers that are an input, or an attribute in older opsets; empty if they are not known."""
        if len(self.inputs) > position and self.inputs[position].name:
            numbers = self.inputs[position].numbers or ()
            return [] if any(unknown for _, unknown in numbers) else [n for n, _ in numbers]
        return list(self.attributes[attribute].ints[: RANK + 1] if attribute in self.attributes else default)

    def integer(self, attribute: str) -> int | None:
        """Return an attribute that is a whole number, None if it is not there."""
        return int(self.attributes[attribute].i) if attribute in self.attributes else None


def _joined(factors: list[Factor], sizes: Sequence[Size], step: int = 1) -> list[Axis] | None:
    """Take factors for axes of these sizes, from the front or with step -1 from behind; None if they do not fit."""
    axes: list[Axis] = []
    for size in sizes:
        axis: list[Factor] = []
        while size_of(axis) != size:
            if not factors:
                return None
            axis.append(factors.pop(0 if step == 1 else -1))
        axes.append(tuple(axis))
    return axes
