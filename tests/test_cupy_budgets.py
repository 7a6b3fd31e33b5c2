"""Launches, copies and waits of calls on a GPU, counted and held to budgets.

A number here is a bound; where a call asks for less, the bound goes down with it.
"""

from __future__ import annotations

import numpy as np
import pytest

import xlstm
from tests import gpu
from xlstm.data import Streams, Windows
from xlstm.engines import cuda
from xlstm.models.sequence import SequenceModel
from xlstm.training import Step, optimizers
from xlstm.training.callbacks import Clip

gpu.needed()

T, B, D, H = 25, 4, 8, 8


@pytest.fixture
def backend():
    return xlstm.backend("cupy")


def counts(call):
    """Count what the second of two equal calls asks for."""
    call()
    with gpu.counted() as found:
        call()
    return found


def within(found, operations, to_device=0, to_host=0, waits=0):
    assert found.operations <= operations, found.places()
    assert (found.to_device, found.to_host, found.waits) == (to_device, to_host, waits), found.places()
    assert found.compiled == 0


def passes(backend, layer, lengths=None, **options):
    """Counts of a forward and of a backward pass."""
    rng = np.random.default_rng(0)
    params, x = layer.init(0, backend), backend.asarray(rng.standard_normal((T, B, layer.input_size)))
    made = []  # a backward pass has values of its own, as in training
    forward = counts(lambda: made.append(layer.forward(params, x, lengths=lengths, **options)))

    def back():
        y, _, saved = made.pop()
        layer.backward(params, saved, y)

    return forward, counts(back)


@pytest.mark.parametrize(
    ("layer", "lengths", "forward", "backward"),
    [
        (xlstm.LSTM(D, H), None, 6, 8),
        (xlstm.LSTM(D, H), [25, 3, 5, 1], 6, 9),
        (xlstm.GRU(D, H), None, 6, 9),
        (xlstm.sLSTM(D, H, num_heads=2), None, 7, 9),
        (xlstm.mLSTM(D, H, num_heads=2), None, 9, 10),
        (xlstm.mLSTM(D, H, num_heads=2, eps=1e-6), None, 9, 12),
        (xlstm.mLSTM(D, H, num_heads=2), [25, 3, 5, 1], 13, 14),
        (xlstm.LSTM(D, H, 4, bidirectional=True, dropout=0.1), None, 57, 74),
    ],
    ids=["LSTM", "LSTM, lengths", "GRU", "sLSTM", "mLSTM", "mLSTM, eps", "mLSTM, lengths", "4 layers, 2 directions"],
)
def test_a_pass(backend, layer, lengths, forward, backward):
    there, back = passes(backend, layer, lengths, **({"seed": 0} if layer.random else {}))
    within(there, forward)
    within(back, backward)


def test_a_pass_of_an_mlstm_without_its_own_kernels(backend):
    with cuda.use("loop"):
        there, back = passes(backend, xlstm.mLSTM(D, H, num_heads=2))
    within(there, 38)
    within(back, 49)


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        ({"zoneout": 0.1}, 0, 0),
        ({"recurrent_dropout": 0.1}, 0, 0),
        ({"layer_norm": True}, 2, 2),
        ({"proj_size": 4}, 3, 3),
        ({"layer_norm": True, "recurrent_dropout": 0.1}, 3, 2),
        ({"reset_after": False}, 4, 4),  # two products and a kernel before each
    ],
    ids=str,
)
def test_a_step_of_a_layer_with_options(backend, monkeypatch, options, forward, backward):
    """The operations that one more step takes: none where one kernel does all steps, else products and kernels."""
    layer, found = (xlstm.GRU if "reset_after" in options else xlstm.LSTM)(D, H, **options), []
    for steps in (6, 7):
        monkeypatch.setattr("tests.test_cupy_budgets.T", steps)
        found.append([one.operations for one in passes(backend, layer, **({"seed": 0} if layer.random else {}))])
    assert np.all(np.subtract(found[1], found[0]) <= (forward, backward)), found


def test_a_step_of_a_stream(backend):
    layer = xlstm.LSTM(D, H)
    params, x = layer.init(0, backend), backend.asarray(np.ones((B, D)))
    _, state = layer.step(params, x)
    within(counts(lambda: layer.step(params, x, state)), 3)


def replay(backend, model, data, optimizer, wait):
    """Counts of a captured step."""
    step = Step(model, optimizer, callbacks=[Clip(1.0)], graph=True, wait=wait)
    state, batch = step.init(model.init(0, backend)), next(iter(data.batches()))
    for _ in range(2):
        state, _ = step(state._replace(carried=None), batch)
    now = [state]

    def take():
        now[0], _ = step(now[0]._replace(carried=None), batch)

    return counts(take)


def training(backend, model, data, optimizer):
    """Counts of a step of training, of the norm and clipping of its gradients, and of its update."""
    step = Step(model, optimizer, callbacks=[Clip(1.0)])
    state, batch = step.init(model.init(0, backend)), next(iter(data.batches()))
    now = [state]

    def take():
        now[0], _ = step(now[0], batch)

    whole = counts(take)
    params, moments = now[0].params, now[0].moments
    clip = counts(lambda: optimizers.clip_global_norm(params, 1.0, optimizers.global_norm(params)))
    return whole, clip, counts(lambda: optimizer.update(params, params, moments))


def test_training_of_a_small_lstm(backend):
    rng = np.random.default_rng(0)
    data = Windows(rng.standard_normal((8, T, 4)), rng.standard_normal((8, T, 3)), every_step=True, batch_size=8)
    whole, clip, update = training(backend, SequenceModel(xlstm.LSTM(4, H), 3), data, optimizers.adam(1e-3))
    within(whole, 33, to_device=3, to_host=1, waits=1)  # the batch and the optimiser's numbers; how the step went
    within(clip, 3)
    within(update, 1)
    model = SequenceModel(xlstm.LSTM(4, H), 3)
    within(replay(backend, model, data, optimizers.adam(1e-3), True), 8, to_device=3, to_host=1, waits=1)
    within(replay(backend, model, data, optimizers.adam(1e-3), False), 8, to_device=3)


def test_training_of_a_language_model(backend):
    model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 4, [1], 2), 11)
    tokens = np.arange(201) % 11
    data = Streams(tokens[:-1], tokens[1:], B, T)
    whole, clip, update = training(backend, model, data, optimizers.adamw(1e-3))
    within(whole, 277, to_device=3, to_host=1, waits=1)
    within(clip, 3)
    within(update, 1)
    within(replay(backend, model, data, optimizers.adamw(1e-3), True), 8, to_device=3, to_host=1, waits=1)


def test_a_token(backend):
    model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 4, [1], 2), 11)
    params, tokens = model.init(0, backend), backend.asarray(np.array([1, 2, 3, 4]))
    _, state = model.step(params, tokens)
    within(counts(lambda: model.step(params, tokens, state)), 79)
