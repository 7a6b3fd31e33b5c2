"""Training on several ranks, threads of one process here, ends with the weights of one process."""

import numpy as np
import pytest

from tests.ranks import together
from xlstm import LSTM, optim, training
from xlstm.data import Batch, Sequences, Shard, Streams, Windows

RNG = np.random.default_rng(0)


def trained(group, model, data, steps=20, seed=0, **options):
    """Return the weights after steps of a loop of one's own."""
    step = training.Step(model, optim.adam(1e-2), group=group, **options)
    state = step.init(
        model.init(seed=seed if group is None else seed + group.rank, backend="numpy", dtype="float64"), seed=1
    )
    rng, losses = np.random.default_rng(2), []
    data = data if group is None else Shard(data, group)
    while len(losses) < steps:
        for batch in data.batches(rng):
            state, taken = step(state, batch)
            losses.append(float(taken.loss))
    return state.params, losses


@pytest.mark.parametrize("size", [1, 2, 3])
def test_lstm(size):
    model = LSTM(2, 5, num_layers=2, dropout=0.3, recurrent_dropout=0.2, zoneout=(0.1, 0.1))
    mask = RNG.random((30, 6)) < 0.7
    data = Windows(RNG.normal(size=(30, 6, 2)), RNG.normal(size=(30, 6, 5)), mask, batch_size=13, every_step=True)
    expected, losses = trained(None, model, data)
    for params, found in together(size, trained, model, data):
        np.testing.assert_allclose(found, losses, rtol=1e-10)
        for name, p in expected.items():
            np.testing.assert_allclose(params[name], p, atol=1e-10)
