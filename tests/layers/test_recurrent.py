"""LSTM, GRU and RNN: meaning of each option, what is saved, initial weights."""

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.registry import alone, inputs_of, make, run
from xlstm.arrays.convert import to_numpy
from xlstm.engines import array_api

KINDS = ("LSTM", "GRU", "RNN")
RAGGED = [3, 5, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_blocks_change_nothing(monkeypatch, rng, kind):
    """The backward pass handles steps one by one, or in blocks of which the first is shorter."""
    for options in alone(kind):
        layer = make(kind, options)
        params, x, state = inputs_of(layer, make_backend("numpy"), rng, 7, 3)
        for lengths in (None, [7, 4, 4]):
            expected = run(layer, params, x, state, lengths, seed=2)
            with monkeypatch.context() as patch:
                patch.setattr(array_api, "DERIVED", 80)
                found = run(layer, params, x, state, lengths, seed=2)
            for name, array in found.items():
                np.testing.assert_array_equal(array, expected[name], err_msg=f"{layer} {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_shows_every_layer_and_direction(be, rng, kind):
    layer = make(kind, {"num_layers": 2, "direction": "bidirectional"})
    params, x, state = inputs_of(layer, be, rng, 5, 3)
    y, end, saved = layer.forward(params, x, state, lengths=RAGGED)
    names = ["0", "0.reverse", "1", "1.reverse"]
    assert list(saved.kept) == names
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    for k, name in enumerate(names):
        one = saved[name]
        assert tuple(one.gates.shape) == (5, gates, 3, 3)
        states = {"h": to_numpy(one.h)} | ({"c": to_numpy(one.c)} if kind == "LSTM" else {})
        for s, values in enumerate(states.values()):
            last = 0 if name.endswith("reverse") else np.maximum(np.array(RAGGED) - 1, 0)
            final = np.where(
                np.array(RAGGED)[:, None] > 0, values[last, np.arange(3)], to_numpy(state[s])[k]
            )
            np.testing.assert_array_equal(final, to_numpy(end[s])[k])
        for values in (*states.values(), np.moveaxis(to_numpy(one.gates), 1, 2)):
            assert all(np.all(values[n:, b] == 0) for b, n in enumerate(RAGGED))
    np.testing.assert_array_equal(
        np.concatenate([to_numpy(saved[n].h) for n in names[2:]], axis=2), to_numpy(y)
    )


# The random options


def test_dropout_scales_what_it_keeps(rng):
    """The second layer, a linear identity here, shows its input: 0 or 1 / (1 - rate) times the
    first one's output.
    """
    layer = xlstm.RNN(40, 40, 2, dropout=0.25, activations="linear", bias=False)
    params = {n: (np.eye(40) if n.endswith("Wx") else np.zeros((40, 40))) for n in layer.shapes}
    x = rng.standard_normal((30, 20, 40))
    y, _, _ = layer.forward(params, x, seed=0)
    ratio = y / x
    assert np.all(np.isclose(ratio, 0) | np.isclose(ratio, 4 / 3))
    assert abs(np.mean(ratio) - 1) < 0.02
    np.testing.assert_array_equal(layer.forward(params, x, train=False)[0], x)


def test_recurrent_dropout_has_one_mask_for_all_steps(rng):
    """With Wh = 1 and linear units, h grows by h0 times 0 or 1 / (1 - rate), each unit in its own
    way at every step.
    """
    layer = xlstm.RNN(1, 50, recurrent_dropout=0.5, activations="linear", bias=False)
    params = {"0.Wx": np.zeros((50, 1)), "0.Wh": np.eye(50)}
    y, _, _ = layer.forward(params, np.zeros((4, 3, 1)), (np.ones((1, 3, 50)),), seed=0)
    assert set(np.unique(y[0])) == {0.0, 2.0}
    for t in range(4):
        np.testing.assert_array_equal(y[t], y[0] ** (t + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_zoneout_keeps_the_old_state_or_takes_the_new_one(rng, kind):
    plain = make(kind, {}, H=30)
    layer = make(kind, {"zoneout": 0.3}, H=30)
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 1, 20)
    _, new, _ = plain.forward(params, x, state)
    _, end, _ = layer.forward(params, x, state, seed=0)
    _, mean, _ = layer.forward(params, x, state, train=False)
    for before, after, found, expected in zip(state, new, end, mean, strict=True):
        kept = found == before
        # A compiled cell rounds in other places, which a state near zero shows.
        np.testing.assert_allclose(found, np.where(kept, before, after), rtol=1e-12, atol=1e-15)
        assert 0.2 < np.mean(kept) < 0.4
        np.testing.assert_allclose(expected, 0.3 * before + 0.7 * after, rtol=1e-9, atol=1e-12)


def test_gradients_without_masks_after_training_with_them(rng):
    """train=False, keep=True: the gradient of the model as it predicts."""
    layer = make("LSTM", {"recurrent_dropout": 0.5})
    plain = make("LSTM", {})
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 5, 3)
    expected = run(plain, params, x, state)
    for name, array in run(layer, params, x, state, train=False, keep=True).items():
        np.testing.assert_array_equal(array, expected[name])


# The other options; equality with PyTorch, Keras and onnxruntime is in tests/interop/


@pytest.mark.parametrize("kind", KINDS)
def test_layer_norm_is_ba_et_als(rng, kind):
    """Both products are normalised over all gates together, and the cell over its units: with
    PyTorch's layer_norm.
    """
    functional = pytest.importorskip("torch").nn.functional

    def norm(a, gain):
        a = pytest.importorskip("torch").tensor(a)
        return gain * functional.layer_norm(a, a.shape[-1:]).numpy()

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    layer = make(kind, {"layer_norm": True}, H=4)
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 5, 3)
    p = {name.removeprefix("0."): a for name, a in params.items()}
    y, _, saved = layer.forward(params, x, state)
    before = np.concatenate((state[0], y[:-1]))
    zx = norm(x @ p["Wx"].T, p["gx"]) + p["b"]
    zh = norm(before @ p["Wh"].T, p["gh"]) + p.get("bh", 0)
    gates = np.moveaxis(saved.gates, 1, 0)
    zx, zh = (np.moveaxis(z.reshape(5, 3, -1, 4), 2, 0) for z in (zx, zh))
    if kind == "GRU":
        expected = np.concatenate((sigmoid((zx + zh)[:2]), np.tanh(zx[2:] + gates[1] * zh[2:])))
    else:
        expected = np.concatenate((sigmoid((zx + zh)[:-1]), np.tanh((zx + zh)[-1:])))
    np.testing.assert_allclose(gates, expected, rtol=1e-10, atol=1e-12)
    if kind == "LSTM":
        np.testing.assert_allclose(
            y, gates[1] * np.tanh(norm(saved.c, p["gc"]) + p["bc"]), rtol=1e-10, atol=1e-12
        )


def test_clips_bound_what_they_say(rng):
    layer = make("LSTM", {"clip": 0.5, "cell_clip": 0.4})
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 5, 3)
    _, _, saved = layer.forward(params, 50 * x, state)
    i, o, f, g = np.moveaxis(saved.gates, 1, 0)
    assert np.max(np.abs(saved.c)) == 0.4
    assert np.max(np.abs(g)) == np.tanh(0.5)
    for gate in (i, o, f):
        np.testing.assert_allclose(
            [np.min(gate), np.max(gate)], [1 / (1 + np.exp(0.5)), 1 / (1 + np.exp(-0.5))]
        )


