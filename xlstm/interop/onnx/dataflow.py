"""What is known of the tensors of an ONNX graph before it runs, in one pass over its nodes.

Exporters put transposes and reshapes between the layers of a stack, compute sizes from shapes, and
make initial states of constants. The operators that they use for it have rules here.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.interop.common import Host, Layer, package
from xlstm.interop.onnx.arrays import names_into
from xlstm.interop.onnx.onnx_files import DOMAINS, attributes_of, library

# The parts that an axis joins, such as directions and H, each with its name and size. Parts of size
# 1 are left out, so that axes compare equal before and after a squeeze.
Part = tuple[str, int]
Axis = tuple[Part, ...]
OPEN = 1_000_003  # the first number for a size that the file leaves open; float32 holds it exactly
FEW = 8  # the most axes of a tensor, and the most numbers of a shape
# Operators whose output is a new arrangement of their first input, those that also select or repeat
# its values, and those that compute shapes.
ARRANGING = ("Cast", "Dropout", "Identity", "Reshape", "Squeeze", "Transpose")
KEEPING = (*ARRANGING, "Expand", "Slice", "Tile", "Unsqueeze")
COUNTING = ("Cast", "Concat", "Constant", "Gather", "Mul", "Reshape", "Slice", "Squeeze", "Unsqueeze")
CONSTANT, GIVEN, READ = range(3)


class Value(NamedTuple):
    """A tensor of a graph, as far as it is known."""

    root: str = ""  # the tensor of which it is a new arrangement
    axes: Sequence[Axis] = ()  # none if they are not known
    numbers: Host | None = None  # its values, if they are few
    only: tuple[Any, ...] = ()  # tensors of the file, or numbers, among which are all its values
    # READ if its values depend on layers that are read, else GIVEN if they depend on inputs of the
    # model, else CONSTANT; a shape depends on neither
    origin: int = CONSTANT


def follow(
    graph: Any, constants: Mapping[str, Any], layers: Mapping[int, Layer]
) -> Mapping[str, Value]:
    """Return the tensors of a graph by name; `layers` are those read, by the place of their node."""
    open_sizes = itertools.count(OPEN)
    declared = {
        entry.name: [
            _axis(f"{entry.name} {k}", dim.dim_value if dim.dim_value > 0 else next(open_sizes))
            for k, dim in enumerate(entry.type.tensor_type.shape.dim[:FEW])
        ]
        for entry in (*graph.value_info, *graph.input)
    }
    found: dict[str, Value] = defaultdict(Value)
    for entry in graph.input:
        found[entry.name] = Value(entry.name, declared[entry.name], origin=GIVEN)
    for name, tensor in constants.items():
        whole = tensor.data_type in (6, 7)  # INT32 and INT64, as shapes are
        is_few = math.prod(tensor.dims) <= FEW and not tensor.external_data
        numbers = library().numpy_helper.to_array(tensor) if whole and is_few else None
        found[name] = Value(name, numbers=numbers, only=(tensor,))
    dtype = min(constants[graph.node[k].input[1]].data_type for k in layers)
    for k, node in enumerate(graph.node):
        if not constants.keys().isdisjoint(node.output):
            continue
        inputs = [found[name] for name in names_into(node)]
        origin = max((one.origin for one in inputs), default=CONSTANT)
        for name in node.output:
            found[name] = Value(name, declared.get(name, ()), origin=READ if k in layers else origin)
        first = next(iter(node.output), "")
        if k in layers:
            layer = layers[k]
            x = inputs[0].axes
            if len(x) != 3:
                x = [_axis(f"{k} {n}", next(open_sizes)) for n in range(3)]
                found[node.input[0]] = inputs[0]._replace(axes=x)
            last = [_axis(f"{k} Y", len(layer.directions)), _axis(f"{k} H", layer.hidden_size)]
            y = [*x[:2], *last] if layer.batch_first else [x[0], last[0], x[1], last[1]]
            found[first] = found[first]._replace(axes=y)
        elif node.domain in DOMAINS:
            found[first] = _computed(node, inputs, found[first], dtype)
        found[""] = Value()
    return found


def joined(y: Sequence[Axis], batch_first: bool) -> list[Axis]:
    """Return the axes of Y with directions and H joined, as the X of a layer above has them."""
    first, second, third, last = y
    return [first, second, third + last] if batch_first else [first, third, second + last]


def _axis(name: str, size: int) -> Axis:
    return () if size == 1 else ((name, size),)


def size(parts: Iterable[Part]) -> int:
    """Return the size of an axis."""
    return math.prod(size for _, size in parts)


def _computed(node: Any, inputs: Sequence[Value], output: Value, dtype: int) -> Value:
    """Return the first output of a node, with what follows from its inputs."""
    options = attributes_of(node)
    numbers = None
    if node.op_type in KEEPING:
        output = output._replace(only=inputs[0].only, origin=inputs[0].origin)
    if node.op_type == "ConstantOfShape":
        output = output._replace(only=(options.get("value", np.zeros(1)),), origin=CONSTANT)
    if node.op_type == "Concat" and all(one.only for one in inputs):
        only = tuple(itertools.chain(*(one.only for one in inputs)))
        output = output._replace(only=only if len(only) <= FEW else ())
    if node.op_type in ARRANGING:
        axes = _arranged(node, inputs, options, dtype)
        output = output._replace(root=inputs[0].root, axes=axes)
    if node.op_type == "Shape":
        output = output._replace(origin=CONSTANT)
        if inputs[0].axes:
            sizes = [*map(size, inputs[0].axes)]
            numbers = np.array(sizes[options.get("start") : options.get("end")])
    elif node.op_type in COUNTING and all(one.numbers is not None for one in inputs):
        numbers = _evaluated(node, inputs)
    if isinstance(numbers, np.ndarray) and numbers.dtype.kind in "if" and numbers.size <= FEW:
        output = output._replace(numbers=numbers, only=(numbers,))
    return output


def _arranged(
    node: Any, inputs: Sequence[Value], options: Mapping[str, Any], dtype: int
) -> Sequence[Axis]:
    """Return the axes of the first input in a new arrangement, or none if it is not known."""
    axes = inputs[0].axes
    places = range(len(axes))
    numbers = inputs[1].numbers if len(inputs) > 1 else options.get("axes", ())
    given = [] if numbers is None else np.ravel(numbers).tolist()
    match node.op_type:
        case "Identity":
            return axes
        case "Dropout" if len(inputs) < 3:  # without the input for training
            return axes
        case "Cast" if options["to"] == dtype:
            return axes
        case "Transpose" if sorted(options.get("perm", ())) == [*places]:
            return [axes[k] for k in options["perm"]]
        case "Squeeze" if not any(axes[k] for k in places if k in given or k - len(axes) in given):
            return [axes[k] for k in places if k not in given and k - len(axes) not in given]
        case "Reshape":
            if not options.get("allowzero"):
                given = [size(axes[k]) if n == 0 and k in places else n for k, n in enumerate(given)]
            parts = [*itertools.chain(*axes)]
            if -1 in given and 0 not in given:
                given[given.index(-1)] = size(parts) // -math.prod(given)
            new: list[Axis] = []
            for n in given:
                new.append(())
                while parts and size(new[-1]) != n:
                    new[-1] += (parts.pop(0),)
            return new if not parts and [*map(size, new)] == given else ()
    return ()


def _evaluated(node: Any, inputs: Sequence[Value]) -> Host | None:
    """Return the output of a node for few numbers, or None if it cannot be computed."""
    evaluator = package("onnx.reference", "").ReferenceEvaluator
    given = dict(zip(node.input, (one.numbers for one in inputs), strict=False))
    try:
        return evaluator(node).run(None, given)[0]
    except Exception:  # whatever NumPy raises for numbers that a file may hold
        return None
