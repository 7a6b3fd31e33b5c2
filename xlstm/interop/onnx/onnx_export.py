"""Export to ONNX: LSTM, GRU and RNN as ONNX's own nodes, all other layers as a Scan.

A network runs on arrays that write nodes. Over time it becomes a Scan, whose body is one step.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params, leaves
from xlstm.cells import activations
from xlstm.data.writing import AnyPath
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Step
from xlstm.engines.tape import Widths
from xlstm.interop.common import Host, Layer, one_direction, part
from xlstm.interop.onnx import arrays, onnx_files
from xlstm.interop.onnx.arrays import BATCH, TIME, Array, OnnxGraph
from xlstm.interop.onnx.onnx_files import library
from xlstm.interop.recurrences import OneStep, run_by
from xlstm.layers.gated import Recurrent
from xlstm.layers.module import Forward, Module
from xlstm.layers.recurrent import GRU, LSTM, RNN
from xlstm.layers.sequence import Leaf, SequenceLayer, State, complete, nested
from xlstm.models.sequence import SequenceModel
from xlstm.recurrence.packing import Packing, Span

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
DIRECTIONS = {"forward": ("",), "reverse": ("reverse.",), "bidirectional": ("", "reverse.")}
# options of layers by attributes of nodes
FLAGS = {"input_forget": "coupled_input_forget", "linear_before_reset": "reset_after"}
# ONNX's names of activations, such as LeakyRelu. Both libraries take parameters in the same order,
# alpha, beta.
FUNCTIONS = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "affine": "Affine",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
    "hard_sigmoid": "HardSigmoid",
    "elu": "Elu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
Written = tuple[list[Array], dict[str, Array]]  # inputs and outputs of a graph
LAYER = checks.instance(Module, "a layer or a model")
OLDEST = 14  # the first opset on whose LSTM, GRU and RNN all current runtimes agree


def to_onnx(
    layer: Any,
    params: Params | None = None,
    path: AnyPath | None = None,
    *,
    lengths: bool = False,
    state: bool = True,
    step: bool = False,
    resets: bool = False,
    opset: int = 17,
    history: int | None = None,
) -> Any:
    """Export a layer, a model or an estimator as ONNX.

    The file computes `layer.forward(params, x, train=False)` in float32 and in the same layouts,
    for any batch size B and any number T of time steps. If an operator of ONNX expresses a layer,
    the layer becomes that operator. Other layers become a Scan, whose body is one step.

    Inputs and outputs:

    - The inputs are `x` (T, B, D), or (B, T, D) with `batch_first`, then the initial state and the
      lengths of the sequences. A language model has `tokens` of int64 in place of `x`.
    - The outputs are `y` and the final state.
    - A part of the state is named as in this library: as an input with a 0, such as `h0` and `c0`,
      and as an output without it (`x1` in a `CausalConv`). In a nested state, the position comes
      before the name, such as `0.1.C0` in a stack.
    - A layer without time takes `x` (T, B, D) and has no state.

    A TiRex or TiRex2 is exported as its univariate network, for the T tokens of its context and
    horizon: the input is `tokens` (B, T, 2P), and the output is `y` (B, T, Q, P).

    An estimator is exported with its scaling and without a state; its labels, its kind and other
    results of `fit` become metadata:

    - A classifier takes `x` of float64, (B, T, D) or a table (B, T), and returns `label` (B,) and
      `probabilities` (B, C). A classifier of steps returns (B, T) and (B, T, C), which mean nothing
      in the padding. A classifier of several labels returns (B, L) for both.
    - A regressor takes the same `x`, and returns `y` (B,) or (B, O).
    - A `TextModel` becomes its language model, with the vocabulary as metadata.
    - A `ZeroShotForecaster` becomes its network.

    A `Forecaster` takes the last N values of B series, `values` (B, N, C) of float64 without gaps.
    It returns `mean` (B, H, C) and `quantiles` (B, H, C, Q), as `predict` and `predict_quantiles`
    do for unnamed series with only these values. The covariates of `fit` are inputs, too, as
    float64: `past` (B, N, P), `future` (B, N + H, F) and `static` (B, S).

    Parameters
    ----------
    layer : Module or estimator
        A layer, a block, a stack, a model, or a fitted estimator.
    params : dict of str to array
        The parameters of a layer or model, on any backend; float64 is rounded to float32. Leave it
        out for an estimator, which has its own.
    path : path, optional
        The file to write, completely or not at all. If the weights take more than 2 GB, they are in
        a second file, named after the first with `.data` appended, and the result refers to it.
    lengths : bool
        Whether to add an input `lengths` (B,) of int32. Beyond the end of a sequence, `y` is then
        zero, and the final state is the state at the end.
    state : bool
        Whether the state is an input. Without it, each sequence starts from the state before the
        first step.
    step : bool
        Export one step instead of all steps, for streaming: `x` is (B, D), or `tokens` (B,), and
        `y` is (B, O).
    resets : bool
        Must be False: no operator of ONNX has resets within sequences. With `step`, the caller of
        the file can reset the state of a sequence before any step.
    opset : int
        The version of ONNX's operators, 14 or newer.
    history : int, optional
        Number N of values that a `Forecaster` takes, at least its window. The default has two
        parts. The first is the longest of its window, the steps of its linear autoregression, and
        four seasons. The second, before them, are the values whose errors decide the width of
        intervals: 40, or five horizons if that is more. Exponential smoothing begins with the first
        value.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ValueError
        A cell of your own uses a function that has no form in ONNX. Parameters are missing, surplus
        or misshapen. An option does not apply to the layer, or `resets` is True. The weights take
        more than 2 GB, and there is no `path`. The installed onnx does not know the opset. A
        forecaster uses the calendar, holidays or columns of text.
    TypeError
        `layer` is not a layer or a model, nor an estimator that can be saved to a file.
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
        raise ValueError(
            f"to_onnx: opset is {opset}, expected {OLDEST} to {newest}, the installed onnx's newest"
        )
    if resets is not False:
        raise ValueError(
            f"to_onnx: resets is {checks.shown(resets)}, expected False, as operators of ONNX have no"
            " resets; step=True writes one step, before which the caller can put the state back"
        )
    if history is not None and getattr(layer, "KIND", "") != "forecaster":
        raise ValueError(
            f"to_onnx: history is {checks.shown(history)}, expected None, as a"
            f" {type(layer).__name__} is no Forecaster"
        )
    metadata = {}
    signature = {}
    formula = None
    if hasattr(layer, "_for_export"):
        if params is not None or step:
            raise ValueError(
                "to_onnx: params and step are for layers and models, not for an estimator, expected"
                " neither; to_onnx(estimator.model_, estimator.params_, step=True) writes a step of"
                " its network alone"
            )
        options = {} if history is None else {"history": history}
        metadata, signature, formula = layer._for_export(lengths, **options)
        params = layer.params_
        layer = layer.model_
    weights: Params = {} if params is None else params
    LAYER("to_onnx", "layer", layer).check(weights)
    size = 4 * sum(math.prod(a.shape) for a in weights.values())
    if path is None and size > onnx_files.INSIDE:
        raise ValueError(
            f"to_onnx: path is None, expected a path, as a model without files holds at most"
            f" {onnx_files.INSIDE} bytes of weights, not {size}"
        )
    fixed = getattr(layer, "context_tokens", None)  # steps of a TiRex
    any_time = isinstance(layer, SequenceLayer) and fixed is None
    if (step or lengths) and formula is None and not any_time:
        raise ValueError(
            "to_onnx: step and lengths are for layers of any number of steps, expected neither for"
            f" a {type(layer).__name__}"
        )
    graph = OnnxGraph(opset)
    with graph.open(), run_by(_Scan(arrays)):
        p = {name: arrays.constant(to_numpy(a), np.float32) for name, a in weights.items()}
        if formula is not None:
            inputs, outputs = _estimator(layer, p, signature, formula)
        elif fixed is not None:
            inputs, outputs = _tirex(layer, p, fixed)
        else:
            inputs, outputs = _model(layer, p, state, lengths, step)
    model, constants = graph.model(inputs, outputs, type(layer).__name__)
    library().helper.set_model_props(model, metadata)
    onnx_files.finish(model, constants, path)
    return model


