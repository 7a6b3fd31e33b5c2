"""Results that do not depend on the batch, and their refusals; `tests/engines/test_batch_sizes.py`
compares bits.
"""

import numpy as np
import pytest

import xlstm
from tests.layers.test_contract import SEQUENCES
from tests.registry import given
from xlstm.arrays.convert import to_numpy

ON = {"batch_invariant": True}


def test_it_is_asked_for_by_an_argument_or_a_context(be, rng):
    """The argument of a call comes first; the values of each sequence can be read."""
    layer = xlstm.LSTM(3, 4)
    params, x, _ = given(layer, be, rng)
    y, _, saved = layer.forward(params, x, **ON)
    with xlstm.batch_invariant():
        _, _, within = layer.forward(params, x)
        _, _, without = layer.forward(params, x, batch_invariant=False)
        with xlstm.batch_invariant(False):
            _, _, again = layer.forward(params, x)
    h = [to_numpy(sequence.h) for sequence in within.sequences]
    np.testing.assert_array_equal(np.concatenate(h, 1), to_numpy(y))
    assert without.h.shape == again.h.shape == y.shape
    whole, *_ = layer.backward(params, saved, y)
    each, *_ = layer.backward(params, saved, y, per_sequence=True)
    for name, g in whole.items():
        np.testing.assert_allclose(to_numpy(each[name]).sum(0), to_numpy(g), rtol=1e-12)


def test_an_empty_batch_has_no_sequences(be, rng):
    layer = xlstm.LSTM(3, 4)
    params, x, _ = given(layer, be, rng, B=0)
    y, _, saved = layer.forward(params, x, **ON)
    assert layer.backward(params, saved, y)[1].shape == x.shape
    assert layer.step(params, x[0, ...], **ON)[0].shape == (0, 4)


def test_sequences_that_share_anything_are_refused(be, rng):
    layer = xlstm.LSTM(3, 4, 2, dropout=0.5)
    params, x, _ = given(layer, be, rng)
    with pytest.raises(ValueError, match=r"LSTM: batch_invariant is True.* masks are drawn"):
        layer.forward(params, x, seed=0, **ON)
    with pytest.raises(TypeError, match="LSTM: batch_invariant is 1, expected True or False"):
        layer(params, x, batch_invariant=1)
    model = next(layer for layer in SEQUENCES if layer._has_groups)
    params, tokens, _ = given(model, be, rng)
    with pytest.raises(ValueError, match=r"TiRex2: batch_invariant is True.* groups"):
        model.forward(params, tokens, groups=[0, 0, 1], **ON)
    linear = xlstm.Linear(3, 4)
    with xlstm.batch_invariant():
        with pytest.raises(ValueError, match=r"TiRex2: batch_invariant is True.* rows"):
            model.forecast(params, np.arange(9.0), 2)
        with pytest.raises(ValueError, match=r"Linear: batch_invariant is True.* axis"):
            linear.forward(linear.init(), x)
