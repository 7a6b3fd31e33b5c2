"""Tensors of an ONNX graph, as far as the patterns of exporters show what they are: one pass from inputs to outputs.

Exporters put copies, transposes and reshapes between the layers of a stack, compute shapes from those of inputs, and
make states of constants. Each operator that they use has a rule here; of another one's output only the name is known.

An axis is the tuple of the factors that it joins, without those of size 1: Y (T, B, directions*H) has the axes (T,),
(B,) and (directions, H). A size that the model leaves open is a large number that its name gives, so that a shape that
is computed while the model runs can be computed here, and compared with the one that it must have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.interop.onnx.onnx_files import Constants, library

DOMAINS = ("", "ai.onnx")
RANK = 8  # axes of a tensor, and numbers of a shape, more than a recurrent layer has anywhere
OPEN = 2**63  # a size that the model leaves open is at least so large, and whatever a file holds is smaller
LONGEST = 256  # bits of a number that is computed: T * B * directions * H has less, whatever the model leaves open
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
    size: int


Axis = tuple[Factor, ...]


def open_size(name: Any) -> int:
    """Return the number that stands for a size which the model leaves open; its name is bytes where it is no text."""
    return OPEN + int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:7], "big")


def size_of(axis: Iterable[Factor]) -> int:
    """Return the product of factors."""
    return math.prod(factor.size for factor in axis)


class Value(NamedTuple):
    """A tensor: the node or the constant that it comes from, and what is known of it."""

    name: str  # of the tensor that others may be copies of
    node: Any = None
    tensor: Any = None
    root: str = ""  # the tensor that it is a new arrangement of, all its elements in it once
    axes: tuple[Axis, ...] | None = None
    numbers: tuple[int, ...] | None = None  # a few whole numbers
    parts: tuple[Any, ...] = ()  # numbers and constants in which all its values are
    from_inputs: bool = False  # whether its values, and not only its shape, depend on inputs of the model
    from_layers: bool = False  # whether they depend on the outputs of layers that are read

    @property
    def described(self) -> str:
        """Where it comes from, for a message."""
        if self.node is not None:
            return f"computed by a node {shown(self.node.op_type)[1:-1]}, {shown(self.name)}"
        if self.tensor is not None:
            return f"a constant, {shown(self.name)}"
        return f"an input of the model, {shown(self.name)}"


class Values(dict[str, Value]):
    """Tensors by name; of one that is missing, such as the constants of a graph within a node, no more is known."""

    def __missing__(self, name: str) -> Value:
        return Value(name)


Reader = Callable[[int, Values], tuple[Axis, ...]]


def values_of(graph: Any, constants: Constants, layers: Iterable[int], read: Reader) -> Values:
    """Return the tensors of a graph, whose nodes are in order.

    `read` takes the number of a node, one of `layers`, and the values before it, and returns the axes of its Y.
    """
    values = Values({tensor.name: _constant(tensor.name, tensor, constants) for tensor in graph.initializer})
    declared = {entry.name: _declared(entry) for entry in (*graph.value_info, *graph.input)}
    for name in (entry.name for entry in graph.input):  # an initializer of that name is its default
        values.setdefault(name, Value(name, root=name, axes=declared[name], from_inputs=True))
    layers = set(layers)
    for k, node in enumerate(graph.node):
        known = node.domain in DOMAINS
        sources = [values[name] for name in names_into(node, VALUES.get(node.op_type) if known else None)]
        from_inputs = any(source.from_inputs for source in sources)
        from_layers = k in layers or any(source.from_layers for source in sources)
        for name in filter(None, node.output):
            axes = declared.get(name)
            values[name] = Value(name, node, None, name, axes, from_inputs=from_inputs, from_layers=from_layers)
        first = next(iter(node.output), "")
        if k in layers:
            axes = read(k, values)
            if first:
                values[first] = values[first]._replace(axes=axes)
        elif known and first:
            values[first] = _computed(node, values, constants)
    return values


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs inside a node, such as the branches of an If, and those inside their nodes."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield graph
            for inner in graph.node:
                yield from subgraphs(inner)


def names_into(node: Any, count: int | None = None) -> Iterator[str]:
    """Yield the names that go into a node, the first `count` of its inputs and those of graphs inside it."""
    yield from node.input[:count]
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from inner.input


def _declared(entry: Any) -> tuple[Axis, ...] | None:
    """Return the axes that the file declares for a tensor, None where it says nothing of them."""
    axes: list[Axis] = []
    for k, dim in enumerate(entry.type.tensor_type.shape.dim[:RANK]):
        name = f"{entry.name} {k}"
        size = dim.dim_value if dim.dim_value > 0 else open_size(dim.dim_param or name)
        axes.append(() if size == 1 else (Factor(name, size),))
    return tuple(axes) or None


def _constant(name: str, tensor: Any, constants: Constants) -> Value:
    """Return a constant, with its numbers if these are a few whole ones."""
    numbers = None
    if tensor.data_type in WHOLE and len(tensor.dims) < 2 and math.prod(tensor.dims) <= RANK:
        numbers = tuple(map(int, constants.values(name, tensor).ravel()))
    return Value(name, tensor=tensor, root=name, numbers=numbers, parts=(tensor,))


def _computed(node: Any, values: Values, constants: Constants) -> Value:
    """Return the first output of a node, with all that follows from its inputs."""
    whole, inputs = values[node.output[0]], [values[name] for name in node.input[:RANK]]
    attributes = {entry.name: library().helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "ConstantOfShape":
        return whole._replace(parts=(attributes.get("value", 0),))
    if node.op_type == "Constant":
        for name, value in attributes.items():
            if name in LITERALS:
                value = library().numpy_helper.from_array(np.asarray(value, LITERALS[name]))
            return _constant(whole.name, value, constants) if name in ("value", *LITERALS) else whole
    training = node.op_type == "Dropout" and len(inputs) > 2 and inputs[2].name
    if not inputs or training or (node.op_type == "Cast" and attributes["to"] not in NUMBERS):
        return whole
    if node.op_type == "Identity":
        return inputs[0]
    numbers, axes = _numbers(node.op_type, attributes, inputs), _axes(node.op_type, attributes, inputs)
    parts: tuple[Any, ...] = numbers or ()
    if node.op_type in KEEPING:
        parts = inputs[0].parts
    elif node.op_type == "Concat" and all(one.parts for one in inputs) and len(inputs) == len(node.input):
        parts = tuple(part for one in inputs for part in one.parts)
    if axes is not None:
        whole = whole._replace(root=inputs[0].root, axes=axes)
    if numbers is not None and (len(numbers) > RANK or any(n.bit_length() > LONGEST for n in numbers)):
        numbers = None
    return whole._replace(numbers=numbers, parts=parts if len(parts) <= RANK else ())


def _axes(op_type: str, attributes: dict[str, Any], inputs: list[Value]) -> tuple[Axis, ...] | None:
    """Return the axes to which the elements of the first input move, None if that is not known."""
    axes = inputs[0].axes
    if axes is None:
        return None
    rank = len(axes)
    match op_type:
        case "Dropout":
            return axes
        case "Transpose" if sorted(perm := attributes.get("perm", ())) == list(range(rank)):
            return tuple(axes[k] for k in perm)
        case "Squeeze":
            places = _operand(inputs, 1, attributes, "axes")
            if places and all(-rank <= k < rank and not axes[k] for k in places):
                return tuple(axis for k, axis in enumerate(axes) if k not in places and k - rank not in places)
        case "Reshape" if len(inputs) == 2 and inputs[1].numbers is not None:
            return _reshaped(axes, list(inputs[1].numbers), attributes.get("allowzero") == 1)
    return None


def _reshaped(axes: tuple[Axis, ...], sizes: list[int], allow_zero: bool) -> tuple[Axis, ...] | None:
    """Return the factors of axes as axes of other sizes, None if they do not fit."""
    factors = [factor for axis in axes for factor in axis]
    if not allow_zero:
        sizes = [size_of(axes[k]) if n == 0 and k < len(axes) else n for k, n in enumerate(sizes)]
    if -1 in sizes and 0 not in sizes:
        sizes[sizes.index(-1)] = size_of(factors) // -math.prod(sizes)
    joined: list[Axis] = []
    for size in sizes:
        axis: list[Factor] = []
        while size_of(axis) != size:
            if not factors:
                return None
            axis.append(factors.pop(0))
        joined.append(tuple(axis))
    return None if factors else tuple(joined)


def _numbers(op_type: str, attributes: dict[str, Any], inputs: list[Value]) -> tuple[int, ...] | None:
    """Return the whole numbers that a node computes from shapes and constants, None if they are not known."""
    if op_type == "Shape" and inputs[0].axes is not None:
        return tuple(map(size_of, inputs[0].axes))[attributes.get("start") : attributes.get("end")]
    lists = [one.numbers for one in inputs if one.numbers is not None]
    if len(lists) < len(inputs):
        return None
    first = lists[0]
    match op_type:
        case "Concat":
            return tuple(n for numbers in lists for n in numbers)
        case "Mul" if len(first) == len(lists[1]) == 1:
            return (first[0] * lists[1][0],)
        case "Gather" if all(-len(first) <= k < len(first) for k in lists[1]):
            return tuple(first[k] for k in lists[1])
        case "Slice" if lists[3:] in ([], [(0,)], [(0,), (1,)]) and attributes.get("axes", [0]) == [0]:
            starts, ends = _operand(inputs, 1, attributes, "starts"), _operand(inputs, 2, attributes, "ends")
            return first[starts[0] : ends[0]] if len(starts) == len(ends) == 1 else None
        case "Cast" | "Reshape" | "Squeeze" | "Unsqueeze" if op_type == "Cast" or len(first) == 1:
            return first
    return None


def _operand(inputs: list[Value], position: int, attributes: dict[str, Any], name: str) -> tuple[int, ...]:
    """Return positions that are an input, or an attribute in older opsets; empty if they are not known."""
    numbers = inputs[position].numbers if len(inputs) > position else attributes.get(name)
    return tuple(numbers) if numbers and max(numbers) < OPEN else ()
