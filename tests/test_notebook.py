"""Everything the original NumPy notebook computed, from the numbers it recorded, to 1e-12 in float64.

The notebook keeps U (D, H), W (H, H) and b (1, H) apart for each gate, in the order f i o g. Its loss
gradient is 2 (y - target), not divided by the number of elements, and its weight gradients, but not
dx, are divided by T.
"""

import numpy as np
import pytest

import xlstm
from tests.conftest import NOTEBOOK
from xlstm import losses
from xlstm.cells import lstm
from xlstm.cells.activations import sigmoid, sigmoid_bwd, tanh, tanh_bwd
from xlstm.layers.initializers import RECURRENT
from xlstm.training import optimizers


@pytest.fixture(params=NOTEBOOK)
def golden(request):
    with np.load(NOTEBOOK[request.param]) as file:
        return dict(file)


def params_of(golden, prefix=""):
    """The notebook's arrays under our names: gates stacked as rows in our order."""

    def stack(kind):
        return np.concatenate([golden[f"{prefix}{kind}{gate}"].T for gate in lstm.Cell.GATES])

    return {"0.Wx": stack("U"), "0.Wh": stack("W"), "0.b": stack("b")[:, 0]}


def layer_of(golden):
    return xlstm.LSTM(*golden["Uf"].shape, initializer="notebook")


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_sigmoid_tanh_and_their_derivatives(golden):
    """The recorded cell state and gates against ours, derivatives against the recorded forms s(1-s), 1-t^2."""
    x, f, o = golden["C"][1:], golden["F"], golden["O"]
    close(o * tanh(np, x), golden["H"][1:])
    close(sigmoid(np, np.log(f / (1 - f))), f)
    one = np.ones_like(f)
    close(sigmoid_bwd(np, one, x, f), f * (1 - f))
    close(tanh_bwd(np, one, x, golden["G"]), 1 - golden["G"] ** 2)


def test_forward_cell_and_sequence(golden):
    layer, params = layer_of(golden), params_of(golden)
    y, (h, c), saved = layer.forward(params, golden["x"][:, None, :])
    close(y[:, 0], golden["h"])
    close(saved.h, golden["H"][1:])
    close(saved.c, golden["C"][1:])
    close(saved.gates, np.stack([golden[gate.upper()] for gate in lstm.Cell.GATES], axis=1))
    close(h[0], golden["H"][-1])
    close(c[0], golden["C"][-1])
    state = (golden["H"][None, 0], golden["C"][None, 0])
    for t, x in enumerate(golden["x"]):
        y1, state = layer.step(params, x[None], state)
        close(y1, golden["H"][t + 1])


def test_backward_cell_and_sequence(golden):
    layer, params = layer_of(golden), params_of(golden)
    T = len(golden["x"])
    y, _, saved = layer.forward(params, golden["x"][:, None, :])
    target = golden["y_true"][:, None, :]
    loss, dy = losses.mse(y, target)
    close(loss, golden["sgd_losses"][0])
    close(dy * y.size, 2 * (y - target))  # ours is the gradient of the loss it reports, the notebook's is not
    grads, dx, _ = layer.backward(params, saved, dy * y.size)
    close(dx[:, 0], golden["dx"])
    for name, expected in params_of(golden, "d").items():
        close(grads[name] / T, expected)


def test_25_steps_of_gradient_descent(golden):
    """The notebook's scaling is a learning rate: its gradients are H times those of the mean squared error."""
    layer, params = layer_of(golden), params_of(golden)
    x, target = golden["x"][:, None, :], golden["y_true"][:, None, :]
    optimizer = optimizers.sgd(float(golden["sgd_lr"]) * layer.hidden_size)  # y.size / T = H
    state = optimizer.init(params)
    found = []
    for _ in golden["sgd_losses"]:
        y, _, saved = layer.forward(params, x)
        loss, dy = losses.mse(y, target)
        found.append(loss)
        grads, _, _ = layer.backward(params, saved, dy)
        params, state = optimizer.update(params, grads, state)
    close(found, golden["sgd_losses"])
    for name, expected in params_of(golden, "after_").items():
        close(params[name], expected)


def test_initialisation():
    """Input weights N(0, 2/(D+H)), recurrent weights N(0, 1/H), both variances, and zero bias."""
    D, H = 300, 200
    params = xlstm.LSTM(D, H, initializer="notebook").init(0, "numpy", "float64")
    draw = RECURRENT["notebook"]
    assert np.all(params["0.b"] == 0)
    for name, variance in (("Wx", 2 / (D + H)), ("Wh", 1 / H)):
        w = params[f"0.{name}"]
        assert abs(w.mean()) < 5 * (variance / w.size) ** 0.5
        assert abs(w.var() / variance - 1) < 5 * (2 / w.size) ** 0.5
        assert draw(np.random.default_rng(0), name, w.shape, H).shape == w.shape
    w = params["0.Wh"].ravel() / H**-0.5  # normal, not uniform: share beyond two standard deviations
    assert abs(np.mean(np.abs(w) > 2) - 0.0455) < 0.005
