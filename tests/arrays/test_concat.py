"""Arrays one beside the other, and parts filled with a number, on every backend."""

import numpy as np
import pytest

from tests.conftest import make_backend
from xlstm.arrays import optional_imports
from xlstm.arrays.concat import concat, filled
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda import concat_kernel as concats


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_parts_of_any_order_of_memory(be, rng, dtype, axis):
    shapes = [[4, 3, 5] for _ in range(4)]
    for k, shape in enumerate(shapes):
        shape[axis] = k  # one is empty
    arrays = [rng.integers(0, 99, shape) for shape in shapes]
    given = [be.asarray(a, dtype) for a in arrays]
    given[2] = be.xp.permute_dims(be.asarray(np.ascontiguousarray(arrays[2].T), dtype), (2, 1, 0))
    given[3] = be.asarray(np.concatenate((arrays[3], arrays[3]), axis=2), dtype)[
        :, :, : arrays[3].shape[2]
    ]
    parts = [filled(be.xp, given[0], v, width, axis) for v, width in ((7, 2), (-1, 1))]
    found = concat(be.xp, [given[0], parts[0], *given[1:], parts[1]], axis)
    expected = [
        np.full([n if k != axis % 3 else width for k, n in enumerate((4, 3, 5))], v)
        for v, width in ((7, 2), (-1, 1))
    ]
    assert found.dtype == given[0].dtype
    np.testing.assert_array_equal(
        to_numpy(found),
        np.concatenate([arrays[0], expected[0], *arrays[1:], expected[1]], axis=axis),
    )


def test_many_parts_and_nothing(be):
    ones = be.asarray(np.ones((2, 1)))
    assert concat(be.xp, [ones] * (concats.PARTS + 1), 1).shape == (2, concats.PARTS + 1)
    none = ones[:0, :]
    assert concat(be.xp, [none, filled(be.xp, none, 1.0, 2, 1)], 1).shape == (0, 3)


def test_an_empty_part_may_begin_in_the_memory_of_another_array_on_cupy():
    """That array went back to its pool, and the kernel is not given its address."""
    xp = make_backend("cupy").xp
    cp = optional_imports.cupy()
    with cp.cuda.using_allocator(cp.cuda.MemoryPool().malloc):
        whole = cp.ones(128)
        del whole
        a = cp.ones(64)
        behind = cp.ones(64)
        assert behind.data.ptr == a.data.ptr + a.nbytes
        del behind
        assert concat(xp, [a[64:], a, a], 0).tolist() == [1.0] * 128
