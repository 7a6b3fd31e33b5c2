"""Functions in one kernel, scans, and bounds: values, shapes and dtypes as NumPy's, on every
backend.
"""

import numpy as np
import pytest

from tests.conftest import make_backend
from tests.gpu import as_it_lies, half
from xlstm.arrays import fuse as elementwise
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.fuse import fuse, scan, total


def chain(xp, a, b, scale, dtype):
    """Numbers that float32 does not have, a condition, and float64 made narrower."""
    c = xp.minimum(xp.exp(-xp.abs(a)) * scale + 1, xp.full_like(a, 0.1) * b)
    c *= 3
    return xp.astype(c, dtype), c * xp.astype(a < b, dtype)


def narrow(xp, a, b, c, dtype):
    return xp.astype(a - b, dtype) * c


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("f4", "f8"), ("f8", "f4")])
def test_values_and_dtypes_are_those_of_numpy(xp, rng, dtypes):
    a, b = (
        rng.standard_normal(shape).astype(d)
        for shape, d in zip(((3, 1, 4), (5, 1)), dtypes, strict=True)
    )
    expected = chain(np, a, b, 0.3, np.dtype("f4"))
    found = fuse(xp, chain, xp.asarray(a), xp.asarray(b), scale=0.3, dtype=np.dtype("f4"))
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        np.testing.assert_allclose(
            x.get(), y, rtol=1e-14 if "f4" not in (x.dtype.str[1:], *dtypes) else 1e-6
        )


def test_arrays_in_any_order_and_a_place_for_the_result(xp, rng):
    a, b, c = (rng.standard_normal((4, 5, 6)).transpose(2, 0, 1)[::2] for _ in range(3))
    expected = narrow(np, a, b, c, np.dtype("f8"))
    room = xp.zeros((3, 4, 9))
    given = [as_it_lies(x) for x in (a, b, c)]
    found = fuse(xp, narrow, *given, dtype=np.dtype("f8"), out=room[..., 2:7])
    np.testing.assert_allclose(found.get(), expected, rtol=1e-15)
    assert found.data.ptr == room.data.ptr + 2 * room.itemsize
    assert not room[..., :2].any()
    assert fuse(xp, narrow, *given, dtype=np.dtype("f8"), out=given[2]) is given[2]
    np.testing.assert_allclose(given[2].get(), expected, rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_computed_in_float32(xp, rng, dtype):
    dtype = half(dtype)
    a, b = (rng.standard_normal(1000).astype(dtype) for _ in range(2))
    found, _ = fuse(xp, chain, xp.asarray(a), xp.asarray(b), scale=0.3, dtype=dtype)
    expected, _ = chain(np, a.astype("f4"), b.astype("f4"), 0.3, np.dtype("f4"))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.get(), expected.astype(dtype))


def test_digits_of_what_is_wide_are_kept(xp):
    a = xp.asarray([1e9 + 1])
    b = xp.asarray([1e9])
    c = xp.ones(1, dtype="f4")
    assert fuse(xp, narrow, a, b, c, dtype=np.dtype("f4")) == 1


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("axes", [-1, (-2, -1), 0])
def test_total(xp, rng, dtype, axes):
    a = rng.standard_normal((4, 5, 6)).astype(dtype)
    b = rng.standard_normal((6, 5)).astype(dtype).T
    found = total(xp, xp.asarray(a), as_it_lies(b), axes)
    assert found.dtype == dtype
    expected = np.sum(a.astype("f8") * b.astype("f8"), axis=axes)
    np.testing.assert_allclose(
        found.get(), expected, atol={"f2": 0.02, "f4": 1e-5, "f8": 1e-13}[dtype]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_where_keeps_the_dtype_on_cupy(rng, dtype):
    """CuPy's own makes float32 of bfloat16."""
    be = make_backend("cupy", dtype)
    a = be.asarray(np.array([[1.5, -0.0, np.inf], [np.nan, -2.25, 3.0]]))
    b = be.asarray(-7.0)
    condition = be.asarray(np.array([True, False, True]))
    found = elementwise.where(be.xp, condition, a, b)
    assert str(found.dtype) == dtype
    expected = np.array([[1.5, -7, np.inf], [np.nan, -7, 3.0]])
    np.testing.assert_array_equal(to_numpy(found).astype("float64"), expected)


def step(xp, c, g, x):
    return g * c + x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("axis", "n"), [(-3, 4), (-1, 5), (-2, 1)])
def test_scan(be, rng, axis, n, reverse, dtype):
    """Arrays may be strided, and broadcast."""
    start = rng.standard_normal((4, 3, 2)).transpose(2, 1, 0).astype(dtype)
    x = np.moveaxis(rng.standard_normal((2, 3, 4, n)).astype(dtype), -1, axis)
    g = np.moveaxis(rng.standard_normal((n, 3, 1)).astype(dtype), 0, axis if axis > -3 else 0)
    carried = start
    kept = [None] * n
    for t in range(n - 1, -1, -1) if reverse else range(n):
        kept[t], carried = (
            carried,
            step(np, carried, np.take(g, t, axis=axis), np.take(x, t, axis=axis)),
        )
    given = [as_it_lies(a) if be.name == "cupy" else be.asarray(a, dtype) for a in (start, g, x)]
    found = scan(be.xp, step, *given, axis=axis, reverse=reverse)
    for a, b in zip(found, (np.stack(kept, axis=axis), carried), strict=True):
        assert be.name != "cupy" or a.dtype == dtype
        rtol, atol = (1e-15, 0) if dtype == "float64" else (1e-6, 1e-6)
        np.testing.assert_allclose(to_numpy(a), b, rtol=rtol, atol=atol)
