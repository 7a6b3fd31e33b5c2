"""A recurrent node of an ONNX model: its declaration, checked, and the layer and parameters that it describes."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Params
from xlstm.arrays.checks import few, shown
from xlstm.interop.common import Host, Layer
from xlstm.interop.onnx.graph import Graph, name_of
from xlstm.interop.onnx.names import DIRECTIONS, GATES, INPUTS, from_attributes, library, shortest
from xlstm.layers.recurrent import KINDS

ATTRIBUTES = {
    "activation_alpha": "FLOATS",
    "activation_beta": "FLOATS",
    "activations": "STRINGS",
    "clip": "FLOAT",
    "direction": "STRING",
    "hidden_size": "INT",
    "layout": "INT",
}
OWN = {"LSTM": {"input_forget": "INT"}, "GRU": {"linear_before_reset": "INT"}, "RNN": {}}
CHOICES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("layout", "input_forget", "linear_before_reset"), (0, 1)),
    "direction": tuple(DIRECTIONS),
}
WEIGHTS = ("W", "R", "B", "P")


@dataclass
class Node:
    """A node as it is declared, before weights are read.

    Parameters
    ----------
    graph : Graph
    label : str
        The operator and the name, for messages.
    proto : onnx.NodeProto
    attributes : dict
    inputs : dict of str to str
        What ONNX calls the inputs that are there, and their names in the graph.
    sizes : (int, int)
        Widths D of the input and H of the hidden state.
    """

    graph: Graph
    label: str
    proto: Any
    attributes: dict[str, Any]
    inputs: dict[str, str]
    sizes: tuple[int, int]

    @property
    def kind(self) -> str:
        """The operator: LSTM, GRU or RNN."""
        return str(self.proto.op_type)

    @property
    def where(self) -> str:
        """The file and the node, for messages."""
        return f"{self.graph.where}: {self.label}"

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions as our parameters name them."""
        return DIRECTIONS[self.attributes["direction"]]

    @property
    def batch_first(self) -> bool:
        """Whether X and Y have the batch first, as with layout=1."""
        return bool(self.attributes.get("layout") == 1)

    def layer(self, batch_first: bool) -> tuple[Layer, Params]:
        """Read the weights, and return one layer and its parameters."""
        arrays: dict[str, Host] = {}
        for name in (name for name in WEIGHTS if name in self.inputs):
            values = self.graph.constant(f"{self.where}: {name}", self.inputs[name])
            if values.dtype.kind != "f":
                raise ValueError(f"{self.where}: {name} has dtype {values.dtype}, expected floating-point numbers")
            arrays[name] = values.astype(np.float32) if values.dtype == np.float16 else values
        D, H = self.sizes
        layer: Layer = KINDS[self.kind.lower()](D, H, batch_first=batch_first, **self._options())
        params = {
            f"0.{direction}{name}": array
            for d, direction in enumerate(layer.directions)
            for name, array in self._unpacked({key: a[d] for key, a in arrays.items()}).items()
        }
        checks.params(self.where, params, layer.shapes)
        return layer, params

    def _options(self) -> dict[str, Any]:
        """Return the options of the layer."""
        given, bias = self.attributes, "B" in self.inputs
        found: dict[str, Any] = {
            "bidirectional": given["direction"] == "bidirectional",
            "reverse": given["direction"] == "reverse",
            "bias": bias,
            "recurrent_bias": bias,
            "clip": shortest(given["clip"]) if "clip" in given else None,
        }
        if self.kind == "LSTM":
            found |= {"peepholes": "P" in self.inputs, "coupled_input_forget": given.get("input_forget") == 1}
        elif self.kind == "GRU":
            found["reset_after"] = given.get("linear_before_reset") == 1
        if given.get("activations"):
            alpha, beta = given.get("activation_alpha", ()), given.get("activation_beta", ())
            found["activations"] = from_attributes(self.where, given["activations"], alpha, beta)
        return found

    def _unpacked(self, arrays: dict[str, Host]) -> dict[str, Host]:
        """Return the arrays of one direction under our names."""
        found = {"Wx": arrays["W"], "Wh": arrays["R"]}
        if "B" in arrays:
            found["b"], found["bh"] = np.split(arrays["B"], 2)
        if "P" in arrays:
            found["p"] = arrays["P"]
        if self.attributes.get("input_forget") == 1:  # the rows of the forget gate, the third, are not used
            H = self.sizes[1]
            found = {name: np.delete(array, slice(2 * H, 3 * H), axis=0) for name, array in found.items()}
        return {name: array.copy() for name, array in found.items()}


