"""Shards: the batches of all ranks side by side are those of the data."""

import numpy as np
import pytest

from tests.ranks import Shared, Threads
from tests.tirex import WIDER
from xlstm import LSTM
from xlstm.data import Batch, Prefetch, Sequences, SeriesWindows, Shard, Streams, Windows
from xlstm.data.shards import cut
from xlstm.estimators import Forecaster
from xlstm.estimators.forecaster import examples
from xlstm.models import TiRex2
from xlstm.models.sequence import sequence_model
from xlstm.models.tirex import PatchWindows
from xlstm.training.feed import Feed

LAST = sequence_model("test", "lstm", 1, 1, True, hidden_size=1)
PARAMS = LSTM(1, 1).init(backend="numpy")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 5, 2))
Y = RNG.normal(size=(11, 5, 3))
LENGTHS = np.array([5, 2, 4, 1, 5, 3, 2, 5, 1, 4, 3])
ROWS, TRUTHS = ([a[:n] for a, n in zip(arrays, LENGTHS, strict=True)] for arrays in (X, Y))
GAPS = np.where(RNG.random((30, 2)) < 0.2, np.nan, RNG.normal(size=(30, 2)))
GAPS[0] = 0.0


class Whole:
    """Data of a user's own: masks of the steps, and options for each sequence."""

    def __len__(self):
        return 2

    def batches(self, rng=None):
        for size in (5, 1):
            x = X[:size].swapaxes(0, 1)
            groups = np.sort(np.arange(size) // 2)
            yield Batch(x, x[..., :1], np.arange(5) > 1, False, LENGTHS[:size], {"groups": groups})


class Read:
    """Data of a user's own, whose batches ranks cut."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def batches(self, rng=None):
        return self.data.batches(rng)


class Twice(Windows):
    """A subclass whose batches are other ones than those of its rows."""

    def batches(self, rng=None):
        for batch in super().batches(rng):
            yield batch._replace(x=2 * batch.x)


def datasets():
    weights = RNG.random((11, 5))
    yield "windows", Windows(X, Y[:, 0], batch_size=4)
    yield (
        "windows with lengths",
        Windows(X, Y, weights, batch_size=4, every_step=True, lengths=LENGTHS),
    )
    yield (
        "windows of single values",
        Windows(X, Y, RNG.random(Y.shape) < 0.5, batch_size=4, every_step=True),
    )
    yield "windows with masks", Windows(X, Y[:, 0], RNG.random(11) < 0.5, batch_size=4)
    yield "sequences", Sequences(ROWS, Y[:, 0], batch_size=4)
    masks = [w[:n] for w, n in zip(weights, LENGTHS, strict=True)]
    yield "sequences with masks", Sequences(ROWS, TRUTHS, masks, batch_size=4, every_step=True)
    yield "streams", Streams(X.reshape(55, 2), Y.reshape(55, 3), 5, 3)
    yield "documents", Streams.of_tokens(np.arange(56) % 4, 5, 3, document_end=2)
    yield "prefetch", Prefetch(Windows(X, Y[:, 0], batch_size=4))
    yield "series", SeriesWindows(GAPS, 4, horizon=2, batch_size=5)
    yield (
        "series with targets",
        SeriesWindows([GAPS, GAPS[:20]], 4, horizon=2, batch_size=5, targets=[1], flat=True),
    )
    yield (
        "a forecaster's",
        examples(Forecaster(window=4, horizon=2, batch_size=4), np.cumsum(RNG.normal(size=40)))[
            "train"
        ],
    )
    tirex = TiRex2(8, [("mlstm", 2, 2)], horizon=4, **WIDER)
    yield "TiRex's, in groups", PatchWindows(tirex, GAPS[1:].T, batch_size=3)
    yield "whole", Whole()
    yield "twice", Twice(X, Y[:, 0], batch_size=4)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in datasets()])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_shards_of_a_batch_side_by_side_are_the_batch(data, size):
    """Batches have fewer sequences than there are ranks, or not as many for each; totals are those
    of the whole.
    """
    shards = [Shard(data, Threads(rank, Shared(size))) for rank in range(size)]
    assert {len(shard) for shard in shards} == {len(data)}
    for seed in (None, 4):
        rngs = [None if seed is None else np.random.default_rng(seed) for _ in range(size + 1)]
        several = list(
            zip(
                data.batches(rngs[0]),
                *(s.batches(r) for s, r in zip(shards, rngs[1:], strict=True)),
                strict=True,
            )
        )
        assert len(several) == len(data)
        assert len({None if r is None else str(r.bit_generator.state) for r in rngs}) == 1
        for whole, *parts in several:
            T, B = whole.x.shape[:2]
            timed = whole.target.shape[:2] == (T, B)
            np.testing.assert_array_equal(np.concatenate([p.x for p in parts], axis=1), whole.x)
            np.testing.assert_array_equal(
                np.concatenate([p.target for p in parts], axis=int(timed)), whole.target
            )
            feed = Feed.of("test", LSTM(1, 1) if timed else LAST, PARAMS)
            weights = [feed.inputs(one, "test").weight for one in (whole, *parts)]
            assert sum(weights[1:]) == pytest.approx(weights[0])
            for part in parts:
                assert part.part.total == pytest.approx(weights[0])
                assert (part.fresh, part.part.B) == (whole.fresh, B)
                if whole.lengths is not None:
                    np.testing.assert_array_equal(part.lengths, whole.lengths[part.part.own])
                    np.testing.assert_array_equal(part.part.lengths, whole.lengths)
                for name, value in (whole.options or {}).items():
                    own = np.swapaxes(value, 0, -1)[part.part.own]
                    np.testing.assert_array_equal(np.swapaxes(part.options[name], 0, -1), own)


def test_an_x_without_sequences_is_refused():
    batch = Batch(X[:, 0, 0], Y[:, 0, 0], None, True)
    text = (
        r"Shard: batch 3 has x of shape \(11,\), expected \(T, B, D\), tokens \(T, B\), or \(B, D\)"
    )
    with pytest.raises(ValueError, match=text):
        cut(batch, Threads(0, Shared(2)), None, 2)


@pytest.mark.parametrize("name", ["x", "target", "mask"])
def test_each_number_of_the_data_is_in_the_checksum(name):
    """A batch that a rank cuts has its own; data in memory have that of all batches in each."""
    group = Threads(0, Shared(2))
    arrays = {"x": X, "target": Y, "mask": np.ones(Y.shape)}

    def checksums(changed, cuts):
        windows = Windows(**arrays | {name: changed}, batch_size=4, every_step=True)
        data = Read(windows) if cuts else windows
        return [batch.part.checksum for batch in Shard(data, group).batches()]

    for place in np.ndindex(arrays[name].shape):
        other = arrays[name].copy()
        other[place] += 1.0
        for cuts in (False, True):
            before, after = checksums(arrays[name], cuts), checksums(other, cuts)
            differs = [one != another for one, another in zip(before, after, strict=True)]
            assert differs == [not cuts or number == place[0] // 4 for number in range(3)]
