"""The sigmoid has all its digits relative to itself, on every engine."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest

import xlstm
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.fuse import fuse
from xlstm.cells.activations import log_sigmoid_bwd, sigmoid, silu, softplus, softplus_bwd
from xlstm.interop.torch import to_torch

RELATIVE = {"float32": 1e-6, "float64": 1e-14}
DTYPES = pytest.mark.parametrize("dtype", RELATIVE)


def grid(dtype):
    """x from -80 to 80, and sigmoid(x) in float64."""
    x = np.linspace(-80, 80, 3201).astype(dtype)
    with localcontext(prec=25):
        return x, np.array([float(1 / (1 + (-Decimal(float(v))).exp())) for v in x])


def agree(found, expected, dtype):
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=RELATIVE[dtype], atol=0)


@DTYPES
def test_as_arrays(be, dtype):
    x, expected = grid(dtype)
    agree(to_numpy(sigmoid(be.xp, be.asarray(x, dtype))), expected, dtype)


def by_numba(function, x):
    """A function of the array, as a compiled loop runs it."""
    from xlstm.engines.numba.codegen import kernel

    y = np.empty_like(x)
    made = kernel(str(x.dtype), lambda xp, x: {"y": function(xp, x)}, {"x": None}, (), {}, {}, ())
    made.loops.step(0, 0, 0, 0, 0, 0, 0, x.size, x, y)
    return y


@DTYPES
def test_compiled_by_numba(dtype):
    """And what it is made of, exp, tanh and log1p, to the smallest and the largest, as NumPy's."""
    pytest.importorskip("numba")
    x, expected = grid(dtype)
    agree(by_numba(sigmoid, x), expected, dtype)
    info = np.finfo(dtype)
    small = np.exp(np.linspace(np.log(float(info.smallest_subnormal)), 0, 5001))
    exponents = np.linspace(
        np.log(float(info.smallest_subnormal)) - 2, np.log(float(info.max)), 5001
    )[:-1]
    special = [0, -1, -2, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny, -info.tiny]
    values = np.concatenate(
        [
            small,
            -small,
            exponents,
            np.linspace(-30, 30, 6001),
            1 / small[small > 1 / info.max],
            special,
        ]
    )
    values = values.astype(dtype)
    for name, units in (("exp", 4), ("tanh", 3), ("log1p", 2)):
        found = by_numba(lambda xp, x, name=name: getattr(xp, name)(x), values)
        with np.errstate(all="ignore"):
            exact = getattr(np, name)(values.astype(np.longdouble)).astype(dtype)
        np.testing.assert_allclose(
            found, exact, rtol=units * info.eps, atol=info.smallest_subnormal, err_msg=name
        )


@DTYPES
def test_as_a_kernel_of_cupy(xp, dtype):
    x, expected = grid(dtype)
    agree(fuse(xp, sigmoid, xp.asarray(x)).get(), expected, dtype)


@DTYPES
def test_what_is_made_of_it(be, dtype):
    """silu, and the derivatives that are a sigmoid."""
    x, expected = grid(dtype)
    given = be.asarray(x, dtype)
    ones = be.xp.ones_like(given)
    agree(to_numpy(silu(be.xp, given)), x * expected, dtype)
    agree(to_numpy(log_sigmoid_bwd(be.xp, ones, -given, given)), expected, dtype)
    agree(to_numpy(softplus_bwd(be.xp, ones, given, softplus(be.xp, given))), expected, dtype)


def test_extremes():
    x = np.array([-np.inf, -3e38, -1e3, 1e3, 3e38, np.inf, np.nan], "f4")
    np.testing.assert_array_equal(sigmoid(np, x), np.array([0, 0, 0, 1, 1, 1, np.nan], "f4"))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_halves(name):
    """Whose exponentials overflow early."""
    torch = pytest.importorskip("torch")
    import array_api_compat.torch as xp

    x = torch.tensor([-1e4, -10.0, -1.0, 0.0, 3.0, 20.0, 6e4], dtype=getattr(torch, name))
    found = sigmoid(xp, x)
    expected = torch.sigmoid(x)
    assert found.dtype == x.dtype
    torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(x.dtype).eps, atol=0)


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_gradients_of_a_saturated_gru_follow_torch(monkeypatch, compiled):
    """A state of 1e4 makes gates that are nearly 0, whose small gradients times the state are the
    weights'.
    """
    torch = pytest.importorskip("torch")
    if compiled == "1":
        pytest.importorskip("numba")
    monkeypatch.setenv("XLSTM_COMPILE", compiled)
    layer = xlstm.GRU(3, 8)
    B = 16
    params = layer.init(0, "numpy")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, B, 3)).astype("f4")
    h0 = (1e4 * rng.uniform(-1, 1, (1, B, 8))).astype("f4")
    y, _, saved = layer.forward(params, x, (h0,))
    grads, _, _ = layer.backward(params, saved, np.ones_like(y))
    found = to_torch(layer, grads)
    peer = torch.nn.GRU(3, 8).double()
    peer.load_state_dict(
        {name: torch.tensor(p).double() for name, p in to_torch(layer, params).items()}
    )
    peer(torch.tensor(x).double(), torch.tensor(h0).double())[0].sum().backward()
    for name in ("weight_ih_l0", "weight_hh_l0"):
        expected = getattr(peer, name).grad.numpy()
        off, size = (np.linalg.norm(a, axis=1) for a in (found[name] - expected, expected))
        assert np.all(off <= 1e-3 * size + 1e-30), name  # PyTorch in float32 is off by 1e-4, too
