"""LSTM, GRU and RNN nodes of an ONNX model as a layer and its parameters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm import checks
from xlstm.backend import Params
from xlstm.interop.onnx_graph import DOMAINS, Graph, Host, name_of
from xlstm.interop.onnx_names import GATES, INPUTS, from_attributes, library, shortest
from xlstm.interop.onnx_stack import permutation, stacked
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
DIRECTIONS = {"forward": ("",), "reverse": ("reverse.",), "bidirectional": ("", "reverse.")}


def from_onnx(
    path_or_model: str | os.PathLike[str] | Any, node: str | Sequence[str] | None = None
) -> tuple[LSTM | GRU | RNN, Params]:
    """Read recurrent nodes of an ONNX model.

    Initial states and `sequence_lens` are given to `layer.forward`, as `state` and `lengths`. The rows of the
    forget gate, which `input_forget` makes unused, are left out. FLOAT16 becomes float32. Nodes of other
    operators are not read.

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
        It is no ONNX model; there is no such node, or there are several that make no stack; an attribute is
        unknown or has an unknown value; a weight is no constant, damaged or misshapen, or it is external data
        outside the folder of the model.

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
    nodes = [n for n in graph.nodes if n.op_type in GATES and n.domain in DOMAINS]
    names = {name_of(n): n for n in nodes}
    if not nodes:
        raise ValueError(f"{graph.where}: the model has no node LSTM, GRU or RNN")
    if node is not None:
        wanted = [node] if isinstance(node, str) else list(node)
        unknown = [name for name in wanted if name not in names]
        if unknown or not wanted:
            raise ValueError(f"{graph.where}: node {unknown or wanted} is none of {', '.join(names)}")
        nodes = [names[name] for name in wanted]
    layers = [_Layer.read(graph, n) for n in nodes]
    if node is None and not stacked(graph, nodes):
        raise ValueError(
            f"{graph.where}: there are several recurrent nodes and they make no stack, expected node=... to choose "
            f"from {', '.join(names)}"
        )
    if node is None and permutation(graph, nodes[0].input[0]) == [1, 0, 2]:
        layers[0].options["batch_first"] = True
    return _layer(graph.where, layers)


@dataclass
class _Layer:
    """What one node says."""

    kind: str
    sizes: tuple[int, int]  # of input and hidden state
    options: dict[str, Any]
    weights: dict[str, Host]  # by direction and name

    @classmethod
    def read(cls, graph: Graph, node: Any) -> _Layer:
        kind, where = node.op_type, f"{graph.where}: {node.op_type} {name_of(node)!r}"
        given = _attributes(where, node)
        inputs = {name: source for name, source in zip(INPUTS, node.input, strict=False) if source}
        absent = [name for name in ("X", "W", "R") if name not in inputs]
        if absent:
            raise ValueError(f"{where}: input {absent[0]} is missing, expected X, W and R")
        for name in ("initial_h", "initial_c"):
            if name in inputs and graph.is_constant(inputs[name]) and graph.constant(where, name, inputs[name]).any():
                raise ValueError(
                    f"{where}: {name} is a constant other than 0, which a layer cannot hold, expected an input"
                )
        directions = DIRECTIONS[given["direction"]]
        G, n = GATES[kind], len(directions)
        shapes = {name: graph.shape(where, name, inputs[name]) for name in ("W", "R", "B", "P") if name in inputs}
        H = given.get("hidden_size", shapes["R"][-1] if shapes["R"] else 0)
        D = shapes["W"][-1] if shapes["W"] else 0
        checks.positive(where, hidden_size=H, input_size=D)
        directed, rows = {"directions": n}, {f"{G}H": G * H}
        expected = {
            "W": {**directed, **rows, "D": D},
            "R": {**directed, **rows, "H": H},
            "B": {**directed, f"{2 * G}H": 2 * G * H},
            "P": {**directed, "3H": 3 * H},
        }
        found: dict[str, Host] = {}
        for name, shape in shapes.items():
            checks.shape(where, name, _Declared(shape), expected[name])
            values = graph.constant(where, name, inputs[name])
            if values.dtype.kind != "f":
                raise ValueError(f"{where}: {name} has dtype {values.dtype}, expected floating-point numbers")
            found[name] = values.astype(np.float32) if values.dtype == np.float16 else values
        coupled = given.get("input_forget") == 1
        weights = {
            f"{direction}{name}": value
            for d, direction in enumerate(directions)
            for name, value in _unpack({key: array[d] for key, array in found.items()}, G * H, H, coupled).items()
        }
        return cls(kind, (D, H), _options(where, kind, given, found), weights)


@dataclass
class _Declared:
    shape: tuple[int, ...]


def _layer(where: str, layers: list[_Layer]) -> tuple[LSTM | GRU | RNN, Params]:
    first, n = layers[0], len(layers)
    batch_first = first.options.get("batch_first")
    for k, layer in enumerate(layers[1:], 1):
        for what, found, expected in (
            ("operator", layer.kind, first.kind),
            ("hidden_size", layer.sizes[1], first.sizes[1]),
            *((key, layer.options.get(key), value) for key, value in first.options.items() if key != "batch_first"),
        ):
            if found != expected:
                raise ValueError(f"{where}: {what} of layer {k} is {found}, expected that of layer 0, {expected}")
    layer = getattr(recurrent, first.kind)(*first.sizes, n, **first.options | {"batch_first": bool(batch_first)})
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
    for entry in node.attribute:
        value: Any = onnx.helper.get_attribute_value(entry) if entry.type else None
        if entry.name not in known:
            raise ValueError(f"{where}: attribute {entry.name} is unknown, its value is {value!r}")
        kind = known[entry.name]
        if entry.type != getattr(onnx.AttributeProto, kind):
            raise ValueError(f"{where}: attribute {entry.name} is {value!r}, expected a value of type {kind}")
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
            raise ValueError(f"{where}: attribute {name} is {found[name]!r}, expected {' or '.join(map(repr, values))}")
    return found


def _options(where: str, kind: str, given: dict[str, Any], weights: dict[str, Host]) -> dict[str, Any]:
    """The layer's options."""
    found: dict[str, Any] = {
        "bidirectional": given["direction"] == "bidirectional",
        "reverse": given["direction"] == "reverse",
        "batch_first": given.get("layout") == 1,
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
