"""A layer, or a layer with a linear head, as an ONNX model."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import writing
from xlstm.interop import refusal
from xlstm.interop.onnx.graph import Host
from xlstm.interop.onnx.names import INPUTS, library, to_attributes
from xlstm.layers.recurrent import GRU, LSTM, RNN
from xlstm.models.sequence import SequenceModel

OLDEST = 14  # the first opset whose LSTM, GRU and RNN all runtimes of today agree on
# What ONNX does not have, with the value that means it is not there.
ABSENT = {"proj_size": 0, "layer_norm": False, "cell_clip": None}
DIRECTION = {("",): "forward", ("reverse.",): "reverse", ("", "reverse."): "bidirectional"}


def to_onnx(
    layer: LSTM | GRU | RNN | SequenceModel,
    params: Params,
    path: str | os.PathLike[str] | None = None,
    *,
    lengths: bool = False,
    state: bool = True,
    opset: int = 17,
) -> Any:
    """Write a layer or model as ONNX, in float32.

    The model computes what `layer.forward(params, x, train=False)` does, in the same layouts, and takes any
    batch size and number of time steps. B is that of the batch, T that of the time steps, L the number of
    layers times that of directions.

    Its inputs are `x` (T, B, D), or (B, T, D) with `batch_first`, then `h0` and of an LSTM `c0` (L, B, H),
    the initial state, and `lengths` (B,) of int32. Its outputs are `y`, the layer's output or the head's
    prediction, and the final state `h` and of an LSTM `c` (L, B, H).

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SequenceModel
    params : dict of str to array
        Its parameters, on any backend; float64 is rounded to float32.
    path : path, optional
        Where to write the file, whole or not at all.
    lengths : bool
        Whether the model has the input `lengths`.
    state : bool
        Whether it has the inputs `h0` and `c0`; without them the initial state is zero.
    opset : int
        Version of ONNX's operators, 14 or newer.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ValueError
        The layer has an option that ONNX does not, parameters are missing, surplus or misshapen, or the
        installed onnx does not know the opset.
    OSError
        The file cannot be written.

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
    onnx = library()
    if not isinstance(layer, LSTM | GRU | RNN | SequenceModel):
        raise TypeError(f"to_onnx: layer is a {type(layer).__name__}, expected an LSTM, GRU, RNN or SequenceModel")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= opset <= newest:
        raise ValueError(f"to_onnx: opset is {opset}, expected {OLDEST} to {newest}, the installed onnx's newest")
    recurrent = layer.recurrent if isinstance(layer, SequenceModel) else layer
    refusal.kind("to_onnx", recurrent)
    refusal.options("to_onnx", "ONNX", recurrent, ABSENT)
    if isinstance(layer, SequenceModel):
        layer.check(params)
    else:
        checks.params(type(layer).__name__, params, layer.shapes)
    host = {name: np.ascontiguousarray(to_numpy(array), np.float32) for name, array in params.items()}
    model = _build(onnx, layer, host, state, lengths, opset)
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        writing.write(path, model.SerializeToString())
    return model


class _Builder:
    """Nodes and constants, as they are written down."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Host] = {}

    def node(self, op_type: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Add a node, named as its first output, which it returns."""
        self.nodes.append(self.onnx.helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, values: Any) -> str:
        """Add a constant, int64 unless it is an array, and return its name."""
        self.constants[name] = values if isinstance(values, np.ndarray) else np.asarray(values, np.int64)
        return name


def _stack(
    b: _Builder, layer: LSTM | GRU | RNN, params: dict[str, Host], x: str, state: bool, lengths: bool
) -> tuple[str, dict[str, list[str]]]:
    """All layers on `x` (T, B, D): names of the output (T, B, directions*H) and of the final states of each layer."""
    n, H, layers = len(layer.directions), layer.hidden_size, range(layer.num_layers)
    starts: dict[str, list[str]] = {s: ["" for k in layers] for s in layer.STATES}
    if state:
        sizes = b.constant("state.sizes", [n] * len(layers))
        for s, names in starts.items():
            names[:] = [f"{s}0.{k}" for k in layers]
            b.node("Split", [f"{s}0", sizes], *names, axis=0)
    if lengths:
        b.constant("zero", np.zeros((), np.int32))
        longer = b.node("Greater", ["lengths", "zero"], "lengths.longer")
        b.node("Unsqueeze", [longer, b.constant("state.axes", [0, 2])], "lengths.any")  # (1, B, 1)
        b.constant("state.none", np.zeros((), np.float32))
    ends: dict[str, list[str]] = {s: [] for s in layer.STATES}
    for k in layers:
        weights = _pack(layer, k, params)
        given = {"X": x, "sequence_lens": "lengths" if lengths else ""}
        given |= {name: b.constant(f"{k}.{name}", array) for name, array in weights.items()}
        given |= {f"initial_{s}": names[k] for s, names in starts.items()}
        inputs = [given.get(name, "") for name in INPUTS]
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
            x = b.node("Reshape", [turned, b.constant("Y.shape", [0, 0, n * H])], f"{k}.y")
    return x, ends


