"""Sequences of different lengths in one batch: padding changes nothing, and nothing is computed
there.
"""

import numpy as np
import pytest

from tests.conftest import make_backend
from tests.layers.test_contract import everywhere, past
from tests.registry import TABLE, agree, given, inputs_of, make, run, time_axis
from xlstm.layers.gated import Recurrent


@everywhere([layer for layer in TABLE if isinstance(layer, Recurrent)])
@pytest.mark.parametrize(
    "lengths", [[3, 0, 5], [5, 5, 5], [4, 4, 4]], ids=["different", "all", "equal"]
)
def test_padding_changes_nothing_bit_for_bit(be, rng, layer, lengths):
    """More padding, NaN too, changes no bit of an output or a gradient."""
    T = max(lengths)
    time = time_axis(layer)
    params, x, state = given(layer, be, rng, T)
    dy = rng.standard_normal((*x.shape[:2], layer.output_size))
    longer = [be.asarray(past(a, lengths, time, np.nan, 3)) for a in (x, dy)]
    short = run(layer, params, x, state, lengths, be.asarray(dy), seed=4)
    long = run(layer, params, longer[0], state, lengths, longer[1], seed=4)
    for name in ("y", "dx"):
        steps = np.moveaxis(long[name], time, 0)
        assert not np.any(steps[T:])
        long[name] = np.moveaxis(steps[:T], 0, time)
    agree(long, short)


def test_steps_past_an_end_are_not_computed(rng, monkeypatch):
    """The cell sees as many columns as there are steps in all sequences, in both passes."""
    monkeypatch.setenv("XLSTM_COMPILE", "0")  # a compiled cell is not called from Python
    lengths = [4, 7, 0, 7, 1, 3]
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
    run(layer, params, x, state, lengths)
    assert seen == {"gates": sum(lengths), "gates_bwd": sum(lengths)}
