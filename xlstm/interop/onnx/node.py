"""A recurrent node of an ONNX model: its declaration, checked, and the layer and parameters that it describes."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.checks import few, shown
from xlstm.arrays.namespace import Params
from xlstm.interop.common import Host, Layer, single
from xlstm.interop.onnx.graph import Graph, name_of
from xlstm.interop.onnx.names import DIRECTIONS, GATE_COUNTS, INPUTS, from_attributes, library, shortest
from xlstm.layers.recurrent import KINDS

CHOICES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("layout", "input_forget", "linear_before_reset"), (0, 1)),
    "direction": tuple(DIRECTIONS),
}


@dataclass
class Node:
    """A node as it is declared, before weights are read."""

    graph: Graph
    proto: Any
    kind: str  # lstm, gru or rnn
    label: str  # the operator and the name, for messages
    attributes: dict[str, Any]
    inputs: dict[str, str]  # names of the inputs that are there, by what ONNX calls them
    sizes: tuple[int, int]  # of the input and of the hidden state
    directions: tuple[str, ...]  # as our parameters name them
    batch_first: bool  # whether X and Y have the batch first

    def layer(self, batch_first: bool) -> tuple[Layer, Params]:
        """Read the weights, and return one layer and its parameters."""
        where, given = f"{self.graph.where}: {self.label}", self.attributes
        arrays: dict[str, Host] = {}
        for name in (name for name in "WRBP" if name in self.inputs):
            what = f"{where}: {name}"
            values = self.graph.constants.values(what, self.graph.tensor(what, self.inputs[name]))
            if values.dtype.kind != "f":
                raise ValueError(f"{where}: {name} has dtype {values.dtype}, expected floating-point numbers")
            arrays[name] = values.astype(np.float32) if values.dtype == np.float16 else values
        options: dict[str, Any] = {"peepholes": "P" in arrays} if self.kind == "lstm" else {}
        for theirs, ours in (("input_forget", "coupled_input_forget"), ("linear_before_reset", "reset_after")):
            if theirs in given:
                options[ours] = given[theirs] == 1
        if "clip" in given:
            options["clip"] = shortest(given["clip"])
        if given.get("activations"):
            alpha, beta = given.get("activation_alpha", ()), given.get("activation_beta", ())
            options["activations"] = from_attributes(where, given["activations"], alpha, beta)
        found = {"Wx": arrays["W"], "Wh": arrays["R"]}  # each (directions, rows, ...)
        if "B" in arrays:
            found["b"], found["bh"] = np.split(arrays["B"], 2, axis=1)
        if "P" in arrays:
            found["p"] = arrays["P"]
        if given.get("input_forget") == 1:  # the rows of the forget gate, the third, are not used
            H = self.sizes[1]
            found = {name: np.delete(array, slice(2 * H, 3 * H), axis=1) for name, array in found.items()}
        options |= {"reverse": self.directions == ("reverse.",), "batch_first": batch_first}
        parts = [{name: array[d].copy() for name, array in found.items()} for d in range(len(self.directions))]
        return single(self.kind, parts, **options)


def declared(graph: Graph, proto: Any) -> Node:
    """Check what a node declares; raise ValueError if attributes, inputs or shapes are wrong."""
    label = f"{proto.op_type} {shown(name_of(proto))}"
    where = f"{graph.where}: {label}"
    given = _attributes(where, proto)
    inputs = {name: source for name, source in zip(INPUTS, proto.input, strict=False) if source}
    for name in "XWR":
        if name not in inputs:
            raise ValueError(f"{where}: input {name} is missing, expected X, W and R")
    shapes = {
        name: graph.constants.shape(f"{where}: {name}", graph.tensor(f"{where}: {name}", inputs[name]))
        for name in "WRBP"
        if name in inputs
    }
    H = given.get("hidden_size", shapes["R"][-1] if shapes["R"] else 0)
    D = shapes["W"][-1] if shapes["W"] else 0
    for name, size in (("hidden_size", H), ("input_size", D)):
        checks.size(where, name, size)
    G, directions = GATE_COUNTS[proto.op_type], DIRECTIONS[given["direction"]]
    rows = {f"{G}H": G * H}
    expected = {"W": {**rows, "D": D}, "R": {**rows, "H": H}, "B": {f"{2 * G}H": 2 * G * H}, "P": {"3H": 3 * H}}
    for name, shape in shapes.items():
        dims = {"directions": len(directions), **expected[name]}
        checks.shape(where, name, SimpleNamespace(shape=shape), dims)
    return Node(graph, proto, proto.op_type.lower(), label, given, inputs, (D, H), directions, given["layout"] == 1)


def _attributes(where: str, proto: Any) -> dict[str, Any]:
    """Return attributes by name, known ones of the right type; those in `CHOICES` have their first value by default."""
    onnx = library()
    found: dict[str, Any] = {}
    known = {name: about.type.name for name, about in onnx.defs.get_schema(proto.op_type).attributes.items()}
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
    return {name: choices[0] for name, choices in CHOICES.items() if name in known} | found


def _shown(entry: Any) -> str:
    """Return the value of an attribute for a message, or only its type where it has several."""
    onnx = library()
    if entry.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.STRING):
        return shown(onnx.helper.get_attribute_value(entry))
    return f"of type {onnx.AttributeProto.AttributeType.Name(entry.type)}"