def _estimator(
    model: Any, p: Params, signature: Mapping[str, Any], formula: Callable[..., dict[str, Array]]
) -> Written:
    """Write an estimator with its network inside."""
    inputs = [
        Array(name, [arrays.OPEN.get(n, n) for n in dims], dtype)
        for name, (dims, dtype) in signature.items()
    ]
    _write_sizes(inputs)

    def run(x: Array, lengths: Array | None = None) -> Array:
        start = complete("to_onnx", arrays, "state", None, model.states, x.shape[1], p)
        x = x if model.symbols is not None else arrays.astype(x, np.float32)
        y, _ = _over_time(model, p, x, start, lengths)
        return arrays.astype(y, np.float64)

    return inputs, formula(arrays, run, *inputs)


def _tirex(model: Any, p: Params, T: int) -> Written:
    """Write the network of a TiRex over T tokens, with the batch first."""
    x = Array("tokens", (BATCH, T, model.input_size), np.float32)
    _write_sizes([x])
    state = complete("to_onnx", arrays, "state", None, model.states, BATCH, p)
    span = Span(arrays, Packing.of("to_onnx", None, T, BATCH))
    y, *_ = model.run(p, arrays.permute_dims(x, (1, 0, 2)), state, span)
    return [x], {"y": arrays.permute_dims(y, (1, 0, *range(2, y.ndim)))}


