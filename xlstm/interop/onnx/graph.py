"""The main graph of an ONNX model, and questions about its names: what they are, and what depends on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.interop.onnx.files import RANK, Constants, parsed
from xlstm.interop.onnx.names import library

DOMAINS = ("", "ai.onnx")
OLDEST = 7  # the first opset with today's LSTM, GRU and RNN
# The attributes of a Constant node that hold numbers: the field of each, and the dtype.
NUMBERS = {
    "value_int": ("i", np.int64),
    "value_ints": ("ints", np.int64),
    "value_float": ("f", np.float32),
    "value_floats": ("floats", np.float32),
}
# How many inputs of a node give its values. The other inputs, and all of Shape's, give no more than sizes or positions.
VALUES = {
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike"), 0),
    **dict.fromkeys(("Expand", "Reshape", "Squeeze", "Tile", "Unsqueeze"), 1),
}


class Graph:
    """The main graph of a model, read by name; weights outside the file are found only by its path.

    Making one raises OSError if there is no such file, and ValueError if it is no ONNX model, is older than opset 7, or
    defines a name twice.
    """

    def __init__(self, path_or_model: Any) -> None:
        path, model = None, path_or_model
        if not isinstance(model, library().ModelProto):
            path = Path(path_or_model)
            model = parsed(path)
        self.where = "from_onnx" if path is None else str(path)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        versions = [opsets[domain] for domain in DOMAINS if domain in opsets]
        if not versions or not model.graph.node:
            raise ValueError(f"{self.where}: not an ONNX model, it has no opset or no nodes")
        if versions[0] < OLDEST:
            raise ValueError(f"{self.where}: opset is {versions[0]}, expected {OLDEST} or newer")
        for function in model.functions:
            if function.domain in DOMAINS:
                raise ValueError(f"{self.where}: the model defines an operator {shown(function.name)} of ONNX anew")
        self.nodes = list(model.graph.node)
        self.constants = Constants(path and path.parent, model.ByteSize())
        self._inputs = {entry.name for entry in model.graph.input}
        self._declared = [*model.graph.input, *model.graph.value_info]
        self._tensors: dict[str, Any] = {}
        self._producers: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        for tensor in model.graph.initializer:
            self._define(self._tensors, tensor.name, tensor)
        for node in self.nodes:
            for name in filter(None, node.output):
                self._define(self._producers, name, node)
        for node in self.nodes:
            if node.output and (tensor := _constant(node)) is not None:
                self._tensors[node.output[0]] = tensor

    def _define(self, kind: dict[str, Any], name: str, value: Any) -> None:
        if name in self._tensors or name in self._producers or (kind is self._producers and name in self._inputs):
            raise ValueError(f"{self.where}: {shown(name)} is defined twice")
        kind[name] = value

    def origin(self, name: str) -> str:
        """Return the name that `name` is a copy of, through Identity nodes."""
        seen = set()
        while name not in seen and name not in self._origins and (node := self.producer(name, "Identity")):
            seen.add(name)
            name = node.input[0]
        name = self._origins.get(name, name)
        self._origins |= dict.fromkeys(seen, name)
        return name

    def producer(self, name: str, *op_types: str) -> Any:
        """Return the node that computes `name` from others; None if there is none, or it is none of these operators."""
        node = self._producers.get(name)
        if node is None or node.domain not in DOMAINS or not node.input:
            return None
        return node if not op_types or node.op_type in op_types else None

    def described(self, name: str) -> str:
        """Say for a message where a value comes from."""
        source = self.origin(name)
        if source in self._producers:
            return f"computed by a node {shown(self._producers[source].op_type)[1:-1]}, {shown(source)}"
        if source in self._tensors:
            return f"a constant, {shown(source)}"
        if source in self._inputs:
            return f"an input of the model, {shown(source)}"
        return f"{shown(source)}, which nothing in the model defines"

    def reached(self, names: Iterable[str] | None = None) -> set[str]:
        """Return all names whose values, and not only whose shapes, depend on those of `names`.

        By default these are the inputs of the model that have no value of their own.
        """
        consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in _values(node):
                consumers.setdefault(name, []).append(node)
        ahead = list(self._inputs - self._tensors.keys() if names is None else names)
        found = set(ahead)
        while ahead:
            for node in consumers.pop(ahead.pop(), ()):
                new = [name for name in node.output if name and name not in found]
                found.update(new)
                ahead += new
        return found

    def declared(self, name: str) -> list[int | None]:
        """Return the sizes that the file declares for a value, None where it leaves them open."""
        for entry in self._declared:
            if entry.name == name and entry.type.tensor_type.HasField("shape"):
                dims = entry.type.tensor_type.shape.dim
                return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims[: RANK + 1]]
        return []

    def is_constant(self, name: str) -> bool:
        """Say whether `name` is an initializer, a Constant node, or a copy of one."""
        return self.origin(name) in self._tensors

    def tensor(self, what: str, name: str) -> Any:
        """Return the tensor of a constant; raise ValueError if `name` is none."""
        if not self.is_constant(name):
            raise ValueError(f"{what} is {self.described(name)}, expected an initializer or a Constant")
        return self._tensors[self.origin(name)]


def name_of(node: Any) -> str:
    """Return a node's name, or that of its first output where it has none."""
    return str(node.name or next(filter(None, node.output), ""))


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {entry.name: entry for entry in node.attribute}


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs inside a node, such as the branches of an If, and those inside their nodes."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield graph
            for inner in graph.node:
                yield from subgraphs(inner)


def _values(node: Any) -> Iterator[str]:
    """Yield the names whose values go into a node."""
    yield from node.input[: VALUES.get(node.op_type) if node.domain in DOMAINS else None]
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from inner.input


def _constant(node: Any) -> Any:
    """Return the tensor of a Constant node; None of another node."""
    for attribute in node.attribute if node.op_type == "Constant" and node.domain in DOMAINS else ():
        if attribute.name == "value" and attribute.HasField("t"):
            return attribute.t
        if attribute.name in NUMBERS:
            field, dtype = NUMBERS[attribute.name]
            return library().numpy_helper.from_array(np.asarray(getattr(attribute, field), dtype))
    return None
