"""Products: how operands lie is told to cuBLAS rightly, whatever their strides, and those are
copied that must be.
"""

import itertools

import numpy as np
import pytest

from tests import gpu
from tests.gpu import as_it_lies, half
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda import products
from xlstm.arrays.cuda.products import _call
from xlstm.arrays.matmul import matmul


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
        yield (
            "within a longer batch",
            make(*batch[:-1], batch[-1] + 1, rows, columns)[..., 1:, :, :],
        )
        yield "steps first", np.moveaxis(make(rows, *batch, columns), 0, -2)
        yield (
            "steps first, of wider rows",
            np.moveaxis(make(rows, *batch[:-1], batch[-1] * columns + 5), 0, -2)[..., :columns]
            .reshape(*batch[:-1], rows, 1, columns)
            .swapaxes(-2, -3)
            .repeat(batch[-1], axis=-3),
        )
    if n > 1:
        yield (
            "batch turned around",
            make(*batch[::-1], rows, columns).transpose(*range(n)[::-1], n, n + 1),
        )
        yield (
            "one for some",
            np.broadcast_to(
                make(batch[0], *(1,) * (n - 1), rows, columns), (*batch, rows, columns)
            ),
        )


SIZES = [
    (2, 3, 4),
    (1, 3, 4),
    (2, 1, 4),
    (2, 3, 1),
    (1, 1, 4),
    (2, 1, 1),
    (1, 3, 1),
    (1, 1, 1),
    (5, 5, 5),
]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products_of_what_lies_in_any_way(xp, rng, batch, sizes):
    M, K, N = sizes
    first, second = (
        [(name, a, as_it_lies(a)) for name, a in operands(rng, batch, *shape, "f8")]
        for shape in ((M, K), (K, N))
    )
    free = {"plain", "transposed", "within wider rows", "within wider columns", "one for all"}
    for (a, A, mine), (b, B, yours) in itertools.product(first, second):
        with gpu.counted() as counts:
            found = matmul(xp, mine, yours)
        np.testing.assert_allclose(
            found.get(), A @ B, rtol=1e-13, atol=1e-13, err_msg=f"{a} by {b}"
        )
        assert found.flags.c_contiguous
        assert counts.products == 1
        assert a not in free or b not in free or counts.operations == 1, f"{a} by {b}"


@pytest.mark.parametrize(
    ("a", "b"), [((4, 2, 3), (3, 5)), ((2, 3), (4, 3, 5)), ((2, 1, 2, 3), (1, 4, 3, 5))], ids=str
)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_batches_are_broadcast(xp, rng, a, b, dtype):
    A, B = (rng.standard_normal(shape).astype(dtype) for shape in (a, b))
    found = matmul(xp, xp.asarray(A), xp.asarray(B))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.get(),
        A.astype("f8") @ B.astype("f8"),
        atol={"f2": 0.01, "f4": 1e-5, "f8": 1e-13}[dtype],
    )


def test_a_product_is_added(be, rng):
    """To an array that is contiguous, and to a part of one."""
    A, B, C = (
        be.asarray(rng.standard_normal(shape)) for shape in ((3, 2, 4), (3, 4, 5), (3, 2, 5))
    )
    expected = to_numpy(C) + to_numpy(A) @ to_numpy(B)
    room = C + 0
    wide = be.xp.concat((C, C), axis=-1)
    found = matmul(be.xp, A, B, add=room)
    assert found is room
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-13)
    np.testing.assert_allclose(
        to_numpy(matmul(be.xp, A, B, add=wide[..., :5])), expected, rtol=1e-13
    )


def test_what_is_empty(xp):
    with gpu.counted() as counts:
        for a, b in (((2, 0, 3), (2, 3, 4)), ((2, 3, 0), (2, 0, 4)), ((0, 2, 3), (0, 3, 4))):
            found = matmul(xp, xp.ones(a), xp.ones(b))
            expected = np.ones(a) @ np.ones(b)
            assert found.shape == expected.shape
            assert not found.any()
        room = xp.ones((2, 3, 4))
        assert xp.all(matmul(xp, xp.ones((2, 3, 0)), xp.ones((2, 0, 4)), add=room) == 1)
    assert counts.products == 0


