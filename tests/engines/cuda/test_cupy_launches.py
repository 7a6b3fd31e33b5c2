"""Launches, copies and waits of calls on a GPU, counted and held to budgets.

A number here is a bound; where a call asks for less, the bound goes down with it.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest

import cuda_on_cpu
import xlstm
from tests import gpu
from xlstm.data import Streams, Windows
from xlstm.engines import cuda
from xlstm.models.sequence import SequenceModel
from xlstm.training import Step, optimizers
from xlstm.training.callbacks import Clip

cupy = gpu.needed()

B = 4
D = 8
H = 8
LENGTHS = [25, 3, 5, 1]


@pytest.fixture
def backend():
    return xlstm.backend("cupy")


def counts(call):
    """Count what the second of two equal calls asks for."""
    call()
    with gpu.counted() as found:
        call()
    return found


def within(found, operations, to_device=0, to_host=0):
    """Each copy to the host waits, and nothing else."""
    assert found.operations <= operations, found.places()
    assert (found.to_device, found.to_host, found.waits) == (to_device, to_host, to_host), (
        found.places()
    )
    assert found.compiled == 0


def passes(backend, layer, lengths=None, T=25):
    """Counts of a forward and of a backward pass."""
    rng = np.random.default_rng(0)
    params = layer.init(0, backend)
    x = backend.asarray(rng.standard_normal((T, B, layer.input_size)))
    made = []  # a backward pass has values of its own, as in training
    forward = counts(
        lambda: made.append(
            layer.forward(params, x, lengths=lengths, seed=0 if layer.random else None)
        )
    )

    def back():
        y, _, saved = made.pop()
        layer.backward(params, saved, y)

    return forward, counts(back)


@pytest.mark.parametrize(
    ("layer", "lengths", "path", "forward", "backward"),
    [
        (xlstm.LSTM(D, H), None, "auto", 6, 8),
        (xlstm.LSTM(D, H), LENGTHS, "auto", 6, 9),
        (xlstm.sLSTM(D, H, num_heads=2), None, "auto", 7, 9),
        (xlstm.mLSTM(D, H, num_heads=2), None, "auto", 9, 10),
        (xlstm.mLSTM(D, H, num_heads=2), None, "loop", 62, 52),  # without its own kernels
        (xlstm.mLSTM(D, H, num_heads=2), LENGTHS, "auto", 13, 14),
        (xlstm.LSTM(D, H, 4, bidirectional=True, dropout=0.1), None, "auto", 57, 74),
    ],
)
def test_a_pass(backend, layer, lengths, path, forward, backward):
    with cuda.use(path):
        there, back = passes(backend, layer, lengths)
    within(there, forward)
    within(back, backward)


class Peak(cupy.cuda.MemoryHook):
    """The most bytes of CuPy's pool that were in use."""

    bytes = 0

    def malloc_postprocess(self, **_):
        self.bytes = max(self.bytes, cupy.get_default_memory_pool().used_bytes())


def peaks(layer, T=64, B=16):
    """The most memory beside parameters and x during forward and backward, in units of an array (T,
    B, H).
    """
    gpu.on_cpu()
    backend = xlstm.backend("cupy")
    rng = np.random.default_rng(0)
    params = layer.init(0, backend)
    x = backend.asarray(rng.standard_normal((T, B, layer.input_size)))
    with cuda_on_cpu.configured(idle=1):  # memory is the same where kernels do nothing
        for _ in range(2):  # constants are made in the first call
            gc.collect()
            before = cupy.get_default_memory_pool().used_bytes()
            forward = Peak()
            backward = Peak()
            with forward:
                y, end, saved = layer.forward(params, x)
            with backward:
                layer.backward(params, saved, y, end)
            del y, end, saved
    unit = T * B * layer.hidden_size * x.itemsize
    return (forward.bytes - before) / unit, (backward.bytes - before) / unit


