"""Pictures that several files of tests draw."""

import pytest

import xlstm
from tests.plots.drawn import B, D, T
from xlstm import optim, training
from xlstm.data.batches import Windows
from xlstm.models import SequenceModel


@pytest.fixture
def x(rng):
    return rng.normal(size=(T, B, D))


@pytest.fixture
def run(rng, tmp_path):
    model = SequenceModel(xlstm.RNN(D, 3), 1, last=True)
    data = Windows(rng.normal(size=(24, 5, D)), rng.normal(size=(24, 1)), batch_size=4)
    start = model.init(backend="numpy")
    return training.train(
        model, start, data, optim.adam(1e-2), epochs=4, validation=data, checkpoints=tmp_path
    )
