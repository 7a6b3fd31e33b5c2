"""Activations: gradients, extremes, and the notebook's values."""

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.registry import agree, check, given, run
from xlstm import gradcheck
from xlstm.arrays.convert import to_numpy
from xlstm.cells import activations
from xlstm.engines.numba import jit

NAMES = ["sigmoid", "tanh", "log_sigmoid", "silu", "softmax", "gelu", "square_relu"]
# Functions of gates, each with its defaults, and with other parameters.
GATES = [
    *activations.GATE_ACTIVATIONS,
    *("affine(0.7, 0.2)", "leaky_relu(0.2)", "thresholded_relu(0.3)", "scaled_tanh(1.7, 0.6)"),
    *("hard_sigmoid(0.3, 0.4)", "elu(0.5)"),
]


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


@pytest.mark.parametrize("text", GATES)
def test_gradient_of_a_gate(be, rng, text):
    """From the output alone."""
    fwd, bwd, _ = activations.pair(text)
    x = be.asarray(2 * rng.standard_normal((20, 3)))
    gradcheck(lambda x: (y := fwd(be.xp, x), y), lambda y, dy: (bwd(be.xp, dy, None, y),), (x,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extremes_are_finite_and_silent(be, name, dtype):
    f, f_bwd = pair(name)
    x = be.asarray([[-1e4, -800.0, -90.0, 0.0, 90.0, 800.0, 1e4]], dtype)
    y = f(be.xp, x)
    dx = f_bwd(be.xp, be.xp.ones_like(x), x, y)
    assert np.all(np.isfinite(to_numpy(y)))
    assert np.all(np.isfinite(to_numpy(dx)))


# The names of PyTorch's functions, where they differ.
THEIRS = {"log_sigmoid": "logsigmoid", "hard_sigmoid(0.16666666666666666, 0.5)": "hardsigmoid"}


OTHERS = ["leaky_relu", "elu", "selu", "softplus", "softsign", "relu", [*THEIRS][1]]


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_values_follow_torch(rng, name):
    function = pair(name)[0] if name in NAMES else activations.pair(name).fwd
    torch = pytest.importorskip("torch")
    x = 5 * rng.standard_normal((6, 7))
    given = torch.from_numpy(x)
    if name == "square_relu":
        expected = torch.relu(given) ** 2
    else:
        kwargs = {"dim": -1} if name == "softmax" else {}
        expected = getattr(torch.nn.functional, THEIRS.get(name, name))(given, **kwargs)
    np.testing.assert_allclose(function(np, x), expected.numpy(), rtol=1e-12, atol=1e-15)


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
    "lstm output": (
        xlstm.LSTM,
        {"activations": ("sigmoid", "squareplus", "mish"), "layer_norm": True},
    ),
    "lstm all": (
        xlstm.LSTM,
        {"activations": ("mish", "mish", "mish"), "peepholes": True, "clip": 0.7, "cell_clip": 0.9},
    ),
    "lstm coupled": (
        xlstm.LSTM,
        {"activations": ("mish", "tanh", "mish"), "coupled_input_forget": True},
    ),
    "lstm recompute": (xlstm.LSTM, {"activations": ("mish", "mish", "mish"), "recompute": True}),
}


@pytest.mark.usefixtures("registered", "interpreted")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_registered_activations(be, rng, name):
    kind, options = LAYERS[name]
    layer = kind(2, 3, **options)
    check(layer, *given(layer, be, rng, 4, 2))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["rnn clip", "gru", "lstm all"])
def test_registered_activations_in_compiled_loops(monkeypatch, rng, name):
    pytest.importorskip("numba")
    kind, options = LAYERS[name]
    layer = kind(2, 3, **options)
    params, x, state = given(layer, make_backend("numpy"), rng)
    monkeypatch.delenv(jit.VARIABLE, raising=False)
    _, _, saved = layer.forward(params, x, state)
    assert saved["0"].tape.engine.name == "numba"
    found = run(layer, params, x, state)
    monkeypatch.setenv(jit.VARIABLE, "0")
    agree(found, run(layer, params, x, state), 1e-10)


@pytest.mark.usefixtures("registered")
def test_names_of_registered_activations():
    assert activations.canonical("squareplus") == "squareplus(4.0)"
    assert xlstm.RNN(2, 3, activations="squareplus(0.5)").activations == ("squareplus(0.5)",)
    activations.register("mish", mish, mish_bwd, derivative_from="input")  # the same once more
    with pytest.raises(
        ValueError, match=r"'nosuch' is unknown, expected one of .*squareplus, mish"
    ):
        activations.parse("nosuch")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "tanh"}, "tanh is the name of another activation already"),
        ({"backward": lambda xp, dy: dy}, "backward takes"),
    ],
)
def test_what_cannot_be_registered(change, words):
    given = {
        "name": "another",
        "forward": mish,
        "backward": mish_bwd,
        "derivative_from": "input",
    } | change
    with pytest.raises(ValueError, match=words):
        activations.register(**given)
    assert "another" not in activations.GATE_ACTIVATIONS
