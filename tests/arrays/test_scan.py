"""Scans: a loop of steps on every backend."""

import numpy as np
import pytest

from tests.gpu import as_it_lies
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.fuse import scan


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
    carried, kept = start, [None] * n
    for t in range(n - 1, -1, -1) if reverse else range(n):
        kept[t], carried = carried, step(np, carried, np.take(g, t, axis=axis), np.take(x, t, axis=axis))
    given = [as_it_lies(a) if be.name == "cupy" else be.asarray(a, dtype) for a in (start, g, x)]
    found = scan(be.xp, step, *given, axis=axis, reverse=reverse)
    for a, b in zip(found, (np.stack(kept, axis=axis), carried), strict=True):
        assert be.name != "cupy" or a.dtype == dtype
        rtol, atol = (1e-15, 0) if dtype == "float64" else (1e-6, 1e-6)
        np.testing.assert_allclose(to_numpy(a), b, rtol=rtol, atol=atol)