def declared(graph: Graph, proto: Any) -> Node:
    """Check what a node declares; raise ValueError if attributes, inputs or shapes are wrong."""
    kind, label = proto.op_type, f"{proto.op_type} {shown(name_of(proto))}"
    where = f"{graph.where}: {label}"
    given = _attributes(where, proto)
    inputs = {name: source for name, source in zip(INPUTS, proto.input, strict=False) if source}
    for name in ("X", "W", "R"):
        if name not in inputs:
            raise ValueError(f"{where}: input {name} is missing, expected X, W and R")
    shapes = {name: graph.shape(f"{where}: {name}", inputs[name]) for name in WEIGHTS if name in inputs}
    H = given.get("hidden_size", shapes["R"][-1] if shapes["R"] else 0)
    D = shapes["W"][-1] if shapes["W"] else 0
    for name, size in (("hidden_size", H), ("input_size", D)):
        checks.size(where, name, size)
    G, directions = GATES[kind], {"directions": len(DIRECTIONS[given["direction"]])}
    rows = {**directions, f"{G}H": G * H}
    expected = {
        "W": {**rows, "D": D},
        "R": {**rows, "H": H},
        "B": {**directions, f"{2 * G}H": 2 * G * H},
        "P": {**directions, "3H": 3 * H},
    }
    for name, shape in shapes.items():
        checks.shape(where, name, SimpleNamespace(shape=shape), expected[name])
    return Node(graph, label, proto, given, inputs, (D, H))


def _attributes(where: str, proto: Any) -> dict[str, Any]:
    """Return attributes by name, all of them known, of the right type and with a known value; always `direction`."""
    onnx = library()
    known = ATTRIBUTES | OWN[proto.op_type]
    found: dict[str, Any] = {}
    most = 2 * len(KINDS[proto.op_type.lower()].ACTIVATIONS)
    for entry in proto.attribute:
        if entry.name not in known:
            raise ValueError(f"{where}: attribute {few([entry.name])} is unknown, its value is {_shown(entry)}")
        if entry.name in found:
            raise ValueError(f"{where}: attribute {entry.name} is there twice")
        kind = known[entry.name]
        if entry.type != getattr(onnx.AttributeProto, kind):
            raise ValueError(f"{where}: attribute {entry.name} is {_shown(entry)}, expected a value of type {kind}")
        count = len(entry.strings) + len(entry.floats)
        if count > most:
            raise ValueError(f"{where}: attribute {entry.name} has {count} values, expected {most} at most")
        value: Any = onnx.helper.get_attribute_value(entry)
        if kind == "STRING":
            value = value.decode(errors="replace")
        elif kind == "STRINGS":
            value = [text.decode(errors="replace") for text in value]
        if value not in CHOICES.get(entry.name, [value]):
            choices = " or ".join(map(repr, CHOICES[entry.name]))
            raise ValueError(f"{where}: attribute {entry.name} is {shown(value)}, expected {choices}")
        found[entry.name] = value
    return {"direction": "forward", **found}


def _shown(entry: Any) -> str:
    """Return the value of an attribute for a message, or only its type where it has several."""
    onnx = library()
    if entry.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.STRING):
        return shown(onnx.helper.get_attribute_value(entry))
    return f"of type {onnx.AttributeProto.AttributeType.Name(entry.type)}"
