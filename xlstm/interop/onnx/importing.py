"""LSTM, GRU and RNN nodes of an ONNX model as a layer and its parameters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.checks import few, shown
from xlstm.arrays.namespace import Params
from xlstm.interop.onnx.graph import DOMAINS, Graph, Host, name_of, subgraphs
from xlstm.interop.onnx.names import GATES, INPUTS, from_attributes, library, shortest
from xlstm.interop.onnx.shapes import UnprovenError
from xlstm.interop.onnx.stack import Node, check, transposed
from xlstm.layers import recurrent
from xlstm.layers.recurrent import GRU, LSTM, RNN

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
ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}  # functions of one direction
WEIGHTS = ("W", "R", "B", "P")
LAYERS = 1000  # of a stack, at most
DIRECTIONS = {"forward": ("",), "reverse": ("reverse.",), "bidirectional": ("", "reverse.")}


def from_onnx(
    path_or_model: str | os.PathLike[str] | Any, node: str | Sequence[str] | None = None
) -> tuple[LSTM | GRU | RNN, Params]:
    """Read recurrent nodes of an ONNX model.

    Initial states and `sequence_lens` that depend on inputs of the model are given to `layer.forward`, as `state` and
    `lengths`. The rows of the forget gate, which `input_forget` makes unused, are left out. FLOAT16 becomes float32.
    Nodes of other operators are not read, but for those between the layers of a stack and those that compute states
    and lengths.

    Parameters
    ----------
    path_or_model : path or onnx.ModelProto
    node : str or sequence of str, optional
        Name of the node (that of its first output, where it has none), or names of several that make a stack,
        the first one first. By default the only node of the model, or all of them where each one's input is
        the output of the one before, as PyTorch and `to_onnx` write stacks; then an input that is transposed
        from batch first gives `batch_first=True`.

    Returns
    -------
    layer : LSTM, GRU or RNN
        With `recurrent_bias`, and so `bh`, where there is an input B.
    params : dict of str to numpy.ndarray
        The same bits as in the file.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file, or none with the external data it names.
    ValueError
        It is no ONNX model; there is no such node, or there are several and nothing in the model proves that they
        make a stack of at most 1000 layers; an attribute is unknown or has an unknown value; an initial state is a
        constant other than 0, or `sequence_lens` one other than the number of time steps; a weight is no constant,
        damaged or misshapen, or it is external data outside the folder of the model; the model would take many
        times the memory of its file.

    Examples
    --------
    >>> import xlstm
    >>> from xlstm.interop.onnx import from_onnx, to_onnx
    >>> gru = xlstm.GRU(3, 8, num_layers=2)
    >>> layer, params = from_onnx(to_onnx(gru, gru.init(backend="numpy")))
    >>> layer.num_layers, params["1.Wx"].shape
    (2, (24, 8))
    """
    graph = Graph(path_or_model)
    parts = [_Part.read(graph, chosen) for chosen in _chosen(graph, node)]
    try:
        check(graph, [part.node for part in parts])
    except UnprovenError as error:
        names = few([name_of(part.node.proto) for part in parts])
        found = f"nodes {names}" if node is not None else "there are several recurrent nodes and they"
        expected = "" if node is not None else f", expected node=... to choose from {names}"
        raise ValueError(f"{graph.where}: {found} make no stack{expected}; {error}") from None
    first = parts[0].node
    batch_first = first.batch_first or (node is None and transposed(graph, first.input(0)))
    return _layer(graph.where, [part.layer(graph) for part in parts], batch_first)


def _chosen(graph: Graph, node: str | Sequence[str] | None) -> list[Any]:
    """The nodes to read."""
    nodes = [n for n in graph.nodes if n.op_type in GATES and n.domain in DOMAINS]
    if not nodes:
        hint = "PyTorch writes an nn.RNN as one with dynamo=False only"
        raise ValueError(f"{graph.where}: the model has no node LSTM, GRU or RNN ({hint})")
    names = [name_of(n) for n in nodes]
    if node is None:
        for outer in graph.nodes:
            if any(n.op_type in GATES for inside in subgraphs(outer) for n in inside.node):
                raise ValueError(
                    f"{graph.where}: {outer.op_type} {shown(name_of(outer))} has recurrent nodes inside, expected "
                    f"node=... to choose from {few(names)}"
                )
    else:
        wanted = [node] if isinstance(node, str) else list(node)
        unknown = [name for name in wanted if name not in names]
        if unknown or not wanted:
            raise ValueError(f"{graph.where}: node {shown(unknown or wanted)} is none of {few(names)}")
        several = [name for name in wanted if names.count(name) > 1 or wanted.count(name) > 1]
        if several:
            raise ValueError(
                f"{graph.where}: node {shown(several[0])} is not one node, expected names of one node each"
            )
        nodes = [nodes[names.index(name)] for name in wanted]
    if len(nodes) > LAYERS:
        raise ValueError(f"{graph.where}: a stack of {len(nodes)} recurrent nodes, expected {LAYERS} at most")
    return nodes


@dataclass
class _Part:
    """One node as it is declared, before weights are read."""

    node: Node
    attributes: dict[str, Any]
    inputs: dict[str, str]

    @classmethod
    def read(cls, graph: Graph, proto: Any) -> _Part:
        kind, label = proto.op_type, f"{proto.op_type} {shown(name_of(proto))}"
        where = f"{graph.where}: {label}"
        given = _attributes(where, proto)
        inputs = {name: source for name, source in zip(INPUTS, proto.input, strict=False) if source}
        absent = [name for name in ("X", "W", "R") if name not in inputs]
        if absent:
            raise ValueError(f"{where}: input {absent[0]} is missing, expected X, W and R")
        G, n = GATES[kind], len(DIRECTIONS[given["direction"]])
        shapes = {name: graph.shape(where, name, inputs[name]) for name in WEIGHTS if name in inputs}
        H = given.get("hidden_size", shapes["R"][-1] if shapes["R"] else 0)
        D = shapes["W"][-1] if shapes["W"] else 0
        for name, size in (("hidden_size", H), ("input_size", D)):
            checks.size(where, name, size)
        directed, rows = {"directions": n}, {f"{G}H": G * H}
        expected = {
            "W": {**directed, **rows, "D": D},
            "R": {**directed, **rows, "H": H},
            "B": {**directed, f"{2 * G}H": 2 * G * H},
            "P": {**directed, "3H": 3 * H},
        }
        for name, shape in shapes.items():
            checks.shape(where, name, _Declared(shape), expected[name])
        return cls(Node(label, proto, (D, H), n, given.get("layout") == 1), given, inputs)

    def layer(self, graph: Graph) -> _Layer:
        kind, where, (D, H) = self.node.proto.op_type, f"{graph.where}: {self.node.label}", self.node.sizes
        found: dict[str, Host] = {}
        for name in WEIGHTS:
            if name in self.inputs:
                values = graph.constant(where, name, self.inputs[name])
                if values.dtype.kind != "f":
                    raise ValueError(f"{where}: {name} has dtype {values.dtype}, expected floating-point numbers")
                found[name] = values.astype(np.float32) if values.dtype == np.float16 else values
        coupled = self.attributes.get("input_forget") == 1
        weights = {
            f"{direction}{name}": value
            for d, direction in enumerate(DIRECTIONS[self.attributes["direction"]])
            for name, value in _unpack({key: a[d] for key, a in found.items()}, GATES[kind] * H, H, coupled).items()
        }
        return _Layer(kind, (D, H), _options(where, kind, self.attributes, found), weights)


@dataclass
class _Layer:
    """The options and weights that one node gives."""

    kind: str
    sizes: tuple[int, int]  # of input and hidden state
    options: dict[str, Any]
    weights: dict[str, Host]  # by direction and name


@dataclass
class _Declared:
    shape: tuple[int, ...]


def _layer(where: str, layers: list[_Layer], batch_first: bool) -> tuple[LSTM | GRU | RNN, Params]:
    first, n = layers[0], len(layers)
    for k, layer in enumerate(layers[1:], 1):
        for what, found, expected in (
            ("operator", layer.kind, first.kind),
            ("hidden_size", layer.sizes[1], first.sizes[1]),
            *((key, layer.options.get(key), value) for key, value in first.options.items()),
        ):
            if found != expected:
                raise ValueError(f"{where}: {what} of layer {k} is {found}, expected that of layer 0, {expected}")
    layer = getattr(recurrent, first.kind)(*first.sizes, n, batch_first=batch_first, **first.options)
    found = {f"{k}.{name}": array for k, part in enumerate(layers) for name, array in part.weights.items()}
    params = {name: found[name] for name in layer.shapes}
    checks.params(where, params, layer.shapes)
    kinds = sorted({str(array.dtype) for array in params.values()})
    if len(kinds) > 1:
        raise ValueError(f"{where}: weights are {' and '.join(kinds)}, expected one dtype")
    return layer, params


def _attributes(where: str, node: Any) -> dict[str, Any]:
    """Attributes by name, known ones of the right type and with a known value, `direction` always."""
    onnx = library()
    known = ATTRIBUTES | OWN[node.op_type]
    found: dict[str, Any] = {"direction": "forward"}
    names: set[str] = set()
    most = 2 * ACTIVATIONS[node.op_type]
    for entry in node.attribute:
        if entry.name not in known:
            raise ValueError(f"{where}: attribute {few([entry.name])} is unknown, its value is {_shown(entry)}")
        if entry.name in names:
            raise ValueError(f"{where}: attribute {entry.name} is there twice")
        names.add(entry.name)
        kind = known[entry.name]
        if entry.type != getattr(onnx.AttributeProto, kind):
            raise ValueError(f"{where}: attribute {entry.name} is {_shown(entry)}, expected a value of type {kind}")
        if kind in ("STRINGS", "FLOATS") and len(entry.strings) + len(entry.floats) > most:
            count = len(entry.strings) + len(entry.floats)
            raise ValueError(f"{where}: attribute {entry.name} has {count} values, expected {most} at most")
        value: Any = onnx.helper.get_attribute_value(entry)
        if kind == "STRING":
            value = value.decode(errors="replace")
        elif kind == "STRINGS":
            value = [text.decode(errors="replace") for text in value]
        found[entry.name] = value
    allowed = dict.fromkeys(("layout", "input_forget", "linear_before_reset"), (0, 1)) | {
        "direction": tuple(DIRECTIONS)
    }
    for name, values in allowed.items():
        if name in found and found[name] not in values:
            raise ValueError(
                f"{where}: attribute {name} is {shown(found[name])}, expected {' or '.join(map(repr, values))}"
            )
    return found


def _shown(entry: Any) -> str:
    """The value of an attribute, or only its type where it has several."""
    onnx = library()
    if entry.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.STRING):
        return shown(onnx.helper.get_attribute_value(entry))
    return f"of type {onnx.AttributeProto.AttributeType.Name(entry.type)}"


def _options(where: str, kind: str, given: dict[str, Any], weights: dict[str, Host]) -> dict[str, Any]:
    """The layer's options."""
    found: dict[str, Any] = {
        "bidirectional": given["direction"] == "bidirectional",
        "reverse": given["direction"] == "reverse",
        "bias": "B" in weights,
        "recurrent_bias": "B" in weights,
        "clip": shortest(given["clip"]) if "clip" in given else None,
    }
    if kind == "LSTM":
        found |= {"peepholes": "P" in weights, "coupled_input_forget": given.get("input_forget") == 1}
    elif kind == "GRU":
        found["reset_after"] = given.get("linear_before_reset") == 1
    if given.get("activations"):
        alpha, beta = given.get("activation_alpha", ()), given.get("activation_beta", ())
        found["activations"] = from_attributes(where, given["activations"], alpha, beta)
    return found


def _unpack(arrays: dict[str, Host], rows: int, H: int, coupled: bool) -> Params:
    """Arrays of one direction under our names; `coupled` has no use for the forget gate's rows, the third of four."""
    found = {"Wx": arrays["W"], "Wh": arrays["R"]}
    if "B" in arrays:
        found |= {"b": arrays["B"][:rows], "bh": arrays["B"][rows:]}
    if "P" in arrays:
        found["p"] = arrays["P"]
    if coupled:
        found = {name: np.delete(array, slice(2 * H, 3 * H), axis=0) for name, array in found.items()}
    return {name: array.copy() for name, array in found.items()}
