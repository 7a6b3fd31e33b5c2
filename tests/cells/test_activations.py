"""Activations: gradients, extremes, and the notebook's values."""

import inspect

import numpy as np
import pytest

import xlstm
from xlstm import gradcheck
from xlstm.arrays.convert import to_numpy
from xlstm.cells import activations
from xlstm.engines.numba import jit

NAMES = ["sigmoid", "tanh", "log_sigmoid", "silu", "softmax", "gelu", "square_relu"]


def pair(name):
    return getattr(activations, name), getattr(activations, f"{name}_bwd")


@pytest.mark.parametrize("name", NAMES)
def test_gradient(be, rng, name):
    f, f_bwd = pair(name)
    x = be.asarray(3 * rng.standard_normal((4, 5)))

    def forward(x):
        y = f(be.xp, x)
        return y, (x, y)

    gradcheck(forward, lambda saved, dy: (f_bwd(be.xp, dy, *saved),), (x,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extremes_are_finite_and_silent(be, name, dtype):
    f, f_bwd = pair(name)
    x = be.asarray([[-1e4, -800.0, -90.0, 0.0, 90.0, 800.0, 1e4]], dtype)
    y = f(be.xp, x)
    dx = f_bwd(be.xp, be.xp.ones_like(x), x, y)
    assert np.all(np.isfinite(to_numpy(y)))
    assert np.all(np.isfinite(to_numpy(dx)))


@pytest.mark.parametrize("name", NAMES)
def test_values_follow_torch(rng, name):
    torch = pytest.importorskip("torch")
    x = 5 * rng.standard_normal((6, 7))
    functional = torch.nn.functional
    named = {"log_sigmoid": functional.logsigmoid, "silu": functional.silu, "gelu": functional.gelu}
    f = (named | {"square_relu": lambda x: functional.relu(x) ** 2}).get(name, getattr(torch, name, None))
    kwargs = {"dim": -1} if "softmax" in name else {}
    expected = f(torch.from_numpy(x), **kwargs).numpy()
    np.testing.assert_allclose(pair(name)[0](np, x), expected, rtol=1e-12, atol=1e-15)


def squareplus(xp, x, alpha=4.0):
    return (x + xp.sqrt(x * x + alpha)) / 2


def squareplus_bwd(xp, dy, x, y, alpha=4.0):
    """y + alpha / (4 y) = sqrt(x^2 + alpha), so the output alone is enough."""
    return dy * (y * y / (y * y + alpha / 4))


def mish(xp, x):
    return x * xp.tanh(xp.log1p(xp.exp(x)))


def mish_bwd(xp, dy, x, y):
    u = xp.tanh(xp.log1p(xp.exp(x)))
    return dy * (u + x * (1 - u * u) / (1 + xp.exp(-x)))


@pytest.fixture
def registered(monkeypatch):
    """A table of activations with two more."""
    monkeypatch.setattr(activations, "GATE_ACTIVATIONS", dict(activations.GATE_ACTIVATIONS))
    activations.register("squareplus", squareplus, squareplus_bwd)
    activations.register("mish", mish, mish_bwd, derivative_from="input")
    activations._defaults.cache_clear()


LAYERS = {
    "rnn clip": (xlstm.RNN, {"activations": "mish", "clip": 0.7}),
    "gru": (xlstm.GRU, {"activations": ("sigmoid", "mish")}),
    "gru gates": (xlstm.GRU, {"activations": ("mish", "squareplus"), "clip": 0.7}),
    "gru reset before": (xlstm.GRU, {"activations": ("mish", "tanh"), "reset_after": False}),
    "lstm output": (xlstm.LSTM, {"activations": ("sigmoid", "squareplus", "mish"), "layer_norm": True}),
    "lstm all": (
        xlstm.LSTM,
        {"activations": ("mish", "mish", "mish"), "peepholes": True, "clip": 0.7, "cell_clip": 0.9},
    ),
    "lstm coupled": (xlstm.LSTM, {"activations": ("mish", "tanh", "mish"), "coupled_input_forget": True}),
    "lstm recompute": (xlstm.LSTM, {"activations": ("mish", "mish", "mish"), "recompute": True}),
}


@pytest.mark.usefixtures("registered", "interpreted")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_registered_activations(be, rng, name):
    kind, options = LAYERS[name]
    check_layer(be, rng, kind(2, 3, **options))


def check_layer(be, rng, layer):
    params = {k: be.asarray(0.5 * rng.standard_normal(to_numpy(p).shape)) for k, p in layer.init(0, be).items()}
    x = be.asarray(rng.standard_normal((4, 2, 2)))

    def forward(params, x):
        y, state, saved = layer.forward(params, x)
        return (y, state), (params, saved)

    def backward(kept, d):
        grads, dx, _ = layer.backward(*kept, *d)
        return grads, dx

    gradcheck(forward, backward, (params, x))


def test_a_function_is_asked_for_its_signature_once(registered, monkeypatch):
    asked, signature = [], inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda function: asked.append(function) or signature(function))
    expected = [("squareplus", (4.0,)), ("squareplus", (2.0,))]
    assert [activations.parse(text) for text in ("squareplus", "squareplus(2)")] * 2 == expected * 2
    assert len(asked) <= 1


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["rnn clip", "gru", "lstm all"])
def test_registered_activations_in_compiled_loops(monkeypatch, rng, name):
    pytest.importorskip("numba")
    kind, options = LAYERS[name]
    layer = kind(2, 3, **options)
    params = layer.init(0, "numpy", "float64")
    x = rng.standard_normal((5, 3, 2))

    def results():
        y, _, saved = layer.forward(params, x)
        grads, dx, _ = layer.backward(params, saved, y)
        return saved.kept["0"].tape.engine.name == "numba", [y, dx, *grads.values()]

    monkeypatch.delenv(jit.VARIABLE, raising=False)
    compiled, found = results()
    assert compiled
    monkeypatch.setenv(jit.VARIABLE, "0")
    compiled, expected = results()
    assert not compiled
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("registered")
def test_names_of_registered_activations():
    assert activations.canonical("squareplus") == "squareplus(4.0)"
    assert xlstm.RNN(2, 3, activations="squareplus(0.5)").activations == ("squareplus(0.5)",)
    activations.register("mish", mish, mish_bwd, derivative_from="input")  # the same once more
    with pytest.raises(ValueError, match=r"'nosuch' is unknown, expected one of .*squareplus, mish"):
        activations.parse("nosuch")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"name": "a b"}, ValueError, "name is 'a b', expected letters"),
        ({"name": "tanh"}, ValueError, "tanh is the name of another activation already"),
        ({"forward": 3}, TypeError, "forward is 3, expected a function"),
        ({"backward": lambda xp, dy: dy}, ValueError, r"backward takes \(xp, dy\), expected \(xp, dy, x, y\)"),
        ({"forward": lambda xp, x, slope=1.0: x}, ValueError, r"forward takes .*, expected \(xp, x\) and perhaps"),
        ({"derivative_from": "both"}, ValueError, "derivative_from is 'both', expected one of output, input"),
    ],
)
def test_what_cannot_be_registered(change, error, words):
    given = {"name": "another", "forward": mish, "backward": mish_bwd, "derivative_from": "input"} | change
    with pytest.raises(error, match=words):
        activations.register(**given)
    assert "another" not in activations.GATE_ACTIVATIONS