def _model(layer: Any, p: Params, state: bool, lengths: bool, step: bool) -> Written:
    """Write a layer or model over all steps, or for one step."""
    through_time = isinstance(layer, SequenceLayer)
    if step and (lengths or layer.directions != ("",)):
        name = "lengths" if lengths else "a reverse direction"
        raise ValueError(f"to_onnx: step is True, which does not go with {name}")
    outer = [BATCH, TIME] if getattr(layer, "batch_first", False) else [TIME, BATCH]
    outer = [BATCH] if step else outer
    if layer.symbols is not None:
        x = Array("tokens", outer, np.int64)
    else:
        x = Array("x", (*outer, layer.input_size), np.float32)
    inputs = [x]
    begin = _state(layer.states) if through_time else ()
    if state:
        inputs += leaves(begin)
    ends = Array("lengths", (BATCH,), np.int32) if lengths else None
    if ends is not None:
        inputs.append(ends)
    _write_sizes(inputs)
    if not through_time:
        return inputs, {"y": layer.apply(arrays, p, x)[0]}
    given_state = begin if state else None
    start = complete("to_onnx", arrays, "state", given_state, layer.states, BATCH, p)
    if step:
        y, end = layer.run_step(arrays, p, x, start)
    else:
        y, end = _over_time(layer, p, layer._swap(arrays, x), start, ends)
        y = y if layer.last else layer._swap(arrays, y)
    outputs = {"y": y}
    for before, after in zip(leaves(begin), leaves(end), strict=True):
        name = before.name.removesuffix("0")
        outputs[f"{name}1" if name == x.name else name] = after
    return inputs, outputs


def _write_sizes(inputs: Sequence[Array]) -> None:
    """Write the batch size and the number of steps as values, from the shape of an input."""
    graph = arrays.current()
    for name, size in arrays.OPEN.items():
        x = next((array for array in inputs if size in array.shape), None)
        if x is not None:
            axis = x.shape.index(size)
            (shape,) = graph.node("Shape", [x.name])
            bounds = [graph.enter([k], np.int64) for k in (axis, axis + 1)]
            graph.node("Slice", [shape, *bounds], [name])
            graph.fixed.add(name)


def _state(states: State, prefix: str = "") -> State:
    """Return the inputs of a state, with names such as `h0`, or `0.1.C0` in a nested state."""
    return tuple(
        Array(f"{prefix}{leaf.name}0", leaf.dims(BATCH).values(), np.float32)
        if isinstance(leaf, Leaf)
        else _state(leaf, f"{prefix}{k}.")
        for k, leaf in enumerate(states)
    )


