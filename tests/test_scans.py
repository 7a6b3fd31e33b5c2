"""Scans: a loop of steps on every backend."""

import numpy as np
import pytest

from tests.conftest import make_backend
from tests.gpu import as_it_lies
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.scan import scan


def one(xp, c, g, x):
    return g * c + x


def two(xp, c, most, g, x):
    x = xp.astype(x, xp.float64)
    return c + x, xp.maximum(most, g * c)


def steps_of(function, start, arrays, axis, reverse):
    """By hand: what is carried before each step, and after the last one."""
    n = arrays[0].shape[axis]
    carried, kept = start, [None] * n
    for t in range(n - 1, -1, -1) if reverse else range(n):
        new = function(np, *carried, *(np.take(a, t, axis=axis) for a in arrays))
        new = new if isinstance(new, tuple) else (new,)
        kept[t], carried = carried, new
    return [(np.stack(some, axis=axis), end) for some, end in zip(zip(*kept, strict=True), carried, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("axis", "n"), [(-3, 4), (-1, 5), (-2, 1)])
def test_scan(be, rng, axis, n, reverse, dtype):
    """Arrays may be strided, and broadcast."""
    start = rng.standard_normal((4, 3, 2)).transpose(2, 1, 0).astype(dtype)
    x = np.moveaxis(rng.standard_normal((2, 3, 4, n)).astype(dtype), -1, axis)
    g = np.moveaxis(rng.standard_normal((n, 3, 1)).astype(dtype), 0, axis if axis > -3 else 0)
    given = [as_it_lies(a) if be.name == "cupy" else be.asarray(a, dtype) for a in (start, g, x)]
    found = scan(be.xp, one, given[:1], *given[1:], axis=axis, reverse=reverse)
    for pair, wanted in zip(found, steps_of(one, (start,), (g, x), axis, reverse), strict=True):
        for a, b in zip(pair, wanted, strict=True):
            assert be.name != "cupy" or (a.dtype == dtype and a.flags.c_contiguous)
            rtol, atol = (1e-15, 0) if dtype == "float64" else (1e-6, 1e-6)
            np.testing.assert_allclose(to_numpy(a), b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["numpy", "cupy"])
def test_several_are_carried(name, rng):
    be = make_backend(name)
    g, x = rng.standard_normal((3, 7)), rng.standard_normal((3, 7)).astype("f4")
    start = [np.zeros(3), np.full(3, -np.inf)]
    expected = steps_of(two, start, (g, x), -1, False)
    found = scan(be.xp, two, [be.asarray(s) for s in start], be.asarray(g), be.asarray(x, "float32"))
    for pair, wanted in zip(found, expected, strict=True):
        for a, b in zip(pair, wanted, strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(to_numpy(a), b, rtol=1e-15)
