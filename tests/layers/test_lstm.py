"""The LSTM layer: gradients, other people's numbers, extremes, and errors."""

import functools
import warnings

import numpy as np
import pytest

import xlstm
from tests import registry
from tests.conftest import make_backend
from xlstm.arrays.convert import to_numpy
from xlstm.cells import lstm as cell

inputs_of = functools.partial(registry.inputs_of, scale=1.0)
check = functools.partial(registry.check, directions=2)


@pytest.mark.parametrize("shape", [(1, 3, 4), (4, 3, 4)], ids=["one step", "four steps"])
def test_cell_gradient(be, rng, shape):
    """`gates` and `gates_bwd`, for one step and for several side by side."""
    n, H, B = shape
    zx, zh = (be.asarray(rng.standard_normal((4, n, H, B))) for _ in range(2))
    h0, c0 = (be.asarray(rng.standard_normal((n, H, B))) for _ in range(2))

    def forward(zx, zh, c0):
        h, c, saved = cell.gates(be.xp, zx, zh, h0, c0)
        return (h, c), (saved, c0)

    def backward(saved, d):
        dzx, dzh, dh0, dc0 = cell.gates_bwd(be.xp, cell.derivatives(be.xp, *saved), *d)
        assert dh0 is None
        return dzx, dzh, dc0

    xlstm.gradcheck(forward, backward, (zx, zh, c0))


def test_float32_within_1e5_of_float64(be, rng):
    layer = xlstm.LSTM(3, 8)
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 20, 4)
    params = {name: 0.3 * p for name, p in params.items()}
    dy = rng.standard_normal((20, 4, 8))

    def run(backend, dtype):
        p = {name: backend.asarray(a, dtype) for name, a in params.items()}
        y, end, saved = layer.forward(p, backend.asarray(x, dtype), tuple(backend.asarray(s, dtype) for s in state))
        grads, dx, dstate = layer.backward(p, saved, backend.asarray(dy, dtype))
        return [to_numpy(a) for a in (y, *end, dx, *dstate, *grads.values())]

    for narrow, wide in zip(run(be, "float32"), run(make_backend("numpy"), "float64"), strict=True):
        assert narrow.dtype == np.float32
        assert np.max(np.abs(narrow - wide)) <= 1e-5 * max(1.0, np.max(np.abs(wide)))


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_preactivations_stay_finite_without_a_warning(be, dtype, scale):
    layer = xlstm.LSTM(1, 4)
    params = {name: scale * be.xp.ones_like(p) for name, p in layer.init(0, be, dtype).items()}
    x = be.asarray(np.ones((6, 2, 1)), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, _, saved = layer.forward(params, x)
        grads, dx, _ = layer.backward(params, saved, be.xp.ones_like(y))
    assert all(np.all(np.isfinite(to_numpy(a))) for a in (y, dx, *grads.values()))


@pytest.mark.parametrize("layer", [xlstm.LSTM(1, 2), xlstm.sLSTM(1, 4, num_heads=2)], ids=["LSTM", "sLSTM"])
def test_long_sequences_stay_finite(rng, layer):
    params = layer.init(0, "numpy")
    x = 100 * rng.standard_normal((20_000, 1, 1)).astype("float32")
    y, _, saved = layer.forward(params, x)
    grads, _, _ = layer.backward(params, saved, np.ones_like(y))
    assert all(np.all(np.isfinite(a)) for a in (y, *grads.values()))


def with_(params, **changes):
    return {**params, **{name.replace("_", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda p, x, s: (with_(p, **{"0_Wh": np.zeros((16, 8))}), x, s), ValueError,
         r"LSTM: 0\.Wh has shape \(16, 8\), expected \(4H, H\) = \(12, 3\)"),
        (lambda p, x, s: ({"0.Wx": p["0.Wx"]}, x, s), ValueError, r"0\.Wh is missing"),
        (lambda p, x, s: ({**p, "0.Wq": p["0.b"]}, x, s), ValueError, r"0\.Wq is unknown"),
        (lambda p, x, s: (p, x[0], s), ValueError, r"x has shape \(2, 2\), expected \(T, B, D\)"),
        (lambda p, x, s: (p, x[:0], s), ValueError, "no time steps"),
        (lambda p, x, s: (p, x.astype("int64"), s), TypeError, "x has dtype int64"),
        (lambda p, x, s: (p, x.astype("float32"), s), TypeError, "float64 but x has float32"),
        (lambda p, x, s: (p, x, (s[0], s[1][:, :1])), ValueError, r"state c has shape \(1, 1, 3\)"),
        (lambda p, x, s: (with_(p, **{"0_b": 1.0}), x, s), TypeError, r"0\.b is a float"),
    ],
)  # fmt: skip
def test_bad_input_is_named(rng, change, error, words):
    layer = xlstm.LSTM(2, 3)
    args = change(*inputs_of(layer, make_backend("numpy"), rng, 4, 2))
    with pytest.raises(error, match=words):
        layer.forward(*args)


def test_mixed_libraries_are_refused(rng):
    torch = pytest.importorskip("torch")
    layer = xlstm.LSTM(2, 3)
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 4, 2)
    with pytest.raises(TypeError, match=r"is a numpy array, expected a torch array"):
        layer.forward(params, torch.tensor(x), state)
    ours = layer.init(0, "torch", "float64")
    ours["0.b"].requires_grad_()
    with pytest.raises(TypeError, match=r"0\.b requires grad"):
        layer.forward(ours, torch.tensor(x))


def test_mixed_devices_are_refused(rng):
    strict = pytest.importorskip("array_api_strict")
    layer = xlstm.LSTM(2, 3)
    params, x, _ = inputs_of(layer, make_backend("strict"), rng, 4, 2)
    with pytest.raises(TypeError, match="expected one device"):
        layer.forward(params, strict.asarray(to_numpy(x)))


@pytest.mark.parametrize("sizes", [(0, 3), (2, -1), (2.0, 3), (True, 3)])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises((ValueError, TypeError), match=r"LSTM: .*_size is"):
        xlstm.LSTM(*sizes)


def test_bad_gradient_shape_is_named(rng):
    layer = xlstm.LSTM(2, 3)
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 4, 2)
    _, _, saved = layer.forward(params, x, state)
    with pytest.raises(ValueError, match=r"dy has shape \(4, 2, 1\), expected \(T, B, H\) = \(4, 2, 3\)"):
        layer.backward(params, saved, np.zeros((4, 2, 1)))


def test_unknown_initializer_is_named():
    with pytest.raises(ValueError, match="LSTM: initializer is 'zeros', expected one of uniform"):
        xlstm.LSTM(2, 3, initializer="zeros")


def test_changing_the_given_state_afterwards_changes_nothing(rng):
    layer = xlstm.LSTM(2, 3)
    params, x, _ = inputs_of(layer, make_backend("numpy"), rng, 4, 2)
    h0, c0 = (rng.standard_normal((1, 2, 3)) for _ in range(2))
    y, _, saved = layer.forward(params, x, (h0, c0))
    expected = layer.backward(params, saved, y)[0]
    h0[:], c0[:] = 0.0, 0.0
    for name, grad in layer.backward(params, saved, y)[0].items():
        np.testing.assert_array_equal(grad, expected[name])
