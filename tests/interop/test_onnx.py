"""ONNX in and out: the operators' own cases, layers and TiRex in onnxruntime, bits there and back."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
from dataclasses import dataclass, replace
from unittest.mock import Mock

import numpy as np
import pytest

import xlstm
from tests.conftest import DATA, later
from tests.interop.bits import same_bits
from tests.registry import EVERY, make, numbered, pairwise
from xlstm.arrays.namespace import leaves
from xlstm.cells.activations import GATE_ACTIVATIONS
from xlstm.cells.cell import Cell
from xlstm.cli import export_import
from xlstm.estimators import (
    Forecaster,
    SequenceClassifier,
    SequenceRegressor,
    TextModel,
    ZeroShotForecaster,
)
from xlstm.interop import tirex
from xlstm.interop.onnx import from_onnx, onnx_files, to_onnx
from xlstm.interop.onnx.arrays import OnnxGraph
from xlstm.interop.onnx.onnx_export import INPUTS
from xlstm.layers.blocks.block import Backbone, Block
from xlstm.layers.conv import CausalConv
from xlstm.layers.gated import Recurrent
from xlstm.layers.linear import HeadwiseLinear
from xlstm.layers.norm import LayerNorm
from xlstm.layers.sequence import Leaf, SequenceLayer
from xlstm.models import SequenceModel, TiRex

onnx = pytest.importorskip("onnx")
onnxruntime = later("onnxruntime")
pytestmark = pytest.mark.usefixtures("interpreted")

T = 6
B = 5
D = 3
H = 4
SMALL = TiRex(24, 1, 8, patch_size=2, quantiles=(0.2, 0.5), input_ff_size=5, context=6)
KINDS = {"LSTM": xlstm.LSTM, "GRU": xlstm.GRU, "RNN": xlstm.RNN}
# Activations that ONNX has, with other parameters than the usual.
FUNCTIONS = (
    *("relu", "tanh", "sigmoid", "softsign", "softplus", "linear", "leaky_relu(0.3)", "elu(0.6)"),
    *(
        "affine(0.75, 0.125)",
        "thresholded_relu(0.2)",
        "scaled_tanh(1.3, 0.7)",
        "hard_sigmoid(0.3, 0.4)",
    ),
)


def session(model):
    return onnxruntime.InferenceSession(
        model if isinstance(model, str) else model.SerializeToString(),
        providers=["CPUExecutionProvider"],
    )


def normal(rng, *shape):
    return (0.5 * rng.standard_normal(shape)).astype(np.float32)


def close(found, expected):
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# ---- the operators' own cases


def operator_cases():
    """The cases of three operators; `collect_testcases` would build those of all, for seconds and
    with warnings.
    """
    from onnx.backend.test.case import node

    for kind in KINDS:
        importlib.import_module(f"onnx.backend.test.case.node.{kind.lower()}")
    return {
        case.name: case for case in node._NodeTestCases if case.model.graph.node[0].op_type in KINDS
    }


CASES = operator_cases()


assert len(CASES) >= 18


@pytest.mark.parametrize("name", sorted(CASES))
def test_operator_case(name):
    case = CASES[name]
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    node = model.graph.node[0]
    for arrays, expected in case.data_sets:
        inputs = dict(zip([i.name for i in model.graph.input], arrays, strict=True))
        for weight in ("W", "R", "B", "P"):  # inputs there, constants in a model
            if weight in inputs:
                model.graph.initializer.append(onnx.numpy_helper.from_array(inputs[weight], weight))
        layer, params = from_onnx(model)
        given = [inputs[s] for s in ("initial_h", "initial_c") if s in inputs]
        y, state, _ = layer.forward(
            params, inputs["X"], tuple(given) or None, lengths=inputs.get("sequence_lens")
        )
        n = len(layer.directions)
        y = y.reshape(*y.shape[:2], n, -1)
        if layer.batch_first:  # layout=1 is batch first in the states, too
            state = [s.transpose(1, 0, 2) for s in state]
        else:
            y = y.transpose(0, 2, 1, 3)
        found = dict(zip(("Y", "Y_h", "Y_c"), (y, *state), strict=False))
        for output, values in zip([o for o in node.output if o], expected, strict=True):
            np.testing.assert_allclose(found[output], values, rtol=case.rtol, atol=case.atol)


# ---- exports


def configurations():
    """Layers in which every two values of two options that ONNX has occur together, with all of its
    functions.
    """
    functions = itertools.cycle(FUNCTIONS)
    shared = (
        "num_layers",
        "direction",
        "batch_first",
        "bias",
        "recurrent_bias",
        "clip",
        "activations",
        "dropout",
    )
    for kind in KINDS:
        for options in pairwise(
            kind, (*shared, "peepholes", "coupled_input_forget", "reset_after")
        ):
            if options["activations"] is not None:
                sets = 2 if options["direction"] == "bidirectional" else 1
                options["activations"] = tuple(
                    itertools.islice(functions, sets * len(KINDS[kind].CELL.activations))
                )
            yield make(kind, options, D, H)


LAYERS = list(configurations())


def draw_params(layer, rng):
    """Small parameters, so that no activation lets a state grow."""
    shapes = {k: tuple(v.shape) for k, v in layer.init(backend="numpy").items()}
    return {name: 0.6 * normal(rng, *shape) for name, shape in shapes.items()}


WHOLE = {"layer_norm": True, "zoneout": 0.2, "recurrent_dropout": 0.1}
STACK = xlstm.xLSTMStack(32, 2, slstm_at=[1], num_heads=2)


def has_blocks(model):
    """Whether blocks are in it, whose norms of as few numbers as the registry's have take digits
    from float32.
    """
    return isinstance(
        getattr(model, "recurrent", getattr(model, "backbone", model)), Block | Backbone
    )


# Layers of one node each, then those of the registry, then wider blocks and other options in the
# body of a Scan.
MODELS = [
    *LAYERS,
    *(model for model in EVERY if not has_blocks(model)),
    xlstm.LSTM(
        D,
        16,
        2,
        bidirectional=True,
        peepholes=True,
        proj_size=12,
        cell_clip=1.0,
        batch_first=True,
        **WHOLE,
    ),
    xlstm.LSTM(D, 16, reverse=True, coupled_input_forget=True, **WHOLE),
    xlstm.GRU(D, 16, 2, activations=("hard_sigmoid", "selu"), **WHOLE),
    xlstm.RNN(D, 16, clip=2.0, batch_first=True, bidirectional=True, **WHOLE),
    xlstm.sLSTM(
        D, 8, 2, num_heads=4, forget_gate="exponential", batch_first=True, bidirectional=True
    ),
    xlstm.mLSTM(D, 8, 2, num_heads=2, qk_size=4, eps=1e-3, batch_first=True),
    xlstm.mLSTM(D, 8, forget_gate="exponential", bias=False),
    xlstm.mLSTMBlock(32, 2, conv_kernel_size=1, bias=True),
    xlstm.sLSTMBlock(32, 2, conv_kernel_size=0, ffn_activation="silu"),
    xlstm.xLSTMLarge(32, 2, 2, bias=True),
    CausalConv(D, silu=True),
    SequenceModel(STACK, 2, last=True, inputs=D),
    SequenceModel(xlstm.sLSTM(8, 8, reverse=True, batch_first=True), 2, last=True, inputs=D),
    xlstm.xLSTMLanguageModel(STACK, 7),
    xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(32, 1, 2), 7, tied=True, logit_cap=5.0),
    HeadwiseLinear(32, 4, bias=True),
    LayerNorm(32, bias=True),
]


def state_inputs(states, prefix=""):
    """The names of the inputs of a state."""
    for k, leaf in enumerate(states):
        yield from (
            [f"{prefix}{leaf.name}0"]
            if isinstance(leaf, Leaf)
            else state_inputs(leaf, f"{prefix}{k}.")
        )


def draw_input(model, rng, B, T=None):
    outer = (B,) if T is None else (B, T) if getattr(model, "batch_first", False) else (T, B)
    if model.symbols is not None:
        return {"tokens": rng.integers(0, 7, outer)}
    return {"x": 2 * normal(rng, *outer, model.input_size)}


def spoil(x, lengths):
    """Put NaN, or a symbol that there is not, past the end of sequences, which must not matter."""
    wrong = np.nan if x.dtype == np.float32 else 99
    x[np.arange(x.shape[1]) >= lengths[:, None]] = wrong


@pytest.mark.parametrize("model", **numbered(MODELS))
def test_every_model_runs_in_onnxruntime(model, rng):
    """It does with a state and lengths and without, for any batch and time, and for one step, in
    two opsets.
    """
    params = {
        name: (a + 0.2 * normal(rng, *a.shape)).astype("f4")
        for name, a in model.init(backend="numpy").items()
    }
    through_time = isinstance(model, SequenceLayer)
    forms = [(0, 0, 0), (1, 1, 0), (0, 1, 0), (1, 0, 1)] if through_time else [(0, 0, 0)]
    for state, lengths, step in forms:
        if step and model.directions != ("",):
            continue
        options = (
            {"state": bool(state), "lengths": bool(lengths), "step": bool(step)}
            if through_time
            else {}
        )
        run = session(to_onnx(model, params, opset=17 if state else 21, **options)).run
        for B, T in ((1, 1), (3, 7)):
            feed = draw_input(model, rng, B, None if step else T)
            (x,) = feed.values()
            start = None
            given = {}
            if state:
                (before,) = draw_input(model, rng, B, 4).values()
                start = model.forward(params, before, train=False)[1]
                feed |= dict(zip(state_inputs(model.states), leaves(start), strict=True))
            if lengths:
                given["lengths"] = feed["lengths"] = np.array(
                    [4, 0, T] if B == 3 else [T], np.int32
                )
                spoil(
                    x if getattr(model, "batch_first", False) else x.swapaxes(0, 1), feed["lengths"]
                )
            if not through_time:
                expected = [model(params, x)]
            else:
                y, end = model.step(params, x, start) if step else model(params, x, start, **given)
                expected = [y, *leaves(end)]
            for ours, theirs in zip(expected, run(None, feed), strict=True):
                (close if model in LAYERS else same)(theirs, ours)


@pytest.mark.parametrize("name", GATE_ACTIVATIONS)
def test_every_activation_is_written_in_a_step_and_in_a_scan(name, rng):
    for options, step in (({}, True), ({"layer_norm": True}, False)):
        layer = xlstm.RNN(D, H, activations=name, **options)
        params = draw_params(layer, rng)
        feed = draw_input(layer, rng, B, None if step else T)
        found = session(to_onnx(layer, params, state=False, step=step)).run(None, feed)
        y, end = (layer.step if step else layer)(params, feed["x"])
        for ours, theirs in zip((y, *end), found, strict=True):
            close(theirs, ours)


SEQUENCES = np.random.default_rng(0).normal(7.0, 3.0, (30, T, D))
SIZES = {"hidden_size": 8, "epochs": 1, "backend": "numpy"}


@pytest.mark.parametrize("cell", ["lstm", "slstm", "xlstm"])
@pytest.mark.parametrize("labels", [np.array(["down", "up"]), np.array([3, 5])])
def test_classifiers_with_scaling_and_labels(cell, labels):
    classifier = SequenceClassifier(cell=cell, **SIZES).fit(SEQUENCES, labels[np.arange(30) % 2])
    lengths = np.array([3, T, 1], np.int32)
    run = session(to_onnx(classifier, lengths=True)).run
    label, probabilities = run(None, {"x": SEQUENCES[:3], "lengths": lengths})
    some = [row[:n] for row, n in zip(SEQUENCES, lengths, strict=False)]
    np.testing.assert_array_equal(label, classifier.predict(some))
    close(probabilities, classifier.predict_proba(some))
    run = session(to_onnx(classifier))
    for x in (SEQUENCES[:1, :2], SEQUENCES[:4, :5]):
        close(run.run(["probabilities"], {"x": x})[0], classifier.predict_proba(x))
    assert json.loads(run.get_modelmeta().custom_metadata_map["classes_"]) == labels.tolist()


@pytest.mark.parametrize(
    "y", [SEQUENCES[:, :, 0] > 7, SEQUENCES[:, 0, :2] > 7], ids=["of steps", "several labels"]
)
@pytest.mark.parametrize("cell", ["lstm", "slstm"])
def test_classifiers_of_steps_and_with_several_labels(cell, y):
    classifier = SequenceClassifier(cell=cell, **SIZES).fit(SEQUENCES, y.astype(int))
    some = SEQUENCES[:4, :5]
    label, probabilities = session(to_onnx(classifier)).run(None, {"x": some})
    np.testing.assert_array_equal(label, classifier.predict(some))
    close(probabilities, classifier.predict_proba(some))


@pytest.mark.parametrize("columns", [1, 2])
def test_regressors_of_tables(columns):
    """The numbers are those of targets, and rows of a table have their own scaling for each
    step.
    """
    table = SEQUENCES[..., 0]
    regressor = SequenceRegressor(**SIZES).fit(
        table, 50 + (table[:, 0] if columns == 1 else table[:, :2])
    )
    for B in (1, 4):
        same(
            session(to_onnx(regressor)).run(None, {"x": table[:B]})[0], regressor.predict(table[:B])
        )
    for arguments, name in (
        ({"lengths": True}, "lengths"),
        ({"params": regressor.params_}, "params"),
    ):
        with pytest.raises(ValueError, match=name):
            to_onnx(regressor, **arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"candidates": ["smoothing", "theta"], "season": (4, 12)},
        {"candidates": ["linear", "smoothing", "network"], "season": 96, "least": 990.0},
        {"candidates": ["linear", "network"], "cell": "mlstm", "quantiles": (), "window": 8},
    ],
)
@pytest.mark.parametrize("beside", [(), ("past", "future", "static")])
def test_forecasters_from_values_alone(rng, options, beside):
    """All candidates, units and the width of intervals are in the graph, with float64, and a
    network where there is one.
    """
    N = 450  # a season of 96 steps needs 424
    season = np.sin(np.arange(N)[:, None] * np.pi / 6)
    values = 1000 + 5 * season + rng.normal(size=(N, 2)).cumsum(axis=0)
    shapes = {"past": (N, 1), "future": (N + 3, 2), "static": (1,)}
    covariates = {name: rng.normal(size=shapes[name]) for name in beside}
    forecaster = Forecaster(horizon=3, **SIZES, **options).fit(values, **covariates)
    model = to_onnx(forecaster, history=N - 20 if beside else None)
    weights = [a for a in model.graph.initializer if a.data_type == onnx.TensorProto.FLOAT]
    assert bool(weights) == ("network" in forecaster.chosen_)
    run = session(model)
    n = run.get_inputs()[0].shape[1]
    several = {"values": [values[-n:], values[-n - 9 : -9]]}
    for name, a in covariates.items():
        several[name] = [a, a] if name == "static" else [a[N - n :], a[N - n - 9 : len(a) - 9]]
    y, *quantiles = run.run(None, {name: np.stack(a) for name, a in several.items()})
    np.testing.assert_allclose(y, forecaster.predict(**several), rtol=0, atol=1e-6)
    assert len(quantiles) == bool(forecaster.quantiles)
    if quantiles:
        expected = forecaster.predict_quantiles(**several)
        np.testing.assert_allclose(quantiles[0], expected, rtol=0, atol=1e-6)


def test_what_no_file_of_a_forecaster_has(rng):
    forecaster = Forecaster(window=8, **SIZES).fit(rng.normal(size=90))
    for name in ("calendar", "holidays", "text"):
        other = copy.copy(forecaster)
        setattr(other, {"text": "categories_", "calendar": "calendar_"}.get(name, name), True)
        with pytest.raises(ValueError, match=f"Forecaster: it has .*{name}"):
            to_onnx(other)
    for layer, options in ((forecaster, {"history": 7}), (xlstm.LSTM(1, 2), {"history": 8})):
        with pytest.raises(ValueError, match="history is"):
            to_onnx(layer, **options)


def test_text_models_and_the_command_line(tmp_path):
    sizes = {"hidden_size": 8, "embedding_size": 4, "batch_size": 2, "length": 4, "steps": 2}
    text = TextModel(**sizes, backend="numpy").fit("a to do " * 9)
    text.save(tmp_path / "text.safetensors")
    export_import.export(tmp_path / "text.safetensors")
    run = session(str(tmp_path / "text.onnx"))
    tokens = np.array([text.codec_.encode("to do")])
    start = {name: np.zeros((1, 1, 8), np.float32) for name in ("h0", "c0")}
    same(run.run(["y"], {"tokens": tokens, **start})[0], text.model_(text.params_, tokens)[0])
    about = run.get_modelmeta().custom_metadata_map
    assert (about["kind"], about["vocabulary"]) == ("text model", " adot")
    with pytest.raises(ValueError, match="step"):
        to_onnx(text, step=True)


@dataclass(frozen=True)
class Sine(Cell):
    """A cell whose function no operator here writes."""

    GATES = ("a",)

    def gates(self, xp, zx, zh, h0):
        return xp.sin(zx[0, ...] + zh[0, ...]), None


@dataclass(frozen=True, kw_only=True, repr=False)
class Sines(Recurrent):
    CELL = Sine


def test_exported_file_describes_itself():
    """The names of its inputs are those that other tests feed."""
    layer = xlstm.LSTM(D, H, 2, batch_first=True)
    model = to_onnx(layer, layer.init(backend="numpy", dtype="float64"), lengths=True)
    assert (model.producer_name, model.opset_import[0].version) == ("xlstm", 17)
    states = [2, "batch", H]
    outputs = [("y", ["batch", "time", H]), ("h", states), ("c", states)]
    assert [(o.name, o.shape) for o in session(model).get_outputs()] == outputs


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (xlstm.LSTM(D, H, reverse=True), {"step": True}, "step"),
        (Sines(D, H), {}, "sin"),
        (xlstm.Linear(D, H), {"lengths": True}, "lengths"),
        (xlstm.GRU(D, H), {"resets": True}, "resets is True, .*no resets; step=True"),
        (xlstm.GRU(D, H), {"opset": 13}, "opset"),
        (SMALL, {"lengths": True}, "lengths"),
    ],
)
def test_export_refuses_by_name(layer, options, message, tmp_path):
    params = layer.init(backend="numpy")
    with pytest.raises(ValueError, match=f"^to_onnx: .*{message}"):
        to_onnx(layer, params, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


# ---- imports


@pytest.fixture
def model():
    """A model of one LSTM."""
    layer = xlstm.LSTM(D, H)
    return to_onnx(layer, layer.init(backend="numpy"))


def tensor(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


@pytest.mark.parametrize(("dtype", "expected"), [("float16", "float32"), ("float64", "float64")])
def test_float16_is_widened_and_float64_kept(model, dtype, expected):
    before = {}
    for name in "WRB":
        weights = tensor(model, f"0.{name}")
        before[name] = array = onnx.numpy_helper.to_array(weights).astype(dtype)
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        weights.CopyFrom(
            onnx.helper.make_tensor(weights.name, kind, array.shape, array.ravel().tolist())
        )
    _, params = from_onnx(model)
    assert {p.dtype for p in params.values()} == {np.dtype(expected)}
    for ours, theirs in (("Wx", "W"), ("Wh", "R")):
        np.testing.assert_array_equal(params[f"0.{ours}"], before[theirs][0])


@pytest.mark.parametrize(("alpha", "first"), [([], 0.2), ([0.3], 0.3)])
def test_defaults_of_activations_are_those_of_the_operators(model, alpha, first):
    # onnxruntime takes 0 for the last one's alpha, ONNX says 1
    names = ["hardsigmoid", "LeakyRelu", "ThresholdedRelu"]
    cell = next(n for n in model.graph.node if n.op_type == "LSTM")
    values = {"activations": names} | ({"activation_alpha": alpha} if alpha else {})
    cell.attribute.extend(onnx.helper.make_attribute(*one) for one in values.items())
    expected = (f"hard_sigmoid({first}, 0.5)", "leaky_relu(0.01)", "thresholded_relu(1.0)")
    assert from_onnx(model)[0].activations == expected


def test_constants_may_be_nodes(model):
    _, expected = from_onnx(model)
    W = tensor(model, "0.W")
    make = onnx.helper.make_node
    for one in (make("Identity", ["inner"], ["0.W"]), make("Constant", [], ["inner"], value=W)):
        model.graph.node.insert(0, one)
    model.graph.initializer.remove(W)
    np.testing.assert_array_equal(from_onnx(model)[1]["0.Wx"], expected["0.Wx"])


def test_weights_in_another_file(model, tmp_path):
    _, expected = from_onnx(model)
    W = tensor(model, "0.W")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "W.bin").write_bytes(bytes(8) + W.raw_data)
    W.ClearField("raw_data")
    W.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights/W.bin", "offset": 8, "length": 4 * 48}.items():
        W.external_data.add(key=key, value=str(value))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    _, found = from_onnx(tmp_path / "model.onnx")
    np.testing.assert_array_equal(found["0.Wx"], expected["0.Wx"])
    with pytest.raises(ValueError, match=r"weights/W\.bin"):  # a model without its path
        from_onnx(model)


def test_weights_of_many_bytes_are_in_a_second_file(tmp_path, monkeypatch, rng):
    """Both files are written or none; a model without a path is refused before any work."""
    monkeypatch.setattr(onnx_files, "INSIDE", 2000)
    layer = xlstm.LSTM(D, 16, 2, coupled_input_forget=True)
    params = draw_params(layer, rng)
    path = tmp_path / "model.onnx"
    model = to_onnx(layer, params, path, state=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert model.SerializeToString() == path.read_bytes()
    assert len(path.read_bytes()) < 3000
    feed = draw_input(layer, rng, B, T)
    y = session(str(path)).run(["y"], feed)[0]
    close(y, layer(params, feed["x"])[0])
    same_bits({n: a for n, a in from_onnx(path)[1].items() if n in params}, params)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr("os.fsync", fails := Mock(side_effect=OSError(28, "no space")))
    with pytest.raises(OSError, match=r"not saved, no space: '.*model\.onnx"):
        to_onnx(layer, draw_params(layer, rng), path)
    assert fails.called
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    monkeypatch.setattr(OnnxGraph, "open", None)
    with pytest.raises(ValueError, match=r"path is None, expected a path, .* not 10176$"):
        to_onnx(layer, params)


# ---- there and back


@pytest.mark.parametrize("layer", **numbered(LAYERS))
def test_layer_to_onnx_and_back(layer, rng, tmp_path):
    params = draw_params(layer, rng)
    to_onnx(layer, params, tmp_path / "model.onnx", lengths=True)
    back, found = from_onnx(tmp_path / "model.onnx")
    bias = layer.bias and not layer.recurrent_bias  # ONNX has both or none, the missing one is 0
    expected = replace(layer, recurrent_bias=layer.bias, dropout=0.0, recurrent_dropout=0.0)
    assert back == expected
    assert list(found) == list(expected.shapes)
    for name, array in found.items():
        if bias and name.endswith(".bh"):
            assert not array.any()
        else:
            np.testing.assert_array_equal(array, params[name], strict=True)


def test_nodes_by_name(rng):
    params = xlstm.LSTM(D, H, 3).init(rng, "numpy")
    model = to_onnx(xlstm.LSTM(D, H, 3), params)
    layer, arrays = from_onnx(model, "1.Y")
    assert layer == xlstm.LSTM(H, H, recurrent_bias=True)
    np.testing.assert_array_equal(arrays["0.Wh"], params["1.Wh"])
    with pytest.raises(ValueError, match=r"node '7' there are 0 .*, expected one of 0\.Y, 1\.Y"):
        from_onnx(model, "7")
    clip = onnx.helper.make_attribute("clip", 1.0)
    next(n for n in model.graph.node if n.name == "1.Y").attribute.append(clip)
    with pytest.raises(ValueError, match=r"no stack, name one of them: 0\.Y, 1\.Y, 2\.Y"):
        from_onnx(model)


@pytest.mark.parametrize("value", [0, 1e-30, float("nan")])
def test_a_constant_state_is_0_or_refused(model, value):
    _, expected = from_onnx(model)
    cell = next(n for n in model.graph.node if n.op_type == "LSTM")
    state = np.full((1, B, H), value, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(state, "constant"))
    cell.input[INPUTS.index("initial_c")] = "constant"
    if value == 0:
        assert from_onnx(model)[1].keys() == expected.keys()
        return
    with pytest.raises(ValueError, match="initial_c is a constant other than 0"):
        from_onnx(model)


# ---- TiRex


def predict(model, tokens):
    return session(model).run(["y"], {"tokens": tokens})[0]


def same(found, expected):
    assert found.shape == expected.shape
    most = np.max(np.abs(expected), initial=1, where=np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * most)


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        ("tirex1/a", 17),
        ("tirex1/b", 14),
        ("tirex1/c", 21),
        ("tirex2/a", 17),
        ("tirex2/b", 14),
        ("tirex2/c", 18),
    ],
)
def test_networks_follow_ours(rng, name, opset):
    model, params = tirex.load(DATA / name, backend="numpy")
    T = (model.context + getattr(model, "horizon", 0)) // model.patch_size
    proto = to_onnx(model, params, opset=opset)
    assert proto.opset_import[0].version == opset
    for B in (1, 3):
        tokens = rng.standard_normal((B, T, model.input_size), dtype=np.float32)
        same(predict(proto, tokens), model(params, tokens)[0])


def test_networks_of_many_chunks_narrow_heads_and_rounding(rng):
    """More tokens than a chunk of the mLSTM has, heads that are multiplied together, and the
    package's rounding.
    """
    model, params = tirex.load(DATA / "tirex2" / "c", backend="numpy")
    tokens = rng.standard_normal((2, 130, model.input_size), dtype=np.float32)
    longer = replace(model, context=130 * model.patch_size - model.horizon)
    same(predict(to_onnx(longer, params), tokens), model(params, tokens)[0])
    params = {
        n: rng.normal(0.3, 0.5, a.shape).astype("f4")
        for n, a in SMALL.init(backend="numpy").items()
    }
    tokens = rng.standard_normal((2, 3, 4), dtype=np.float32)
    y = SMALL(params, tokens)[0]
    same(predict(to_onnx(SMALL, params), tokens), y)
    rounded = replace(SMALL, rounding="bfloat16")
    found = predict(to_onnx(rounded, params), tokens)
    assert np.max(np.abs(found - rounded(params, tokens)[0])) < np.max(np.abs(found - y))


def test_a_forecaster_without_training(rng):
    model, params = tirex.load(DATA / "tirex1" / "c", backend="numpy")
    tokens = rng.standard_normal((2, 7, model.input_size), dtype=np.float32)
    zero_shot = ZeroShotForecaster((model, params)).fit()
    same(predict(to_onnx(zero_shot), tokens), model(params, tokens)[0])
