"""Module and SequenceLayer: the calls that all layers, blocks, stacks and models share."""

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.registry import EVERY, input_of, numbered
from xlstm.arrays.convert import to_numpy
from xlstm.estimators import SequenceClassifier
from xlstm.layers.module import Module
from xlstm.layers.sequence import SequenceLayer
from xlstm.models import SequenceModel, summary

SEQUENCES = [layer for layer in EVERY if isinstance(layer, SequenceLayer)]
OTHERS = [layer for layer in EVERY if not isinstance(layer, SequenceLayer)]
STREAMS = [layer for layer in SEQUENCES if layer.directions == ("",)]


def flat(tree):
    """The arrays of a state."""
    return [a for part in tree for a in flat(part)] if isinstance(tree, tuple | list) else [tree]


def same(found, expected):
    for a, b in zip(flat(found), flat(expected), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


@pytest.mark.parametrize("layer", **numbered(OTHERS))
def test_inference_of_a_module(be, rng, layer):
    assert isinstance(layer, Module)
    params, x = layer.init(0, be), input_of(layer, be, rng)
    same(layer(params, x), layer.forward(params, x)[0])


@pytest.mark.parametrize("layer", **numbered(SEQUENCES))
@pytest.mark.parametrize("lengths", [None, [2, 0, 4]], ids=["", "lengths"])
def test_inference_is_forward_without_masks(be, rng, layer, lengths):
    """y and the state, from rest and from a state; nothing else is returned."""
    params, x = layer.init(0, be), input_of(layer, be, rng, T=4)
    state = None
    for _ in range(2):
        expected = layer.forward(params, x, state, train=False, lengths=lengths)
        assert expected[2] is None
        found = layer(params, x, state, lengths=lengths)
        assert len(found) == 2
        same(found, expected[:2])
        state = found[1]


@pytest.mark.parametrize("layer", **numbered(SEQUENCES))
def test_a_missing_state_is_the_one_before_the_first_step(rng, layer):
    """None, None in place of any part, and a list instead of a tuple."""
    be = xlstm.backend("numpy")
    params, x = layer.init(0, be), input_of(layer, be, rng)
    expected = layer(params, x)
    nothing = [None] * len(layer.states)
    same(layer(params, x, nothing), expected)
    same(layer(params, x, tuple(nothing)), expected)
    y, _, saved = layer.forward(params, x, train=False, keep=True)
    grads, *_ = layer.backward(params, saved, y)
    for dstate in (nothing, tuple(nothing)):
        same(list(layer.backward(params, saved, y, dstate)[0].values()), list(grads.values()))


def masked(tree):
    return tuple(map(masked, tree)) if isinstance(tree, tuple) else np.ma.masked_array(tree)


@pytest.mark.parametrize("layer", **numbered(EVERY))
@pytest.mark.usefixtures("interpreted")
def test_missing_and_masked_arrays_are_named(rng, layer):
    """A mask would be left aside without a word, or stop Numba where a loop has not been compiled yet."""
    be = xlstm.backend("numpy")
    params, x = layer.init(0, be), input_of(layer, be, rng)
    some, words = next(iter(params)), "is a masked array, expected an array without a mask"
    calls = [layer, layer.forward, *([layer.step] if layer in STREAMS else [])]
    y, *state, saved = layer.forward(params, x, **({"seed": 0} if layer in SEQUENCES else {}))
    bad = {
        some: lambda: layer.forward({**params, some: masked(params[some])}, x),
        "d(y|logits)": lambda: layer.backward(params, saved, masked(y)),
    }
    if layer in SEQUENCES:
        bad[r"state[][0-9]* \w"] = lambda: layer(params, x, masked(state[0]))
        bad["lengths"] = lambda: layer(params, x, lengths=masked([1, 2, 3]))
    where = f"^{type(layer).__name__}: "
    for name, call in bad.items():
        with pytest.raises(TypeError, match=f"{where}{name} {words}"):
            call()
    for call in calls:
        with pytest.raises(TypeError, match=f"{where}(x|tokens) {words}"):
            call(params, masked(x))
        with pytest.raises(TypeError, match=f"{where}(x|tokens) is a NoneType, expected an? "):
            call(params, None)
        with pytest.raises(TypeError, match=f"{where}parameters are a NoneType, expected a dict of name to array"):
            call(None, x)


@pytest.mark.parametrize("layer", **numbered(SEQUENCES))
def test_a_missing_gradient_is_zero(be, rng, layer):
    params, x = layer.init(0, be), input_of(layer, be, rng)
    y, end, saved = layer.forward(params, x, train=False, keep=True)
    grads, _, start = layer.backward(params, saved, None)
    assert all(not np.any(to_numpy(g)) for g in [*grads.values(), *flat(start)])
    found, _, _ = layer.backward(params, saved, None, end)
    expected, _, _ = layer.backward(params, saved, be.xp.zeros_like(y), end)
    same(list(found.values()), list(expected.values()))


@pytest.mark.parametrize("layer", **numbered(SEQUENCES))
def test_a_state_in_the_wrong_container_is_named(rng, layer):
    """The same error for every layer, and for every call that takes a state."""
    be = xlstm.backend("numpy", dtype="float64")
    params, x = layer.init(0, be), input_of(layer, be, rng)
    y, end, saved = layer.forward(params, x, train=False, keep=True)
    one = x[:, 0, ...] if layer.batch_first else x[0, ...]
    calls = {"state": lambda s: layer(params, x, s), "dstate": lambda s: layer.backward(params, saved, y, s)}
    if layer in STREAMS:
        calls["state "] = lambda s: layer.step(params, one, s)
    for name, call in calls.items():
        for state in (dict(enumerate(end)), np.zeros((len(end), 2)), iter(end), 1.0, "x"):
            with pytest.raises(TypeError, match=rf"\w+: {name.strip()} is a \w+, expected a tuple \("):
                call(state)
        for state in ((*end, end[0]), [*end, end[0]]):
            with pytest.raises(ValueError, match=rf"{name.strip()} has {len(end) + 1} entries, expected a tuple \("):
                call(state)


@pytest.mark.parametrize("layer", **numbered(EVERY))
def test_dtypes_are_names_or_those_of_numpy(layer):
    for dtype in ("float64", np.float64, np.dtype("float64"), np.dtype(float)):
        assert all(p.dtype == "float64" for p in layer.init(0, "numpy", dtype).values())
    for dtype in (np.dtype("int64"), np.int32, "float", 64, float, np.dtype("V8")):
        with pytest.raises((TypeError, ValueError), match=r"backend: dtype"):
            layer.init(0, "numpy", dtype)


@pytest.mark.parametrize("layer", **numbered(EVERY))
def test_saved_is_of_one_layer(rng, layer):
    be = xlstm.backend("numpy", dtype="float64")
    params, x = layer.init(0, be), input_of(layer, be, rng)
    y = layer.forward(params, x, **({"train": False} if layer in SEQUENCES else {}))[0]
    for saved in (None, 1.0, {}, x):
        with pytest.raises(TypeError, match=f"{type(layer).__name__}: backward needs what forward saved"):
            layer.backward(params, saved, y)
    _, other = xlstm.Linear(3, 3).forward(xlstm.Linear(3, 3).init(0, be), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=f"{type(layer).__name__}: saved is what forward of Linear"):
        layer.backward(params, other, y)


def run(layer, rng, **options):
    params = layer.init(0, "numpy")
    x = input_of(layer, xlstm.backend("numpy"), rng, 5, 2)
    return layer.forward(params, x, **options)


def test_saved_is_read_by_the_names_of_parts(rng):
    """The names with which their parameters begin."""
    stack = xlstm.xLSTMStack(4, 2, [1], 2)
    _, _, saved = run(stack, rng)
    assert saved["blocks.1.cell"].gates.shape == (5, 4, 2, 4)
    assert saved["blocks.1"]["cell"].h.shape == (5, 2, 4)
    assert saved["blocks.0.outnorm"] is saved["blocks.0"]["outnorm"]
    assert saved["blocks.1.ffn.down"].shape[:2] == (5, 2)
    model = SequenceModel(xlstm.LSTM(2, 3, 2, bidirectional=True), 1)
    _, _, saved = run(model, rng)
    assert saved["recurrent.1.reverse"].c.shape == saved["recurrent"]["1.reverse"].c.shape == (5, 2, 3)
    assert saved.recurrent["0"].gates.shape == (5, 4, 2, 3)
    model = xlstm.xLSTMLanguageModel(stack, 7)
    _, _, saved = run(model, rng)
    assert saved["backbone.blocks.1.cell"].gates.shape == (5, 4, 2, 4)
    mlstm = xlstm.mLSTM(2, 4, 2, num_heads=2)
    _, _, saved = run(mlstm, rng)
    assert saved["1"].q.shape == saved[1].q.shape == (5, 2, 4)
    for name in stack.parts:
        prefixes = {n.rpartition(".")[0] for n in stack.shapes if n.startswith(f"{name}.")}
        _, _, saved = run(stack, rng)
        for prefix in prefixes - {"blocks.0"}:  # of which skip is no part's
            assert saved[prefix] is not None


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (xlstm.LSTM(2, 3, 2), r"no layer '2', only 0, 1"),
        (xlstm.mLSTM(2, 4), r"no layer '2', only 0"),
        (xlstm.xLSTMStack(4, 1, [0], 2), r"no layer '2', only blocks\.0, blocks\.0\.norm, "),
        (SequenceModel(xlstm.GRU(2, 3), 1), r"no layer '2', only recurrent, recurrent\.0, head"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_unknown_part_of_saved_is_named(rng, layer, message):
    _, _, saved = run(layer, rng)
    with pytest.raises(KeyError, match=message):
        saved["2"]
    with pytest.raises(AttributeError):
        _ = saved.nothing


def test_a_part_of_what_a_stack_saved_serves_the_backward_pass_of_the_part(rng):
    """The gradient of a block by itself is that within a stack of one."""
    stack = xlstm.xLSTMStack(4, 1, [0], 2, post_norm=False)
    params = stack.init(0, "numpy", "float64")
    x = rng.standard_normal((5, 2, 4))
    y, _, saved = stack.forward(params, x)
    expected, dx, _ = stack.backward(params, saved, y)
    block = stack.parts["blocks.0"]
    found, dx2, _ = block.backward(stack.below("blocks.0", params), saved["blocks.0"], y)
    np.testing.assert_array_equal(dx, dx2)
    for name, g in found.items():
        np.testing.assert_array_equal(g, expected[f"blocks.0.{name}"])


@pytest.mark.parametrize("layer", **numbered(EVERY))
def test_a_summary_counts_and_knows_the_shape_of_y(rng, layer):
    params, x = layer.init(0, "numpy"), input_of(layer, make_backend("numpy", "float32"), rng, T=4)
    found = summary(layer, x.shape)
    assert found[0].parameters == sum(p.size for p in params.values())
    assert found[0].bytes == sum(p.nbytes for p in params.values())
    y = layer(params, x)
    shape = (y[0] if isinstance(layer, SequenceLayer) else y).shape
    assert found[0].output in (shape, ("...", shape[-1]))
    parts = [part.parameters for part in found[1:] if part.name in layer.parts]
    assert sum(parts) + sum(params[name].size for name in layer.weights) == found[0].parameters
    assert len(repr(found).splitlines()) == 1 + len(found)


def test_parameters_that_memory_does_not_hold_are_not_drawn(rng):
    """Not even the first of them, which it does."""
    before = rng.bit_generator.state
    for layer in (xlstm.LSTM(3, 10**8), xlstm.LSTM(3, 2**28, 100)):  # the second has more than an array can have
        with pytest.raises(ValueError, match=r"^LSTM: 0.Wh has .* numbers, for which there is no memory"):
            layer.init(rng, "numpy")
    assert rng.bit_generator.state == before


def test_parameters_of_two_dtypes_are_named():
    layer = xlstm.LSTM(2, 3)
    params = layer.init(backend="numpy")
    params["0.b"] = params["0.b"].astype("float64")
    with pytest.raises(TypeError, match=r"0\.b has dtype float64 but 0\.Wx has float32, expected the same$"):
        layer.namespace(params, {})


def test_summaries_of_estimators_and_refusals():
    model = SequenceModel(xlstm.LSTM(2, 4), 3)
    with pytest.raises(ValueError, match=r"input_shape is \(5, 4, 3\), expected \(T, B, D\) with D = 2"):
        summary(model, (5, 4, 3))
    with pytest.raises(TypeError, match="input_shape is 5, expected"):
        summary(model, 5)
    with pytest.raises(ValueError, match=r"input_shape\[1\] is -4, expected 1 or more"):
        summary(model, (5, -4, 2))
    with pytest.raises(TypeError, match="model is 3, expected a module or an estimator"):
        summary(3)
    with pytest.raises(ValueError, match="not fitted yet"):
        summary(SequenceClassifier())
    fitted = SequenceClassifier(hidden_size=4, epochs=1, backend="numpy", dtype="float64").fit(np.eye(4), [0, 1, 0, 1])
    assert summary(fitted)[0].bytes == sum(p.nbytes for p in fitted.params_.values())
    assert [part.output for part in summary(fitted)] == [("B", 2), ("T", "B", 4), ("...", 2)]
