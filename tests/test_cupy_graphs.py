"""CUDA graphs: what they do again, what they keep, and what a capture refuses."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import xlstm
from tests import gpu
from xlstm.arrays import random
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda_graph import Recorder, capturing

cupy = gpu.needed()


@pytest.fixture
def be():
    return xlstm.backend("cupy")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_masks_are_drawn_from_states_that_are_there(dtype):
    """Masks of odd and even sizes, some after numbers of which NumPy keeps a half."""
    be, sizes = xlstm.backend("cupy", dtype=dtype), [(3, 5), (4,), (0,), (1,), (700, 11)]
    like = be.asarray(np.zeros(1))
    rng, other = (np.random.Generator(np.random.PCG64(5)) for _ in range(2))
    room = be.asarray(np.zeros((8, random.STATE), np.uint64))
    found, later = [], random.Later(rng.bit_generator, room)

    def function():
        found.extend(random.bernoulli(later, 0.3, size, like, dropout=k % 2 == 0) for k, size in enumerate(sizes))

    random.bernoulli(rng, 0.3, (7,), like)
    random.bernoulli(other, 0.3, (7,), like)
    graph = Recorder().capture(function)
    assert rng.bit_generator.state == other.bit_generator.state
    for _ in range(2):
        room[: len(sizes)] = be.asarray(random.states(rng, later.sizes))
        graph.launch()
        for k, (size, mask) in enumerate(zip(sizes, found, strict=True)):
            expected = random.bernoulli(other, 0.3, size, like, dropout=k % 2 == 0)
            np.testing.assert_array_equal(to_numpy(mask), to_numpy(expected))
        assert rng.bit_generator.state == other.bit_generator.state
    few = random.Later(rng.bit_generator, room[:1])
    few.place(3)
    with pytest.raises(ValueError, match="more masks than 1"):
        few.place(3)


REFUSED = {
    "a copy to the host": lambda a: bool((a > 0).all()),
    "a wait": lambda a: cupy.cuda.get_current_stream().synchronize(),
    "a product of CuPy": lambda a: a[:, None] @ a[None, :],
}


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize("case", REFUSED)
def test_after_a_capture_that_was_refused(be, case):
    """Nothing is left of it, and the next one is as good as any."""
    a, recorder = be.asarray(np.ones(3)), Recorder()
    with pytest.raises((NotImplementedError, RuntimeError), match="captur"):
        recorder.capture(lambda: REFUSED[case](a) is None)
    assert capturing() is None
    assert not cupy.cuda.get_current_stream().is_capturing()
    graph = recorder.capture(lambda: a.fill(2))
    graph.launch()
    assert to_numpy(a).tolist() == [2, 2, 2]


def test_the_memory_of_a_recorder_is_its_own(be):
    """It is taken from the pool that is current, and stays taken until the recorder and its graphs are gone."""
    a, pool = be.asarray(np.ones(5)), cupy.cuda.MemoryPool()
    _ = a + a  # which compiles its kernel
    with cupy.cuda.using_allocator(pool.malloc):
        recorder = Recorder()
        recorder.capture(lambda: a + a is None)
        taken = pool.used_bytes()
        assert taken > 0
        recorder._pool.free_all_blocks()
        assert pool.used_bytes() == taken
    del recorder
    gc.collect()
    assert pool.used_bytes() == 0
