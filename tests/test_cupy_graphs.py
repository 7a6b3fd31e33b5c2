"""CUDA graphs: what they do again, what they keep, and what a capture refuses."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import xlstm
from tests import gpu
from xlstm.arrays import bernoulli, constants, matmul
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda_graph import Recorder, capturing, kept

cupy = gpu.needed()


@pytest.fixture
def be():
    return xlstm.backend("cupy")


def test_a_capture_does_nothing_and_each_launch_does_it(be):
    a, b = be.asarray(np.ones(3)), be.asarray(np.zeros(3))

    def function():
        b[...] = b + 2 * a
        a[...] = xlstm.arrays.fuse.fuse(be.xp, twice, a)

    function()
    graph = Recorder().capture(function)
    assert (to_numpy(a).tolist(), to_numpy(b).tolist()) == ([2, 2, 2], [2, 2, 2])
    with gpu.counted() as found:
        graph.launch()
        graph.launch()
    assert (found.launches, found.operations) == (2, 2)
    assert (to_numpy(a).tolist(), to_numpy(b).tolist()) == ([8, 8, 8], [14, 14, 14])
    a[...] = 1.0
    graph.launch()
    assert (to_numpy(a).tolist(), to_numpy(b).tolist()) == ([2, 2, 2], [16, 16, 16])
    assert capturing() is None


def twice(xp, a):
    return a + a


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("A", "B"), [((5, 3), (3, 4)), ((2, 5, 3), (2, 3, 4)), ((4, 5, 3), (3, 2))], ids=["matrices", "batch", "broadcast"]
)
def test_products_have_the_same_bits(rng, dtype, A, B):
    """By the library, where CuPy's own functions refuse; added to an array, and of transposed operands, too."""
    be = xlstm.backend("cupy", dtype=dtype)
    a, b = be.asarray(rng.standard_normal(A)), be.asarray(rng.standard_normal(B[::-1])).T
    if len(B) == 3:
        b = be.asarray(rng.standard_normal(B))
    first = matmul.matmul(be.xp, a, b)
    out = be.xp.zeros_like(first)
    matmul.matmul(be.xp, a, b, add=out)
    again = be.xp.zeros_like(first)
    recorder = Recorder()
    with recorder.rehearsal():
        np.testing.assert_array_equal(to_numpy(matmul.matmul(be.xp, a, b)), to_numpy(first))
    graph = recorder.capture(lambda: matmul.matmul(be.xp, a, b, add=again) is None)
    with gpu.counted() as found:
        graph.launch()
    assert found.products == 0
    np.testing.assert_array_equal(to_numpy(again), to_numpy(out))
    np.testing.assert_array_equal(to_numpy(out), to_numpy(first))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_masks_are_drawn_from_states_that_are_there(dtype):
    """Masks of odd and even sizes, some after numbers of which NumPy keeps a half."""
    be, sizes = xlstm.backend("cupy", dtype=dtype), [(3, 5), (4,), (0,), (1,), (700, 11)]
    like = be.asarray(np.zeros(1))
    rng, other = (np.random.Generator(np.random.PCG64(5)) for _ in range(2))
    room = be.asarray(np.zeros((8, bernoulli.STATE), np.uint64))
    found, later = [], bernoulli.Later(rng.bit_generator, room)

    def function():
        found.extend(bernoulli.bernoulli(later, 0.3, size, like, dropout=k % 2 == 0) for k, size in enumerate(sizes))

    bernoulli.bernoulli(rng, 0.3, (7,), like)
    bernoulli.bernoulli(other, 0.3, (7,), like)
    graph = Recorder().capture(function)
    assert rng.bit_generator.state == other.bit_generator.state
    for _ in range(2):
        room[: len(sizes)] = be.asarray(bernoulli.states(rng, later.sizes))
        graph.launch()
        for k, (size, mask) in enumerate(zip(sizes, found, strict=True)):
            expected = bernoulli.bernoulli(other, 0.3, size, like, dropout=k % 2 == 0)
            np.testing.assert_array_equal(to_numpy(mask), to_numpy(expected))
        assert rng.bit_generator.state == other.bit_generator.state
    few = bernoulli.Later(rng.bit_generator, room[:1])
    few.place(3)
    with pytest.raises(ValueError, match="more masks than 1"):
        few.place(3)


def test_what_caches_drop_stays(be):
    recorder, found = Recorder(), be.asarray(np.zeros(3))
    constants.steps(be.xp, 3, be.xp.float32, be.device)
    graph = recorder.capture(lambda: found.__iadd__(constants.steps(be.xp, 3, be.xp.float32, be.device)))
    constants._steps.cache_clear()
    gc.collect()
    graph.launch()
    assert to_numpy(found).tolist() == [0, 1, 2]
    assert kept(found) is found


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


def test_cublas_says_what_it_returned(monkeypatch):
    from xlstm.arrays import cublas

    monkeypatch.setattr(cublas, "_function", lambda name, types: lambda *args: 7)
    with pytest.raises(xlstm.BackendError, match="cuBLAS: cublasCreate_v2 returned 7"):
        cublas.Handle()