def test_shapes_that_do_not_fit_are_refused():
    kinds = (np.dtype("f4"),) * 3
    for a, b in (((2, 3, 4), (2, 5, 6)), ((2, 3, 4), (3, 4, 5))):
        with pytest.raises(ValueError, match="do not fit"):
            _call(a, (0,) * len(a), b, (0,) * len(b), *kinds)
    with pytest.raises(ValueError, match="cuBLAS takes less than"):
        _call((2**31, 1, 1), (4, 4, 4), (1, 1, 1), (4, 4, 4), *kinds)


def test_rows_of_all_matrices_are_multiplied_at_once(be, rng):
    """By one matrix: where they lie in a line, in wider rows too, and elsewhere."""
    a = rng.standard_normal((4, 3, 6))
    b = rng.standard_normal((5, 2))
    for view in (
        lambda x: x[..., :5],
        lambda x: x[:, 1:, 1:],
        lambda x: be.xp.permute_dims(x, (1, 0, 2))[..., 1:],
    ):
        found = matmul(be.xp, view(be.asarray(a)), be.asarray(b))
        np.testing.assert_allclose(
            to_numpy(found), to_numpy(view(be.asarray(a))) @ b, rtol=1e-13, atol=1e-13
        )


@pytest.mark.parametrize(
    ("dtype", "chosen", "expected"),
    [
        ("f4", 1, 68),
        ("f4", 2, 69),
        ("f4", 7, 77),
        ("f8", 1, 70),
        ("f8", 2, 71),
        ("f8", 7, 70),
        ("f2", 7, 68),
    ],
)
def test_what_is_computed_in_is_what_cupy_was_told(monkeypatch, xp, dtype, chosen, expected):
    given = []
    function = products.optional_imports.cupy().cuda.cublas.gemmStridedBatchedEx
    monkeypatch.setattr(
        products.optional_imports.cupy()._core, "get_compute_type", lambda dtype: chosen
    )
    monkeypatch.setattr(
        products.optional_imports.cupy().cuda.cublas,
        "gemmStridedBatchedEx",
        lambda *a: given.append(a[-2]) or function(*a),
    )
    matmul(xp, xp.ones((2, 3, 4), dtype=dtype), xp.ones((2, 4, 5), dtype=dtype))
    assert given == [expected]


def test_other_types_are_left_to_the_library(xp):
    found = matmul(xp, xp.ones((2, 3, 4), dtype="f4"), xp.ones((2, 4, 5), dtype="f8"))
    assert found.dtype == np.float64
    assert matmul(xp, xp.ones((2, 3, 4), dtype=int), xp.ones((2, 4, 5), dtype=int)).dtype == int


@pytest.mark.parametrize(
    "dtypes", [("f4", "bfloat16", "f4"), ("f4", "f4", "f8"), ("f4", "f4", "f2"), ("i4", "i4", "i4")]
)
def test_dtypes_that_cublas_would_misread_are_refused(xp, dtypes):
    """It would read past the ends of the narrower operands, or write past that of the result."""
    a, b, out = map(half, dtypes)
    with (
        gpu.counted() as counts,
        pytest.raises(
            TypeError,
            match=rf"^multiply: dtypes are {a} @ {b} -> {out}, expected one of float16, bfloat16",
        ),
    ):
        products.multiply(
            xp.ones((2, 3, 4), dtype=a),
            xp.ones((2, 4, 5), dtype=b),
            xp.zeros((2, 3, 5), dtype=out),
        )
    assert counts.products == 0
    for kind in ("f2", "bfloat16"):  # both may be summed up into float32
        found = xp.zeros((2, 3, 5), dtype="f4")
        products.multiply(
            xp.ones((2, 3, 4), dtype=half(kind)), xp.ones((2, 4, 5), dtype=half(kind)), found
        )
        assert xp.all(found == 4)
