"""Products: how operands lie is told to cuBLAS rightly, whatever their strides, and those are copied that must be."""

import itertools

import numpy as np
import pytest

from tests import standin
from tests.ctargets import BFLOAT16, act
from xlstm.arrays import matmul as products
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.matmul import Operand, aligned_width, matmul, packed, plan, strides


def operands(rng, batch, rows, columns, dtype):
    """Arrays of one shape that lie in memory in all ways that happen."""
    n = len(batch)
    make = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    yield "plain", make(*batch, rows, columns)
    yield "transposed", make(*batch, columns, rows).swapaxes(-1, -2)
    yield "within wider rows", make(*batch, rows, columns + 3)[..., 1:-2]
    yield "within wider columns", make(*batch, columns, rows + 2).swapaxes(-1, -2)[..., :-2, :]
    yield "every second row", make(*batch, 2 * rows, columns)[..., ::2, :]
    yield "every second column", make(*batch, rows, 2 * columns)[..., ::2]
    yield "turned", make(*batch, rows, columns)[..., ::-1, :]
    yield "one for all", np.broadcast_to(make(rows, columns), (*batch, rows, columns))
    if n:
        yield "within a longer batch", make(*batch[:-1], batch[-1] + 1, rows, columns)[..., 1:, :, :]
        yield "steps first", np.moveaxis(make(rows, *batch, columns), 0, -2)
        yield (
            "steps first, of wider rows",
            np.moveaxis(make(rows, *batch[:-1], batch[-1] * columns + 5), 0, -2)[..., :columns]
            .reshape(*batch[:-1], rows, 1, columns)
            .swapaxes(-2, -3)
            .repeat(batch[-1], axis=-3),
        )
    if n > 1:
        yield "batch turned around", make(*batch[::-1], rows, columns).transpose(*range(n)[::-1], n, n + 1)
        yield "one for some", np.broadcast_to(make(batch[0], *(1,) * (n - 1), rows, columns), (*batch, rows, columns))


SIZES = [(2, 3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 1), (1, 1, 4), (2, 1, 1), (1, 3, 1), (1, 1, 1), (5, 5, 5)]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products_of_what_lies_in_any_way(monkeypatch, rng, batch, sizes):
    cupy = act(monkeypatch)
    M, K, N = sizes
    for (a, A), (b, B) in itertools.product(operands(rng, batch, M, K, "f8"), operands(rng, batch, K, N, "f8")):
        cupy.copies = 0
        found = matmul(np, A, B)
        np.testing.assert_allclose(found, A @ B, rtol=1e-13, atol=1e-13, err_msg=f"{a} by {b}")
        assert found.flags.c_contiguous
        free = {"plain", "transposed", "within wider rows", "within wider columns", "one for all"}
        assert a not in free or b not in free or cupy.copies == 0, f"{a} by {b}"
    assert len(cupy.cublas.calls) > 0


@pytest.mark.parametrize(("a", "b"), [((4, 2, 3), (3, 5)), ((2, 3), (4, 3, 5)), ((2, 1, 2, 3), (1, 4, 3, 5))], ids=str)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_batches_are_broadcast(monkeypatch, rng, a, b, dtype):
    act(monkeypatch)
    A, B = (rng.standard_normal(shape).astype(dtype) for shape in (a, b))
    found = matmul(np, A, B)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found, A.astype("f8") @ B.astype("f8"), atol={"f2": 0.01, "f4": 1e-5, "f8": 1e-13}[dtype]
    )


def test_a_product_is_added(monkeypatch, be, rng):
    A, B, C = (rng.standard_normal(shape) for shape in ((3, 2, 4), (3, 4, 5), (3, 2, 5)))
    expected = C + A @ B
    room = be.asarray(C) + 0
    found = matmul(be.xp, be.asarray(A), be.asarray(B), add=room)
    assert found is room
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-13)
    cupy = act(monkeypatch)
    room = C.copy()
    assert matmul(np, A, B, add=room) is room
    np.testing.assert_allclose(room, expected, rtol=1e-13)
    assert len(cupy.cublas.calls) == 1
    wide = np.concatenate((C, C), axis=-1)
    matmul(np, A, B, add=wide[..., :5])
    np.testing.assert_allclose(wide, np.concatenate((expected, C), axis=-1), rtol=1e-13)


def test_what_is_empty(monkeypatch):
    cupy = act(monkeypatch)
    for a, b in (((2, 0, 3), (2, 3, 4)), ((2, 3, 0), (2, 0, 4)), ((0, 2, 3), (0, 3, 4))):
        found, expected = matmul(np, np.ones(a), np.ones(b)), np.ones(a) @ np.ones(b)
        assert found.shape == expected.shape
        assert not found.any()
    room = np.ones((2, 3, 4))
    assert np.all(matmul(np, np.ones((2, 3, 0)), np.ones((2, 0, 4)), add=room) == 1)
    assert cupy.cublas.calls == []


