"""Products of packed matrices for every length of vectors, and how threads share the steps of a compiled loop."""

import numpy as np
import pytest

import xlstm
from tests.conftest import force, make_backend
from tests.registry import inputs_of, run
from xlstm.arrays import cores
from xlstm.arrays.matmul import matmul
from xlstm.cells import rnn
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.numba import jit, team

pytestmark = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
ROUNDING = {"float32": 2e-6, "float64": 4e-15}
PAD = 64


def guarded(values):
    """An array amid numbers that are none, and a function that says whether these are still what they were."""
    room = np.full(values.size + 2 * PAD, np.nan, values.dtype)
    room[PAD:-PAD] = values.reshape(-1)
    return room[PAD:-PAD].reshape(values.shape), lambda: bool(np.isnan(room[:PAD]).all() & np.isnan(room[-PAD:]).all())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_every_number_of_rows_and_columns(rng, length, dtype):
    """And nothing before or after an array is read or written, since a NaN would reach the result."""
    compiled = jit.shared(dtype)
    assert compiled.COLUMNS * np.dtype(dtype).itemsize == 2 * length
    for n in (*range(1, 14), 17, 24, 33):
        gates, K, width = (int(rng.integers(1, most)) for most in (9, 40, 70))
        W, _ = guarded(rng.standard_normal((gates, width, K)).astype(dtype))
        a, _ = guarded(rng.standard_normal((n, K)).astype(dtype))
        out, intact = guarded(np.full((gates, n, width), 3.0, dtype))
        packed, whole = guarded(np.full((gates * -(-width // compiled.COLUMNS), K, compiled.COLUMNS), 5.0, dtype))
        slivers = packed.shape[0]
        again = np.empty_like(packed)
        turned, far = np.ascontiguousarray(W.swapaxes(1, 2)), K * width
        for first, last in ((0, slivers // 3), (slivers // 3, slivers)):
            compiled.pack(W.reshape(-1), 0, True, far, K, width, packed, first, last)
            compiled.pack(turned.reshape(-1), 0, False, far, width, width, again, first, last)
        assert whole()
        np.testing.assert_array_equal(again, packed)
        expected = a @ W.swapaxes(1, 2)
        scale = np.abs(a) @ np.abs(W).swapaxes(1, 2)
        for add, before in ((False, 0.0), (True, expected)):
            to = 0, width, n * width, width
            compiled.product(a.reshape(-1), (0, K, 1, n), packed, (0, slivers), out.reshape(-1), to, add)
            assert intact()
            assert np.all(np.abs(out - expected - before) <= 2 * ROUNDING[dtype] * np.maximum(scale, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_over_rows(rng, length, dtype):
    compiled = jit.shared(dtype)
    for N, M, widths in ((1, 1, (1, 1)), (7, 13, (3, 40)), (300, 25, (33, 64)), (700, 50, (1, 2))):
        a, _ = guarded(rng.standard_normal((N, M)).astype(dtype))
        bs = tuple(guarded(rng.standard_normal((N, width)).astype(dtype))[0] for width in widths)
        outs, intact = zip(*(guarded(np.zeros((M, width), dtype)) for width in widths), strict=True)
        cut = M // 3
        for first, last in ((0, cut), (cut, M)):
            compiled.products_over_rows(a, bs, outs, first, last)
        for b, out, unchanged in zip(bs, outs, intact, strict=True):
            assert unchanged()
            assert np.all(np.abs(out - a.T @ b) <= 2 * ROUNDING[dtype] * np.maximum(np.abs(a.T) @ np.abs(b), 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_weights_begin_with_a_cache_line(rng, dtype):
    """However small they are: else each vector of the processor lies in two lines."""
    from xlstm.engines.numba import packed_products

    for H in (1, 3, 19, 64, 130):
        w = {name: rng.standard_normal((H, width)).astype(dtype) for name, width in (("Wx", 2), ("Wh", H))}
        step = Step(np, rnn.Cell(("tanh",)), w, Masks())
        columns = jit.shared(dtype).COLUMNS
        for packed in (packed_products.for_gradients(step, columns, 2), packed_products.for_states(step, columns, 2)):
            assert all(a.size and a.ctypes.data % 64 == 0 for one in packed for a in one[len(one) // 2 :])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("K", [1, 40, 1100, 2053, 2500])
@pytest.mark.parametrize(("threads", "lies"), [(1, "rows"), (3, "columns"), (3, "apart"), (1, "columns")])
def test_products_of_rows(rng, monkeypatch, length, dtype, K, threads, lies):
    """In blocks of rows of the second factor, where K can be divided; it lies by rows, columns, or in no one piece."""
    from xlstm.engines.numba import packed_products

    monkeypatch.setenv(cores.VARIABLE, str(threads))
    width = 45 if threads == 1 else 143  # a right factor with more columns than the left one has rows stays as it is
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((61, K), (K, width)))
    given = {"rows": b, "columns": np.ascontiguousarray(b.T).T, "apart": np.repeat(b, 2, axis=0)[::2]}[lies]
    (out,) = packed_products.products(jit.shared(dtype), [(a, given)])
    assert np.all(np.abs(out - a @ b) <= 4 * ROUNDING[dtype] * np.maximum(np.abs(a) @ np.abs(b), 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [2, 7, 200])
def test_products_outside_of_loops(rng, monkeypatch, dtype, n):
    """Threads share them, and the bits do not depend on how many there are."""
    from xlstm.engines.numba import packed_products

    monkeypatch.setenv(jit.VARIABLE, "1")
    W, x = (rng.standard_normal(shape).astype(dtype) for shape in ((2099, 502), (n, 502)))
    scale = np.abs(x) @ np.abs(W).T
    found = []
    for count in ("1", "3"):
        monkeypatch.setenv(cores.VARIABLE, count)
        rows, columns = packed_products.matmul(x, W.T), packed_products.matmul(W, x.T)
        for product in (rows, columns.T):
            assert np.all(np.abs(product - x @ W.T) <= 4 * ROUNDING[dtype] * scale)
        found.append((rows.tobytes(), columns.tobytes()))
    assert found[0] == found[1]


def test_products_that_are_left_to_numpy(rng, monkeypatch):
    from xlstm.engines.numba import packed_products

    monkeypatch.setenv(jit.VARIABLE, "1")
    W, x, few = (rng.standard_normal(shape) for shape in ((2099, 502), (200, 502), (3, 502)))
    others = [(few, np.ascontiguousarray(W.T)), (few, W[:99].T), (x[:9, :9], W[:9, :9].T)]  # to be packed, near, small
    others += [(x.astype("f4"), W.T), (x.astype(int), W.T.astype(int)), (x[:, ::2], W[:, ::2].T), (x[None], W.T)]
    assert packed_products.matmul(x, W.T) is not None
    assert [packed_products.matmul(a, b) for a, b in others] == [None] * len(others)
    with pytest.raises(ValueError, match="matmul"):
        matmul(np, x, W)
    monkeypatch.setenv(jit.VARIABLE, "0")
    assert matmul(np, x, W.T).shape == (200, 2099)


@pytest.mark.parametrize("plan", ["parts", "shared"])
@pytest.mark.parametrize("B", [1, 2, 13, 40])
def test_bits_do_not_depend_on_who_works(rng, monkeypatch, plan, B):
    monkeypatch.setenv(jit.VARIABLE, "1")
    layer = xlstm.LSTM(7, 33)
    params, x, state = inputs_of(layer, make_backend("numpy", "float32"), rng, 9, B)
    results = []
    for count in (1, 2, 3, 7):
        for helped in (True, False):  # without any the thread that calls does the tasks of all threads in turn
            with monkeypatch.context() as patch:
                force(plan, patch, count)
                if not helped:
                    patch.setattr(team, "employ", lambda wanted, help_others: 0)
                results.append(run(layer, params, x, state))
        for name, array in results[-1].items():
            np.testing.assert_array_equal(array, results[-2][name], err_msg=f"{count} {name}")
            if plan == "shared":  # parts of the batch end at other places, beside which no whole vector is left
                np.testing.assert_array_equal(array, results[0][name], err_msg=f"{count} {name}")


def test_each_piece_is_taken_once():
    loops = jit.shared("float32")
    for size in (1, 2, 3, 8):
        for pieces in (0, 1, 2, 7, 16):
            counts = np.zeros(size + 1, np.int64)
            taken = []
            for k in reversed(range(size)):
                while (piece := loops.take(counts, 0, k, size, pieces)) >= 0:
                    taken.append(piece)
            assert sorted(taken) == list(range(pieces))


def test_a_wrong_length_of_vectors_is_refused(monkeypatch):
    from xlstm.engines.numba import llvm

    monkeypatch.setenv(llvm.VARIABLE, "48")
    llvm.shape.cache_clear()
    with pytest.raises(ValueError, match=r"^XLSTM_VECTOR_BYTES: '48', expected one of 16, 32, 64$"):
        llvm.shape("float32")
    llvm.shape.cache_clear()
