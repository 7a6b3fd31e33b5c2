"""Facts about the tensors of an ONNX graph before it runs, from one pass over its nodes.

Exporters put transposes and reshapes between the layers of a stack, compute sizes from shapes, and
make initial states of constants. The operators that they use for it have rules here.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xlstm.interop.common import Layer, package
from xlstm.interop.onnx.arrays import names_into
from xlstm.interop.onnx.onnx_files import DOMAINS, attributes_of, library

# The parts that an axis joins, such as directions and H, each with its name and size. Parts of size
# 1 are left out, so that axes compare equal before and after a squeeze.
Axis = tuple[tuple[str, int], ...]
OPEN = 1_000_003  # the first number for a size that the file leaves open; float32 holds it exactly
FEW = 8  # the most axes of a tensor, and the most numbers of a shape
WHOLE = (6, 7)  # INT32 and INT64
# Operators whose output is a new arrangement of their first input, those that also select or repeat
# its values, all whose values come from their first input, those whose values depend on shapes
# alone, and those that compute shapes.
ARRANGING = ("Cast", "Dropout", "Identity", "Reshape", "Squeeze", "Transpose")
KEEPING = (*ARRANGING, "Expand", "Slice", "Tile", "Unsqueeze")
PASSING = (*KEEPING, "Gather", "Split")
SHAPING = ("ConstantOfShape", "Shape")
COUNTING = (
    "Cast",
    "Concat",
    "Constant",
    "Gather",
    "Mul",
    "Reshape",
    "Slice",
    "Squeeze",
    "Unsqueeze",
)


class Tensors:
    """The tensors of a graph by name, as far as they are known."""

    def __init__(
        self, graph: Any, constants: Mapping[str, Any], layers: Mapping[int, Layer], whole: bool
    ) -> None:
        """Follow the nodes of a graph; `layers` are those read, by the places of their nodes.

        Numbers that the graph computes from its inputs are `given`, too, unless it is read `whole`.
        """
        self.roots: dict[str, str] = {}  # the tensors of which they are new arrangements
        self.axes: dict[str, Sequence[Axis]] = defaultdict(tuple)
        # the axes of each Y with directions and H joined, as X of a layer above has them
        self.above: dict[str, Sequence[Axis]] = {}
        # tensors of the file, or numbers, among which are all their values
        self.only: dict[str, tuple[Any, ...]] = defaultdict(tuple)
        self.only.update((name, (tensor,)) for name, tensor in constants.items())
        # those with the values of inputs of the model, and those computed from layers that are read
        self.given = {entry.name for entry in graph.input} - constants.keys()
        self.read: set[str] = set()
        self._numbers = {
            name: library().numpy_helper.to_array(tensor)
            for name, tensor in constants.items()
            if tensor.data_type in WHOLE
            and math.prod(tensor.dims) <= FEW
            and not tensor.external_data
        }
        self._open_sizes = itertools.count(OPEN)
        self._dtypes = {constants[graph.node[k].input[1]].data_type for k in layers}
        for entry in (*graph.value_info, *graph.input):
            dims = entry.type.tensor_type.shape.dim[:FEW]
            self.axes[entry.name] = [
                self._axis(f"{entry.name} {k}", dim.dim_value) for k, dim in enumerate(dims)
            ]
        for k, node in enumerate(graph.node):
            operator = node.op_type if node.domain in DOMAINS else ""
            sources = [*names_into(node)]
            if operator in (*KEEPING, *SHAPING):
                del sources[operator in KEEPING :]
            outputs = {*node.output} - {""}
            passed = sources[: operator in PASSING] if whole else sources
            for names, known in ((self.given, passed), (self.read, sources)):
                names |= outputs if names.intersection(known) else set()
            if k in layers:
                self.read |= outputs
                self._add_layer(node, layers[k])
            elif operator and outputs and constants.keys().isdisjoint(outputs):
                self._add(node, attributes_of(node))

    def _axis(self, name: str, size: int = 0) -> Axis:
        """Return an axis of one part, by default of an open size."""
        return () if size == 1 else ((name, size if size > 0 else next(self._open_sizes)),)

    def _add_layer(self, node: Any, layer: Layer) -> None:
        """Add the axes of Y and, if they are not known, of X."""
        x = node.input[0]
        y = next(iter(node.output), "")
        if len(self.axes[x]) != 3:
            self.axes[x] = [self._axis(f"{x} {k}") for k in range(3)]
        first, second, _ = self.axes[x]
        directions = self._axis(f"{y} directions", len(layer.directions))
        units = self._axis(f"{y} H", layer.hidden_size)
        self.axes[y] = [first, directions, second, units]
        if layer.batch_first:
            self.axes[y] = [first, second, directions, units]
        self.above[y] = [first, second, directions + units]

    def _add(self, node: Any, options: Mapping[str, Any]) -> None:
        """Add what follows for the first output of a node."""
        name = node.output[0]
        source = next(iter(node.input), "")
        numbers = None
        if node.op_type in KEEPING:
            self.only[name] = self.only[source]
        elif node.op_type == "ConstantOfShape":
            self.only[name] = (options.get("value", np.zeros(1)),)
        elif node.op_type == "Concat":
            parts = [self.only[part] for part in node.input]
            if all(parts) and sum(map(len, parts)) <= FEW:
                self.only[name] = tuple(itertools.chain(*parts))
        if node.op_type in ARRANGING:
            self.roots[name] = self.roots.get(source, source)
            self.axes[name] = self._arranged(node, options) or self.axes[name]
        if node.op_type == "Shape" and self.axes[source]:
            sizes = [*map(size, self.axes[source])]
            numbers = np.array(sizes[options.get("start") : options.get("end")])
        elif node.op_type in COUNTING and self._numbers.keys() >= {*node.input}:
            given = {part: self._numbers[part] for part in node.input}
            try:
                (numbers,) = (
                    package("onnx.reference", "onnx is too old")
                    .ReferenceEvaluator(node)
                    .run(None, given)
                )
            except Exception:  # whatever NumPy raises for the numbers of a file
                return
        if isinstance(numbers, np.ndarray) and numbers.size <= FEW and numbers.dtype.kind in "if":
            self._numbers[name] = numbers
            self.only[name] = (numbers,)

    def _arranged(self, node: Any, options: Mapping[str, Any]) -> Sequence[Axis]:
        """Return the axes of the first input after a node, or none if they are not known."""
        source, *others = node.input
        axes = self.axes[source]
        above = self.above.get(self.roots.get(source, source), ())
        operand = self._numbers.get(others[0], ()) if others else options.get("axes", ())
        given = np.ravel(operand).tolist()
        match node.op_type:
            case "Identity":
                return axes
            case "Dropout" if len(others) < 2:  # without the input for training
                return axes
            case "Cast" if {options["to"]} == self._dtypes:
                return axes
            case "Transpose" if sorted(options.get("perm", ())) == [*range(len(axes))]:
                return [axes[k] for k in options["perm"]]
            case "Squeeze":
                given = [size(a) for k, a in enumerate(axes) if not {k, k - len(axes)} & {*given}]
        # Both keep the order, so that sizes decide: 0 keeps a size, and -1 stands for the rest.
        if len(given) == len(above) and [*itertools.chain(*axes)] == [*itertools.chain(*above)]:
            wanted = [*map(size, above)]
            kept = [*map(size, axes), *given]
            found = [
                kept[k] if n == 0 else wanted[k] if n == -1 else n for k, n in enumerate(given)
            ]
            return above if found == wanted else ()
        return ()


def size(axis: Iterable[tuple[str, int]]) -> int:
    """Return the size of an axis, in which a number stands for an open size."""
    return math.prod(size for _, size in axis)
