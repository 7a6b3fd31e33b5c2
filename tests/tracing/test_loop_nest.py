"""Loops over arrays of any memory order: they come to the numbers that broadcasting gives."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from xlstm.tracing.loop_nest import loop_nest

SHAPE = (1, 6, 4, 10)


@pytest.mark.parametrize(("inner", "loops"), [(0, 3), (1, 2), (2, 1)])
def test_numbers_and_joined_axes(inner, loops):
    numbers = np.arange(240.0)
    arrays = numbers.reshape(SHAPE), numbers.reshape(10, 24)[:, :6].T[:, None], numbers[:4, None]
    nest = loop_nest(SHAPE, [(a.shape, a.strides) for a in arrays], inner)
    assert len(nest.sizes) == loops
    assert loop_nest(SHAPE, [(SHAPE, arrays[0].strides)]) == ([240], [(8,)])
    for a, steps in zip(arrays, nest.steps, strict=True):
        visited = as_strided(a, (*nest.sizes, *SHAPE[4 - inner :]), steps)
        np.testing.assert_array_equal(visited.ravel(), np.broadcast_to(a, SHAPE).ravel())
