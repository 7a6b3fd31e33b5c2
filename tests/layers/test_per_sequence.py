"""Gradients of single sequences, of every layer, block, stack and model that goes through time."""

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.layers.test_contract import LENGTHS, SEQUENCES, everywhere, leaves, like, same
from tests.registry import OPTIONS, agree, flat, given, make, pairwise, state_of
from xlstm import optim, training
from xlstm.arrays.convert import to_numpy

PAIRS = [make(kind, options) for kind in OPTIONS for options in pairwise(kind)]
ONE = {"per_sequence": True}


def only(be, array, axis, b):
    """An array with zeros for all sequences but one."""
    array = np.moveaxis(to_numpy(array), axis, -1)
    return be.asarray(np.moveaxis(array * (np.arange(array.shape[-1]) == b), -1, axis))


def summed(grads):
    return {name: to_numpy(g).sum(axis=0) for name, g in grads.items()}


def of(grads, b):
    return {name: g[b, ...] for name, g in grads.items()}


@pytest.mark.usefixtures("interpreted")
@everywhere([*SEQUENCES, *PAIRS])
def test_they_are_those_of_each_sequence_alone(be, layer, rng):
    params, x, state = given(layer, be, rng)
    dend = state_of(layer, be, rng)
    y, _, saved = layer.forward(params, x, state, lengths=LENGTHS, seed=1)
    dy = be.asarray(rng.standard_normal(y.shape))
    whole, dx, start = layer.backward(params, saved, dy, dend)
    grads, *rest = layer.backward(params, saved, dy, dend, **ONE)
    same(rest[1], start)
    if dx is not None:
        agree({"dx": rest[0]}, {"dx": dx}, 1e-14)
    agree(summed(grads), whole, 1e-12, least=1)
    axis = 0 if layer.batch_first or dy.ndim == 2 else 1
    for b in range(len(LENGTHS)):
        pairs = zip(flat(dend), leaves(layer.states), strict=True)
        ends = like(dend, (only(be, d, len(leaf.before), b) for d, leaf in pairs))
        alone, *_ = layer.backward(params, saved, only(be, dy, axis, b), ends)
        agree(of(grads, b), alone, 1e-10, least=1)


@pytest.mark.parametrize("options", [{}, {"peepholes": True, "recurrent_bias": True}])
@pytest.mark.parametrize("lengths", [None, [7, 12, 0, 12] * 6])
def test_compiled_loops_have_them(rng, options, lengths):
    layer = xlstm.LSTM(9, 24, 2, bidirectional=True, **options)
    params, x, state = given(layer, make_backend("numpy"), rng, T=12, B=24)
    _, end, saved = layer.forward(params, x, state, lengths=lengths)
    whole, *_ = layer.backward(params, saved, None, end)
    agree(summed(layer.backward(params, saved, None, end, **ONE)[0]), whole, 1e-12)


def test_low_rank_changes_have_them(be, rng):
    layer = xlstm.LSTM(3, 4)
    params, x, _ = given(layer, be, rng)
    adapters = training.LowRank(layer, params, rank=1)
    small = {name: p + 1 for name, p in adapters.init().items()}
    y, _, saved = adapters.forward(small, x)
    whole, *_ = adapters.backward(small, saved, y)
    agree(summed(adapters.backward(small, saved, y, **ONE)[0]), whole, 1e-12)


def test_an_empty_batch_has_none(be, rng):
    layer = xlstm.xLSTMStack(4, 2, [1], 2)
    params, x, _ = given(layer, be, rng, B=0)
    y, _, saved = layer.forward(params, x)
    grads, *_ = layer.backward(params, saved, y, **ONE)
    assert all(grads[name].shape == (0, *p.shape) for name, p in params.items())


def test_refusals_leave_nothing_behind(be, rng):
    layer = xlstm.LSTM(2, 3)
    params, x, _ = given(layer, be, rng)
    y, _, saved = layer.forward(params, x)
    with pytest.raises(TypeError, match="LSTM: per_sequence is 1, expected True or False"):
        layer.backward(params, saved, y, per_sequence=1)
    with pytest.raises(ValueError, match="LSTM: dy has shape"):
        layer.backward(params, saved, y[:2, ...], **ONE)
    assert layer.backward(params, saved, y)[0]["0.b"].shape == (12,)


def test_sequences_that_see_each_other_are_refused(be, rng):
    model = next(layer for layer in SEQUENCES if layer._has_groups)
    params, x, _ = given(model, be, rng)
    y, _, saved = model.forward(params, x, groups=[0, 0, 1])
    with pytest.raises(ValueError, match="TiRex2: per_sequence is True"):
        model.backward(params, saved, y, **ONE)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_each_is_clipped_by_its_own_norm(be, rng, limit):
    grads = {"W": be.asarray(rng.standard_normal((2, 3, 4))), "b": be.asarray(np.ones(2))}
    clipped = optim.clip_per_sequence(grads, limit)
    for b in range(2):
        agree(of(clipped, b), optim.clip_global_norm(of(grads, b), limit), 1e-14)
    with pytest.raises(ValueError, match="clip_per_sequence: W has shape"):
        optim.clip_per_sequence({"b": grads["b"], "W": grads["W"][0, ...]}, limit)
