"""Gradients of single sequences, of every layer, block, stack and model that goes through time."""

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.layers.test_contract import LENGTHS, SEQUENCES, everywhere
from tests.registry import OPTIONS, agree, flat, given, make, pairwise, state_of
from xlstm import optim, training
from xlstm.arrays.convert import to_numpy
from xlstm.layers.sequence import Leaf

PAIRS = [make(kind, options) for kind in OPTIONS for options in pairwise(kind)]


def only(be, array, axis, b):
    """An array with zeros for all sequences but one."""
    zeros = np.zeros_like(to_numpy(array))
    place = (slice(None),) * axis + (b,)
    zeros[place] = to_numpy(array)[place]
    return be.asarray(zeros)


def only_of_state(be, state, leaves, b):
    """A state with zeros for all sequences but one."""
    return tuple(
        only(be, part, len(leaf.before), b)
        if isinstance(leaf, Leaf)
        else only_of_state(be, part, leaf, b)
        for part, leaf in zip(state, leaves, strict=True)
    )


def passed(layer, be, rng, B=3, lengths=LENGTHS):
    """The arguments of `backward`."""
    params, x, state = given(layer, be, rng, B=B)
    y, _, saved = layer.forward(params, x, state, lengths=lengths, seed=1)
    dy = be.asarray(rng.standard_normal(y.shape))
    return params, saved, dy, state_of(layer, be, rng, B)


@pytest.mark.usefixtures("interpreted")
@everywhere([*SEQUENCES, *PAIRS])
def test_they_are_those_of_each_sequence_alone(be, layer, rng):
    params, saved, dy, dend = passed(layer, be, rng)
    whole, *rest = layer.backward(params, saved, dy, dend)
    grads, *same = layer.backward(params, saved, dy, dend, per_sequence=True)
    for a, b in zip(flat(same[1]), flat(rest[1]), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    if rest[0] is not None:
        agree({"dx": same[0]}, {"dx": rest[0]}, 1e-14)
    agree({name: to_numpy(g).sum(axis=0) for name, g in grads.items()}, whole, 1e-12, least=1)
    axis = 0 if layer.batch_first or dy.ndim == 2 else 1
    for b in range(len(LENGTHS)):
        end = only_of_state(be, dend, layer.states, b)
        alone, *_ = layer.backward(params, saved, only(be, dy, axis, b), end)
        agree({name: to_numpy(g)[b] for name, g in grads.items()}, alone, 1e-10, least=1)


@pytest.mark.parametrize("options", [{}, {"peepholes": True, "recurrent_bias": True}])
@pytest.mark.parametrize("lengths", [None, [7, 12, 0, 12] * 6])
def test_compiled_loops_have_them(rng, options, lengths):
    layer = xlstm.LSTM(9, 24, 2, bidirectional=True, **options)
    be = make_backend("numpy")
    params, x, state = given(layer, be, rng, T=12, B=24)
    _, end, saved = layer.forward(params, x, state, lengths=lengths)
    whole, *_ = layer.backward(params, saved, None, end)
    grads, *_ = layer.backward(params, saved, None, end, per_sequence=True)
    agree({name: g.sum(axis=0) for name, g in grads.items()}, whole, 1e-12)


def test_low_rank_changes_have_them(be, rng):
    layer = xlstm.LSTM(3, 4)
    params, x, _ = given(layer, be, rng)
    adapters = training.LowRank(layer, params, rank=1)
    small = {name: p + 1 for name, p in adapters.init().items()}
    y, _, saved = adapters.forward(small, x)
    whole, *_ = adapters.backward(small, saved, y)
    grads, *_ = adapters.backward(small, saved, y, per_sequence=True)
    agree({name: to_numpy(g).sum(axis=0) for name, g in grads.items()}, whole, 1e-12)


def test_an_empty_batch_has_them(be, rng):
    for layer in (xlstm.GRU(2, 3), xlstm.xLSTMStack(4, 2, [1], 2)):
        params, *arguments = passed(layer, be, rng, B=0, lengths=None)
        grads, *_ = layer.backward(params, *arguments, per_sequence=True)
        assert {n: tuple(g.shape) for n, g in grads.items()} == {
            n: (0, *p.shape) for n, p in params.items()
        }


def test_refusals(be, rng):
    layer = xlstm.LSTM(2, 3)
    params, saved, dy, _ = passed(layer, be, rng)
    with pytest.raises(TypeError, match="LSTM: per_sequence is 1, expected True or False"):
        layer.backward(params, saved, dy, per_sequence=1)
    with pytest.raises(ValueError, match="LSTM: dy has shape"):
        layer.backward(params, saved, dy[:2, ...], per_sequence=True)
    grads, *_ = layer.backward(params, saved, dy)  # the call before left nothing behind
    assert grads["0.b"].shape == params["0.b"].shape


def test_sequences_that_see_each_other_are_refused(be, rng):
    model = xlstm.models.TiRex2(
        4, [("slstm", 2, 1)], output_ff_size=5, horizon=2, patch_size=2, quantiles=(0.5,), context=4
    )
    params, x, _ = given(model, be, rng)
    y, _, saved = model.forward(params, x, groups=[0, 0, 1])
    with pytest.raises(ValueError, match="per_sequence is True"):
        model.backward(params, saved, y, per_sequence=True)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_each_is_clipped_by_its_own_norm(be, rng, limit):
    grads = {"W": be.asarray(rng.standard_normal((5, 3, 4))), "b": be.asarray(np.ones(5))}
    clipped = optim.clip_per_sequence(grads, limit)
    for b in range(5):
        expected = optim.clip_global_norm({name: g[b, ...] for name, g in grads.items()}, limit)
        agree({name: g[b, ...] for name, g in clipped.items()}, expected, 1e-14)


def test_clipping_refuses_gradients_of_other_numbers_of_sequences():
    for shape in ((4, 2), ()):
        grads = {"W": np.ones((3, 2)), "b": np.ones(shape)}
        with pytest.raises(ValueError, match="clip_per_sequence: b has shape"):
            optim.clip_per_sequence(grads, 1.0)
