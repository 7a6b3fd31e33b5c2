"""The LSTM layer: gradients, other people's numbers, extremes, and errors."""

import functools
import warnings

import numpy as np
import pytest

import xlstm
from tests import registry
from tests.conftest import make_backend
from xlstm.arrays.convert import to_numpy

inputs_of = functools.partial(registry.inputs_of, scale=1.0)


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