@pytest.mark.parametrize(
    ("kind", "options", "forward", "backward"),
    [
        (xlstm.LSTM, {}, 11.4, 12.7),
        (xlstm.LSTM, {"recompute": True}, 6.4, 11.5),
        (xlstm.GRU, {"layer_norm": True}, 16.2, 22.5),
        (xlstm.sLSTM, {"recompute": True}, 8.4, 15.6),
    ],
)
def test_memory_of_a_layer(kind, options, forward, backward):
    """With `recompute` a layer takes less in both passes, not only between them."""
    found = peaks(kind(64, 64, **options))
    assert found[0] <= forward, found
    assert found[1] <= backward, found


TEXT = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 4, [1], 2), 11)
TOKENS = np.arange(201) % 11
SERIES = np.random.default_rng(0).standard_normal((8, 25, 7))


@pytest.mark.parametrize(
    ("model", "operations"), [(xlstm.LSTM(D, H), 3), (TEXT, 64)], ids=["LSTM", "a token"]
)
def test_a_step_of_a_stream(backend, model, operations):
    x = backend.asarray(np.array([1, 2, 3, 4]) if model is TEXT else np.ones((B, D)))
    params = model.init(0, backend)
    _, state = model.step(params, x)
    within(counts(lambda: model.step(params, x, state)), operations)


def repeated(backend, made, data, begun=0):
    """Counts of a step of training after some others, and the state after it."""
    state = made.init(made.model.init(0, backend))
    batch = next(iter(data.batches()))
    now = [state, None]

    def take():
        now[:] = made(now[0]._replace(carried=None), batch)

    for _ in range(begun):
        take()
    return counts(take), *now


@pytest.mark.parametrize(
    ("layer", "operations", "to_device"),
    [
        (xlstm.LSTM(4, H), 33, 3),  # the batch and the optimiser's numbers
        (xlstm.LSTM(4, H, 2, dropout=0.25), None, 4),  # and states of the generator
        (TEXT, 181, 3),
    ],
    ids=["LSTM", "LSTM, dropout", "text"],
)
def test_a_step_of_training(backend, layer, operations, to_device):
    """It waits once, for how it went; or not, until somebody asks. A replay is one launch beside
    the copies.
    """
    model = TEXT if layer is TEXT else SequenceModel(layer, 3)
    windows = Windows(SERIES[..., :4], SERIES[..., 4:], every_step=True, batch_size=8)
    data = Streams(TOKENS[:-1], TOKENS[1:], B, 25) if layer is TEXT else windows
    optimizer = optimizers.adamw(1e-3)
    for wait in (True, False):
        made, graph = (
            Step(model, optimizer, callbacks=[Clip(1.0)], wait=wait, graph=graph)
            for graph in (False, True)
        )
        found, state, how = repeated(backend, made, data)
        assert found.waits == found.to_host == wait
        assert operations is None or found.operations <= operations + (not wait), found.places()
        within(counts(lambda how=how: float(how.loss)), 1 - wait, to_host=1 - wait)
        found, *_ = repeated(backend, graph, data, 2)
        within(found, 2 * to_device + 2, to_device, wait)
        assert found.products == 0
    params = state.params
    moments = state.moments
    within(
        counts(lambda: optimizers.clip_global_norm(params, 1.0, optimizers.global_norm(params))), 3
    )
    within(counts(lambda: optimizer.update(params, params, moments)), 1)


@pytest.mark.parametrize(
    ("layer", "forward", "backward"),
    [
        (xlstm.LSTM(D, H, recurrent_dropout=0.1, zoneout=0.1), 0, 0),
        (xlstm.LSTM(D, H, proj_size=4), 3, 3),
        (xlstm.LSTM(D, H, layer_norm=True, recurrent_dropout=0.1), 3, 2),
        (xlstm.GRU(D, H, reset_after=False), 4, 4),  # two products and a kernel before each
    ],
)
def test_one_more_step_of_a_layer_with_options(backend, layer, forward, backward):
    """It takes no operation where one kernel does all steps, else products and kernels."""
    found = [[one.operations for one in passes(backend, layer, T=steps)] for steps in (6, 7)]
    assert np.all(np.subtract(found[1], found[0]) <= (forward, backward)), found
