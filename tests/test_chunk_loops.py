"""The compiled loops of the chunkwise mLSTM, beside the cell on arrays."""

import numpy as np
import pytest

import xlstm
from tests.test_mlstm_kernels import OPTIONS, close, inputs_of
from xlstm.arrays import threads
from xlstm.cells import mlstm as cell
from xlstm.engines.numba import chunks, jit, team

pytestmark = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
WHOLE = (slice(None), slice(None))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Take the loops for any size."""
    monkeypatch.setenv("XLSTM_COMPILE", "1")
    monkeypatch.setattr(chunks, "SMALL", 0)


def run(inputs, chunk=64, eps=0.0, forget="sigmoid", groups=None):
    found = chunks.chunkwise(inputs, eps, forget, chunk, groups)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("T", "chunk"), [(12, 4), (11, 4), (5, 64), (1, 4), (70, 64)])
@pytest.mark.parametrize("sizes", [{}, {"N": 1, "K": 1, "V": 1}, {"B": 1, "K": 20, "V": 33}], ids=str)
def test_chunkwise(rng, T, chunk, options, dtype, sizes):
    inputs = inputs_of(rng, dtype, T, gates=2.0, **sizes)
    if dtype == "f4":  # no sum of h's denominator is near 0, which would make much of rounding
        inputs = [abs(a) if k in (0, 1, 6) else a for k, a in enumerate(inputs)]
    *outputs, saved = cell.chunkwise(np, *inputs, chunk=chunk, **options)
    found, ((_, kept),) = run(inputs, chunk, groups=[WHOLE], **options)
    close(found, outputs, dtype)
    close(run(inputs, chunk, **options)[0], found, dtype, 0)
    for name in ("logf", "h", "C", "end", "s", "den"):
        close([getattr(kept, name)], [getattr(saved, name)], dtype)
    for a, b in zip(kept.logs, saved.logs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12 if dtype == "f8" else 1e-5, atol=1e-12 if dtype == "f8" else 1e-6)
    dh, *dstate = (rng.standard_normal(a.shape).astype(dtype) for a in outputs)
    grads = cell.chunkwise_bwd(np, dh, *dstate, saved, **options)
    close(cell.chunkwise_bwd(np, dh, *dstate, kept, **options), grads, dtype, 1e-4)


def test_from_the_state_before_the_first_step(rng):
    """m = -inf, and steps that write nothing, or forget everything or nothing."""
    inputs = inputs_of(rng, "f8", 11)
    inputs[3] = np.where(np.arange(11) < 6, -np.inf, inputs[3])
    inputs[4] = np.where(np.arange(11) == 8, -np.inf, np.where(np.arange(11) == 3, np.inf, inputs[4]))
    inputs[5:] = [np.zeros_like(inputs[5]), np.zeros_like(inputs[6]), np.full_like(inputs[7], -np.inf)]
    *outputs, _ = cell.chunkwise(np, *inputs, chunk=4)
    close(run(inputs, 4)[0], outputs, "f8")


def test_nothing_is_made_of_nan(rng):
    inputs = inputs_of(rng, "f4", 9)
    inputs[2] = np.array(inputs[2])
    inputs[2][0, 0, 5, 0] = np.nan
    *outputs, _ = cell.chunkwise(np, *inputs, chunk=4)
    found, _ = run(inputs, 4)
    for a, b in zip(found, outputs, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))


def test_equal_bits_however_threads_share_the_work(monkeypatch, rng):
    inputs = inputs_of(rng, "f4", 30, B=3)
    monkeypatch.setattr(team, "LARGE", 0)
    monkeypatch.setattr(team, "WORTH", 1)
    found = []
    for count in ("1", "2", "3"):
        monkeypatch.setenv(threads.VARIABLE, count)
        found.append(run(inputs, 8)[0])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("k", range(5))
def test_steps_heads_and_sequences_backwards_in_memory(rng, k):
    inputs = inputs_of(rng, "f8", 11)
    *outputs, _ = cell.chunkwise(np, *inputs, chunk=4)
    inputs[k] = np.ascontiguousarray(inputs[k][::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    close(run(inputs, 4)[0], outputs, "f8")


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, [11, 0, 4]])
def test_layer(monkeypatch, rng, lengths, batch_first):
    """Forward, backward and inference, with the groups of heads that backward takes."""
    layer = xlstm.mLSTM(3, 8, 2, num_heads=2, qk_size=4, chunk_size=4, batch_first=batch_first)
    params = layer.init(seed=0, backend=xlstm.backend("numpy", dtype="float64"))
    x = rng.standard_normal((3, 11, 3) if batch_first else (11, 3, 3))
    calls = []

    def counted(*arguments):
        found = whole(*arguments)
        calls.append(found is not None)
        return found

    whole = chunks.chunkwise
    monkeypatch.setattr(chunks, "chunkwise", counted)

    def both():
        y, state, saved = layer.forward(params, x, lengths=lengths)
        grads, dx, dstate = layer.backward(params, saved, y, tuple(np.ones_like(s) for s in state))
        return [y, *state, *grads.values(), dx, *dstate[:2], layer(params, x, lengths=lengths)[0]]

    found = both()
    assert calls == [True] * 4
    monkeypatch.setenv("XLSTM_COMPILE", "0")
    close(found, both(), "f8")
    assert calls[4:] == [False] * 4
