"""One function of many arrays, and their norm: on every backend, and the kernels of CuPy by
NVRTC.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import make_backend
from tests.engines.cuda import nvrtc
from xlstm.arrays import foreach, optional_imports
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda import foreach_kernels as kernels

# Empty or not, less than a chunk, just one, and more; more arrays than one kernel takes.
SHAPES = [
    (),
    (1,),
    (7, 3),
    (kernels.CHUNK,),
    (kernels.CHUNK + 1,),
    (3, 2000),
    *[(k % 5 + 1, 2) for k in range(300)],
]


def moved(xp, a, b, far, scale, *, power):
    """Two results, with a number from the host and one from the device."""
    c = a + far * b
    return c * scale, c * c if power == 2 else c


def drawn(be, rng, dtype):
    columns = [[rng.standard_normal(shape) for shape in SHAPES] for _ in range(2)]
    return columns, [[be.asarray(a, dtype) for a in column] for column in columns]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_array_by_itself(be, rng, dtype):
    (a, b), given = drawn(be, rng, dtype)
    given[1][2] = be.asarray(np.ascontiguousarray(b[2].T), dtype).T  # in another order of memory
    scale = be.asarray(np.array(1.5), dtype)
    found = foreach.apply(be.xp, moved, given, (0.25, scale), power=2)
    if be.xp is np or be.name == "cupy":  # others take no numbers of NumPy
        again = foreach.apply(be.xp, moved, given, (np.float64(0.25), scale), power=2)
        for one, other in zip(found, again, strict=True):
            np.testing.assert_allclose(to_numpy(other[0]), to_numpy(one[0]), rtol=1e-6)
    tolerance = {"float32": 1e-6, "float64": 1e-14}[dtype]
    assert len(found) == len(SHAPES)
    for x, y, (first, second) in zip(a, b, found, strict=True):
        assert first.dtype == second.dtype == given[0][0].dtype
        np.testing.assert_allclose(
            to_numpy(first), 1.5 * (x + 0.25 * y), rtol=tolerance, atol=tolerance
        )
        np.testing.assert_allclose(
            to_numpy(second), (x + 0.25 * y) ** 2, rtol=10 * tolerance, atol=tolerance
        )
    np.testing.assert_array_equal(to_numpy(given[0][5]), a[5].astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norm(be, rng, dtype):
    (a, _), (given, _) = drawn(be, rng, dtype)
    found = foreach.norm(be.xp, given)
    assert found.shape == ()
    assert found.dtype == given[0].dtype
    expected = np.sqrt(sum(np.sum(x * x) for x in a))
    np.testing.assert_allclose(
        to_numpy(found), expected, rtol={"float32": 1e-6, "float64": 1e-14}[dtype]
    )
    infinite = foreach.norm(be.xp, [*given[:3], given[3] * np.inf])
    assert not np.isfinite(to_numpy(infinite))


def test_empty_arrays(be):
    empty = be.asarray(np.zeros((0, 3)))
    full = be.asarray(np.ones(2))
    (a,), (b,) = foreach.apply(be.xp, lambda xp, x: x + x, [[empty, full]])
    assert (a.shape, b.shape) == ((0, 3), (2,))
    assert float(foreach.norm(be.xp, [empty, full])) == pytest.approx(2**0.5)


@pytest.mark.parametrize("empty", [False, True])
def test_numbers_on_the_device_and_results_in_place_on_cupy(empty):
    """Numbers of another dtype; an empty array goes without a kernel."""
    be = make_backend("cupy", "float32")
    rng = np.random.default_rng(0)
    shapes = [(), (3, 2000), (0, 2)][: 2 + empty]
    given = [[be.asarray(rng.standard_normal(shape)) for shape in shapes] for _ in range(2)]
    tenth, two = (be.asarray(np.array(number), "float64") for number in (0.1, 2.0))
    expected = foreach.apply(be.xp, moved, given, (0.1, 2.0), power=2)
    found = foreach.apply(be.xp, moved, given, (tenth, two), (0, 1), power=2)
    for k, (results, others) in enumerate(zip(found, expected, strict=True)):
        for j, (a, b) in enumerate(zip(results, others, strict=True)):
            assert a is given[j][k]
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=0, atol=1e-6 * empty)


@pytest.mark.parametrize(("capability", "dtype"), [(75, "f4"), (90, "f8")])
def test_kernels_compile(monkeypatch, capability, dtype):
    texts = []
    dtype = np.dtype(dtype)
    acted = SimpleNamespace(
        RawKernel=lambda text, *a, **o: texts.append(text), ReductionKernel=lambda *a: None
    )
    monkeypatch.setattr(optional_imports, "cupy", lambda: acted)
    kernels._each_kernel.__wrapped__(moved, (dtype, dtype), (None, "float"), (), (("power", 2),))
    kernels._each_kernel.__wrapped__(
        moved, (dtype, dtype), ("double", "half_t"), (0, 1), (("power", 2),)
    )
    kernels._squares_kernels.__wrapped__(dtype)
    for text in texts:
        assert nvrtc.compile_for(capability, text).spilled == 0
