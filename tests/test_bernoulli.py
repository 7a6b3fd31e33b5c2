"""Masks: the bits that NumPy draws, on every backend, and the generator that goes on as NumPy's does."""

import numpy as np
import pytest

from xlstm.arrays import bernoulli as masks
from xlstm.arrays.bernoulli import bernoulli
from xlstm.arrays.convert import to_numpy


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_bits_and_the_next_ones(be, monkeypatch, dtype, before):
    """Counts are odd and even, more than there are threads, and the last half of a number may be left from before."""
    monkeypatch.setattr(masks, "BLOCKS", 2)
    here, there = (np.random.Generator(np.random.PCG64(5)) for _ in range(2))
    for one in (here, there):
        one.random(before, dtype=np.float32)
    like = be.asarray(np.zeros(1), dtype)
    for shape, rate in (((1,), 0.5), ((3, 7), 0.3), ((2, 2), 0.9), ((5, 500), 0.1), ((0, 3), 0.5), ((2,), 0.5)):
        found = bernoulli(there, rate, shape, like, dropout=True)
        expected = (here.random(shape, dtype=np.float32) >= rate) / (1 - rate)
        assert found.dtype == like.dtype
        np.testing.assert_array_equal(to_numpy(found), expected.astype(dtype))
        assert there.bit_generator.state == here.bit_generator.state
    assert there.standard_normal() == here.standard_normal()


def test_other_generators(be):
    here, there = (np.random.Generator(np.random.MT19937(5)) for _ in range(2))
    found = bernoulli(there, 0.4, (4, 5), be.asarray(np.zeros(1)))
    np.testing.assert_array_equal(to_numpy(found), here.random((4, 5), dtype=np.float32) < 0.4)
