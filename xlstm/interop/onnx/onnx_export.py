"""Layers, models and estimators as ONNX: LSTM, GRU and RNN as ONNX's own nodes, all else by Scan.

A network runs on arrays that write nodes. Over time it becomes a Scan, in whose body one step of it
is written.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params, leaves
from xlstm.cells import activations
from xlstm.data import writing
from xlstm.engines import engine
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Step
from xlstm.engines.tape import Widths
from xlstm.interop.common import Exported, Host, Layer
from xlstm.interop.onnx import arrays
from xlstm.interop.onnx.arrays import BATCH, TIME, Array, Graph
from xlstm.interop.onnx.onnx_files import library
from xlstm.layers.gated import Recurrent
from xlstm.layers.linear import Embedding
from xlstm.layers.module import Forward, Module
from xlstm.layers.recurrent import GRU, LSTM, RNN
from xlstm.layers.sequence import Leaf, SequenceLayer, State, complete, nested
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import SequenceModel
from xlstm.models.tirex import TiRex, TiRex2
from xlstm.recurrence.packing import Packing, Span

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
DIRECTIONS = {"forward": ("",), "reverse": ("reverse.",), "bidirectional": ("", "reverse.")}
# ONNX's name of each of our activations, such as LeakyRelu. Both take their parameters in the same
# order, alpha, beta.
FUNCTIONS = {
    name: name.title().replace("_", "")
    for name in (
        *(
            "sigmoid",
            "tanh",
            "relu",
            "affine",
            "leaky_relu",
            "thresholded_relu",
            "scaled_tanh",
            "hard_sigmoid",
        ),
        *("elu", "softsign", "softplus"),
    )
}
Exporting = tuple[list[Array], Callable[[Params], dict[str, Array]]]
LAYER = checks.instance(Module, "a layer or a model")
OLDEST = 14  # the first opset whose LSTM, GRU and RNN all runtimes of today agree on


def to_onnx(
    layer: Any,
    params: Params | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    lengths: bool = False,
    state: bool = True,
    step: bool = False,
    opset: int = 17,
) -> Any:
    """Write a layer, a model or an estimator as ONNX.

    The file computes what `layer.forward(params, x, train=False)` does, in float32 and in the same
    layouts, for any batch size B and any number T of time steps. A layer that an operator of ONNX
    expresses becomes that operator; all else becomes a Scan, whose body is one step.

    Its inputs are `x` (T, B, D), or (B, T, D) with `batch_first`, then the initial state and the
    lengths of the sequences. A language model has `tokens` in the place of `x`, of int64. Its
    outputs are `y` and the final state. A part of the state has the name of our state with a 0 as
    an input, such as `h0` and `c0`, and without it as an output (`x1` in a `CausalConv`); where
    states are nested, the places of a part stand before its name, such as `0.1.C0` in a stack. A
    layer without time takes `x` (T, B, D) and has no state.

    A TiRex or TiRex2 is written as its univariate network, for the T tokens of its context and
    horizon: its input is `tokens` (B, T, 2P), its output `y` (B, T, Q, P).

    An estimator is written with its scaling, without a state, and with its labels, its kind and
    what else `fit` found as metadata. A classifier and a regressor take `x` of float64, (B, T, D)
    or a table (B, T), and return `label` (B,) and `probabilities` (B, C), or `y` (B,) or (B, O). A
    classifier of steps returns (B, T) and (B, T, C), which mean nothing past the end of a sequence,
    and one of several labels (B, L) both times. A `Forecaster` takes what its `export_inputs`
    returns, and returns `mean` (B, H, C) and `quantiles` (B, H, C, Q). A `TextModel` is its
    language model, with the vocabulary as metadata, and a `ZeroShotForecaster` its network.

    Parameters
    ----------
    layer : Module or estimator
        A layer, a block, a stack or a model; or an estimator that is fitted.
    params : dict of str to array
        The parameters of a layer or model, on any backend; float64 is rounded to float32. An
        estimator has its own.
    path : path, optional
        Where to write the file, whole or not at all.
    lengths : bool
        Whether there is the input `lengths` (B,) of int32: past the end of a sequence `y` is zero,
        and the final state is that at the end.
    state : bool
        Whether the state is an input; without it each sequence starts from the state before the
        first step.
    step : bool
        Write one step in the place of all, for streaming: `x` is (B, D), or `tokens` (B,), and `y`
        (B, O).
    opset : int
        Version of ONNX's operators, 14 or newer.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ValueError
        A cell of your own uses a function that is not written as ONNX, parameters are missing,
        surplus or misshapen, an option does not go with the layer, or the installed onnx does not
        know the opset.
    TypeError
        The layer is neither a layer nor a model, nor an estimator that is kept in files.
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
    about = {}
    given = {}
    formula = None
    if hasattr(layer, "for_export"):
        if params is not None or step:
            raise ValueError(
                "to_onnx: params and step are for layers and models, not for an estimator, expected"
                " neither; to_onnx(estimator.model_, estimator.params_, step=True) writes a step of"
                " its network alone"
            )
        about, given, formula = layer.for_export(lengths)
        layer, params = layer.model_, layer.params_
    weights: Params = {} if params is None else params
    LAYER("to_onnx", "layer", layer).check(weights)
    if formula is not None:
        inputs, outputs = _of_estimator(layer, given, formula)
    elif isinstance(layer, TiRex | TiRex2):
        inputs, outputs = _of_tirex(layer, lengths)
    else:
        inputs, outputs = _of_model(layer, state, lengths, step)
    graph = Graph(opset)
    with _writing(graph, inputs):
        found = outputs(
            {name: arrays.constant(to_numpy(a), np.float32) for name, a in weights.items()}
        )
    model = graph.model(inputs, found, type(layer).__name__)
    library().helper.set_model_props(model, about)
    if path is not None:
        writing.write(path, model.SerializeToString())
    return model


