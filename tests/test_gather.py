"""Rows of several arrays at places, on every backend; on CuPy they are one launch."""

import numpy as np
import pytest

from xlstm.arrays.convert import to_numpy
from xlstm.arrays.fuse import compiles
from xlstm.arrays.gather import gather


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_several_arrays(be, rng, dtype):
    shapes = [(5, 3), (5, 700), (5,), (5, 2, 4), (5, 0)]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    given = [be.asarray(a, dtype) for a in arrays]
    given[1] = be.xp.permute_dims(be.asarray(np.ascontiguousarray(arrays[1].T), dtype), (1, 0))
    places = np.array([4, 0, 0, 2, 3, 1, 4])
    for found, a in zip(gather(be.xp, given, [be.asarray(places)] * len(given)), arrays, strict=True):
        np.testing.assert_array_equal(to_numpy(found), a[places])
    empty = be.asarray(places[:0])
    assert [a.shape for a in gather(be.xp, given[:2], [empty, empty])] == [(0, 3), (0, 700)]


def test_each_array_has_its_places(be, rng):
    arrays = [rng.standard_normal((k + 2, k + 1)) for k in range(11)]  # more than one launch takes
    places = [rng.integers(k + 2, size=2 * k) for k in range(11)]
    found = gather(be.xp, [be.asarray(a) for a in arrays], [be.asarray(at) for at in places])
    for k in range(11):
        np.testing.assert_array_equal(to_numpy(found[k]), to_numpy(be.asarray(arrays[k]))[places[k]])


def test_a_row_that_there_is_not(be):
    if not compiles(be.xp):
        pytest.skip("other libraries raise, or do anything")
    (found,) = gather(be.xp, [be.asarray(np.ones((2, 3)))], [be.asarray(np.array([1, 2, 0]))])
    np.testing.assert_array_equal(to_numpy(found), [[1, 1, 1], [0, 0, 0], [1, 1, 1]])
