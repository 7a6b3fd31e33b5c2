"""Loops over arrays of any memory order: they come to the numbers that broadcasting gives."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from xlstm.tracing.loop_nest import loop_nest


@pytest.mark.parametrize(("inner", "loops"), [(0, 3), (1, 2), (2, 1)])
def test_numbers_and_joined_axes(inner, loops):
    numbers = np.arange(240.0)
    arrays = [
        numbers.reshape(1, 6, 4, 10),
        numbers.reshape(10, 24)[:, :6].T[None, :, None],
        numbers[:4, None],
    ]
    nest = loop_nest((1, 6, 4, 10), [(a.shape, a.strides) for a in arrays], inner)
    assert len(nest.sizes) == loops
    shape = (*nest.sizes, *(6, 4, 10)[3 - inner :])
    for a, steps in zip(arrays, nest.steps, strict=True):
        expected = np.broadcast_to(a, (1, 6, 4, 10)).ravel()
        np.testing.assert_array_equal(as_strided(a, shape, steps).ravel(), expected)


def test_memory_that_goes_on_is_one_loop():
    a = np.ones((5, 1, 4, 3))
    assert loop_nest(a.shape, [(a.shape, a.strides)] * 2) == ([60], [(8,), (8,)])
    assert loop_nest((1, 1), [((), ())]) == ([], [()])