def _of_estimator(
    model: Any, given: Mapping[str, Any], formula: Callable[..., dict[str, Array]]
) -> Exporting:
    """Return the inputs of an estimator, and the function that writes it around its network."""
    inputs = [
        Array(name, [arrays.OPEN.get(n, n) for n in dims], dtype)
        for name, (dims, dtype) in given.items()
    ]

    def outputs(p: Params) -> dict[str, Array]:
        def run(x: Array, lengths: Array | None = None) -> Array:
            start = complete("to_onnx", arrays, "state", None, model.states, BATCH, p)
            y, _ = _over_time(model, p, arrays.astype(x, np.float32), start, lengths)
            return arrays.astype(y, np.float64)

        return formula(arrays, run, *inputs)

    return inputs, outputs


def _of_tirex(model: TiRex | TiRex2, lengths: bool) -> Exporting:
    """Return the input of a network with the batch first, and the function that writes it."""
    if lengths:
        kind = type(model).__name__
        raise ValueError(
            f"to_onnx: lengths is True, expected False: the tokens of a {kind} are fixed"
        )
    T = (model.context + getattr(model, "horizon", 0)) // model.patch_size
    x = Array("tokens", (BATCH, T, model.input_size), np.float32)

    def outputs(p: Params) -> dict[str, Array]:
        state = complete("to_onnx", arrays, "state", None, model.states, BATCH, p)
        span = Span(arrays, Packing.of("to_onnx", None, T, BATCH))
        y, *_ = model.run(p, arrays.permute_dims(x, (1, 0, 2)), state, span)
        return {"y": arrays.permute_dims(y, (1, 0, *range(2, y.ndim)))}

    return [x], outputs


