"""Inputs, states and gradients of every magnitude: what comes out is finite, and what is in range
is right.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xlstm
from tests.attacks.bounds import examples
from xlstm import losses
from xlstm.cells.activations import soft_cap
from xlstm.cells.normalization import MEAN_AND_VARIANCE, MEAN_SQUARE, normalize, normalize_bwd
from xlstm.layers.blocks.block import GatedFeedForward
from xlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm

D = 8
LAYERS = {
    "mLSTM": xlstm.mLSTM(D, D, 2, num_heads=2, chunk_size=2),
    "mLSTM, exponential": xlstm.mLSTM(D, D, forget_gate="exponential", eps=1e-6),
    "mLSTMBlock": xlstm.mLSTMBlock(D, 2),
    "sLSTMBlock": xlstm.sLSTMBlock(D, 2, recurrent_init="uniform"),
    "xLSTMStack": xlstm.xLSTMStack(D, 2, [1], 2),
    "xLSTMStack without a norm": xlstm.xLSTMStack(D, 2, [0], 2, post_norm=False),
    "xLSTMLarge": xlstm.xLSTMLarge(D, 1, 2, gate_cap=None),
    "LSTM": xlstm.LSTM(D, D),
    "GRU": xlstm.GRU(D, D),
    "sLSTM": xlstm.sLSTM(D, D),
    "minLSTM": xlstm.minLSTM(D, D),
    "minGRU": xlstm.minGRU(D, D),
}
NORMS = {"layer": LayerNorm(D), "root": RMSNorm(D), "heads": MultiHeadNorm(D, num_heads=2)}
# Decimal exponents of inputs; sums of D weighted ones are in range.
HIGHEST = {"float32": 37, "float64": 307}
DTYPES = st.sampled_from(list(HIGHEST))
FEW = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@st.composite
def magnitudes(draw, half=False):
    """A dtype, a seed, and exponents of 10 of the rows of an input."""
    dtype = draw(DTYPES)
    seed = draw(st.integers(0, 2**32 - 1))
    high = HIGHEST[dtype] / (2 if half else 1)
    return dtype, np.random.default_rng(seed), draw(st.floats(0, high)), draw(st.floats(0, high))


def drawn(rng, dtype, shape, low, high):
    """Numbers of both signs whose exponents lie between two, in most of the cases all near one of
    them.
    """
    exponents = rng.uniform(min(low, high), max(low, high), shape) if rng.random() < 0.5 else high
    return (rng.uniform(-1, 1, shape) * 10.0**exponents).astype(dtype)


def arrays(state):
    return [a for part in state for a in arrays(part)] if isinstance(state, tuple) else [state]


def finite(*found):
    assert all(np.all(np.isfinite(a)) for a in found)


pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["input", "state"])
def test_layers(name, kind):
    """States that come in are large to the square root of the largest number; normalisers are
    positive.
    """
    layer = LAYERS[name]

    def large(rng, part, low, high):
        if isinstance(part, tuple):
            return tuple(large(rng, one, low, high) for one in part)
        return np.abs(drawn(rng, part.dtype, part.shape, low, high))

    @settings(max_examples=examples(8), **FEW)
    @given(magnitudes(half=kind == "state"))
    def run(case):
        dtype, rng, low, high = case
        params = layer.init(int(rng.integers(1000)), "numpy", dtype)
        state = None
        x = drawn(rng, dtype, (5, 2, D), low, high)
        if kind == "state":
            x = rng.standard_normal((5, 2, D)).astype(dtype)
            state = large(rng, layer.forward(params, x)[1], low, high)
        y, end, saved = layer.forward(params, x, state, lengths=[5, int(rng.integers(1, 6))])
        grads, dx, dstart = layer.backward(params, saved, np.ones_like(y))
        finite(y, *arrays(end), dx, *arrays(dstart), *grads.values())
        if kind == "input":
            finite(layer.step(params, x[0], end)[0])  # the state that comes out can go in

    run()


@settings(max_examples=examples(60), **FEW)
@given(magnitudes(), st.sampled_from(list(NORMS)))
def test_norms(case, name):
    """Each row alone: n does not change with the size of the row, and the gradient is divided by
    it.
    """
    dtype, rng, low, high = case
    layer = NORMS[name]
    x = rng.uniform(0.5, 2, (6, D)) * rng.choice([-1, 1], (6, D))
    dy = rng.standard_normal((6, D))
    size = 10.0 ** rng.uniform(min(low, high), max(low, high), (6, 1))
    params = {"w": rng.standard_normal(D)}
    plain = dataclasses.replace(layer, eps=1e-30)
    expected, saved = plain.forward(params, x)
    _, dx = plain.backward(params, saved, dy)
    given_x = (x * size).astype(dtype)
    given_dy = dy.astype(dtype)
    low_params = {"w": params["w"].astype(dtype)}
    found, saved = plain.forward(low_params, given_x)
    _, found_dx = plain.backward(low_params, saved, given_dy)
    close = {"rtol": 0, "atol": 1e-4 if dtype == "float32" else 1e-12}
    np.testing.assert_allclose(found, expected, **close)
    np.testing.assert_allclose(found_dx.astype("f8") * size, dx, **close)
    finite(layer.forward(low_params, given_x)[0])


@pytest.mark.parametrize("dtype", HIGHEST)
@pytest.mark.parametrize("norm", [MEAN_AND_VARIANCE, MEAN_SQUARE])
def test_norms_keep_their_bits(rng, dtype, norm):
    """Beside a row that is too large to be squared, others are what they are alone."""
    x = rng.standard_normal((5, 3, 7)).astype(dtype)
    both = np.concatenate([x, np.full_like(x[:1], 10.0 ** HIGHEST[dtype])])
    for axis in (-1, 0, 1):
        turned = np.moveaxis(both, -1, axis)
        alone = np.moveaxis(x, -1, axis)
        n, r = normalize(np, turned, axis, norm)
        expected, root = normalize(np, alone, axis, norm)
        np.testing.assert_array_equal(np.moveaxis(n, axis, -1)[:5], np.moveaxis(expected, axis, -1))
        finite(n, r, root, normalize_bwd(np, np.ones_like(turned), n, r, axis, norm))


@settings(max_examples=examples(60), **FEW)
@given(magnitudes())
def test_losses(case):
    dtype, rng, low, high = case
    logits = drawn(rng, dtype, (4, 5), low, high)
    logits[0, 1] = -np.inf  # a class that cannot be
    labels = np.argmax(logits, axis=1)
    loss, d = losses.cross_entropy(logits, labels)
    finite(loss, d)
    assert 0 <= loss <= 4
    finite(soft_cap(np, logits, 30.0))


@settings(max_examples=examples(30), **FEW)
@given(magnitudes(half=True), st.sampled_from(["gelu", "silu", "relu", "sigmoid", "selu"]))
def test_feed_forward(case, activation):
    """To the square root of the largest number, as two numbers are multiplied."""
    dtype, rng, low, high = case
    layer = GatedFeedForward(D, D, activation=activation)
    params = layer.init(int(rng.integers(1000)), "numpy", dtype)
    y, saved = layer.forward(params, drawn(rng, dtype, (3, D), low, high))
    grads, dx = layer.backward(params, saved, np.ones_like(y))
    finite(y, dx, *grads.values())


@pytest.mark.parametrize("dtype", HIGHEST)
def test_the_limit_of_an_mlstm(rng, dtype):
    """Numbers beyond the limit count as the limit, and have no gradient."""
    layer = xlstm.mLSTM(D, D)
    r = float(np.finfo(dtype).max) ** 0.25
    params = layer.init(0, "numpy", dtype)
    x = (rng.choice([-1, 1], (5, 2, D)) * 10.0 ** rng.uniform(0, HIGHEST[dtype], (5, 2, D))).astype(
        dtype
    )
    y, _, saved = layer.forward(params, x)
    limited, _, _ = layer.forward(params, np.clip(x, -r, r).astype(dtype))
    np.testing.assert_array_equal(y, limited)
    _, dx, _ = layer.backward(params, saved, np.ones_like(y))
    assert np.all(dx[np.abs(x) > r] == 0)
    assert np.any(dx != 0)
