"""The compiled engine for every length of vectors and number of threads, beside the reference; the
largest arrays.

`test_batch_sizes.py` has every option, for the vectors that the processor has.
"""

import itertools
import mmap
import sys

import numpy as np
import pytest

import xlstm
from tests.conftest import force, make_backend
from tests.registry import inputs_of, make, run
from xlstm.engines import engine
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.numba import jit
from xlstm.engines.numba.numba_engine import NUMBA, NumbaTape

pytestmark = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
THREADS = (1, 2, 3, 5)
SIZES = (5, 21)  # D and H: 21 is no multiple of any vector

# Vectors, kind and options. All but the last share the code of `guards.py`: each other step takes
# time to compile.
CASES = [
    ((64, "float32"), "LSTM", {"num_layers": 2, "dropout": 0.4}),
    (
        (32, "float32"),
        "GRU",
        {"num_layers": 2, "dropout": 0.4, "batch_first": True, "recompute": True},
    ),
    ((16, "float64"), "sLSTM", {"num_heads": 3, "batch_first": True}),
    (
        (16, "float64"),
        "RNN",
        {"recurrent_bias": True, "direction": "bidirectional", "recompute": True},
    ),
    (
        (32, "float64"),
        "LSTM",
        {
            **{
                "peepholes": True,
                "cell_clip": 0.7,
                "clip": 0.8,
                "bias": False,
                "direction": "reverse",
            },
            "activations": ("hard_sigmoid(0.3, 0.5)", "softsign", "elu"),
        },
    ),
]


@pytest.mark.parametrize(
    ("vectors", "kind", "options"),
    CASES,
    indirect=["vectors"],
    ids=[f"{length}-{dtype}-{kind}" for (length, dtype), kind, options in CASES],
)
def test_plans_and_threads(rng, vectors, kind, options):
    """Every plan and number of threads, more than there are cores too, gives the reference's
    numbers but for rounding.

    Equal settings give equal bits; where threads share the products of each step, their number
    changes none.
    """
    _, dtype = vectors
    layer = make(kind, options, *SIZES)
    params, x, state = inputs_of(layer, make_backend("numpy", dtype), rng, 7, 14, scale=0.3)
    # the normaliser of an sLSTM
    state = tuple(abs(s) + 1 if k == 2 else s for k, s in enumerate(state))
    for lengths in (None, [7, 0, 5, 7, 1, 2, 6, 4, 4, 3, 6, 1, 0, 2]):
        with engine.use("array_api"):
            expected = run(layer, params, x, state, lengths, seed=4)
        shared = []
        for plan, count in itertools.product(("parts", "shared"), THREADS):
            with pytest.MonkeyPatch.context() as patch, engine.use("numba"):
                force(plan, patch, count)
                found, again = (run(layer, params, x, state, lengths, seed=4) for _ in range(2))
            shared += [found] if plan == "shared" else []
            for name, array in expected.items():
                where = f"{name}, {plan}, {count} threads"
                np.testing.assert_array_equal(found[name], again[name], err_msg=where)
                limit = TOLERANCE[dtype] * np.max(np.abs(array), initial=0)
                np.testing.assert_allclose(found[name], array, rtol=0, atol=limit, err_msg=where)
        for found in shared:
            for name, array in found.items():
                np.testing.assert_array_equal(array, shared[0][name], err_msg=name)


