"""The sLSTM: gradients of the cell, the published package's numbers, extremes."""

import numpy as np
import pytest

import xlstm
from tests.conftest import DATA
from xlstm.arrays.convert import to_numpy
from xlstm.cells.slstm import Cell


@pytest.mark.parametrize("forget", ["sigmoid", "exponential"])
@pytest.mark.parametrize("gates", [1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("limit", [None, 0.3])
def test_cell_gradient(be, rng, forget, gates, steps, limit):
    cell = Cell(forget, limit)
    shape = (steps, 3, 2)
    a = be.asarray(gates * rng.standard_normal((4, *shape)))
    c0, m0 = (be.asarray(rng.standard_normal(shape)) for _ in range(2))
    n0 = be.asarray(1 + rng.random(shape))

    def forward(zx, zh, c0, n0, m0):
        *outputs, saved = cell.gates(be.xp, zx, zh, c0, c0, n0, m0)
        return tuple(outputs), (saved, c0, n0, m0)

    def backward(saved, d):
        dzx, dzh, _, *dcarry = cell.gates_bwd(be.xp, cell.derivatives(be.xp, *saved), *d)
        return dzx, dzh, *dcarry

    zh = be.asarray(rng.standard_normal((4, *shape)))
    xlstm.gradcheck(forward, backward, (a, zh, c0, n0, m0))


def test_follows_the_published_package(be):
    golden = np.load(DATA / "nxai" / "slstm_cell.npz")
    R = golden["Wx"].shape[2]
    H = R // 4
    N = golden["R"].shape[1]
    layer = xlstm.sLSTM(R, H, num_heads=N)
    params = {"0.Wx": np.eye(R), "0.Wh": golden["R"].swapaxes(2, 3), "0.b": golden["b"]}
    params = {name: be.asarray(p) for name, p in params.items()}
    y, state, saved = layer.forward(params, be.asarray(golden["Wx"]))
    grads, dx, _ = layer.backward(params, saved, be.asarray(golden["dY"]))
    states = np.stack([to_numpy(a) for a in (saved.h, saved.c, saved.n, saved.m)], axis=1)
    found = {
        "Y": y,
        "states": states,
        "dWx": dx,
        "dR": to_numpy(grads["0.Wh"]).swapaxes(2, 3),
        "db": grads["0.b"],
    }
    for name, a in found.items():
        np.testing.assert_allclose(to_numpy(a), golden[name], rtol=1e-10, atol=1e-10, err_msg=name)
    for a, last in zip(state, golden["states"][-1], strict=True):
        np.testing.assert_allclose(to_numpy(a[0, ...]), last, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", [(1, 1), (1, -1), (-1, 1), (-1, -1), (0, 0)])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exponential"])
def test_extreme_gates_stay_finite(dtype, sign, forget_gate, rng):
    layer = xlstm.sLSTM(8, 2, num_heads=2, forget_gate=forget_gate)
    params = layer.init(0, "numpy", dtype)
    params["0.Wx"] = np.eye(8, dtype=dtype)
    x = rng.standard_normal((50, 3, 8)).astype(dtype)
    for k, s in enumerate(sign):
        x[..., 2 * k : 2 * k + 2] = 1e3 * s if s else 1e3 * rng.choice((-1, 1), (50, 3, 2))
    y, state, saved = layer.forward(params, x)
    grads, dx, _ = layer.backward(
        params, saved, np.ones_like(y), tuple(np.ones_like(s) for s in state)
    )
    assert all(np.all(np.isfinite(a)) for a in (y, *state, dx, *grads.values()))