def _over_time(
    layer: Any, p: Params, x: Array, start: State, lengths: Array | None
) -> tuple[Array, State]:
    """Write a layer or model over x (T, B, ...); return y, zero in the padding, and the final
    state.
    """
    if layer.symbols is not None and lengths is not None:  # padding may hold any symbol
        x = _where(_steps()[:, None] < lengths, x, 0)
    if isinstance(layer, SequenceModel):
        run = Forward(layer, arrays, p)
        x = run(layer.before, x) if layer.before else x
        y, end = _body(layer, layer.below("recurrent", p), x, start, lengths)
        y = run("head", y)
        if lengths is not None and not layer.last:
            y = _where(_steps()[:, None] < lengths, y, 0.0)
        return y, end
    if _is_native(layer):
        return _native(layer, p, x, start, lengths)
    if layer.directions == ("",):
        return _scan(functools.partial(layer.run_step, arrays, p), x, start, lengths)
    ends: list[State] = []
    for k in range(layer.num_layers):
        outputs = []
        for direction in layer.directions:
            forward, weights = one_direction(layer, p, k, direction)
            begin = tuple(s[len(ends) : len(ends) + 1] for s in start)
            step = functools.partial(forward.run_step, arrays, weights)
            y, end = _scan(step, x, begin, lengths, reverse=bool(direction))
            outputs.append(y)
            ends.append(end)
        x = arrays.concat(outputs, 2)
    return x, tuple(arrays.concat(some) for some in zip(*ends, strict=True))


def _body(
    model: SequenceModel, p: Params, x: Array, start: State, lengths: Array | None
) -> tuple[Array, State]:
    """Write the layers below a model's head; return the head's input, for all steps or the last,
    and the final state.
    """
    layer = model.recurrent
    if not model.last or isinstance(layer, Recurrent):
        y, end = _over_time(layer, p, x, start, lengths)
        return model._final(arrays, end[0], False) if model.last else y, end

    def step(x: Array, state: State) -> tuple[Array, State]:
        y, end = layer.run_step(arrays, p, x, state[0])
        return y, (end, y)  # the latest y is part of the state

    first = arrays.zeros((x.shape[1], layer.output_size))
    _, (end, y) = _scan(step, x, (start, first), lengths)
    return y, end


def _is_native(layer: Any) -> bool:
    """Return whether an operator of ONNX expresses a layer."""
    if type(layer) not in (LSTM, GRU, RNN) or layer._used(
        "layer_norm", "cell_clip", "zoneout", "proj_size"
    ):
        return False
    names = [activations.parse(text)[0] for text in layer.activations or ()]
    return all(name in FUNCTIONS or name == "linear" for name in names)


def _native(
    layer: Layer, p: Params, x: Array, start: State, lengths: Array | None
) -> tuple[Array, State]:
    """Write a layer as ONNX's own nodes, one for both directions; see `_over_time`."""
    graph = arrays.current()
    n = len(layer.directions)
    H = layer.hidden_size
    hosts = {name: graph.constants[a.name] for name, a in p.items()}
    ends: list[list[Array]] = []
    for k in range(layer.num_layers):
        begin = [s[k * n : (k + 1) * n] for s in start]
        inputs = {"X": x.name}
        for name, weights in _packed(layer, hosts, k).items():
            inputs[name] = graph.enter(weights, np.float32, f"{k}.{name}")
        # a constant state is zero, the operators' default
        if start[0].name not in graph.fixed:
            inputs |= {f"initial_{s}": a.name for s, a in zip(layer.STATES, begin, strict=True)}
        if lengths is not None:
            inputs["sequence_lens"] = lengths.name
        outputs = [f"{k}.Y", *(f"{k}.{s}" for s in layer.STATES)]
        # Missing inputs after the last present one are left out.
        last = max(map(INPUTS.index, inputs))
        names = [inputs.get(name, "") for name in INPUTS[: last + 1]]
        graph.node(type(layer).__name__, names, outputs, **_attributes(layer))
        T, B = x.shape[:2]
        y = Array(outputs[0], (T, n, B, H), np.float32)
        y = arrays.permute_dims(y, (0, 2, 1, 3)) if n > 1 else y
        x = arrays.reshape(y, (T, B, n * H))
        after = [Array(name, (n, B, H), np.float32) for name in outputs[1:]]
        if lengths is not None:
            # A sequence without steps ends in its initial state; onnxruntime returns 0, or
            # uninitialised memory.
            after = [_where(lengths > 0, a, b) for a, b in zip(after, begin, strict=True)]
        ends.append(after)
    return x, tuple(arrays.concat(some) for some in zip(*ends, strict=True))