def untouched(shape, dtype):
    """An array of zeros that takes no memory but for the pages that are used; it may be larger than
    the memory.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        return np.frombuffer(mmap.mmap(-1, size, flags), dtype).reshape(shape)
    except OSError as error:
        pytest.skip(f"the system gives no memory that is not used: {error}")


linux = pytest.mark.skipif(
    sys.platform != "linux", reason="memory that is not used is asked for as Linux has it"
)


@linux
@pytest.mark.parametrize("kind", ["LSTM", "sLSTM"])
def test_steps_beyond_two_to_the_31(monkeypatch, rng, kind):
    """Steps before which x, each state and each gate have more than 2^31 numbers; nothing is
    computed of those.
    """
    D = 65
    H = 66
    B = 3
    T = 4
    layer = xlstm.sLSTM(D, H, num_heads=2) if kind == "sLSTM" else xlstm.LSTM(D, H)
    params, x, _ = inputs_of(layer, make_backend("numpy", "float32"), rng, T, B, scale=0.2)
    x = x.reshape(T * B, D)
    dy = rng.standard_normal((T * B, H), "float32")
    state = [1 + rng.random((H, B), "float32") for _ in layer.state_sizes]
    ((_, cell),) = layer.cells.items()
    step = Step(np, cell, {name.removeprefix("0."): p for name, p in params.items()}, Masks())
    monkeypatch.setenv(jit.VARIABLE, "1")
    assert not NUMBA.refuses(step, [(T, B)])
    y, end, tape = ARRAY_API.forward(step, x, state, [(T, B)], "all")
    gradients, start = ARRAY_API.backward(tape, dy, state)

    first = 2**31 // D + 1  # row of the first step; the rows before it belong to none
    rows = slice(first, first + T * B)
    small = NumbaTape(NUMBA, step, [(T, B)], x, state[0])
    small.forward(state, "all")
    small.backward(dy, state)  # compiled by now
    usual = np.empty

    def empty(shape, dtype=float, order="C", device=None):
        return untouched(shape, dtype) if np.prod(shape) > first else usual(shape, dtype, order)

    monkeypatch.setattr(np, "empty", empty)
    far = [untouched((first + T * B, a.shape[1]), "float32") for a in (x, dy)]
    for a, near in zip(far, (x, dy), strict=True):
        a[rows] = near
    beyond = NumbaTape(NUMBA, step, [(T, B)], far[0], state[0])
    beyond.starts = first + B * np.arange(T + 1)
    found_end = beyond.forward(state, "all")
    found, found_start = beyond.backward(far[1], state)
    expected = {
        **{"y": y, "gradient": gradients.arrays["zx"].T},
        **{f"end {k}": s for k, s in enumerate(end)},
        **{f"start {k}": s for k, s in enumerate(start)},
    }
    results = [beyond.y[rows], found.arrays["zx"].T[rows], *found_end, *found_start]
    for (name, array), result in zip(expected.items(), results, strict=True):
        np.testing.assert_allclose(
            result, array, rtol=1e-5, atol=1e-5 * np.max(np.abs(array)), err_msg=name
        )
    for array in (beyond.y, found.arrays["zx"].T, *(c[B:] for c in beyond.carry.values())):
        assert not array[: 2 * T * B].any()


@linux
@pytest.mark.parametrize("kind", ["rows", "over rows", "one column"])
def test_products_beyond_two_to_the_31(rng, kind):
    """The last rows of products of matrices whose rows before have more than 2^31 numbers."""
    functions = jit.shared("float32")
    n = 2**31 // 5 + 100
    K = 7
    width = 1 if kind == "one column" else 6
    a = untouched((n, K), "float32") if kind == "rows" else untouched((K, n), "float32").T
    a[-50:] = rng.standard_normal((50, K))
    b = rng.standard_normal((K, width), "float32")
    out = untouched((n, width), "float32")
    for first, last in ((n - 50, n - 20), (n - 20, n)):
        if kind == "rows":
            packed = np.zeros((1, 1, K, functions.COLUMNS), "float32")
            packed[..., :width] = b
            functions.product_of_rows(functions.PRODUCT, a, packed, out, first, last)
        elif kind == "over rows":
            functions.products_over_rows(a.T, (b,), (out,), first, last)
        else:
            functions.vector_over_rows(a.T, b, out, first, last)
    np.testing.assert_allclose(out[-50:], a[-50:] @ b, rtol=1e-5, atol=1e-5)
    assert not out[:100].any()
    assert not out[-100:-50].any()
