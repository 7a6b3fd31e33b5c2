"""Layers and models as ONNX: recurrent layers as ONNX's own nodes, other networks by Scan.

A network runs on arrays that write nodes, and a recurrence within it becomes ONNX's Scan.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.cells import activations
from xlstm.data import writing
from xlstm.engines import engine
from xlstm.engines.cell_step import Step
from xlstm.engines.tape import Widths
from xlstm.interop.common import Exported, Host, Layer, prepared
from xlstm.interop.onnx import arrays
from xlstm.interop.onnx.arrays import BATCH, TIME, Array, Graph
from xlstm.interop.onnx.dataflow import names_into
from xlstm.interop.onnx.onnx_files import library
from xlstm.layers.recurrent import GRU, LSTM
from xlstm.layers.sequence import complete
from xlstm.models.sequence import SequenceModel
from xlstm.models.tirex import TiRex, TiRex2
from xlstm.recurrence.packing import Packing, Span

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
    if not OLDEST <= opset <= newest:
        raise ValueError(f"to_onnx: opset is {opset}, expected {OLDEST} to {newest}, the installed onnx's newest")
    if isinstance(layer, TiRex | TiRex2):
        if lengths:
            kind = type(layer).__name__
            raise ValueError(f"to_onnx: lengths is True, expected False: the tokens of a {kind} are fixed")
        layer.check(params)
        usual = (layer.context + getattr(layer, "horizon", 0)) // layer.patch_size
        tokens = usual if tokens is None else checks.size("to_onnx", "tokens", tokens)
        model = _network(layer, params, tokens, opset)
    elif tokens is not None:
        problem = f"tokens is {checks.shown(tokens)}, expected None for a {type(layer).__name__}"
        raise ValueError(f"to_onnx: {problem}, which takes any number of steps")
    else:
        exported = prepared("to_onnx", "ONNX", layer, params, {"proj_size": 0})
        last = isinstance(layer, SequenceModel) and layer.last
        model = _recurrent_network(exported, last, state, lengths, opset)
    if path is not None:
        writing.write(path, model.SerializeToString())
    return model


def _recurrent_network(exported: Exported, last: bool, state: bool, lengths: bool, opset: int) -> Any:
    """Return the model of a layer and its head; with `last` the head sees the final state of the last layer only."""
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
    return _closed(graph, [x, *starts.values(), *steps], results, name)


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


class _Scan:
    """The engine for arrays that write ONNX: the cell of a step in the body of a Scan."""

    name = "onnx"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step, or ""."""
        if step.xp is not arrays:
            return "it writes ONNX"
        return f"no Scan does {step.obstacle}" if step.obstacle or step.own else ""

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Any]:
        """Write all steps; see `Engine`."""
        ((T, B),) = widths
        G, H, outer = step.G, step.H, arrays.current()
        zx = arrays.reshape(x if "Wx" not in step.w else x @ step.w["Wx"].T, (T, B, G * H))
        starts = [s.T for s in state]
        body = Graph(outer.opset, outer)
        with body.open():
            before = [Array(body.name(), s.shape, s.dtype) for s in starts]
            now = Array(body.name(), (B, G * H), zx.dtype)
            sums = [arrays.permute_dims(arrays.reshape(now, (B, G, H)), (1, 0, 2)), _recurrent(step, before[0])]
            for k, name in enumerate(("b", "bh")):
                if name in step.added:
                    sums[k] = sums[k] + arrays.reshape(step.w[name], (G, 1, H))
            results = step.cell.gates(arrays, *sums, *before)[: len(before)]
            after = [arrays.reshape(a, s.shape) for a, s in zip(results, before, strict=True)]
        graph = _subgraph(body, [*before, now], [*after, after[0]])
        names = [a.name for a in (*starts, zx)]
        *ends, y = outer.node("Scan", names, len(before) + 1, body=graph, num_scan_inputs=1)
        after = [Array(name, s.shape, s.dtype).T for name, s in zip(ends, starts, strict=True)]
        return arrays.reshape(Array(y, (T, B, H), zx.dtype), (T * B, H)), after, None

    def backward(self, tape: Any, dy: Any, dstate: Any) -> Any:
        """Refuse: a graph has no gradients."""
        raise NotImplementedError


