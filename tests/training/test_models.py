"""`training.train` and `training.evaluate` take every model and layer there is, as it comes."""

import numpy as np
import pytest

import xlstm
from tests.registry import EVERY
from tests.training.runs import Changed
from xlstm import losses
from xlstm.arrays.convert import to_numpy
from xlstm.data import Streams, Windows
from xlstm.layers.embedding import Embedding
from xlstm.models import SequenceModel, TiRex, TiRex2
from xlstm.training import evaluate, optimizers, train

T = 6
N = 12
D = 4
V = 7
LANGUAGE = [model for model in EVERY if isinstance(model, xlstm.xLSTMLanguageModel)]
LANGUAGE += [
    xlstm.xLSTMLanguageModel(
        xlstm.LSTM(D, D, dropout=0.1, num_layers=2), V, embedding_dropout=0.1, tied=True
    ),
    xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(D, 1, 2), V),
]
OTHER = (xlstm.xLSTMLanguageModel, TiRex, TiRex2, Embedding)  # they take other batches
LAYERS = [
    layer for layer in EVERY if not isinstance(layer, OTHER) and not getattr(layer, "last", False)
]


def inputs_of(model, rng, *outer):
    if model.symbols is not None:
        return rng.integers(0, model.symbols, outer)
    return rng.standard_normal((*outer, model.input_size))


def mean_of_inputs(model, rng):
    """Windows whose targets the model could reach: half of what it gives with other weights."""
    x = inputs_of(model, rng, N, T)
    first = bool(getattr(model, "batch_first", False))
    seed = {"seed": 1} if getattr(model, "random", False) else {}
    y = to_numpy(
        model.forward(model.init(1, "numpy", "float64"), x if first else x.swapaxes(0, 1), **seed)[
            0
        ]
    )
    return Windows(x, 0.5 * (y if first else y.swapaxes(0, 1)), batch_size=N, every_step=True)


def tokens_of(length):
    return np.tile([1, 2, 3, 4, 0], length)[:length]


def with_lengths(number, batch):
    """Sequences that differ in length, and a mask."""
    mask = np.ones(batch.target.shape[:2], bool)
    mask[0] = False
    return batch._replace(mask=mask, lengths=1 + np.arange(batch.x.shape[1]) % batch.x.shape[0])


def without_first_steps(number, batch):
    return batch._replace(mask=np.arange(len(batch.x)) > 1)


def falls(model, data, epochs=15, **options):
    """The loss over all data falls, in what is returned and in what `evaluate` says."""
    params = model.init(0, "numpy", options.pop("dtype", "float64"))
    before = evaluate(model, params, data)
    trained = train(model, params, data, optimizers.adam(0.02), epochs=epochs, clip=1.0, **options)
    assert len(trained.losses) == epochs * len(data)
    assert evaluate(model, trained.params, data) < 0.97 * before
    assert sum(trained.losses[-3:]) < sum(trained.losses[:3])
    return trained


@pytest.mark.parametrize("model", LAYERS, ids=repr)
def test_layers_and_models(interpreted, model, rng):
    data = mean_of_inputs(model, rng)
    one = falls(model, data)
    two = falls(model, data)
    assert one.losses == two.losses  # masks and order are drawn from the seed
    if getattr(model, "random", False):
        assert falls(model, data, seed=1).losses != one.losses
    if not hasattr(model, "step"):
        return
    falls(model, Changed(data, with_lengths))
    # a stream, whose state is carried from batch to batch
    x = inputs_of(model, rng, 60)
    whole = x[None] if model.batch_first else x[:, None]
    seed = {"seed": 1} if model.random else {}
    y = to_numpy(model.forward(model.init(1, "numpy", "float64"), whole, **seed)[0]).reshape(60, -1)
    falls(model, Streams(x, 0.5 * y, 3, 5))


@pytest.mark.parametrize("model", LANGUAGE, ids=repr)
@pytest.mark.parametrize("kind", ["windows", "streams", "lengths"])
def test_language_models_as_they_come(interpreted, model, kind):
    """Tokens in, and the model's own loss."""
    tokens = tokens_of(61)
    rows = np.lib.stride_tricks.sliding_window_view(tokens, T + 1)[:N]
    data = Windows(rows[:, :-1], rows[:, 1:], batch_size=N, every_step=True)
    if kind != "windows":
        data = (
            Streams(tokens[:-1], tokens[1:], 3, 5)
            if kind == "streams"
            else Changed(data, with_lengths)
        )
    assert falls(model, data).losses == falls(model, data, loss=losses.cross_entropy).losses


def test_batch_first_is_the_same_training(rng):
    """Only the order of axes differs, with lengths, and with a mask (T,) of steps."""
    for last, change in (
        (False, with_lengths),
        (False, without_first_steps),
        (True, lambda number, batch: batch),
    ):
        target = rng.standard_normal((N, 3) if last else (N, T, 3))
        data = Changed(
            Windows(rng.standard_normal((N, T, D)), target, batch_size=5, every_step=not last),
            change,
        )
        found = []
        for first in (False, True):
            model = SequenceModel(xlstm.LSTM(D, 4, batch_first=first), 3, last)
            params = model.init(0, "numpy", "float64")
            trained = train(model, params, data, optimizers.sgd(0.1), epochs=2)
            found.append([*trained.losses, evaluate(model, trained.params, data)])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