def _build(
    onnx: Any, layer: LSTM | GRU | RNN | SequenceModel, params: dict[str, Host], state: bool, lengths: bool, opset: int
) -> Any:
    model = layer if isinstance(layer, SequenceModel) else None
    recurrent = model.recurrent if model else layer
    assert not isinstance(recurrent, SequenceModel)
    b, n, H = _Builder(onnx), len(recurrent.directions), recurrent.hidden_size
    params = {name.removeprefix("recurrent."): array for name, array in params.items()}
    x = b.node("Transpose", ["x"], "x.time_first", perm=[1, 0, 2]) if recurrent.batch_first else "x"
    y, ends = _stack(b, recurrent, params, x, state, lengths)
    for s, names in ends.items():
        b.node("Concat", names, s, axis=0)
    outer = ["batch", "time"] if recurrent.batch_first else ["time", "batch"]
    if model and model.last:
        outer = ["batch"]
        turned = b.node("Transpose", [ends["h"][-1]], "h.turned", perm=[1, 0, 2])
        y = b.node("Reshape", [turned, b.constant("h.shape", [0, n * H])], "h.last")
    elif recurrent.batch_first:
        y = b.node("Transpose", [y], "y.batch_first", perm=[1, 0, 2])
    if model:
        product = b.node("MatMul", [y, b.constant("head.W", params["head.W"].T.copy())], "head.Wx")
        b.node("Add", [product, b.constant("head.b", params["head.b"])], "y")
    else:
        b.node("Identity", [y], "y")

    def value(name: str, dims: list[int | str], kind: int = onnx.TensorProto.FLOAT) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, dims)

    L = recurrent.num_layers * n
    inputs = [value("x", [*(["batch", "time"] if recurrent.batch_first else ["time", "batch"]), recurrent.input_size])]
    inputs += [value(f"{s}0", [L, "batch", H]) for s in ends if state]
    inputs += [value("lengths", ["batch"], onnx.TensorProto.INT32)] if lengths else []
    outputs = [value("y", [*outer, layer.output_size]), *(value(s, [L, "batch", H]) for s in ends)]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in b.constants.items()]
    graph = onnx.helper.make_graph(b.nodes, type(layer).__name__, inputs, outputs, constants)
    version = onnx.helper.make_opsetid("", opset)
    ir_version = onnx.helper.find_min_ir_version_for([version])
    return onnx.helper.make_model(graph, producer_name="xlstm", opset_imports=[version], ir_version=ir_version)


def _pack(layer: LSTM | GRU | RNN, k: int, params: dict[str, Host]) -> dict[str, Host]:
    """W, R, B and P of layer k, (directions, ...)."""
    found: dict[str, list[Host]] = {}
    for direction in layer.directions:
        w = {name: params.get(f"{k}.{direction}{name}") for name in ("Wx", "Wh", "b", "bh", "p")}
        if w["b"] is not None and w["bh"] is None:
            w["bh"] = np.zeros_like(w["b"])
        if isinstance(layer, LSTM) and layer.coupled_input_forget:
            w = {name: None if array is None else _with_forget(array, layer.hidden_size) for name, array in w.items()}
        biases = None if w["b"] is None else np.concatenate([w["b"], w["bh"]])
        for name, array in {"W": w["Wx"], "R": w["Wh"], "B": biases, "P": w["p"]}.items():
            if array is not None:
                found.setdefault(name, []).append(array)
    return {name: np.stack(arrays) for name, arrays in found.items()}


def _with_forget(array: Host, H: int) -> Host:
    """Zeros for the forget gate, the third, which ONNX's coupled LSTM has and does not look at."""
    return np.concatenate([array[: 2 * H], np.zeros_like(array[:H]), array[2 * H :]])


def _attributes(layer: LSTM | GRU | RNN) -> dict[str, Any]:
    found: dict[str, Any] = {"hidden_size": layer.hidden_size, "direction": DIRECTION[layer.directions]}
    if layer.clip is not None:
        found["clip"] = float(layer.clip)
    if layer.activations is not None:
        found |= to_attributes(layer.activations)
    if isinstance(layer, LSTM) and layer.coupled_input_forget:
        found["input_forget"] = 1
    if isinstance(layer, GRU) and layer.reset_after:
        found["linear_before_reset"] = 1
    return found
