"""CUDA graphs: what they do again, what they keep, and what a capture refuses."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import xlstm
from tests import gpu
from xlstm.arrays import constants, random
from xlstm.arrays.capture import capturing
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.cuda import random_kernels
from xlstm.arrays.cuda.cuda_graph import Recorder
from xlstm.data import Windows
from xlstm.models.sequence import SequenceModel
from xlstm.training import Step, optimizers, train

cupy = gpu.needed()

MODEL = SequenceModel(xlstm.LSTM(2, 8), 3)
WINDOWS = Windows(np.ones((8, 4, 2)), np.ones((8, 4, 3)), every_step=True, batch_size=2)


@pytest.fixture
def be():
    return xlstm.backend("cupy")


def test_masks_are_drawn_from_states_that_are_there(be):
    """Masks of odd and even sizes, some after numbers of which NumPy keeps a half."""
    sizes = [(3, 5), (4,), (0,), (1,), (700, 11)]
    like = be.asarray(np.zeros(1))
    rng, other = (np.random.Generator(np.random.PCG64(5)) for _ in range(2))
    room = be.asarray(np.zeros((8, random_kernels.STATE), np.uint64))
    found = []
    later = random_kernels.Later(rng.bit_generator, room)

    def function():
        found.extend(
            random.bernoulli(later, 0.3, size, like, dropout=k % 2 == 0)
            for k, size in enumerate(sizes)
        )

    random.bernoulli(rng, 0.3, (7,), like)
    random.bernoulli(other, 0.3, (7,), like)
    graph = Recorder().capture(function)
    assert rng.bit_generator.state == other.bit_generator.state
    for _ in range(2):
        room[: len(sizes)] = be.asarray(random_kernels.states(rng, later.sizes))
        graph.launch()
        for k, (size, mask) in enumerate(zip(sizes, found, strict=True)):
            expected = random.bernoulli(other, 0.3, size, like, dropout=k % 2 == 0)
            np.testing.assert_array_equal(to_numpy(mask), to_numpy(expected))
        assert rng.bit_generator.state == other.bit_generator.state


@pytest.mark.parametrize("full", [False, True])
def test_the_memory_of_a_recorder_is_its_own(be, full):
    """It is taken from the pool that is current, and stays taken until the recorder and its graphs
    are gone.

    Where there is too little memory, pools give back what is free.
    """
    a = be.asarray(np.ones(5))
    pool = cupy.cuda.MemoryPool()
    _ = a + a  # which compiles its kernel
    with cupy.cuda.using_allocator(pool.malloc):
        recorder = Recorder()
        graph = recorder.capture(lambda: a + a is None)
        taken = pool.used_bytes()
        assert taken > 0
        if full:
            recorder._memory.pool.free_all_blocks()
            assert pool.used_bytes() == taken
    del recorder
    gc.collect()
    assert pool.used_bytes() == taken
    del graph
    gc.collect()
    assert pool.used_bytes() == 0


def test_arrays_of_a_capture_outlive_its_recorder(be):
    """Their memory goes back when the last one is gone, also where it was a part of what a pool
    had.
    """
    a = be.asarray(np.ones(1000))
    pool = cupy.cuda.MemoryPool()
    kept = []
    _ = a + a, a[:5] + a[:5]

    def function():
        _ = a + a
        del _  # the next array is a part of its memory
        kept.append(a[:5] + a[:5])

    with cupy.cuda.using_allocator(pool.malloc):
        Recorder().capture(function).launch()
        gc.collect()
        others = cupy.zeros(1000)
    assert to_numpy(kept[0]).tolist() == [2] * 5
    del others
    kept.clear()
    gc.collect()
    assert pool.used_bytes() == 0


def test_runs_with_graphs_leave_no_memory_behind(be):
    pool = cupy.cuda.MemoryPool()
    used = []
    with cupy.cuda.using_allocator(pool.malloc):
        for _ in range(3):
            train(MODEL, MODEL.init(0, be), WINDOWS, optimizers.adam(0.1), epochs=2, graph=True)
            gc.collect()
            used.append(pool.used_bytes())
    assert used[0] == used[1] == used[2]


def test_constants_of_a_capture_are_not_kept(be):
    """Nothing has filled them before the graph is launched; those of values of the host are
    refused.
    """
    values = np.arange(5) + 0.25

    def made():
        return constants.steps(be.xp, 77, be.xp.int64, be.device), constants.counters(
            be.xp, 77, be.device
        )

    made()  # which compiles its kernels
    constants._made.cache_clear()
    constants._copied.cache_clear()
    inside = []
    graph = Recorder().capture(lambda: inside.extend(made()))
    numbers, counters = made()
    inside[1].fill(7)  # in memory of the graph
    assert to_numpy(numbers).tolist() == list(range(77))
    assert not to_numpy(counters).any()
    graph.launch()
    for a, expected in zip(inside, made(), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(expected))
    with pytest.raises(
        BackendError,
        match="values of the host are copied in a capture, expected them on the device",
    ):
        Recorder().capture(lambda: constants.copied(be.xp, values, be.device) is None)
    assert to_numpy(constants.copied(be.xp, values, be.device)).tolist() == values.tolist()


def test_a_graph_is_launched_on_its_own_stream(be):
    """Another one is refused by name, before anything is asked of it."""
    step = Step(MODEL, optimizers.adam(0.1), graph=True)
    batch = next(iter(WINDOWS.batches()))
    state = step.init(MODEL.init(0, be))
    for _ in range(3):
        state, _ = step(state, batch)
    assert state.runtime.graphs.captured
    before = to_numpy(state.runtime.graphs.scalars)
    refused = pytest.raises(ValueError, match=r"expected \(0, 0\)")
    with cupy.cuda.Stream(non_blocking=True), refused:
        step(state, batch)
    np.testing.assert_array_equal(to_numpy(state.runtime.graphs.scalars), before)


REFUSED = {
    "a copy to the host": lambda a: bool((a > 0).all()),
    "a wait": lambda a: cupy.cuda.get_current_stream().synchronize(),
    "a product of CuPy": lambda a: a[:, None] @ a[None, :],
}


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize("case", REFUSED)
def test_after_a_capture_that_was_refused(be, case):
    """Nothing is left of it, and the next one is as good as any."""
    a = be.asarray(np.ones(3))
    recorder = Recorder()
    with pytest.raises((NotImplementedError, RuntimeError), match="captur"):
        recorder.capture(lambda: REFUSED[case](a) is None)
    assert capturing() is None
    assert not cupy.cuda.get_current_stream().is_capturing()
    graph = recorder.capture(lambda: a.fill(2))
    graph.launch()
    assert to_numpy(a).tolist() == [2, 2, 2]
