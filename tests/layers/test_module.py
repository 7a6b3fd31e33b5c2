"""Module and SequenceLayer: the calls that all layers, blocks, stacks and models share."""

import numpy as np
import pytest

import xlstm
from tests.registry import input_of
from xlstm.estimators import SequenceClassifier
from xlstm.models import SequenceModel, summary


def run(layer, rng, **options):
    params = layer.init(0, "numpy")
    x = input_of(layer, xlstm.backend("numpy"), rng, 5, 2)
    return layer.forward(params, x, **options)


def test_saved_is_read_by_the_names_of_parts(rng):
    """The names with which their parameters begin."""
    stack = xlstm.xLSTMStack(4, 2, [1], 2)
    _, _, saved = run(stack, rng)
    assert saved["blocks.1"]["cell"].h.shape == (5, 2, 4)
    assert saved["blocks.0.outnorm"] is saved["blocks.0"]["outnorm"]
    assert saved["blocks.1.ffn.down"].shape[:2] == (5, 2)
    model = SequenceModel(xlstm.LSTM(2, 3, 2, bidirectional=True), 1)
    _, _, saved = run(model, rng)
    assert (
        saved["recurrent.1.reverse"].c.shape == saved["recurrent"]["1.reverse"].c.shape == (5, 2, 3)
    )
    assert saved.recurrent["0"].gates.shape == (5, 4, 2, 3)
    model = xlstm.xLSTMLanguageModel(stack, 7)
    _, _, saved = run(model, rng)
    assert saved["backbone.blocks.1.cell"].gates.shape == (5, 4, 2, 4)
    _, _, saved = run(xlstm.mLSTM(2, 4, 2, num_heads=2), rng)
    assert saved["1"].q.shape == saved[1].q.shape == (5, 2, 4)


def test_an_unknown_part_of_saved_is_named(rng):
    _, _, saved = run(SequenceModel(xlstm.GRU(2, 3), 1), rng)
    with pytest.raises(KeyError, match=r"no layer '2', only recurrent, recurrent\.0, head"):
        saved["2"]
    with pytest.raises(AttributeError):
        _ = saved.nothing


def test_parameters_that_memory_does_not_hold_are_not_drawn(rng):
    """Not even the first of them, which it does."""
    before = rng.bit_generator.state
    # the second has more than an array can have
    for layer in (xlstm.LSTM(3, 10**8), xlstm.LSTM(3, 2**28, 100)):
        with pytest.raises(
            ValueError, match=r"^LSTM: 0.Wh has .* numbers, for which there is no memory"
        ):
            layer.init(rng, "numpy")
    assert rng.bit_generator.state == before


def test_parameters_of_two_dtypes_are_named():
    layer = xlstm.LSTM(2, 3)
    params = layer.init(backend="numpy")
    params["0.b"] = params["0.b"].astype("float64")
    with pytest.raises(
        TypeError, match=r"0\.b has dtype float64 but 0\.Wx has float32, expected the same$"
    ):
        layer.namespace(params, {})


def test_summaries_of_estimators_and_refusals():
    model = SequenceModel(xlstm.LSTM(2, 4), 3)
    for shape in ((5, 4, 3), 5, (5, -4, 2)):
        with pytest.raises((ValueError, TypeError), match="input_shape"):
            summary(model, shape)
    with pytest.raises(ValueError, match="not fitted yet"):
        summary(SequenceClassifier())
    fitted = SequenceClassifier(hidden_size=4, epochs=1, backend="numpy", dtype="float64").fit(
        np.eye(4), [0, 1, 0, 1]
    )
    assert summary(fitted)[0].bytes == sum(p.nbytes for p in fitted.params_.values())
    assert [part.output for part in summary(fitted)] == [("B", 2), ("T", "B", 4), ("...", 2)]
