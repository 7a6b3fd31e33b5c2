"""The mLSTM cell: gradients, the published package's numbers, extremes."""

import numpy as np
import pytest

import xlstm
from tests.conftest import DATA, make_backend
from xlstm.arrays.convert import to_numpy
from xlstm.cells import mlstm as cell


def inputs_of(be, rng, T=None, before=(2, 2), K=4, V=3, gates=1.0):
    """q, k, v, i, f and an initial state, all random."""
    steps = () if T is None else (T,)
    shapes = [(*before, *steps, K)] * 2 + [(*before, *steps, V)] + [(*before, *steps)] * 2
    shapes += [(*before, K, V), (*before, K), before]
    scales = [1, 1, 1, gates, gates, 1, 1, 1]
    return tuple(
        be.asarray(s * rng.standard_normal(shape)) for s, shape in zip(scales, shapes, strict=True)
    )


def zero_state(be, before, K, V):
    return tuple(
        be.asarray(np.full(shape, value))
        for shape, value in (((*before, K, V), 0.0), ((*before, K), 0.0), (before, -np.inf))
    )


def recurrent(xp, q, k, v, i, f, C, n, m, **options):
    """`step` over all steps: h and the state."""
    hs = []
    for t in range(q.shape[-2]):
        x = (q[..., t, :], k[..., t, :], v[..., t, :], i[..., t], f[..., t])
        h, C, n, m = cell.step(xp, *x, C, n, m, **options)
        hs.append(h)
    return xp.stack(hs, axis=-2), C, n, m


OPTIONS = [{}, {"eps": 0.1}, {"forget": "exponential"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("gates", [1.0, 4.0])
@pytest.mark.parametrize(("T", "chunk"), [(7, 3), (6, 3), (5, 5), (5, 64), (3, 1), (1, 4)])
def test_chunkwise_gradient(rng, T, chunk, gates, options):
    be = make_backend("numpy")

    def forward(*inputs):
        *outputs, saved = cell.chunkwise(be.xp, *inputs, chunk=chunk, **options)
        return tuple(outputs), saved

    def backward(saved, d):
        return cell.chunkwise_bwd(be.xp, *d, saved, **options)

    xlstm.gradcheck(forward, backward, inputs_of(be, rng, T, gates=gates))


@pytest.mark.parametrize("chunk", [4, 13, 64])
def test_follows_the_published_package(be, chunk):
    golden = np.load(DATA / "nxai" / "mlstm_cell.npz")
    q, k, v = (be.asarray(golden[name]) for name in "qkv")
    i, f = (be.asarray(golden[name][..., 0]) for name in "if")
    before = golden["q"].shape[:2]
    K = golden["q"].shape[3]
    V = golden["v"].shape[3]
    state = zero_state(be, before, K, V)
    h, C, n, m, saved = cell.chunkwise(be.xp, q, k, v, i, f, *state, chunk=chunk)
    dq, dk, dv, di, df, *_ = cell.chunkwise_bwd(
        be.xp, be.asarray(golden["dh"]), None, None, None, saved
    )
    found = {"h": h, "dq": dq, "dk": dk, "dv": dv, "di": di[..., None], "df": df[..., None]}
    found |= {"C_T": C, "n_T": n[..., None], "m_T": m[..., None, None]}
    for name, a in found.items():
        np.testing.assert_allclose(to_numpy(a), golden[name], rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("size", "sign"),
    [
        *(
            (size, sign)
            for size in (1e3, 1e30)
            for sign in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 0))
        ),
        *((np.inf, sign) for sign in ((-1, 1), (-1, -1))),
    ],
)
def test_extreme_gates_stay_finite(dtype, size, sign, rng):
    """Forward and backward, whatever the gates; also with nothing ever written, i = -inf."""
    be = make_backend("numpy", dtype)
    q, k, v, *_ = inputs_of(be, rng, 70)
    before = (2, 2, 70)
    sizes = (size, min(size, 1e30))
    i, f = (
        be.asarray(s * z * np.ones(before) if s else 1e3 * rng.choice((-1, 1), before))
        for s, z in zip(sign, sizes, strict=True)
    )
    state = zero_state(be, (2, 2), 4, 3)
    h, C, n, m, saved = cell.chunkwise(np, q, k, v, i, f, *state, chunk=16)
    grads = cell.chunkwise_bwd(
        np, np.ones_like(h), np.ones_like(C), np.ones_like(n), np.ones_like(m), saved
    )
    step, *_ = recurrent(np, q, k, v, i, f, *state)
    assert all(np.all(np.isfinite(a)) for a in (h, C, n, step, *grads[:7]))
    assert not np.any(np.isnan(m))


@pytest.mark.parametrize("low", [-30.0, -1e3, -1e4, -1e30, -np.inf])
def test_digits_survive_a_strong_forget(rng, low):
    """In float32, as `step` by step: what stands in a sum with a large logarithm is not lost."""
    be = make_backend("numpy", "float32")
    q, k, v, i, f = inputs_of(be, rng, 64)[:5]
    f = np.array(f)
    f[..., 20] = f[..., 40] = low
    state = zero_state(be, (2, 2), 4, 3)
    wide = [np.asarray(a, dtype=np.float64) for a in (q, k, v, i, f, *state)]
    expected, *_ = recurrent(np, *wide)
    h, *_, saved = cell.chunkwise(np, q, k, v, i, f, *state)
    np.testing.assert_allclose(h, expected, rtol=2e-4, atol=2e-6)
    assert all(
        np.all(np.isfinite(g)) for g in cell.chunkwise_bwd(np, h, None, None, None, saved)[:7]
    )


def test_long_sequences_stay_finite(rng):
    be = make_backend("numpy", "float32")
    inputs = inputs_of(be, rng, 100_000, (1,), 4, 3, gates=3.0)
    h, C, n, m, saved = cell.chunkwise(np, *inputs)
    grads = cell.chunkwise_bwd(np, np.ones_like(h), None, None, None, saved)
    assert all(np.all(np.isfinite(a)) for a in (h, C, n, m, *grads))
