"""Sequences of different lengths in one batch: nothing past an end has a say, and nothing is computed there."""

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.registry import alone, inputs_of, make, run
from xlstm.arrays.convert import to_numpy

KINDS = ("LSTM", "GRU", "RNN")
LENGTHS = [4, 7, 0, 7, 1, 3]
STACK = {"num_layers": 2, "direction": "bidirectional"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [LENGTHS, [7] * 6, [5] * 6], ids=["different", "all", "equal"])
def test_padding_changes_nothing_bit_for_bit(be, rng, kind, lengths):
    """More padding, and whatever is in it, NaN too, changes no output and no gradient by a single bit."""
    for options in [*alone(kind), STACK]:
        layer = make(kind, options)
        time = 1 if layer.batch_first else 0
        params, x, state = inputs_of(layer, be, rng, 7, 6)
        dy = rng.standard_normal((*x.shape[:2], layer.output_size))
        T = max(lengths)
        cut = [slice(None)] * 3
        cut[time] = slice(0, T)
        pad = [(0, 0)] * 3
        pad[time] = (0, 5)

        def padded(array, cut=tuple(cut), pad=pad):
            return np.pad(to_numpy(array)[cut], pad, constant_values=np.nan)

        inside = [be.asarray(to_numpy(a)[tuple(cut)]) for a in (x, dy)]
        outside = [be.asarray(padded(a)) for a in (x, dy)]
        short = run(layer, params, inside[0], state, lengths, inside[1], seed=4)
        long = run(layer, params, outside[0], state, lengths, outside[1], seed=4)
        for name, expected in short.items():
            found = long[name]
            if name in ("y", "dx"):
                beyond = np.moveaxis(found, time, 0)[T:]
                assert beyond.shape[0] == 5
                assert not np.any(beyond)
                found = found[tuple(cut)]
            assert found.tobytes() == expected.tobytes(), (layer, name)


def test_steps_past_an_end_are_not_computed(rng, monkeypatch):
    """The cell sees as many columns as there are steps in all sequences, in both passes."""
    monkeypatch.setenv("XLSTM_COMPILE", "0")  # a compiled cell is not called from Python
    seen = {"gates": 0, "gates_bwd": 0}
    cell = type(make("LSTM", {}).cells[""])

    def counting(name, where):
        real = getattr(cell, name)

        def count(xp, *arrays, **options):
            seen[name] += arrays[where].shape[-1]
            return real(xp, *arrays, **options)

        monkeypatch.setattr(cell, name, staticmethod(count))

    counting("gates", 0)
    counting("gates_bwd", 1)
    layer = make("LSTM", {})
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 7, 6)
    run(layer, params, x, state, LENGTHS)
    assert seen == {"gates": sum(LENGTHS), "gates_bwd": sum(LENGTHS)}


def test_lengths_may_be_arrays_of_the_backend(be, rng):
    layer = make("GRU", {})
    params, x, state = inputs_of(layer, be, rng, 7, 6)
    expected = run(layer, params, x, state, LENGTHS)
    for name, array in run(layer, params, x, state, be.asarray(np.array(LENGTHS))).items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([1.0, 2.0], TypeError, "LSTM: lengths has dtype float64, expected whole numbers"),
        ([True, False], TypeError, "lengths has dtype bool"),
        ([1], ValueError, r"lengths has shape \(1,\), expected \(B,\) = \(2,\)"),
        ([[1, 2]], ValueError, r"lengths has shape \(1, 2\)"),
        (3, ValueError, r"lengths has shape \(\)"),
        ([1, -1], ValueError, r"lengths\[1\] is -1, expected 0 to T = 4"),
        ([5, 1], ValueError, r"lengths\[0\] is 5, expected 0 to T = 4"),
    ],
)
def test_bad_lengths_are_named(lengths, error, words):
    layer = xlstm.LSTM(2, 3)
    with pytest.raises(error, match=words):
        layer.forward(layer.init(0, "numpy"), np.zeros((4, 2, 2), "float32"), lengths=lengths)
