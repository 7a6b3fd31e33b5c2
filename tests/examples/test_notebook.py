"""Everything the original NumPy notebook computed, from the numbers it recorded, to 1e-12 in
float64.

The notebook keeps U (D, H), W (H, H) and b (1, H) apart for each gate, in the order f i o g. Its
loss gradient is 2 (y - target), not divided by the number of elements, and its weight gradients,
but not dx, are divided by T.
"""

import re

import numpy as np
import pytest

import xlstm
from tests.conftest import NOTEBOOK
from xlstm import losses
from xlstm.arrays.convert import to_numpy
from xlstm.cells import lstm
from xlstm.examples import gate_by_gate
from xlstm.examples import notebook as example
from xlstm.examples.gate_by_gate import stacked
from xlstm.layers.initializers import RECURRENT


@pytest.fixture(params=NOTEBOOK)
def golden(request):
    with np.load(NOTEBOOK[request.param]) as file:
        return dict(file)


def layer_of(golden):
    return xlstm.LSTM(*golden["Uf"].shape, initializer="notebook")


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_forward_cell_and_sequence(golden):
    layer = layer_of(golden)
    params = stacked(golden)
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
    layer = layer_of(golden)
    params = stacked(golden)
    T = len(golden["x"])
    y, _, saved = layer.forward(params, golden["x"][:, None, :])
    target = golden["y_true"][:, None, :]
    loss, dy = losses.mse(y, target)
    close(loss, golden["sgd_losses"][0])
    # ours is the gradient of the loss it reports, the notebook's is not
    close(dy * y.size, 2 * (y - target))
    grads, dx, _ = layer.backward(params, saved, dy * y.size)
    close(dx[:, 0], golden["dx"])
    for name, expected in stacked(golden, "d").items():
        close(grads[name] / T, expected)


def test_25_steps_of_gradient_descent(be, golden):
    """The program that users run, on every backend."""
    history, params = example.train(golden, be)
    close(history, golden["sgd_losses"])
    for name, expected in stacked(golden, "after_").items():
        close(to_numpy(params[name]), expected)


def test_gate_by_gate(golden):
    """It gives the numbers of the notebook, whose weights become ours and come back."""
    p = gate_by_gate.by_gate(stacked(golden))
    for name, array in p.items():
        assert np.array_equal(array, golden[name])
    for expected in golden["sgd_losses"]:
        p, loss = gate_by_gate.step(p, golden["x"], golden["y_true"], float(golden["sgd_lr"]))
        close(loss, expected)
    for name, array in p.items():
        close(array, golden[f"after_{name}"])


def test_the_first_call_of_the_notebook_says_what_to_do(golden):
    """Its x is float64, and parameters are float32 unless told otherwise."""
    layer = layer_of(golden)
    x = golden["x"][:, None, :]
    with pytest.raises(TypeError, match=r'init\(dtype="float64"\) or x\.astype\("float32"\)'):
        layer.forward(layer.init(0, "numpy"), x)
    layer.forward(layer.init(0, "numpy", dtype="float64"), x)
    layer.forward(layer.init(0, "numpy"), x.astype("float32"))


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["notebook", "--backend", "numpy"])
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25
    for line in lines:
        loss, expected = re.findall(r"0\.\d{15}", line)
        assert float(loss) == pytest.approx(float(expected), abs=1e-12)


def test_initialisation():
    """Input weights N(0, 2/(D+H)), recurrent weights N(0, 1/H), both variances, and zero bias."""
    D = 300
    H = 200
    params = xlstm.LSTM(D, H, initializer="notebook").init(0, "numpy", "float64")
    draw = RECURRENT["notebook"]
    assert np.all(params["0.b"] == 0)
    for name, variance in (("Wx", 2 / (D + H)), ("Wh", 1 / H)):
        w = params[f"0.{name}"]
        assert abs(w.mean()) < 5 * (variance / w.size) ** 0.5
        assert abs(w.var() / variance - 1) < 5 * (2 / w.size) ** 0.5
        assert draw(np.random.default_rng(0), name, w.shape, H).shape == w.shape
    # normal, not uniform: share beyond two standard deviations
    w = params["0.Wh"].ravel() / H**-0.5
    assert abs(np.mean(np.abs(w) > 2) - 0.0455) < 0.005