def _scan(
    step: Callable[[Array, State], tuple[Array, State]],
    x: Array,
    start: State,
    lengths: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, State]:
    """Write a Scan of `step(x, state) -> (y, state)` over x (T, B, ...); return y (T, B, ...) and
    the final state.

    In the padding, y is zero and the state stays, so that the reverse direction begins at the
    sequence's end.
    """

    def whole(rows: list[Array], before: list[Array]) -> list[Array]:
        y, end = step(rows[0], nested(start, iter(before)))
        after = [arrays.reshape(a, b.shape) for a, b in zip(leaves(end), before, strict=True)]
        if lengths is not None:
            is_within = rows[1] < lengths
            after = [_where(is_within, a, b) for a, b in zip(after, before, strict=True)]
            y = _where(is_within, y, 0.0)
        return [*after, y]

    over = [x] if lengths is None else [x, _steps()]
    *final, y = arrays.scan(whole, over, [*leaves(start)], reverse)
    return y, nested(start, iter(final))


def _where(there: Array, new: Array, old: Any) -> Array:
    """Return `new` for the sequences (B,), or steps and sequences (T, B), that are `there`, else
    `old`.
    """
    axis = new.shape.index(BATCH)
    shape = (*(1,) * (axis + 1 - there.ndim), *there.shape, *(1,) * (new.ndim - axis - 1))
    key = tuple(None if n == 1 else slice(None) for n in shape)
    return arrays.where(there[key], new, old)


def _steps() -> Array:
    """Return the indices of the steps, (T,)."""
    graph = arrays.current()
    T = arrays.reshape(arrays.open_size("time"), ())
    (steps,) = graph.node("Range", [graph.enter(0, np.int64), T.name, graph.enter(1, np.int64)])
    return Array(steps, (TIME,), np.int64)


def _packed(layer: Layer, hosts: dict[str, Host], k: int) -> dict[str, list[Host]]:
    """Return W, R, B and P of layer k, each as an array for each direction."""
    packed: dict[str, list[Host]] = defaultdict(list)
    for direction in layer.directions:
        weights = part(layer, hosts, k, direction)
        if isinstance(layer, LSTM) and layer.coupled_input_forget:
            # ONNX's coupled LSTM has unused rows for the forget gate, the third gate.
            H = layer.hidden_size
            weights = {
                name: np.insert(array, [2 * H] * H, 0, axis=0) for name, array in weights.items()
            }
        packed["W"].append(weights["Wx"])
        packed["R"].append(weights["Wh"])
        if "b" in weights:
            b = weights["b"]
            packed["B"].append(np.concatenate([b, weights.get("bh", np.zeros_like(b))]))
        if "p" in weights:
            packed["P"].append(weights["p"])
    return packed


def _attributes(layer: Layer) -> dict[str, Any]:
    """Return the attributes of a layer's node."""
    directions = {ours: theirs for theirs, ours in DIRECTIONS.items()}
    attributes: dict[str, Any] = {
        "hidden_size": layer.hidden_size,
        "direction": directions[layer.directions],
    }
    if layer.clip is not None:
        attributes["clip"] = float(layer.clip)
    if layer.activations is not None:
        attributes |= _activations(layer.activations)
    return attributes | {name: 1 for name, ours in FLAGS.items() if getattr(layer, ours, False)}


def _activations(functions: Sequence[str]) -> dict[str, Any]:
    """Return activations as attributes of a node."""
    attributes: dict[str, list[Any]] = {
        key: [] for key in ("activations", "activation_alpha", "activation_beta")
    }
    for text in functions:
        name, values = activations.parse(text)
        if name == "linear":
            name = "affine"
            values = (1.0, 0.0)
        for key, value in zip(attributes, (FUNCTIONS[name], *values), strict=False):
            attributes[key].append(value)
    return {key: values for key, values in attributes.items() if values}


class _Scan(OneStep):
    """The engine of arrays that write ONNX; it puts a step into the body of a Scan."""

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Any]:
        """Write all steps; see `Engine`."""
        ((T, B),) = widths
        if T == 1:
            return super().forward(step, x, state, widths, keep)

        def forward_step(x: Array, state: State) -> tuple[Array, State]:
            y, after = ARRAY_API.step(step, x, state)
            return y, tuple(after)

        start = tuple(s.T for s in state)
        y, ends = _scan(forward_step, arrays.reshape(x, (T, B, x.shape[1])), start)
        return arrays.reshape(y, (T * B, step.P)), [s.T for s in ends], None
