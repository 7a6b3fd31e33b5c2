"""Extremes of the LSTM layer, and long sequences."""

import warnings

import numpy as np
import pytest

import xlstm
from xlstm.arrays.convert import to_numpy


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


@pytest.mark.parametrize(
    "layer", [xlstm.LSTM(1, 2), xlstm.sLSTM(1, 4, num_heads=2)], ids=["LSTM", "sLSTM"]
)
def test_long_sequences_stay_finite(rng, layer):
    params = layer.init(0, "numpy")
    x = 100 * rng.standard_normal((20_000, 1, 1)).astype("float32")
    y, _, saved = layer.forward(params, x)
    grads, _, _ = layer.backward(params, saved, np.ones_like(y))
    assert all(np.all(np.isfinite(a)) for a in (y, *grads.values()))
