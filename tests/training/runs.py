"""Runs of small models that the tests of training make, stop and compare."""

import itertools

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from xlstm.data import Streams, Windows
from xlstm.models.sequence import SequenceModel
from xlstm.training import ReduceOnPlateau, folder, optimizers, train

EPOCHS = 3


def streams(length=10, factor=1.0):
    v = np.sin(np.arange(201) / 3.0)
    return Streams(factor * v[:-1, None], v[1:, None], 4, length)  # 5 batches of 4 streams


def windows(rng):
    x = rng.normal(size=(40, 6, 1))
    return Windows(x, x.sum(axis=1), batch_size=9)  # 5 batches, the last one smaller


def plain():
    return SequenceModel(xlstm.LSTM(1, 3), 1), streams(), {"validation": streams(25)}


def random_masks():
    model = SequenceModel(xlstm.LSTM(1, 3, num_layers=2, dropout=0.3, zoneout=0.1), 1)
    return model, streams(), {"averaging": 0.8, "clip": 0.1}


def shuffled():
    rng = np.random.default_rng(0)
    model = SequenceModel(xlstm.GRU(1, 3), 1, last=True)
    plateau = ReduceOnPlateau(0.05, factor=0.5, patience=0)
    return (
        model,
        windows(rng),
        {"validation": windows(rng), "callbacks": [plateau], "accumulate": 3},
    )


class Changed:
    """Data whose batches are changed by a function of their number and of each."""

    def __init__(self, data, function):
        self.data = data
        self.function = function

    def __len__(self):
        return len(self.data)

    def batches(self, rng=None):
        return itertools.starmap(self.function, enumerate(self.data.batches(rng)))


def fit(kind, checkpoints=None, optimizer=None, data=None, **options):
    """Train a model of a kind as its options say, but for those that are given."""
    model, batches, given = kind()
    callbacks = [*given.pop("callbacks", ()), *options.pop("callbacks", ())]
    rate = callbacks[0] if callbacks and isinstance(callbacks[0], ReduceOnPlateau) else 0.05
    options = {
        "epochs": EPOCHS,
        "seed": 5,
        "checkpoints": checkpoints,
        "callbacks": callbacks,
        **given,
        **options,
    }
    params = model.init(0, make_backend("numpy", "float32"))
    return train(
        model,
        params,
        batches if data is None else data,
        optimizer or optimizers.adam(rate),
        **options,
    )


def same(one, two):
    """Check that two runs have the same bits."""
    assert one.params.keys() == two.params.keys()
    for name, p in one.params.items():
        assert p.tobytes() == two.params[name].tobytes(), name
    for name in ("losses", "validations", "best_epoch", "stopped_early"):
        assert getattr(one, name) == getattr(two, name)


def at(total, do=lambda: True):
    """A callback that does something after so many steps; by default it ends the run."""
    return lambda now: now.total == total and do()


def never(now):
    pytest.fail("it trains")


def checkpoints_in(path):
    return folder.Folder(path, 1).checkpoints()


def steps_on_disk(path):
    """The number of steps of the newest checkpoint."""
    return folder.Folder(path, 1).newest().about["total"]


def history(path, name):
    return [line[name] for line in folder.read_history(path / "history.jsonl") if name in line]