def _of_model(layer: Any, state: bool, lengths: bool, step: bool) -> Exporting:
    """Return the inputs of a layer or model over all steps, or for one of them, and the function
    that writes it.
    """
    through_time = isinstance(layer, SequenceLayer)
    if (step or lengths) and not through_time:
        raise ValueError(
            f"to_onnx: step and lengths are not for a {type(layer).__name__}, which has no time"
        )
    if step and (lengths or layer.directions != ("",)):
        name = "lengths" if lengths else "a reverse direction"
        raise ValueError(f"to_onnx: step is True, which does not go with {name}")
    outer = (
        (BATCH,)
        if step
        else (BATCH, TIME)
        if getattr(layer, "batch_first", False)
        else (TIME, BATCH)
    )
    is_text = isinstance(layer, xLSTMLanguageModel | Embedding)
    x = (
        Array("tokens", outer, np.int64)
        if is_text
        else Array("x", (*outer, layer.input_size), np.float32)
    )
    begin = _named(layer.states) if through_time else ()
    ends = Array("lengths", (BATCH,), np.int32) if lengths else None

    def outputs(p: Params) -> dict[str, Array]:
        if not through_time:
            return {"y": layer.apply(arrays, p, x)[0]}
        start = complete(
            "to_onnx", arrays, "state", begin if state else None, layer.states, BATCH, p
        )
        if step:
            y, end = layer.run_step(arrays, p, x, start)
        else:
            y, end = _over_time(layer, p, layer._swap(arrays, x), start, ends)
            y = layer._swap(arrays, y)
        return {
            "y": y,
            **{_end(a.name, x.name): b for a, b in zip(leaves(begin), leaves(end), strict=True)},
        }

    return [x, *(leaves(begin) if state else ()), *([] if ends is None else [ends])], outputs


def _named(states: State, prefix: str = "") -> State:
    """Return the inputs of a state: `h0`, or the places of its parts before that, such as
    `0.1.C0`.
    """
    return tuple(
        (
            Array(
                f"{prefix}{leaf.name}0",
                (*leaf.before.values(), BATCH, *leaf.after.values()),
                np.float32,
            )
            if isinstance(leaf, Leaf)
            else _named(leaf, f"{prefix}{k}.")
        )
        for k, leaf in enumerate(states)
    )


def _end(begin: str, x: str) -> str:
    """Return the name of a part of the final state: `h` for `h0`, and `x1` where the input has the
    name.
    """
    name = begin.removesuffix("0")
    return f"{name}1" if name == x else name


def _over_time(
    layer: Any, p: Params, x: Array, start: State, lengths: Array | None
) -> tuple[Array, State]:
    """Write a layer or model over x (T, B, ...): return y, zero past the end of a sequence, and the
    final state.
    """
    has_head = isinstance(layer, SequenceModel)
    native = _is_native(layer.recurrent if has_head else layer)
    if has_head and (layer.last or native or layer.directions != ("",)):
        run = Forward(layer, arrays, p)
        x = x if layer.inputs is None else run("input", x)
        y, end = _body(layer, layer.below("recurrent", p), x, start, lengths)
        y = run("head", y)
        return (
            y if layer.last or lengths is None else _where(_steps()[:, None] < lengths, y, 0.0)
        ), end
    if native:
        return _native(layer, p, x, start, lengths)
    if layer.directions == ("",):
        return _scan(functools.partial(layer.run_step, arrays, p), x, start, lengths)
    ends: list[State] = []
    for k in range(layer.num_layers):
        outputs = []
        for direction, cell in layer.cells.items():
            own = {"num_layers": 1, "bidirectional": False, "reverse": False, "dropout": 0.0}
            one = replace(layer, input_size=x.shape[2], activations=cell.activations or None, **own)
            weights = {
                f"0.{last}": p[name] for last, name in layer.names[f"{k}.{direction}"[:-1]].items()
            }
            begin = tuple(s[len(ends) : len(ends) + 1] for s in start)
            step = functools.partial(one.run_step, arrays, weights)
            y, end = _scan(step, x, begin, lengths, reverse=bool(direction))
            outputs.append(y)
            ends.append(end)
        x = arrays.concat(outputs, 2)
    return x, tuple(arrays.concat(some) for some in zip(*ends, strict=True))