# Initial weights


def test_glorot_is_keras(rng):
    layer = xlstm.LSTM(30, 20, initializer="glorot")
    params = layer.init(0, "numpy", "float64")
    np.testing.assert_allclose(params["0.Wh"].T @ params["0.Wh"], np.eye(20), atol=1e-12)
    limit = (6 / (30 + 80)) ** 0.5
    assert 0.98 * limit < np.max(np.abs(params["0.Wx"])) < limit
    np.testing.assert_array_equal(params["0.b"].reshape(4, 20)[:, 0], [0, 0, 1, 0])


def test_lecun_variance():
    params = xlstm.GRU(300, 200, initializer="lecun").init(0, "numpy", "float64")
    for name, inputs in (("0.Wx", 300), ("0.Wh", 200)):
        assert abs(np.var(params[name]) * inputs - 1) < 0.02
    assert not np.any(params["0.b"])


@pytest.mark.parametrize("recurrent_bias", [False, True])
def test_forget_bias(recurrent_bias):
    params = xlstm.LSTM(2, 3, 2, forget_bias=2.0, recurrent_bias=recurrent_bias).init(0, "numpy")
    for k in range(2):
        total = params[f"{k}.b"] + (params[f"{k}.bh"] if recurrent_bias else 0)
        np.testing.assert_array_equal(total.reshape(4, 3)[2], 2.0)
        assert np.all(np.abs(params[f"{k}.b"].reshape(4, 3)[[0, 1, 3]]) < 3**-0.5)
