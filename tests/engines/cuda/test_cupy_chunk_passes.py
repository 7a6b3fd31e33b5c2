"""The kernels of the chunkwise mLSTM beside the cell in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import cuda_on_cpu
import xlstm
from tests import gpu
from tests.registry import agree
from xlstm.arrays.convert import to_numpy
from xlstm.cells import mlstm
from xlstm.engines import cuda
from xlstm.engines.cuda import chunk_passes as passes
from xlstm.engines.cuda.tiling import Device

gpu.needed()

TOLERANCE = {"float32": 1e-5, "tf32": 2e-4, "float16": 1e-2, "bfloat16": 8e-2}
NAMES = ("h", "C", "n", "m", "dq", "dk", "dv", "di", "df", "dC0", "dn0", "dm0")


def inputs_of(rng, T, B, N, K, V):
    """q, k, v, i, f and the state as the layer has them: all of a step within one row."""
    widths = np.cumsum([N * K, N * K, N * V, N, N])
    steps = np.split(rng.standard_normal((T, B, widths[-1])), widths[:-1], axis=-1)
    return steps, [rng.standard_normal(shape) for shape in ((B, N, K, V), (B, N, K), (B, N))]


def by_head(a, N):
    """(T, B, N F) as the cell has it, (B, N, T, F), and gates (B, N, T)."""
    found = to_numpy(a).astype("float64").reshape(*a.shape[:2], N, -1).transpose(1, 2, 0, 3)
    return found[..., 0] if a.shape[2] == N else found


def both(rng, sizes, dtype="float32", chunk=16, final=True, change=None, **options):
    """Results of the kernels and, from the same numbers in float64, of the cell; and what the
    kernels keep.
    """
    steps, state = inputs_of(rng, *sizes)
    if change is not None:
        change(steps, state)
    low = xlstm.backend("cupy", dtype=dtype)
    high = xlstm.backend("cupy", dtype="float32")
    given = [low.asarray(a) for a in steps] + [high.asarray(a) for a in state]
    N = sizes[2]
    exact = [
        *(by_head(a, N) for a in given[:5]),
        *(to_numpy(a).astype("float64") for a in given[5:]),
    ]
    made = passes.kernels(
        low.xp, *given[:3], N, chunk, options.get("forget", "sigmoid"), options.get("eps", 0.0)
    )
    long = next(L for L in (16, 32, 64) if min(chunk, sizes[0]) <= L)
    assert long == made.shape.L
    most = 16 // given[0].itemsize
    assert made.shape.pack == (2 if sizes[3] % most or sizes[4] % most else most)
    *found, saved = passes.forward(low.xp, made, *given)
    *expected, kept = mlstm.chunkwise(np, *exact, chunk=chunk, **options)
    d = [rng.standard_normal(a.shape) for a in (found[0], *expected[1:])]
    dh, *dend = low.asarray(d[0]), *(high.asarray(a) for a in d[1:])
    dend, d[1:] = (dend, d[1:]) if final else ([None] * 3, [None] * 3)
    found += passes.backward(low.xp, dh, *dend, saved)
    expected += mlstm.chunkwise_bwd(np, by_head(dh, N), *d[1:], kept, **options)
    found = [by_head(a, N) if k in (0, *range(4, 9)) else a for k, a in enumerate(found)]
    return (
        {name: a for name, a in zip(NAMES, made, strict=True) if a is not None}
        for made in (found, expected)
    )


@pytest.mark.parametrize("options", [{}, {"eps": 0.1}, {"forget": "exponential"}], ids=str)
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize(("T", "chunk"), [(48, 16), (37, 16), (50, 24), (5, 64), (1, 16)])
def test_passes(rng, T, chunk, final, options):
    """Whole chunks and broken ones, one of all steps, and one step, with every gradient."""
    agree(*both(rng, (T, 2, 3, 6, 10), chunk=chunk, final=final, **options), 1e-5)


@pytest.mark.parametrize(
    ("dtype", "sizes", "options"),
    [
        # Widths beyond those of all tiles, and a part of the last one; read by pairs, and by 16
        # bytes.
        *((dtype, (19, 1, 2, 82, 146), {}) for dtype in ("float32", "float16")),
        *((dtype, (19, 1, 4, 88, 136), {}) for dtype in ("tf32", "bfloat16")),
        ("bfloat16", (70, 1, 1, 24, 40), {"chunk": 64}),  # the largest chunk
        # more chunks than a block has threads
        ("float32", (257 * 16 + 3, 1, 1, 2, 2), {"eps": 0.1}),
    ],
)
def test_large_sizes(rng, dtype, sizes, options):
    with cuda.use(precision="tf32" if dtype == "tf32" else None):
        agree(*both(rng, sizes, dtype.replace("tf32", "float32"), **options), TOLERANCE[dtype])


def test_no_barrier_is_missing():
    """Threads in an order that is drawn give the same bits, in all kernels."""
    gpu.on_cpu()
    found = []
    for seed in range(3):
        with cuda_on_cpu.configured(seed=seed):
            found.append(next(both(np.random.default_rng(0), (37, 1, 2, 20, 24), eps=0.1)))
        agree(found[-1], found[0])


def test_from_the_state_before_the_first_step(rng):
    """m = -inf, and steps that write nothing."""

    def change(steps, state):
        steps[3] = np.where(np.arange(21)[:, None, None] < 6, -np.inf, steps[3])
        state[:] = np.zeros_like(state[0]), np.zeros_like(state[1]), np.full_like(state[2], -np.inf)

    found, expected = both(rng, (21, 2, 1, 4, 6), change=change, final=False)
    agree(found, expected | {"dm0": found["dm0"]}, 1e-5)


@pytest.mark.parametrize("low", [-30.0, -np.inf])
def test_digits_survive_a_strong_forget(rng, low):
    def change(steps, state):
        steps[4][[7, 20]] = low

    found, expected = both(rng, (40, 1, 2, 4, 6), change=change, final=False)
    agree(*({name: made[name] for name in NAMES[:4]} for made in (found, expected)), 1e-5)


def test_what_is_kept_can_be_copied_and_results_are_no_views_of_it(rng):
    """The caller may change the final state before the backward pass."""
    layer = xlstm.mLSTM(4, 8, num_heads=2, chunk_size=16)
    be = xlstm.backend("cupy")
    params = layer.init(0, be)
    x = be.asarray(rng.standard_normal((21, 1, 4)))
    y, state, saved = layer.forward(params, x)
    expected = layer.backward(params, copy.deepcopy(saved), y)[0]
    for s in state:
        s[...] = 0.0
    agree(layer.backward(params, saved, y)[0], expected)


@pytest.mark.parametrize(
    ("width", "options"),
    [(8, {"chunk_size": 128}), (6, {}), (8, {"qk_size": 6})],
    ids=["long chunks", "heads", "keys"],
)
def test_what_has_no_kernels(width, options, rng):
    layer = xlstm.mLSTM(4, width, num_heads=2, **options)
    be = xlstm.backend("cupy")
    with gpu.counted() as counts:
        layer.forward(layer.init(0, be), be.asarray(rng.standard_normal((70, 1, 4))))
    assert "xlstm_chunk" not in counts.places()


def test_cards(monkeypatch):
    """Tensor cores take float16 from sm_75 on, bfloat16 and so float32 from sm_80 on."""
    found = {}
    for capability, dtype in (
        (70, "float16"),
        (75, "float16"),
        (75, "float32"),
        (80, "bfloat16"),
        (80, "float32"),
    ):
        card = Device("a card", capability, 40, 101376)
        monkeypatch.setattr(passes.launch, "device", lambda xp, like, card=card: card)
        be = xlstm.backend("cupy", dtype=dtype)
        q = be.asarray(np.ones((20, 1, 16)))
        found[capability, dtype] = (
            passes.kernels(be.xp, q, q, q, 2, mlstm.CHUNK, "sigmoid", 0.0) is not None
        )
    assert [*found.values()] == [False, True, False, True, True]