def _recurrent(step: Step, h: Array) -> Array:
    """Return the products of h (B, H), (G, B, H)."""
    B, (G, H), Wh = h.shape[0], (step.G, step.H), step.w["Wh"]
    if Wh.ndim == 2:
        return arrays.permute_dims(arrays.reshape(h @ Wh.T, (B, G, H)), (1, 0, 2))
    N, K = Wh.shape[1:3]
    by_head = arrays.reshape(arrays.permute_dims(Wh, (1, 3, 0, 2)), (N, K, G * K))
    z = arrays.permute_dims(arrays.reshape(h, (B, N, K)), (1, 0, 2)) @ by_head  # (N, B, G K)
    return arrays.reshape(arrays.permute_dims(arrays.reshape(z, (N, B, G, K)), (2, 1, 0, 3)), (G, B, H))


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    """Let recurrences of arrays that write ONNX run."""
    scan: Any = _Scan()
    engine.ENGINES.insert(0, scan)
    try:
        yield
    finally:
        engine.ENGINES.remove(scan)


def _network(model: Any, params: Params, tokens: int, opset: int) -> Any:
    """Return the model of a network with the batch first, for so many tokens of each sequence of any batch."""
    graph = Graph(opset)
    x = Array("tokens", (BATCH, tokens, model.input_size), "float32")
    span = Span(arrays, Packing.of("to_onnx", None, tokens, BATCH))
    (shape,) = graph.node("Shape", ["tokens"])
    graph.node("Slice", [shape, *(graph.enter([k], "int64") for k in (0, 1))], ["batch"])
    with graph.open(), _engine():
        p = {name: arrays.constant(to_numpy(a), "float32") for name, a in params.items()}
        state = complete("to_onnx", arrays, "state", None, model.states, BATCH, p)
        y, _, _ = model.run(p, arrays.permute_dims(x, (1, 0, 2)), state, span)
        y = arrays.permute_dims(y, (1, 0, *range(2, y.ndim)))
    return _closed(graph, [x], {"y": y}, type(model).__name__)


def _closed(graph: Graph, inputs: Sequence[Array], outputs: Mapping[str, Array], name: str) -> Any:
    """Return the checked model of a graph, with outputs of these names."""
    onnx = library()
    for output, array in outputs.items():
        graph.node("Identity", [array.name], [output])
    ends = [Array(output, array.shape, array.dtype) for output, array in outputs.items()]
    proto = _subgraph(graph, inputs, ends, name)
    used = {name for node in proto.node for name in names_into(node)}
    constants = [onnx.numpy_helper.from_array(a, name) for name, a in graph.constants.items() if name in used]
    proto.initializer.extend(constants)
    versions = [onnx.helper.make_opsetid("", graph.opset)]
    ir_version = onnx.helper.find_min_ir_version_for(versions)
    model = onnx.helper.make_model(proto, producer_name="xlstm", opset_imports=versions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def _subgraph(graph: Graph, inputs: Sequence[Array], outputs: Sequence[Array], name: str = "step") -> Any:
    """Return a graph of those of its nodes that the outputs need; one that is there twice gets a name of its own."""
    named = [a.name for a in outputs]
    for k, one in enumerate(named):
        if one in named[:k] or any(one == a.name for a in inputs):
            named[k] = graph.node("Identity", [one])[0]
    needed, nodes = set(named), []
    for node in reversed(graph.nodes):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(names_into(node))
    results = [_value(one, a) for one, a in zip(named, outputs, strict=True)]
    return library().helper.make_graph(nodes[::-1], name, [_value(a.name, a) for a in inputs], results)


def _value(name: str, array: Array) -> Any:
    helper = library().helper
    dims = [{BATCH: "batch", TIME: "time"}.get(n, n) for n in array.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims)
