"""Rows of several arrays at places, on every backend; on CuPy they are one launch."""

import contextlib

import numpy as np
import pytest

import cuda_on_cpu
from tests import gpu
from tests.conftest import make_backend
from tests.engines.cuda import nvrtc
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda.gather_kernels import add_text
from xlstm.arrays.gather import add_rows, gather, rows_of_table


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_several_arrays(be, rng, dtype):
    """Each has places of its own, also none; they are more than one launch takes."""
    shapes = [(5, 3), (5, 700), (5,), (5, 2, 4), (5, 0), *((k + 2, k + 1) for k in range(8))]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    places = [rng.integers(len(a), size=2 * k) for k, a in enumerate(arrays)]
    given = [be.asarray(a, dtype) for a in arrays]
    given[1] = be.xp.permute_dims(be.asarray(np.ascontiguousarray(arrays[1].T), dtype), (1, 0))
    found = gather(be.xp, given, [be.asarray(at) for at in places])
    for one, a, at in zip(found, arrays, places, strict=True):
        np.testing.assert_array_equal(to_numpy(one), a[at])


def test_a_row_that_there_is_not(be):
    places = be.asarray(np.array([1, 2, 0]))
    (found,) = gather(be.xp, [be.asarray(np.ones((2, 3)))], [places], zeros=range(1))
    np.testing.assert_array_equal(to_numpy(found), [[1, 1, 1], [0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_outside_of_a_table_are_nan(be, dtype):
    """NumPy's places are checked before."""
    table = np.arange(1.0, 7.0).reshape(3, 2)
    places = np.array([2, 0, 0, 0, 3, 0, -1, 0, 1, 0])
    outside = np.isin(places, [3, -1])
    if be.xp is np:
        places[outside] = 0
    found = rows_of_table(be.xp, be.asarray(table, dtype), be.asarray(places)[::2])
    expected = np.where(
        outside[:, None], np.where(be.xp is np, table[0], np.nan), table[places % 3]
    )
    np.testing.assert_array_equal(to_numpy(found), expected[::2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "sizes", [(0, 3, 5), (1, 3, 5), (300, 1, 4), (700, 300, 40), (600, 3, 2000)]
)
def test_rows_that_are_added_on_cupy(rng, dtype, sizes):
    """Segments of one block and of several, as long as all of them, and places that there are
    not.
    """
    N, D, V = sizes
    xp = make_backend("cupy", "float32").xp
    kind = gpu.half(dtype)
    rows = rng.standard_normal((N, D + 1)).astype(kind)[:, :D]
    for places in (
        rng.integers(-1, V + 1, N),
        np.minimum(rng.geometric(0.3, N), V) - 1,
        np.full(N, V // 2),
    ):
        expected = np.zeros((V + 2, D))
        np.add.at(expected, places + 1, rows.astype("float64"))
        given = xp.asarray(places), gpu.as_it_lies(rows)
        found = add_rows(xp, *given, V)
        with (
            cuda_on_cpu.configured(seed=1)
            if not cuda_on_cpu.missing()
            else contextlib.nullcontext()
        ):
            assert (add_rows(xp, *given, V) == found).all()
        gap = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
        size = np.abs(expected).max(initial=1)
        np.testing.assert_allclose(
            to_numpy(found).astype("float64"), expected[1:-1], rtol=gap, atol=gap * size
        )
        assert found.dtype == kind


@pytest.mark.parametrize(
    ("capability", "dtype"), [(75, "float32"), (90, "float64"), (75, "bfloat16"), (120, "float16")]
)
def test_the_kernel_compiles(capability, dtype):
    assert nvrtc.compile_for(capability, add_text(gpu.half(dtype))).spilled == 0
