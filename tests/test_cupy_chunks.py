"""The kernels of the chunkwise mLSTM on the stand-in for CuPy, beside the cell in float64 and beside its array form."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest

import xlstm
from tests import cuda_on_cpu, gpu
from xlstm.arrays.convert import to_numpy
from xlstm.cells import mlstm
from xlstm.engines import cuda
from xlstm.engines.cuda.chunks import passes
from xlstm.engines.cuda.tiling import Device

gpu.needed()

TOLERANCE = {"float32": 1e-5, "tf32": 2e-4, "float16": 1e-2, "bfloat16": 8e-2}
GRADIENTS = ("dq", "dk", "dv", "di", "df", "dC0", "dn0", "dm0")


def inputs_of(rng, T, B, N, K, V):
    """q, k, v, i, f and the state as the layer has them: steps first in memory, all of a step within one row."""
    widths = np.cumsum([N * K, N * K, N * V, N, N])
    rows = rng.standard_normal((T, B, widths[-1]))
    parts = np.split(rows, widths[:-1], axis=-1)
    steps = [a.reshape(T, B, N, -1).transpose(1, 2, 0, 3) for a in parts[:3]]
    gates = [a.transpose(1, 2, 0) for a in parts[3:]]
    return [*steps, *gates], [rng.standard_normal(shape) for shape in ((B, N, K, V), (B, N, K), (B, N))]


def close(found, expected, tolerance, names):
    for name, a, b in zip(names, found, expected, strict=True):
        a = to_numpy(a).astype("float64")
        assert a.shape == b.shape, name
        finite = np.isfinite(b)
        assert np.array_equal(np.isfinite(a), finite), name
        assert np.linalg.norm(a[finite] - b[finite]) <= tolerance * max(np.linalg.norm(b[finite]), 1e-3), name


def both(rng, sizes, dtype="float32", chunk=16, final=True, change=None, **options):
    """Results of the kernels and, from the same numbers in float64, of the cell; and what the kernels keep."""
    steps, state = inputs_of(rng, *sizes)
    if change is not None:
        change(steps, state)
    low, high = xlstm.backend("cupy", dtype=dtype), xlstm.backend("cupy", dtype="float32")
    given = [low.asarray(a) for a in steps] + [high.asarray(a) for a in state]
    exact = [to_numpy(a).astype("float64") for a in given]
    made = passes.kernels(low.xp, *given[:3], chunk, options.get("forget", "sigmoid"), options.get("eps", 0.0))
    most = 16 // given[0].itemsize
    assert made.shape.pack == (2 if sizes[3] % most or sizes[4] % most else most)
    *found, saved = passes.chunkwise(low.xp, *given, made)
    *expected, kept = mlstm.chunkwise(np, *exact, chunk=chunk, **options)
    d = [rng.standard_normal(a.shape) for a in expected]
    dh, *dend = low.asarray(d[0]), *(high.asarray(a) for a in d[1:])
    dend, d[1:] = (dend, d[1:]) if final else ([None] * 3, [None] * 3)
    found += passes.chunkwise_bwd(low.xp, dh, *dend, saved)
    expected += mlstm.chunkwise_bwd(np, to_numpy(dh).astype("float64"), *d[1:], kept, **options)
    return found, expected


NAMES = ("h", "C", "n", "m", *GRADIENTS)


@pytest.mark.parametrize("options", [{}, {"eps": 0.1}, {"forget": "exponential"}], ids=str)
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize(("T", "chunk"), [(48, 16), (37, 16), (50, 24), (5, 64), (1, 16)])
def test_passes(rng, T, chunk, final, options):
    """Whole chunks and broken ones, one of all steps, and one step, with every gradient."""
    close(*both(rng, (T, 2, 3, 6, 10), chunk=chunk, final=final, **options), TOLERANCE["float32"], NAMES)


@pytest.mark.parametrize("sizes", [(2, 82, 146), (4, 88, 136)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_several_tiles(rng, dtype, sizes):
    """Widths beyond those of all tiles, and a part of the last one; read by pairs, and by 16 bytes."""
    with cuda.use(precision="tf32" if dtype == "tf32" else None):
        found, expected = both(rng, (19, 1, *sizes), dtype.replace("tf32", "float32"))
    close(found, expected, TOLERANCE[dtype], NAMES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_largest_chunk(rng, dtype):
    close(*both(rng, (70, 1, 1, 24, 40), dtype, chunk=64), TOLERANCE[dtype], NAMES)


def test_many_chunks(rng):
    """More than a block has threads."""
    close(*both(rng, (257 * 16 + 3, 1, 1, 2, 2), eps=0.1), TOLERANCE["float32"], NAMES)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_barrier_is_missing(seed):
    """Threads in an order that is drawn give the same bits, in all kernels."""
    gpu.on_cpu()
    first = both(np.random.default_rng(0), (37, 1, 2, 20, 24), eps=0.1)[0]
    with cuda_on_cpu.configured(seed=seed):
        again = both(np.random.default_rng(0), (37, 1, 2, 20, 24), eps=0.1)[0]
    for name, a, b in zip(NAMES, first, again, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=name)


def test_from_the_state_before_the_first_step(rng):
    """m = -inf, and steps that write nothing."""

    def change(steps, state):
        steps[3] = np.where(np.arange(21) < 6, -np.inf, steps[3])
        state[:] = np.zeros_like(state[0]), np.zeros_like(state[1]), np.full_like(state[2], -np.inf)

    found, expected = both(rng, (21, 2, 1, 4, 6), change=change, final=False)
    close(found[:-1], expected[:-1], TOLERANCE["float32"], NAMES[:-1])


@pytest.mark.parametrize("low", [-30.0, -1e4, -np.inf])
def test_digits_survive_a_strong_forget(rng, low):
    def change(steps, state):
        steps[4][..., [7, 20]] = low

    found, expected = both(rng, (40, 1, 2, 4, 6), change=change, final=False)
    close(found[:4], expected[:4], 1e-5, NAMES[:4])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("lengths", [None, [21, 0, 7]])
@pytest.mark.parametrize(
    "layer",
    [
        xlstm.mLSTM(4, 12, 2, num_heads=2, qk_size=8, chunk_size=16),
        xlstm.mLSTM(4, 32, num_heads=4, chunk_size=16),
        xlstm.xLSTMLarge(8, 1, 2),
    ],
    ids=["pairs", "16 bytes", "large"],
)
def test_layers(rng, layer, lengths, dtype):
    """A layer gives what it gives without own kernels."""
    be = xlstm.backend("cupy", dtype=dtype)
    params = {name: be.asarray(p + 0.1 * rng.standard_normal(p.shape)) for name, p in layer.draw(rng).items()}
    x, found = be.asarray(rng.standard_normal((21, 3, layer.input_size))), {}
    for path in ("auto", "loop"):
        with cuda.use(path), gpu.counted() as counts:
            y, state, saved = layer.forward(params, x, lengths=lengths)
            grads, dx, dstate = layer.backward(params, saved, y, state if lengths is None else None)
        assert ("xlstm_chunk_within_bwd" in counts.places()) == (path == "auto")
        flat = [*state, *dstate] if isinstance(layer, xlstm.mLSTM) else [*state[0], *dstate[0]]
        found[path] = [y, dx, *grads.values(), *flat[:5]]
    expected = [to_numpy(a).astype("float64") for a in found["loop"]]
    close(found["auto"], expected, 4 * TOLERANCE[dtype], map(str, range(len(expected))))


@pytest.mark.parametrize(
    "layer",
    [
        xlstm.mLSTM(4, 8, num_heads=2, chunk_size=128),
        xlstm.mLSTM(4, 6, num_heads=2),
        xlstm.mLSTM(4, 8, num_heads=2, qk_size=6),
    ],
    ids=["long chunks", "odd heads", "odd keys"],
)
def test_what_has_no_kernels(layer, rng):
    be = xlstm.backend("cupy")
    params, x = layer.init(0, be), be.asarray(rng.standard_normal((70, 1, 4)))
    with gpu.counted() as counts:
        layer.forward(params, x)
    assert "xlstm_chunk" not in counts.places()


@pytest.mark.parametrize(
    ("capability", "dtype", "there"),
    [
        (70, "float16", False),
        (75, "float16", True),
        (75, "float32", False),
        (80, "bfloat16", True),
        (80, "float32", True),
    ],
)
def test_cards(monkeypatch, capability, dtype, there):
    """Tensor cores take float16 from sm_75 on, bfloat16 and so float32 from sm_80 on."""
    card = SimpleNamespace(device=Device("a card", capability, 40, 101376))
    monkeypatch.setattr(passes.launch, "runtime", lambda xp, like: card)
    be = xlstm.backend("cupy", dtype=dtype)
    q = be.asarray(np.ones((1, 2, 20, 8)))
    assert (passes.kernels(be.xp, q, q, q, 64, "sigmoid", 0.0) is not None) == there


def test_states_are_float32_for_the_kernels(rng):
    """Whatever dtype a state below a layer has, of which kernels know nothing but the address."""
    steps, state = inputs_of(rng, 20, 2, 3, 20, 24)
    low, high = xlstm.backend("cupy", dtype="float16"), xlstm.backend("cupy", dtype="float32")
    given, halves = [low.asarray(a) for a in steps], [low.asarray(a) for a in state]
    made = passes.kernels(low.xp, *given[:3], 16, "sigmoid", 0.0)
    found = passes.chunkwise(low.xp, *given, *halves, made)[:4]
    expected = passes.chunkwise(low.xp, *given, *[high.asarray(to_numpy(a)) for a in halves], made)[:4]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def test_a_kernel_that_does_not_run_is_named(monkeypatch, rng):
    def fails(*arguments):
        raise RuntimeError("out of registers")

    monkeypatch.setattr(passes, "_compiled", fails)
    with pytest.raises(cuda.CudaError, match=r"out of registers\); XLSTM_CUDA_PATH=loop goes without"):
        both(rng, (5, 1, 1, 4, 4))


def test_a_wrong_path_concerns_gpus_alone(monkeypatch):
    monkeypatch.setenv("XLSTM_CUDA_PATH", "nonsense")
    layer = xlstm.mLSTM(4, 4, num_heads=2)
    layer(layer.init(0, "numpy"), np.zeros((3, 2, 4), "float32"))


def test_what_is_kept_can_be_copied(rng):
    layer, be = xlstm.mLSTM(4, 8, num_heads=2, chunk_size=16), xlstm.backend("cupy")
    params, x = layer.init(0, be), be.asarray(rng.standard_normal((21, 1, 4)))
    y, _, saved = layer.forward(params, x)
    expected, found = (layer.backward(params, kept, y)[0]["0.Wx"] for kept in (saved, copy.deepcopy(saved)))
    np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


def test_results_are_no_views_of_what_is_kept(rng):
    """The caller may change the final state before the backward pass."""
    layer, be = xlstm.mLSTM(4, 8, num_heads=2, chunk_size=16), xlstm.backend("cupy")
    params, x = layer.init(0, be), be.asarray(rng.standard_normal((21, 1, 4)))
    found = []
    for change in (False, True):
        y, state, saved = layer.forward(params, x)
        if change:
            for s in state:
                s[...] = 0.0
        found.append(layer.backward(params, saved, y)[0]["0.Wx"])
    np.testing.assert_array_equal(to_numpy(found[0]), to_numpy(found[1]))
