"""Functions with means and maxima along rows, on every backend; on CuPy they are one kernel."""

import numpy as np
import pytest

from tests import nvrtc
from xlstm.arrays import rows
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.rows import by_rows


def standard(xp, x, gain, shift, *, scale):
    """Three reductions, one of which needs another, a result for each row, and one in float64."""
    most = xp.max(xp.abs(x), axis=-1, keepdims=True)
    c = x - xp.mean(x, axis=-1, keepdims=True)
    r = 1 / xp.sqrt(xp.mean(c * c, axis=-1, keepdims=True) + scale)
    return c * r * gain + shift, most * r, xp.astype(c, xp.float64)


def expected(x, gain, shift, scale):
    c = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + scale)
    return c * r * gain + shift, abs(x).max(-1, keepdims=True) * r, c


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [1, 3, 64, 700])
def test_rows_of_any_order_of_memory(be, rng, dtype, columns):
    x, gain, shift = rng.standard_normal((4, 3, columns, 2)), rng.standard_normal((3, columns)), rng.standard_normal(1)
    arrays = [be.asarray(a, dtype) for a in (x, gain, shift)]
    arrays[0] = be.xp.permute_dims(arrays[0], (0, 3, 1, 2))
    found = by_rows(be.xp, standard, *arrays, scale=0.25)
    tolerance = {"float32": 2e-6, "float64": 1e-13}[dtype]
    for a, b in zip(found, expected(x.transpose(0, 3, 1, 2), gain, shift, 0.25), strict=True):
        np.testing.assert_allclose(to_numpy(a), b, rtol=tolerance, atol=tolerance)
    assert [str(a.dtype).rpartition(".")[2] for a in found] == [dtype, dtype, "float64"]


def first_axis(xp, x, y, *, axis):
    return x - xp.mean(x, axis=axis, keepdims=True), xp.mean(x * y, axis=axis, keepdims=True)


def test_rows_along_another_axis(be, rng):
    x, y = rng.standard_normal((7, 3, 2)), rng.standard_normal((7, 3, 2))
    for axis in (0, 1, -1):
        found = by_rows(be.xp, first_axis, be.asarray(x), be.asarray(y), axis=axis)
        for a, b in zip(found, first_axis(np, x, y, axis=axis), strict=True):
            np.testing.assert_allclose(to_numpy(a), b, rtol=1e-13, atol=1e-13)


def test_what_is_not_a_number_stays_in_its_row(be):
    x = np.ones((3, 5))
    x[1, 2] = np.nan
    found = by_rows(be.xp, standard, *(be.asarray(a) for a in (x, np.ones(5), np.ones(1))), scale=1.0)
    for a in found:
        np.testing.assert_array_equal(np.isnan(to_numpy(a)).all(axis=1), [False, True, False])


@pytest.mark.parametrize("capability", [75, 90])
def test_the_kernel_compiles(capability):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for dtype in (np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), np.dtype(bfloat16)):
        text, _ = rows.source(standard, (dtype,) * 3, (False, False, True), (("scale", 0.25),))
        assert nvrtc.compile_for(capability, text).spilled == 0
