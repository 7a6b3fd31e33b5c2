"""Streams, memory, devices and threads of the caller: all that is asked of a GPU goes where the
caller says.

On a CPU streams are lazy here: each does its work when somebody waits for it, so that an array of
another stream is not there for those that do not wait.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cuda_on_cpu
import xlstm
from tests import gpu
from tests.registry import EVERY, input_of
from xlstm.arrays import random
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.groups import Part
from xlstm.data import Streams, Windows
from xlstm.layers.sequence import SequenceLayer
from xlstm.models.sequence import SequenceModel
from xlstm.recurrence import packing
from xlstm.training import Step, optimizers
from xlstm.training.callbacks import Clip

cupy = gpu.needed()

T = 6
B = 4
D = 8
H = 8
LENGTHS = [6, 3, 0, 2]
LAYERS = {
    "LSTM": xlstm.LSTM(D, H, 2, bidirectional=True, dropout=0.1),
    "options": xlstm.LSTM(D, H, layer_norm=True, recurrent_dropout=0.2, zoneout=0.1),
    "GRU": xlstm.GRU(D, H, reset_after=False),
    "sLSTM": xlstm.sLSTM(D, H, num_heads=2),
    "mLSTM": xlstm.mLSTM(D, H, num_heads=2),
    "blocks": xlstm.xLSTMStack(D, 2, [1], num_heads=2),
}


def passes(layer, lengths=None):
    """Run a layer forward and backward, and a step of it, on new arrays of the current device and
    stream.
    """
    backend = xlstm.backend("cupy")
    rng = np.random.default_rng(0)
    params = layer.init(0, backend)
    x = backend.asarray(rng.standard_normal((T, B, D)))
    y, state, saved = layer.forward(params, x, lengths=lengths, seed=1 if layer.random else None)
    grads, dx, _ = layer.backward(params, saved, y, state)
    found = [y, dx, *grads.values()]
    if layer.directions == ("",):
        found.append(layer.step(params, x[0, ...], state)[0])
    return found


def train(graph=False):
    """Take steps of training, and write text with the model; return all parameters."""
    rng = np.random.default_rng(0)
    tokens = np.arange(101) % 11
    text = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 2, [1], 2), 11)
    x = rng.standard_normal((8, T, 4))
    target = rng.standard_normal((8, T, 3))
    windows = Windows(x, target, every_step=True, batch_size=4, lengths=LENGTHS * 2)
    found = []
    for model, data in (
        (text, Streams(tokens[:-1], tokens[1:], B, T)),
        (SequenceModel(xlstm.LSTM(4, H, 2, dropout=0.1), 3), windows),
    ):
        step = Step(model, optimizers.adamw(1e-2), callbacks=[Clip(1.0)], graph=graph)
        state = step.init(model.init(0, xlstm.backend("cupy")), 1)
        for batch in [*data.batches()] * 3:
            state, _ = step(state._replace(carried=None), batch)
        assert not graph or state.runtime.graphs.captured
        found += state.params.values()
        if model is text:
            model.generate(state.params, np.array([[1, 2]]), 3)
    return found


WORK = {f"{name} with lengths": (passes, layer, LENGTHS) for name, layer in LAYERS.items()}
WORK |= {name: (passes, LAYERS[name]) for name in ("LSTM", "mLSTM", "blocks")}
WORK["training"] = (train,)


@functools.cache
def expected_of(name):
    """Results of the first device, its default stream and threads in order."""
    call, *arguments = WORK[name]
    return hosts(call(*arguments))


@pytest.fixture(params=WORK)
def work(request):
    call, *arguments = WORK[request.param]
    return lambda: call(*arguments)


@pytest.fixture
def expected(request, work):
    return expected_of(request.node.callspec.params["work"])


@pytest.fixture(autouse=True)
def lazy():
    with contextlib.nullcontext() if cuda_on_cpu.missing() else cuda_on_cpu.configured(lazy=1):
        yield


def hosts(found):
    return [to_numpy(a) for a in found]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(to_numpy(a), b)


def test_all_goes_to_the_current_stream_and_memory_is_from_the_current_allocator(work):
    pool = cupy.cuda.MemoryPool()
    for stream in (cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream.ptds):
        asked = []
        allocator = cupy.cuda.using_allocator(
            lambda size, asked=asked: asked.append(size) or pool.malloc(size)
        )
        with stream, allocator, gpu.counted() as found:
            work()
        assert found.streams == {stream.ptr}
        assert len(asked) == found.allocations > 0


def test_streams_share_nothing_that_one_of_them_has_to_wait_for(work, expected):
    """Each stream has for itself whatever is kept between calls, such as indices of lengths."""
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    made = []
    for stream in streams:
        with stream:
            made.append(work())
    with streams[1]:  # nothing that the first was asked for is done
        found = hosts(made[1])
    same(found, expected)


class Borrowed:
    """An allocator that takes the memory of its arrays along when it goes, as pools of CuPy before
    14.1.
    """

    def __init__(self):
        self.memory = []

    def __call__(self, size):
        self.memory.append(cupy.cuda.Memory(size))
        at = self.memory[-1].ptr
        device = cupy.cuda.Device().id
        return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(at, size, None, device), 0)


def test_constants_outlive_their_allocator():
    """Indices of lengths, masks, counters and places of a rank lie in the memory of the call that
    made them.
    """
    layer = LAYERS["options"]
    part = Part(16.0, 2 * B, slice(B, 2 * B))
    be = xlstm.backend("cupy")
    expected = hosts(passes(layer, LENGTHS))

    def drawn():
        rng = random.of_part(random.generator(3), part)
        return random.bernoulli(rng, 0.5, (T, B, D), be.asarray(np.ones(1)))

    mask = to_numpy(drawn())
    gpu.first_contact()
    packing._recent.__init__()
    for _ in range(2):
        with cupy.cuda.using_allocator(Borrowed()):
            same([*passes(layer, LENGTHS), drawn()], [*expected, mask])
        gc.collect()


def test_graphs_are_launched_on_the_current_stream():
    """They read arrays that the stream has filled which was current before the capture."""
    expected = expected_of("training")
    for stream in (
        cupy.cuda.Stream(non_blocking=True),
        cupy.cuda.Stream.ptds,
        cupy.cuda.Stream(non_blocking=True),
    ):
        with stream, gpu.counted() as found:
            made = hosts(train(graph=True))
        assert found.streams == {stream.ptr}
        same(made, expected)


def test_an_allocator_that_was_set_gives_all_memory():
    """An allocator such as that of RMM gives that of steps and of graphs."""
    expected = hosts(train())
    runtime = cupy.cuda.runtime
    pool = cupy.get_default_memory_pool()  # constants have memory
    own = cupy.cuda.PythonFunctionAllocator(
        lambda n, device: runtime.malloc(n), lambda at, device: runtime.free(at)
    )
    before = cupy.cuda.get_allocator()
    used = pool.used_bytes()
    cupy.cuda.set_allocator(own.malloc)
    try:
        for graph in (False, True):
            same(train(graph), expected)
        assert pool.used_bytes() <= used
    finally:
        cupy.cuda.set_allocator(before)


@pytest.mark.parametrize("name", ["LSTM with lengths", "mLSTM", "training"])
def test_threads_at_the_same_time(name):
    call, *arguments = WORK[name]

    def run(stream):
        with stream:
            return hosts(call(*arguments))

    streams = [cupy.cuda.Stream(non_blocking=True), *[cupy.cuda.Stream.ptds] * 2]
    with ThreadPoolExecutor(3) as pool:
        for made in pool.map(run, streams):
            same(made, expected_of(name))


def test_results_are_the_same_bits_in_any_order_of_threads(work, expected):
    """No sum depends on which thread comes first: sums of floating-point numbers have no atomic
    operations.
    """
    gpu.on_cpu()
    for seed in (1, 2):
        with cuda_on_cpu.configured(seed=seed), gpu.counted() as found:
            same(work(), expected)
    assert "scatter_add" not in found.places()  # CuPy's own


def test_several_devices(work, expected):
    gpu.two_devices()
    with cupy.cuda.Device(1):
        made = work()
        assert {a.device.id for a in made} == {1}
        same(made, expected)
    same(work(), expected)


@pytest.mark.parametrize("layer", EVERY, ids=lambda layer: str(layer)[:60])
def test_backward_refuses_what_is_saved_on_another_device(layer):
    """As forward refuses x; a pickle comes to the device that is current."""
    gpu.two_devices()

    def made():
        backend = xlstm.backend("cupy")
        params = layer.init(0, backend)
        x = input_of(layer, backend, np.random.default_rng(0))
        y, *_, saved = layer.forward(
            params, x, **({"seed": 1} if isinstance(layer, SequenceLayer) else {})
        )
        return params, saved, y

    params, saved, y = made()
    expected, *_ = layer.backward(params, saved, y)
    with cupy.cuda.Device(1):
        other, there, dy = made()
        written = pickle.dumps(there)
    words = (
        rf"^{type(layer).__name__}: saved is on <CUDA Device 1> but \S+ on <CUDA Device 0>,"
        r" expected one device$"
    )
    with pytest.raises(TypeError, match=words):
        layer.backward(params, there, y)
    with pytest.raises(ValueError, match="on CUDA device 1, which is not the current one, 0; with"):
        layer.backward(other, there, dy)
    found, *_ = layer.backward(params, pickle.loads(written), y)
    same(hosts(found.values()), hosts(expected.values()))
