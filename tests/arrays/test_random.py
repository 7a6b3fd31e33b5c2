"""Masks: the bits that NumPy draws, on every backend, and the generator that goes on as NumPy's
does.
"""

import numpy as np
import pytest

from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda import random_kernels as masks
from xlstm.arrays.groups import Part
from xlstm.arrays.random import bernoulli, of_part
from xlstm.recurrence.packing import Packing


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_bits_and_the_next_ones(be, monkeypatch, dtype, before):
    """Counts are odd and even, more than there are threads, and the last half of a number may be
    left from before.
    """
    monkeypatch.setattr(masks, "BLOCKS", 2)
    here, there = (np.random.Generator(np.random.PCG64(5)) for _ in range(2))
    for one in (here, there):
        one.random(before, dtype=np.float32)
    like = be.asarray(np.zeros(1), dtype)
    for shape, rate in (
        ((1,), 0.5),
        ((3, 7), 0.3),
        ((2, 2), 0.9),
        ((5, 500), 0.1),
        ((0, 3), 0.5),
        ((2,), 0.5),
    ):
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


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("lengths", [None, [3, 0, 5, 1, 5, 4, 0]])
@pytest.mark.parametrize("D", [3, 1100])
def test_the_masks_of_a_part_are_those_of_the_whole_batch(be, before, lengths, D):
    """Three ranks share seven sequences of five steps; the arrays (T, B, D), packed rows and (1, B,
    D) are drawn.
    """
    T = 5
    B = 7
    whole = np.random.Generator(np.random.PCG64(3))
    whole.random(before, dtype=np.float32)
    state = whole.bit_generator.state
    like = be.asarray(np.zeros(1))
    ends = np.full(B, T) if lengths is None else np.array(lengths)
    expected = [
        bernoulli(whole, 0.4, shape, like) for shape in ((T, B, D), (int(sum(ends)), D), (1, B, D))
    ]
    packed = Packing.of("test", lengths, T, B).unpack(be.xp, expected[1])
    for own in (slice(0, 2), slice(2, 4), slice(4, 7)):
        rng = np.random.Generator(np.random.PCG64())
        rng.bit_generator.state = state
        given = None if lengths is None else ends[own]
        drawn = of_part(rng, Part(1.0, B, own, None if lengths is None else ends))
        b = own.stop - own.start
        found = [
            bernoulli(drawn, 0.4, shape, like)
            for shape in ((T, b, D), (int(sum(ends[own])), D), (1, b, D))
        ]
        np.testing.assert_array_equal(to_numpy(found[0]), to_numpy(expected[0])[:, own])
        rows = Packing.of("test", given, T, b).unpack(be.xp, found[1])
        np.testing.assert_array_equal(to_numpy(rows), to_numpy(packed)[:, own])
        np.testing.assert_array_equal(to_numpy(found[2]), to_numpy(expected[2])[:, own])
        assert rng.bit_generator.state == whole.bit_generator.state
