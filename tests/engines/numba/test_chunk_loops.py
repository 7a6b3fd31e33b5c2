"""The compiled loops of the chunkwise mLSTM, beside the cell on arrays."""

import numpy as np
import pytest

import xlstm
from tests import registry
from xlstm.arrays import cores
from xlstm.cells import mlstm as cell
from xlstm.engines.numba import chunks, jit, team

# Another forget gate takes seconds to compile, so it has one dtype.
OPTIONS = [
    ("f4", {}),
    ("f8", {}),
    ("f4", {"eps": 0.1}),
    ("f8", {"eps": 0.1}),
    ("f8", {"forget": "exponential"}),
]
# Numbers in a vector: those of `guards.py`, whose code these tests share. AVX-512 has the vectors
# of 64 bytes.
LANES = {"float32": 8, "float64": 2}
WIDE = {"float32": 16, "float64": 2}
pytestmark = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Take the loops for any size."""
    monkeypatch.setenv("XLSTM_COMPILE", "1")
    monkeypatch.setattr(chunks, "SMALL", 0)
    vectors_of(monkeypatch, LANES)


def vectors_of(monkeypatch, lanes):
    """Vectors of so many numbers; those of 64 bytes come with more registers."""
    from xlstm.engines.numba import llvm

    shapes = {
        dtype: llvm.VectorShape(n, llvm.WIDE if n == 16 else llvm.NARROW)
        for dtype, n in lanes.items()
    }
    monkeypatch.setattr(jit, "shape", shapes.get)


def inputs_of(rng, dtype, T, B=2, N=3, K=4, V=5, gates=1.0):
    """As the layer has them: steps first in memory, all of a step within one row."""
    widths = [N * K, N * K, N * V, N, N]
    rows = rng.standard_normal((T, B, sum(widths))).astype(dtype)
    parts = np.split(rows, np.cumsum(widths)[:-1], axis=-1)
    steps = [a.reshape(T, B, N, -1).transpose(1, 2, 0, 3) for a in parts[:3]]
    steps += [gates * a.transpose(1, 2, 0) for a in parts[3:]]
    state = [rng.standard_normal(shape) for shape in ((B, N, K, V), (B, N, K), (B, N))]
    return [a.astype(dtype, copy=False) for a in (*steps, *state)]


def close(found, expected, dtype, rtol=1e-5):
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == dtype
        scale = np.max(np.abs(b[np.isfinite(b)]), initial=1e-3)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=(1e-12 if dtype == "f8" else rtol) * scale, err_msg=str(k)
        )


def run(inputs, chunk=64, eps=0.0, forget="sigmoid", keep=False):
    found = chunks.chunkwise(inputs, eps, forget, chunk, keep)
    assert found is not None
    return found


def run_bwd(kept, dh, dstate, eps=0.0, forget="sigmoid"):
    return chunks.chunkwise_bwd(dh, dstate, kept, eps, forget)


def both(rng, inputs, chunk, final=True, **options):
    """Results and gradients of the loops, and those of the cell on arrays."""
    *outputs, saved = cell.chunkwise(np, *inputs, chunk=chunk, **options)
    dh, *dstate = (rng.standard_normal(a.shape).astype(a.dtype) for a in outputs)
    expected = cell.chunkwise_bwd(
        np, dh, *(dstate if final else (None, None, None)), saved, **options
    )
    found, kept = run(inputs, chunk, keep=True, **options)
    return [*found, *run_bwd(kept, dh, dstate if final else None, **options)], [*outputs, *expected]


@pytest.mark.parametrize(("dtype", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize(("T", "chunk"), [(12, 4), (11, 4), (5, 64), (1, 4), (70, 64)])
@pytest.mark.parametrize(
    "sizes", [{}, {"N": 1, "K": 1, "V": 1}, {"B": 1, "K": 40, "V": 33}], ids=str
)
@pytest.mark.parametrize("final", [False, True])
def test_chunkwise(rng, T, chunk, options, dtype, sizes, final):
    """Results and gradients, the logarithms that are kept, and inference with the bits of
    training.
    """
    inputs = inputs_of(rng, dtype, T, gates=2.0, **sizes)
    if dtype == "f4":  # no sum of h's denominator is near 0, which would make much of rounding
        inputs = [abs(a) if k in (0, 1, 6) else a for k, a in enumerate(inputs)]
    found, expected = both(rng, inputs, chunk, final, **options)
    close(found, expected, dtype, 1e-4)
    *_, saved = cell.chunkwise(np, *inputs, chunk=chunk, **options)
    outputs, kept = run(inputs, chunk, keep=True, **options)
    close(run(inputs, chunk, **options)[0], outputs, dtype, 0)
    close([kept.logf], [saved.logf], dtype)


@pytest.mark.parametrize("sizes", [{}, {"B": 1, "K": 40, "V": 33}], ids=str)
def test_vectors_of_64_bytes(rng, monkeypatch, sizes):
    """Fewer than they hold, and more."""
    vectors_of(monkeypatch, WIDE)
    inputs = [
        abs(a) if k in (0, 1, 6) else a for k, a in enumerate(inputs_of(rng, "f4", 70, **sizes))
    ]
    close(*both(rng, inputs, 64), "f4", 1e-4)


@pytest.fixture
def first():
    """The state before the first step of a stream: m is -inf."""
    return [np.zeros((2, 3, 4, 5)), np.zeros((2, 3, 4)), np.full((2, 3), -np.inf)]


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_steps_that_write_nothing_or_forget_everything_or_nothing(rng, first, eps):
    inputs = [*inputs_of(rng, "f8", 11)[:5], *first]
    inputs[3] = np.where(np.arange(11) < 6, -np.inf, inputs[3])
    inputs[4] = np.where(
        np.arange(11) == 8, -np.inf, np.where(np.arange(11) == 3, np.inf, inputs[4])
    )
    found, expected = both(rng, inputs, 4, eps=eps)
    close(found, expected, "f8")
    assert all(np.all(np.isfinite(a)) for a in found)


@pytest.mark.parametrize("low", [-30.0, -1e4, -np.inf])
def test_digits_survive_a_strong_forget(rng, low):
    inputs = inputs_of(rng, "f4", 64)
    inputs[4] = np.array(inputs[4])
    inputs[4][..., [20, 40]] = low
    _, expected = both(np.random.default_rng(0), [a.astype("f8") for a in inputs], 64)
    found, _ = both(np.random.default_rng(0), inputs, 64)
    close(found, [a.astype("f4") for a in expected], "f4", 1e-4)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("i", [-np.inf, -1e30, 1e3, 0.0])
@pytest.mark.parametrize("f", [-1e30, -1e3, 1e3, 1e30])
def test_extreme_gates_stay_finite(rng, first, dtype, i, f):
    *steps, i_, f_ = inputs_of(rng, dtype, 70)[:5]
    gates = np.full_like(i_, i), np.full_like(f_, f)
    (h, *_), kept = run([*steps, *gates, *(a.astype(dtype) for a in first)], keep=True)
    assert all(np.all(np.isfinite(a)) for a in (h, *run_bwd(kept, np.ones_like(h), None)))


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
    found = []
    monkeypatch.setattr(team, "LARGE", 0)
    monkeypatch.setattr(team, "WORTH", 1)
    for count in ("1", "2", "3"):
        monkeypatch.setenv(cores.VARIABLE, count)
        found.append(both(np.random.default_rng(0), inputs, 8)[0])
    for other in found[1:]:
        close(other, found[0], "f4", 0)


@pytest.mark.parametrize("k", range(6))
def test_steps_heads_and_sequences_backwards_in_memory(rng, k):
    inputs = inputs_of(rng, "f8", 11)
    *outputs, saved = cell.chunkwise(np, *inputs, chunk=4)
    given = [*inputs[:5], rng.standard_normal(outputs[0].shape)]
    expected = cell.chunkwise_bwd(np, given[5], None, None, None, saved)
    given[k] = np.ascontiguousarray(given[k][::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    found, kept = run([*given[:5], *inputs[5:]], 4, keep=True)
    close([*found, *run_bwd(kept, given[5], None)], [*outputs, *expected], "f8")


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, [11, 0, 4]])
def test_layer(monkeypatch, rng, lengths, batch_first):
    """Forward, backward and inference."""
    layer = xlstm.mLSTM(3, 8, 2, num_heads=2, qk_size=4, chunk_size=4, batch_first=batch_first)
    be = xlstm.backend("numpy", dtype="float64")
    found = []
    params = layer.init(0, be)
    x = registry.input_of(layer, be, rng, 11, 3)
    for compiled in "10":
        monkeypatch.setenv("XLSTM_COMPILE", compiled)
        y, state, saved = layer.forward(params, x, lengths=lengths)
        grads, dx, dstate = layer.backward(params, saved, y, tuple(np.ones_like(s) for s in state))
        found.append(
            [y, *state, *grads.values(), dx, *dstate[:2], layer(params, x, lengths=lengths)[0]]
        )
    close(*found, "f8")