def test_shapes_that_do_not_fit_are_refused():
    for a, b in (((2, 3, 4), (2, 5, 6)), ((2, 3, 4), (3, 4, 5))):
        with pytest.raises(ValueError, match="do not fit"):
            plan(a, (0,) * len(a), b, (0,) * len(b))
    with pytest.raises(ValueError, match="cuBLAS takes less than"):
        plan((2**31, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))


def test_plans():
    a = np.empty((2, 3, 4, 5))
    assert plan(a.shape, strides(a), a.swapaxes(-1, -2).shape, strides(a.swapaxes(-1, -2))).operands == (
        Operand(False, 5, 20),
        Operand(True, 5, 20),
    )
    assert plan((4, 5), (5, 1), (3, 5, 6), (30, 6, 1)).operands == (Operand(False, 5, 0), Operand(False, 6, 30))
    # neither rows nor columns contiguous; matrices not equally far apart; rows over one another
    for shape, far in (((2, 4, 5), (40, 10, 2)), ((2, 3, 4, 5), (100, 20, 5, 1)), ((2, 4, 5), (20, 2, 1))):
        assert plan(shape, far, (5, 6), (6, 1)).operands[0] is None
    # all axes of the layer's queries: sequences, heads, chunks
    q = np.empty((8, 2, 3, 5)).transpose(1, 2, 0, 3).reshape(2, 3, 4, 2, 5)
    assert plan(q.shape, strides(q), (5, 6), (6, 1)).operands[0] is None


def test_what_products_would_copy_is_copied_once(monkeypatch):
    view = np.zeros((4, 3, 2)).transpose(2, 1, 0)
    assert packed(np, view) is view
    act(monkeypatch)
    whole = np.zeros((2, 3, 4))
    assert packed(np, whole) is whole
    assert packed(np, whole.swapaxes(-1, -2)).base is whole
    assert packed(np, view).flags.c_contiguous
    every_second = np.zeros((2, 3, 4, 5))[:, :, ::2]
    assert packed(np, every_second) is every_second
    assert packed(np, whole[..., ::2]).flags.c_contiguous


def test_widths_are_aligned_for_cublas_alone(monkeypatch):
    assert [aligned_width(np, n) for n in (1, 8, 9)] == [1, 8, 9]
    act(monkeypatch)
    assert [aligned_width(np, n) for n in (1, 8, 9)] == [8, 8, 16]


@pytest.mark.parametrize(
    ("dtype", "chosen", "expected"),
    [("f4", 1, 68), ("f4", 2, 69), ("f4", 7, 77), ("f8", 1, 70), ("f8", 2, 71), ("f8", 7, 70), ("f2", 7, 68)],
)
def test_what_is_computed_in_is_what_cupy_was_told(monkeypatch, dtype, chosen, expected):
    cupy = act(monkeypatch)
    cupy._core.get_compute_type = lambda dtype: chosen
    matmul(np, np.ones((2, 3, 4), dtype), np.ones((2, 4, 5), dtype))
    assert cupy.cublas.calls[0]["compute"] == expected


def test_other_types_are_left_to_the_library(monkeypatch):
    cupy = act(monkeypatch)
    found = matmul(np, np.ones((2, 3, 4), "f4"), np.ones((2, 4, 5), "f8"))
    assert found.dtype == np.float64
    assert matmul(np, np.ones((2, 3, 4), int), np.ones((2, 4, 5), int)).dtype == int
    assert cupy.cublas.calls == []


@pytest.mark.parametrize("dtypes", [("f4", BFLOAT16, "f4"), ("f4", "f4", "f8"), ("f4", "f4", "f2"), ("i4", "i4", "i4")])
def test_dtypes_that_cublas_would_misread_are_refused(monkeypatch, dtypes):
    """It would read past the ends of the narrower operands, or write past that of the result."""
    cupy, (a, b, out) = act(monkeypatch), map(np.dtype, dtypes)
    with pytest.raises(
        TypeError, match=rf"^multiply: dtypes are {a} @ {b} -> {out}, expected one of float16, bfloat16"
    ):
        products.multiply(np.ones((2, 3, 4), a), np.ones((2, 4, 5), b), np.zeros((2, 3, 5), out))
    assert cupy.cublas.calls == []
    for kind in ("f2", BFLOAT16):  # both may be summed up into float32
        found = np.zeros((2, 3, 5), "f4")
        products.multiply(np.ones((2, 3, 4), kind), np.ones((2, 4, 5), kind), found)
        assert np.all(found == 4)


def test_cupy_has_the_compute_types():
    cupy = standin.real()
    assert cupy._core.get_compute_type(np.dtype("f8")) == 1
    assert hasattr(cupy.cuda, "get_cublas_handle")
    assert [getattr(cupy.cuda.runtime, f"CUDA_R_{n}") for n in ("16F", "16BF", "32F", "64F")] == [2, 14, 0, 1]
    assert products.FLOATS == ("float16", "bfloat16", "float32", "float64")