def _body(
    model: SequenceModel, p: Params, x: Array, start: State, lengths: Array | None
) -> tuple[Array, State]:
    """Write what is below the head of a model: return its input, for all steps or for the last, and
    the final state.
    """
    layer = model.recurrent
    if not model.last or isinstance(layer, Recurrent):
        y, end = _over_time(layer, p, x, start, lengths)
        return model._final(arrays, end[0], False) if model.last else y, end

    def step(x: Array, state: State) -> tuple[Array, State]:
        y, end = layer.run_step(arrays, p, x, state[0])
        return y, (end, y)  # the latest y is a part of the state

    _, (end, y) = _scan(step, x, (start, arrays.zeros((BATCH, layer.output_size))), lengths)
    return y, end


def _is_native(layer: Any) -> bool:
    """Return whether an operator of ONNX does what a layer does."""
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
    exported = Exported(layer, {name: graph.constants[a.name] for name, a in p.items()}, None)
    ends: list[list[Array]] = []
    for k in range(layer.num_layers):
        begin = [s[k * n : (k + 1) * n] for s in start]
        named = {
            name: graph.enter(a, np.float32, f"{k}.{name}")
            for name, a in _packed(exported, k).items()
        }
        named["X"] = x.name
        # a constant one is zero, which is the operators' default
        if start[0].name not in graph.fixed:
            named |= {f"initial_{s}": a.name for s, a in zip(layer.STATES, begin, strict=True)}
        if lengths is not None:
            named["sequence_lens"] = lengths.name
        outputs = [f"{k}.Y", *(f"{k}.{s}" for s in layer.STATES)]
        graph.node(type(layer).__name__, _inputs(named), outputs, **_attributes(layer))
        T = x.shape[0]
        y = Array(outputs[0], (T, n, BATCH, H), np.float32)
        x = arrays.reshape(arrays.permute_dims(y, (0, 2, 1, 3)) if n > 1 else y, (T, BATCH, n * H))
        after = [Array(name, (n, BATCH, H), np.float32) for name in outputs[1:]]
        if lengths is not None:
            # A sequence without steps ends in the state it began with; onnxruntime says 0, or what
            # is in memory.
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

    Past the end of a sequence y is zero and the state stays, so that the reverse direction begins
    at that end.
    """
    outer = arrays.current()
    flat = [*leaves(start)]
    body = Graph(outer.opset, outer)
    over = [x] if lengths is None else [x, _steps()]
    with body.open():
        before, now = (
            [Array(body.name(), a.shape[k:], a.dtype) for a in some]
            for k, some in ((0, flat), (1, over))
        )
        y, end = step(now[0], nested(start, iter(before)))
        after = [arrays.reshape(a, b.shape) for a, b in zip(leaves(end), before, strict=True)]
        if lengths is not None:
            after = [_where(now[1] < lengths, a, b) for a, b in zip(after, before, strict=True)]
            y = _where(now[1] < lengths, y, 0.0)
    options: dict[str, Any] = {
        "body": body.part([*before, *now], [*after, y]),
        "num_scan_inputs": len(over),
    }
    if reverse:
        options |= {"scan_input_directions": [1] * len(over), "scan_output_directions": [1]}
    *ends, ys = outer.node("Scan", [a.name for a in (*flat, *over)], len(flat) + 1, **options)
    found = [Array(name, s.shape, s.dtype) for name, s in zip(ends, flat, strict=True)]
    return Array(ys, (x.shape[0], *y.shape), y.dtype), nested(start, iter(found))


def _where(there: Array, new: Array, old: Any) -> Array:
    """Return `new` in the sequences, or also the steps, that are `there` (B,) or (T, B), else
    `old`.
    """
    axis = new.shape.index(BATCH)
    shape = (*(1,) * (axis + 1 - there.ndim), *there.shape, *(1,) * (new.ndim - axis - 1))
    key = tuple(None if n == 1 else slice(None) for n in shape)
    chosen: Array = arrays.where(there[key], new, old)
    return chosen


def _steps() -> Array:
    """Return the numbers of the steps, (T,)."""
    graph = arrays.current()
    T = arrays.reshape(arrays.open_size("time"), ())
    (steps,) = graph.node("Range", [graph.enter(0, np.int64), T.name, graph.enter(1, np.int64)])
    return Array(steps, (TIME,), np.int64)


def _inputs(named: Mapping[str, str]) -> list[str]:
    """Return the names of a node's inputs in their order, without those behind the last one that is
    there.
    """
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
            weights = {
                name: np.insert(array, [2 * H] * H, 0, axis=0) for name, array in weights.items()
            }
        theirs = {"W": weights["Wx"], "R": weights["Wh"]}
        if "b" in weights:
            theirs["B"] = np.concatenate(
                [weights["b"], weights.get("bh", np.zeros_like(weights["b"]))]
            )
        if "p" in weights:
            theirs["P"] = weights["p"]
        for name, array in theirs.items():
            packed.setdefault(name, []).append(array)
    return packed


def _attributes(layer: Layer) -> dict[str, Any]:
    """Return the attributes of a node."""
    directions = {ours: theirs for theirs, ours in DIRECTIONS.items()}
    attributes: dict[str, Any] = {
        "hidden_size": layer.hidden_size,
        "direction": directions[layer.directions],
    }
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
    attributes: dict[str, list[Any]] = {
        "activations": [],
        "activation_alpha": [],
        "activation_beta": [],
    }
    for text in functions:
        name, values = activations.parse(text)
        if name == "linear":
            name = "affine"
            values = (1.0, 0.0)
        if name not in FUNCTIONS:
            known = ", ".join(["linear", *FUNCTIONS])
            raise ValueError(
                f"to_onnx: activation {text!r} is none that ONNX has, which are {known}"
            )
        for key, value in zip(attributes, (FUNCTIONS[name], *values), strict=False):
            attributes[key].append(value)
    return {key: values for key, values in attributes.items() if values}


class _Scan(engine.Engine):
    """The engine for arrays that write ONNX: the reference engine's step in the body of a Scan."""

    name = "onnx"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step, or ""."""
        return "" if step.xp is arrays else "it writes ONNX"

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Any]:
        """Write all steps; see `Engine`."""
        ((T, B),) = widths

        def one(x: Array, state: State) -> tuple[Array, State]:
            y, after = ARRAY_API.step(step, x, state)
            return y, tuple(after)

        start = tuple(s.T for s in state)
        if T == 1:
            y, ends = one(x, start)
        else:
            y, ends = _scan(one, arrays.reshape(x, (T, B, x.shape[1])), start)
        return arrays.reshape(y, (T * B, step.P)), [s.T for s in ends], None

    def backward(self, tape: Any, dy: Any, dstate: Any) -> Any:
        """Refuse: a graph has no gradients."""
        raise NotImplementedError


@contextlib.contextmanager
def _writing(graph: Graph, inputs: Sequence[Array]) -> Iterator[None]:
    """Write what arrays do in this context to a graph, and let their recurrences run."""
    for name, size in arrays.OPEN.items():
        x = next((one for one in inputs if size in one.shape), None)
        if x is not None:
            axis = x.shape.index(size)
            (shape,) = graph.node("Shape", [x.name])
            graph.node(
                "Slice", [shape, *(graph.enter([k], np.int64) for k in (axis, axis + 1))], [name]
            )
            graph.fixed.add(name)
    scan: Any = _Scan()
    engine.ENGINES.insert(0, scan)
    try:
        with graph.open():
            yield
    finally:
        engine.ENGINES.remove(scan)
