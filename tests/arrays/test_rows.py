"""Functions with means and maxima along rows, on every backend; on CuPy they are one kernel."""

import contextlib
import functools

import numpy as np
import pytest

import cuda_on_cpu
from tests import gpu
from tests.conftest import make_backend
from tests.engines.cuda import nvrtc
from xlstm.arrays import block_diagonal
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda.row_kernel_text import RowKernel
from xlstm.arrays.rows import by_rows, summed


def standard(xp, x, gain, shift, *, scale):
    """Three reductions, one of which needs another, a result for each row, and one in float64."""
    most = xp.max(xp.abs(x), axis=-1, keepdims=True)
    c = x - xp.mean(x, axis=-1, keepdims=True)
    r = 1 / xp.sqrt(xp.mean(c * c, axis=-1, keepdims=True) + scale)
    return c * r * gain + shift, most * r, xp.astype(c, xp.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [1, 3, 64, 700])
def test_rows_of_any_order_of_memory(be, rng, dtype, columns):
    x = rng.standard_normal((4, 3, columns, 2))
    gain = rng.standard_normal((3, columns))
    shift = rng.standard_normal(1)
    arrays = [be.asarray(a, dtype) for a in (x, gain, shift)]
    arrays[0] = be.xp.permute_dims(arrays[0], (0, 3, 1, 2))
    found = by_rows(be.xp, standard, *arrays, scale=0.25)
    tolerance = {"float32": 2e-6, "float64": 1e-13}[dtype]
    expected = standard(np, x.transpose(0, 3, 1, 2), gain, shift, scale=0.25)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(to_numpy(a), b, rtol=tolerance, atol=tolerance)
    assert [str(a.dtype).rpartition(".")[2] for a in found] == [dtype, dtype, "float64"]


def first_axis(xp, x, y, *, axis):
    return x - xp.mean(x, axis=axis, keepdims=True), xp.mean(x * y, axis=axis, keepdims=True)


def test_rows_along_another_axis(be, rng):
    x = rng.standard_normal((7, 3, 2))
    y = rng.standard_normal((7, 3, 2))
    for axis in (0, 1, -1):
        found = by_rows(be.xp, first_axis, be.asarray(x), be.asarray(y), axis=axis)
        for a, b in zip(found, first_axis(np, x, y, axis=axis), strict=True):
            np.testing.assert_allclose(to_numpy(a), b, rtol=1e-13, atol=1e-13)


def test_what_is_not_a_number_stays_in_its_row(be):
    x = np.ones((3, 5))
    x[1, 2] = np.nan
    found = by_rows(
        be.xp, standard, *(be.asarray(a) for a in (x, np.ones(5), np.ones(1))), scale=1.0
    )
    for a in found:
        np.testing.assert_array_equal(np.isnan(to_numpy(a)).all(axis=1), [False, True, False])


@pytest.mark.parametrize(
    ("capability", "dtype"), [(75, "float32"), (90, "bfloat16"), (75, "float16"), (90, "float64")]
)
def test_the_kernels_compile(capability, dtype):
    dtype = gpu.half(dtype)
    made = RowKernel(standard, (dtype,) * 3, (("scale", 0.25),), (False, False, True), (None,) * 3)
    assert nvrtc.compile_for(capability, made.text(2, frozenset())).spilled == 0
    for whole in (True, False):
        made = RowKernel(with_sums, (dtype,) * 3, (("whole", whole),), (False,) * 3, (None,) * 3, 2)
        assert nvrtc.compile_for(capability, made.text(3, frozenset({1}))).spilled == 0


@pytest.mark.parametrize(
    ("capability", "dtype"), [(75, "float32"), (90, "bfloat16"), (120, "float32")]
)
def test_products_of_narrow_blocks_fit_registers(capability, dtype):
    """The gradients of the maps of an sLSTM block, which are most."""
    K = block_diagonal.WIDEST
    counts = (1, 1, 1, 1)
    dtype = gpu.half(dtype)
    options = {"K": K, "of": (0, 0, 1, 1), "counts": counts, "add": (True, True)}
    arrays = 8
    Ws = len(counts)
    given = (dtype,) * (arrays + Ws), tuple(options.items()), (False,) * (arrays + Ws)
    made = RowKernel(block_diagonal._products_bwd, *given, (K,) * arrays + (K * K,) * Ws, Ws)
    assert (
        nvrtc.compile_for(capability, made.text(1, frozenset(range(arrays, arrays + Ws)))).spilled
        == 0
    )


def with_sums(xp, x, gain, more, *, whole):
    """A result, and two to be summed, of a row or element by element."""
    c = x - xp.mean(x, axis=-1, keepdims=True) if whole else x * more
    return c * gain + more, c * more, x


def outer(xp, x, w):
    """All products of the rows of a leading axis, which change in place, and what is summed."""
    return xp.stack([x[i, ...] * w[1 - i, ...] for i in range(2)]), xp.stack(
        [x[i, ...] * x[0, ...] for i in range(2)]
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (5, 2, 3, 700), (1100, 3, 2, 7), (40, 1, 1, 300), (3, 0, 2, 4)]
)
def test_sums_over_rows_on_cupy(dtype, whole, shape):
    """One launch gives results, and sums in an order of its own, which is the same each time."""
    be = make_backend("cupy", "float32")
    rng = np.random.default_rng(0)
    kind = gpu.half(dtype)
    x, more = (rng.standard_normal(shape).astype(kind) for _ in range(2))
    gain = rng.standard_normal(shape[-2:]).astype(kind)
    given = [be.xp.asarray(a) for a in (x.swapaxes(0, 1), gain, more)]
    given[0] = be.xp.permute_dims(given[0], (1, 0, 2, 3))
    expected = with_sums(np, *(a.astype("float64") for a in (x, gain, more)), whole=whole)
    gap = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 3e-6, "float64": 1e-12}[dtype]
    for keep in (1, 2):
        call = functools.partial(summed, be.xp, with_sums, *given, sums=2, keep=keep, whole=whole)
        found = call()
        for seed in (1, 2):
            with (
                cuda_on_cpu.configured(seed=seed)
                if not cuda_on_cpu.missing()
                else contextlib.nullcontext()
            ):
                assert all((a == b).all() for a, b in zip(found, call(), strict=True))
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            b = b.sum(tuple(range(4 - keep))) if k else b
            np.testing.assert_allclose(
                to_numpy(a).astype("float64"), b, rtol=gap, atol=gap * len(x) ** 0.5 * 4
            )
            assert a.dtype == kind


def test_leading_axes_and_room_for_results_on_cupy(rng):
    xp = make_backend("cupy", "float32").xp
    x = rng.standard_normal((30, 5, 2))
    w = rng.standard_normal((2, 5))
    room = xp.zeros((30, 3, 5))
    given = xp.permute_dims(xp.asarray(x), (2, 0, 1))
    _, sums = summed(
        xp,
        outer,
        given,
        xp.asarray(w),
        leading=(2, 2),
        out=[xp.permute_dims(room, (1, 0, 2))[:2, ...]],
    )
    np.testing.assert_allclose(to_numpy(room)[:, :2], x.transpose(0, 2, 1) * w[::-1], rtol=1e-15)
    np.testing.assert_array_equal(to_numpy(room)[:, 2], 0)
    np.testing.assert_allclose(to_numpy(sums), (x * x[..., :1]).sum(0), rtol=1e-13)
