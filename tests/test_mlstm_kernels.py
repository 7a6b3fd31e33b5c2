"""The mLSTM cell as it runs on CuPy, with kernels and products acted out on NumPy arrays: as on NumPy itself."""

import numpy as np
import pytest

import xlstm
from tests.ctargets import BFLOAT16, ElementwiseKernel, act
from xlstm.arrays import cores
from xlstm.cells import mlstm as cell

OPTIONS = [{}, {"eps": 0.1}, {"forget": "exponential"}]


def inputs_of(rng, dtype, T=None, B=2, N=3, K=4, V=5, gates=1.0):
    """As the layer has them: steps first in memory, all of a step within one row."""
    if T is None:
        shapes = [(B, N, K), (B, N, K), (B, N, V), (B, N), (B, N)]
        steps = [rng.standard_normal(shape) for shape in shapes]
    else:
        widths = [N * K, N * K, N * V, N, N]
        rows = rng.standard_normal((T, B, sum(widths))).astype(dtype)
        parts = np.split(rows, np.cumsum(widths)[:-1], axis=-1)
        steps = [a.reshape(T, B, N, -1).transpose(1, 2, 0, 3) for a in parts[:3]]
        steps += [a.transpose(1, 2, 0) for a in parts[3:]]
    steps[3:] = [gates * a for a in steps[3:]]
    state = [rng.standard_normal(shape) for shape in ((B, N, K, V), (B, N, K), (B, N))]
    return [a.astype(dtype, copy=False) for a in (*steps, *state)]


def close(found, expected, dtype, rtol=1e-5):
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == dtype
        scale = np.max(np.abs(b[np.isfinite(b)]), initial=1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=(1e-12 if dtype == "f8" else rtol) * scale, err_msg=str(k))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("T", "chunk"), [(12, 4), (11, 4), (5, 64), (1, 4)])
@pytest.mark.parametrize("final", [False, True])
def test_chunkwise(monkeypatch, rng, T, chunk, options, dtype, final):
    inputs = inputs_of(rng, dtype, T, gates=2.0)
    *outputs, saved = cell.chunkwise(np, *inputs, chunk=chunk, **options)
    dh, *dstate = (rng.standard_normal(a.shape).astype(dtype) for a in outputs)
    dstate = dstate if final else (None, None, None)
    grads = cell.chunkwise_bwd(np, dh, *dstate, saved, **options)
    act(monkeypatch)
    *found, saved = cell.chunkwise(np, *inputs, chunk=chunk, **options)
    close(found, outputs, dtype)
    close(cell.chunkwise_bwd(np, dh, *dstate, saved, **options), grads, dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_step(monkeypatch, rng, options, dtype):
    inputs = inputs_of(rng, dtype, gates=2.0)
    *outputs, saved = cell.step(np, *inputs, **options)
    d = [rng.standard_normal(a.shape).astype(dtype) for a in outputs]
    grads = cell.step_bwd(np, *d, saved, **options)
    act(monkeypatch)
    *found, saved = cell.step(np, *inputs, **options)
    close(found, outputs, dtype)
    close(cell.step_bwd(np, *d, saved, **options), grads, dtype)


def test_from_the_state_before_the_first_step(monkeypatch, rng):
    """m = -inf, and steps that write nothing."""
    inputs = inputs_of(rng, "f8", 11)
    inputs[3] = np.where(np.arange(11) < 6, -np.inf, inputs[3])
    inputs[5:] = [np.zeros_like(inputs[5]), np.zeros_like(inputs[6]), np.full_like(inputs[7], -np.inf)]
    *outputs, saved = cell.chunkwise(np, *inputs, chunk=4)
    grads = cell.chunkwise_bwd(np, *(np.ones_like(a) for a in outputs), saved)
    act(monkeypatch)
    *found, saved = cell.chunkwise(np, *inputs, chunk=4)
    close(found, outputs, "f8")
    found = cell.chunkwise_bwd(np, *(np.ones_like(a) for a in outputs), saved)
    close(found[:7], grads[:7], "f8")


@pytest.mark.parametrize("low", [-30.0, -1e4, -np.inf])
def test_digits_survive_a_strong_forget(monkeypatch, rng, low):
    inputs = inputs_of(rng, "f4", 64)
    inputs[4] = np.array(inputs[4])
    inputs[4][..., [20, 40]] = low
    expected, *_ = cell.chunkwise(np, *(a.astype("f8") for a in inputs))
    act(monkeypatch)
    h, *_ = cell.chunkwise(np, *inputs)
    np.testing.assert_allclose(h, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.dtype("f2"), BFLOAT16], ids=str)
def test_halves(monkeypatch, rng, dtype):
    inputs = inputs_of(rng, dtype, 24)
    exact = [a.astype("f4") for a in inputs]
    *outputs, saved = cell.chunkwise(np, *exact, chunk=8)
    grads = cell.chunkwise_bwd(np, *(np.ones_like(a) for a in outputs), saved)
    act(monkeypatch)
    *found, saved = cell.chunkwise(np, *inputs, chunk=8)
    found += cell.chunkwise_bwd(np, *(np.ones_like(a) for a in found), saved)
    assert all(a.dtype == dtype for a in found)
    close([a.astype("f4") for a in found], [*outputs, *grads], np.float32, 0.01 if dtype == "f2" else 0.1)


@pytest.mark.parametrize("lengths", [None, [11, 0, 4]])
def test_layer(monkeypatch, rng, lengths):
    """With all heads at once, as where there is a GPU."""
    layer = xlstm.mLSTM(3, 8, 2, num_heads=2, qk_size=4, chunk_size=4)
    params = layer.init(seed=0, backend=xlstm.backend("numpy", dtype="float64"))
    x = rng.standard_normal((11, 3, 3))
    monkeypatch.setenv(cores.VARIABLE, "1")

    def run():
        y, state, saved = layer.forward(params, x, lengths=lengths)
        grads, dx, dstate = layer.backward(params, saved, y, tuple(np.ones_like(s) for s in state))
        h, end = layer.step(params, x[0], state)
        return [y, *state, *grads.values(), dx, *dstate[:2], h, *end]

    expected = run()
    act(monkeypatch)
    close(run(), expected, "f8")


def test_launches_and_copies(monkeypatch, rng):
    """Kernels, products, and the copies of q and k, which the layer has by steps."""
    inputs = inputs_of(rng, "f4", 64)
    cupy, before = act(monkeypatch), ElementwiseKernel.launches

    def counted():
        nonlocal before
        found = ElementwiseKernel.launches - before, len(cupy.cublas.calls), cupy.copies
        before, cupy.copies = ElementwiseKernel.launches, 0
        cupy.cublas.calls.clear()
        return found

    h, *_, saved = cell.chunkwise(np, *inputs, chunk=16)
    assert counted() == (10, 4, 2)
    dq, dk, *_ = cell.chunkwise_bwd(np, h, None, None, None, saved)
    assert counted() == (17, 9, 2)
    # steps first in memory, as the layer wants them
    assert all(a.transpose(2, 0, 1, 3).flags.c_contiguous for a in (h, dq, dk))
