"""Products of packed matrices for every length of vectors, and how threads share the steps of a
compiled loop.
"""

import itertools

import numpy as np
import pytest

import xlstm
from tests.conftest import force, make_backend
from tests.registry import inputs_of, run
from xlstm.arrays import cores
from xlstm.arrays.matmul import matmul
from xlstm.engines.numba import jit, packed_products, team

pytestmark = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
ROUNDING = {"float32": 2e-6, "float64": 4e-15}
ROWS = [*range(1, 14), 17, 24, 33]  # of every tile, and of several


@pytest.mark.parametrize("threads", [1, 3])
def test_products_of_every_number_of_rows_and_columns(rng, monkeypatch, vectors, threads):
    """The factors are a matrix or its transposed, and one that lies by rows, by columns, or in no
    one piece.

    The first factor is the smaller one or the larger one, of 61 rows each, and K has one block or
    several, or is a prime, which cannot be divided. `guards.py` multiplies in the same ways between
    pages that may not be touched.
    """
    length, dtype = vectors
    compiled = jit.shared(dtype)
    assert compiled.COLUMNS * np.dtype(dtype).itemsize == 2 * length
    monkeypatch.setenv(cores.VARIABLE, str(threads))
    sizes = [(M, int(rng.integers(1, 40)), int(rng.integers(1, 70))) for M in ROWS]
    sizes += [(61, K, N) for K in (1, 40, 1100, 2053, 2500) for N in (45, 143)] + [
        (25, 300, 64),
        (50, 700, 2),
    ]
    for M, K, N in sizes:
        a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((M, K), (K, N)))
        across = np.asfortranarray(a)
        apart = np.repeat(b, 2, axis=0)[::2]
        pairs = [
            (a, b),
            (a, np.asfortranarray(b)),
            (a, apart),
            (across, b),
            (across, b + 1),
            (across, b[:, :1]),
        ]
        for (left, right), out in zip(
            pairs, packed_products.products(compiled, pairs), strict=True
        ):
            limit = (
                (4 if K > 1000 else 2)
                * ROUNDING[dtype]
                * np.maximum(np.abs(left) @ np.abs(right), 1)
            )
            assert np.all(np.abs(out - left @ right) <= limit), (M, K, N)


def test_packed_weights_begin_with_a_cache_line():
    """However small they are: else each vector of the processor lies in two lines."""
    for dtype, size in itertools.product(packed_products.DTYPES, (1, 3, 19, 64, 130)):
        assert packed_products.aligned(dtype, size, 3).ctypes.data % 64 == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [2, 7, 200])
def test_products_outside_of_loops(rng, monkeypatch, dtype, n):
    """Threads share them, and the bits do not depend on how many there are."""
    monkeypatch.setenv(jit.VARIABLE, "1")
    W, x = (rng.standard_normal(shape).astype(dtype) for shape in ((2099, 502), (n, 502)))
    scale = np.abs(x) @ np.abs(W).T
    found = []
    for count in ("1", "3"):
        monkeypatch.setenv(cores.VARIABLE, count)
        rows = packed_products.matmul(x, W.T)
        columns = packed_products.matmul(W, x.T)
        for product in (rows, columns.T):
            assert np.all(np.abs(product - x @ W.T) <= 4 * ROUNDING[dtype] * scale)
        found.append((rows.tobytes(), columns.tobytes()))
    assert found[0] == found[1]


def test_products_that_are_left_to_numpy(rng, monkeypatch):
    """Two dtypes, whole numbers, numbers apart from each other, three axes, and shapes that do not
    fit.
    """
    monkeypatch.setenv(jit.VARIABLE, "1")
    W = rng.standard_normal((2099, 502))
    x = rng.standard_normal((200, 502))
    others = [
        (x.astype("f4"), W.T),
        (x.astype(int), W.T.astype(int)),
        (x[:, ::2], W[:, ::2].T),
        (x[None], W.T),
    ]
    for a, b in others:
        np.testing.assert_allclose(matmul(np, a, b), a @ b, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="matmul"):
        matmul(np, x, W)


@pytest.mark.parametrize("plan", ["parts", "shared"])
@pytest.mark.parametrize("B", [1, 2, 13, 40])
def test_bits_do_not_depend_on_who_works(rng, monkeypatch, plan, B):
    monkeypatch.setenv(jit.VARIABLE, "1")
    layer = xlstm.LSTM(7, 33)
    params, x, state = inputs_of(layer, make_backend("numpy", "float32"), rng, 9, B)
    results = []
    for count in (1, 2, 3, 7):
        # without any the thread that calls does the tasks of all threads in turn
        for helped in (True, False):
            with monkeypatch.context() as patch:
                force(plan, patch, count)
                if not helped:
                    patch.setattr(team, "employ", lambda wanted, help_others: 0)
                results.append(run(layer, params, x, state))
        for name, array in results[-1].items():
            np.testing.assert_array_equal(array, results[-2][name], err_msg=f"{count} {name}")
            # parts of the batch end at other places, beside which no whole vector is left
            if plan == "shared":
                np.testing.assert_array_equal(array, results[0][name], err_msg=f"{count} {name}")


def test_a_wrong_length_of_vectors_is_refused(monkeypatch):
    from xlstm.engines.numba import llvm

    monkeypatch.setenv(llvm.VARIABLE, "48")
    llvm.shape.cache_clear()
    with pytest.raises(
        ValueError, match=r"^XLSTM_VECTOR_BYTES is '48', expected one of 16, 32, 64$"
    ):
        llvm.shape("float32")
    llvm.shape.cache_clear()
