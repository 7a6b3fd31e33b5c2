"""A layer, or a layer with a linear head, as an ONNX model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.cells import activations
from xlstm.data import writing
from xlstm.interop.common import Exported, Host, Layer, prepared
from xlstm.interop.onnx import scanning
from xlstm.interop.onnx.onnx_files import library
from xlstm.layers.recurrent import GRU, LSTM
from xlstm.models.sequence import SequenceModel
from xlstm.models.tirex import TiRex, TiRex2

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
DIRECTIONS = {"forward": ("",), "reverse": ("reverse.",), "bidirectional": ("", "reverse.")}
# ONNX's name of each of our activations, such as LeakyRelu. Both take their parameters in the same order, alpha, beta.
FUNCTIONS = {
    name: name.title().replace("_", "")
    for name in (
        *("sigmoid", "tanh", "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid"),
        *("elu", "softsign", "softplus"),
    )
}
OLDEST = 14  # the first opset whose LSTM, GRU and RNN all runtimes of today agree on


def to_onnx(
    layer: Layer | SequenceModel | TiRex | TiRex2,
    params: Params,
    path: str | os.PathLike[str] | None = None,
    *,
    lengths: bool = False,
    state: bool = True,
    opset: int = 17,
    tokens: int | None = None,
) -> Any:
    """Write a layer or model as ONNX, in float32.

    The model computes what `layer.forward(params, x, train=False)` does, in the same layouts, and takes any
    batch size B and number T of time steps. L is the number of layers times that of directions.

    Its inputs are `x` (T, B, D), or (B, T, D) with `batch_first`, then the initial state, `h0` and for an LSTM `c0`
    (L, B, H), and `lengths` (B,) of int32. Its outputs are `y`, the layer's output or the head's prediction, and the
    final state, `h` and for an LSTM `c` (L, B, H).

    A TiRex or TiRex2 is written as its univariate network, for a fixed number T of tokens: its input is `tokens` (B, T,
    2P), its output `y` (B, T, Q, P).

    Parameters
    ----------
    layer : LSTM, GRU, RNN, SequenceModel, TiRex or TiRex2
        The layer, a model of one, or a forecaster.
    params : dict of str to array
        Its parameters, on any backend; float64 is rounded to float32.
    path : path, optional
        Where to write the file, whole or not at all.
    lengths : bool
        Whether the model has the input `lengths`.
    state : bool
        Whether it has the inputs `h0` and `c0`; without them the initial state is zero, as it is in a TiRex.
    opset : int
        Version of ONNX's operators, 14 or newer.
    tokens : int, optional
        Number T of tokens of a TiRex or TiRex2, by default those of its context and horizon.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ValueError
        The layer has an option that ONNX lacks, parameters are missing, surplus or misshapen, or the
        installed onnx does not know the opset.
    TypeError
        The layer is of another kind.
    OSError
        The file cannot be written.
    ImportError
        The package onnx is not installed.

    Examples
    --------
    >>> import numpy as np, onnxruntime, xlstm
    >>> from xlstm.interop.onnx import to_onnx
    >>> gru = xlstm.GRU(3, 8)
    >>> model = to_onnx(gru, gru.init(backend="numpy"), state=False)
    >>> session = onnxruntime.InferenceSession(model.SerializeToString())
    >>> y, h = session.run(None, {"x": np.ones((12, 5, 3), dtype="float32")})
    >>> y.shape, h.shape
    ((12, 5, 8), (1, 5, 8))
    """
    newest = library().defs.onnx_opset_version()
    if isinstance(layer, TiRex | TiRex2):
        if lengths:
            kind = type(layer).__name__
            raise ValueError(f"to_onnx: lengths is True, expected False: the tokens of a {kind} are fixed")
        layer.check(params)
        _check_opset(opset, newest)
        usual = (layer.context + getattr(layer, "horizon", 0)) // layer.patch_size
        tokens = usual if tokens is None else checks.size("to_onnx", "tokens", tokens)
        return _finished(scanning.network(layer, params, tokens, opset), opset, path)
    if tokens is not None:
        problem = f"tokens is {checks.shown(tokens)}, expected None for a {type(layer).__name__}"
        raise ValueError(f"to_onnx: {problem}, which takes any number of steps")
    exported = prepared("to_onnx", "ONNX", layer, params, {"proj_size": 0})
    _check_opset(opset, newest)
    last = isinstance(layer, SequenceModel) and layer.last
    return _finished(_graph(exported, layer.output_size, last, state, lengths), opset, path)


def _check_opset(opset: int, newest: int) -> None:
    if not OLDEST <= opset <= newest:
        raise ValueError(f"to_onnx: opset is {opset}, expected {OLDEST} to {newest}, the installed onnx's newest")


def _finished(graph: Any, opset: int, path: str | os.PathLike[str] | None) -> Any:
    """Return the checked model of a graph, which is written to a path."""
    onnx = library()
    versions = [onnx.helper.make_opsetid("", opset)]
    ir_version = onnx.helper.find_min_ir_version_for(versions)
    model = onnx.helper.make_model(graph, producer_name="xlstm", opset_imports=versions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        writing.write(path, model.SerializeToString())
    return model


class _Builder:
    """A graph in the making: its nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Host] = {}

    def node(self, op_type: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Add a node, named as its first output, which it returns."""
        self.nodes.append(library().helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        """Add a constant, and return its name."""
        self.constants[name] = np.array(values, dtype, order="C")
        return name


def _graph(exported: Exported, output_size: int, last: bool, state: bool, lengths: bool) -> Any:
    """Return the graph of a layer and its head; with `last` the head sees the final state of the last layer only."""
    helper, layer, b = library().helper, exported.layer, _Builder()
    outer: list[int | str] = ["batch", "time"] if layer.batch_first else ["time", "batch"]
    states: list[int | str] = [layer.num_layers * len(layer.directions), "batch", layer.hidden_size]

    def value(name: str, dims: list[int | str], kind: str = "FLOAT") -> Any:
        return helper.make_tensor_value_info(name, getattr(library().TensorProto, kind), dims)

    inputs = [value("x", [*outer, layer.input_size])]
    inputs += [value(f"{s}0", states) for s in layer.STATES if state]
    inputs += [value("lengths", ["batch"], "INT32")] if lengths else []
    x = b.node("Transpose", ["x"], "x.time_first", perm=[1, 0, 2]) if layer.batch_first else "x"
    y, ends = _stack(b, exported, x, state, lengths)
    for s, names in ends.items():
        b.node("Concat", names, s, axis=0)
    if last:
        outer = ["batch"]
        turned = b.node("Transpose", [ends["h"][-1]], "h.turned", perm=[1, 0, 2])
        y = b.node("Reshape", [turned, b.constant("h.shape", [0, layer.output_size])], "h.last")
    elif layer.batch_first:
        y = b.node("Transpose", [y], "y.batch_first", perm=[1, 0, 2])
    if exported.head is not None:
        W, bias = exported.head
        product = b.node("MatMul", [y, b.constant("head.W", W.T, np.float32)], "head.Wx")
        y = b.node("Add", [product, b.constant("head.b", bias, np.float32)], "head.y")
        y = _masked(b, y, layer.batch_first) if lengths and not last else y
    b.node("Identity", [y], "y")
    outputs = [value("y", [*outer, output_size]), *(value(s, states) for s in layer.STATES)]
    constants = [library().numpy_helper.from_array(array, name) for name, array in b.constants.items()]
    name = type(layer).__name__ if exported.head is None else SequenceModel.__name__
    return helper.make_graph(b.nodes, name, inputs, outputs, constants)


def _masked(b: _Builder, y: str, batch_first: bool) -> str:
    """Add zeros in the place of predictions past the end of a sequence, and return their name."""
    T = b.node("Gather", [b.node("Shape", ["x"], "x.sizes"), b.constant("time", int(batch_first))], "steps.count")
    T = b.node("Cast", [T], "steps.end", to=library().TensorProto.INT32)
    zero, one = b.constant("zero", 0, np.int32), b.constant("one", 1, np.int32)
    sides = [b.node("Range", [zero, T, one], "steps"), "lengths"]  # of (T, 1) < (B,), or (T,) < (B, 1)
    sides[batch_first] = b.node("Unsqueeze", [sides[batch_first], b.constant("column", [1])], "steps.column")
    there = b.node("Unsqueeze", [b.node("Less", sides, "steps.there"), b.constant("each", [2])], "steps.each")
    return b.node("Where", [there, y, b.constant("nothing", 0, np.float32)], "head.kept")


def _stack(b: _Builder, exported: Exported, x: str, state: bool, lengths: bool) -> tuple[str, dict[str, list[str]]]:
    """Add all layers on `x` (T, B, D).

    Return the names of the output (T, B, directions*H) and of the final states of each layer.
    """
    layer = exported.layer
    n, layers = len(layer.directions), range(layer.num_layers)
    starts: dict[str, list[str]] = {s: [f"{s}0.{k}" if state else "" for k in layers] for s in layer.STATES}
    if state:
        sizes = b.constant("state.sizes", [n] * len(layers))
        for s, names in starts.items():
            b.node("Split", [f"{s}0", sizes], *names, axis=0)
    if lengths:
        longer = b.node("Greater", ["lengths", b.constant("zero", 0, np.int32)], "lengths.longer")
        b.node("Unsqueeze", [longer, b.constant("state.axes", [0, 2])], "lengths.any")  # (1, B, 1)
        b.constant("state.none", 0, np.float32)
    ends: dict[str, list[str]] = {s: [] for s in layer.STATES}
    for k in layers:
        named = {"X": x, "sequence_lens": "lengths" if lengths else ""}
        for name, arrays in _packed(exported, k).items():
            named[name] = b.constant(f"{k}.{name}", arrays, np.float32)
        named |= {f"initial_{s}": names[k] for s, names in starts.items()}
        inputs = [named.get(name, "") for name in INPUTS]
        while not inputs[-1]:
            inputs.pop()
        finals = [f"{k}.{s}" for s in layer.STATES]
        y = b.node(type(layer).__name__, inputs, f"{k}.Y", *finals, **_attributes(layer))
        for s, final in zip(layer.STATES, finals, strict=True):
            # A sequence without steps ends in the state it began with; onnxruntime says 0, or what is in memory.
            kept = [starts[s][k] or "state.none"]
            ends[s].append(b.node("Where", ["lengths.any", final, *kept], f"{final}.kept") if lengths else final)
        if n == 1:
            x = b.node("Squeeze", [y, b.constant("Y.axes", [1])], f"{k}.y")
        else:
            turned = b.node("Transpose", [y], f"{k}.Y.turned", perm=[0, 2, 1, 3])
            x = b.node("Reshape", [turned, b.constant("Y.shape", [0, 0, layer.output_size])], f"{k}.y")
    return x, ends


def _packed(exported: Exported, k: int) -> dict[str, list[Host]]:
    """Return W, R, B and P of layer k, each an array for every direction."""
    packed: dict[str, list[Host]] = {}
    layer = exported.layer
    for direction in layer.directions:
        weights = exported.part(k, direction)
        if isinstance(layer, LSTM) and layer.coupled_input_forget:
            # ONNX's coupled LSTM has rows of the forget gate, the third, and does not look at them.
            H = layer.hidden_size
            weights = {name: np.insert(array, [2 * H] * H, 0, axis=0) for name, array in weights.items()}
        theirs = {"W": weights["Wx"], "R": weights["Wh"]}
        if "b" in weights:
            theirs["B"] = np.concatenate([weights["b"], weights.get("bh", np.zeros_like(weights["b"]))])
        if "p" in weights:
            theirs["P"] = weights["p"]
        for name, array in theirs.items():
            packed.setdefault(name, []).append(array)
    return packed


def _attributes(layer: Layer) -> dict[str, Any]:
    """Return the attributes of a node."""
    directions = {ours: theirs for theirs, ours in DIRECTIONS.items()}
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size, "direction": directions[layer.directions]}
    if layer.clip is not None:
        attributes["clip"] = float(layer.clip)
    if layer.activations is not None:
        attributes |= _activations(layer.activations)
    if isinstance(layer, LSTM) and layer.coupled_input_forget:
        attributes["input_forget"] = 1
    if isinstance(layer, GRU) and layer.reset_after:
        attributes["linear_before_reset"] = 1
    return attributes


def _activations(functions: Sequence[str]) -> dict[str, Any]:
    """Return activations of ours as attributes of a node."""
    attributes: dict[str, list[Any]] = {"activations": [], "activation_alpha": [], "activation_beta": []}
    for text in functions:
        name, values = activations.parse(text)
        if name == "linear":
            name, values = "affine", (1.0, 0.0)
        if name not in FUNCTIONS:
            known = ", ".join(["linear", *FUNCTIONS])
            raise ValueError(f"to_onnx: activation {text!r} is none that ONNX has, which are {known}")
        for key, value in zip(attributes, (FUNCTIONS[name], *values), strict=False):
            attributes[key].append(value)
    return {key: values for key, values in attributes.items() if values}
