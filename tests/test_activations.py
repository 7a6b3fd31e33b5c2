"""Activations: gradients, extremes, and the notebook's values."""

import numpy as np
import pytest

from xlstm import gradcheck
from xlstm.arrays.backend import to_numpy
from xlstm.cells import activations

NAMES = ["sigmoid", "tanh", "log_sigmoid", "silu", "softmax", "log_softmax", "gelu", "square_relu"]


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


def test_float32_agrees_with_float64(be, rng):
    x = 4 * rng.standard_normal((50, 4))
    for name in NAMES:
        f, _ = pair(name)
        wide = to_numpy(f(be.xp, be.asarray(x, "float64")))
        narrow = to_numpy(f(be.xp, be.asarray(x, "float32")))
        assert narrow.dtype == np.float32
        np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-6)
