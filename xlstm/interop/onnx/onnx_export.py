"""A layer, or a layer with a linear head, as an ONNX model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.cells import activations
from xlstm.data import writing
from xlstm.interop.common import Exported, Host, Layer, prepared
from xlstm.interop.onnx import arrays, scanning
from xlstm.interop.onnx.arrays import BATCH, TIME, Array, Graph
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
    return _finished(_graph(exported, last, state, lengths, opset), opset, path)


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


def _graph(exported: Exported, last: bool, state: bool, lengths: bool, opset: int) -> Any:
    """Return the graph of a layer and its head; with `last` the head sees the final state of the last layer only."""
    layer, graph = exported.layer, Graph(opset)
    n, H, first = len(layer.directions), layer.hidden_size, layer.batch_first
    x = Array("x", (*((BATCH, TIME) if first else (TIME, BATCH)), layer.input_size), np.float32)
    starts = {s: Array(f"{s}0", (layer.num_layers * n, BATCH, H), np.float32) for s in layer.STATES if state}
    steps = [Array("lengths", (BATCH,), np.int32)] if lengths else []
    ends: dict[str, list[Array]] = {s: [] for s in layer.STATES}
    with graph.open():
        y = arrays.permute_dims(x, (1, 0, 2)) if first else x
        for k in range(layer.num_layers):
            start = {s: a[k * n : (k + 1) * n] for s, a in starts.items()}
            named = {name: graph.enter(a, np.float32, f"{k}.{name}") for name, a in _packed(exported, k).items()}
            named |= {"X": y.name, **{f"initial_{s}": a.name for s, a in start.items()}}
            if lengths:
                named["sequence_lens"] = "lengths"
            outputs = [f"{k}.Y", *(f"{k}.{s}" for s in layer.STATES)]
            graph.node(type(layer).__name__, _inputs(named), outputs, **_attributes(layer))
            y = Array(outputs[0], (TIME, n, BATCH, H), np.float32)
            y = arrays.reshape(arrays.permute_dims(y, (0, 2, 1, 3)) if n > 1 else y, (TIME, BATCH, n * H))
            for s, name in zip(layer.STATES, outputs[1:], strict=True):
                end = Array(name, (n, BATCH, H), np.float32)
                # A sequence without steps ends in the state it began with; onnxruntime says 0, or what is in memory.
                ends[s].append(arrays.where((steps[0] > 0)[None, :, None], end, start.get(s, 0.0)) if lengths else end)
        if last:
            y = arrays.reshape(arrays.permute_dims(ends["h"][-1], (1, 0, 2)), (BATCH, n * H))
        if exported.head is not None:
            y = y @ arrays.constant(exported.head[0].T, np.float32) + arrays.constant(exported.head[1], np.float32)
            y = arrays.where(_within(graph, x, steps[0], int(first)), y, 0.0) if lengths and not last else y
        if first and not last:
            y = arrays.permute_dims(y, (1, 0, 2))
        results = {"y": y, **{s: arrays.concat(some) for s, some in ends.items()}}
    name = type(layer).__name__ if exported.head is None else SequenceModel.__name__
    return scanning.finished(graph, [x, *starts.values(), *steps], results, name)


def _within(graph: Graph, x: Array, lengths: Array, axis: int) -> Array:
    """Return whether steps of x, whose time is this axis, are before the end of their sequence (T, B, 1)."""
    (shape,) = graph.node("Shape", [x.name])
    (T,) = graph.node("Gather", [shape, graph.enter(axis, np.int64)])
    (steps,) = graph.node("Range", [graph.enter(0, np.int64), T, graph.enter(1, np.int64)])
    within: Array = Array(steps, (TIME,), np.int64)[:, None] < lengths
    return within[..., None]


def _inputs(named: Mapping[str, str]) -> list[str]:
    """Return the names of a node's inputs in their order, without those behind the last one that is there."""
    last = max(INPUTS.index(name) for name in named)
    return [named.get(name, "") for name in INPUTS[: last + 1]]


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
