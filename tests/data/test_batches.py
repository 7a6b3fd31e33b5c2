"""Batches for training: windows, sequences of unequal length, streams of tokens, and windows over
several series.
"""

import dataclasses
import tracemalloc

import numpy as np
import pytest

import xlstm
from tests.data.conftest import equal
from xlstm import optim, training
from xlstm.data import Sequences, SeriesWindows, Streams, Windows
from xlstm.models.sequence import SequenceModel

LENGTHS = np.array([3, 1, 5, 2, 4, 5, 1])


def ragged(rng):
    return [rng.normal(size=(n, 2)) for n in LENGTHS]


def padded(rows):
    found = np.full((len(rows), max(map(len, rows)), 2), np.nan)
    for k, row in enumerate(rows):
        found[k, : len(row)] = row
    return found


# Windows, and where arrays come from


def test_windows_of_unequal_length(rng):
    rows = ragged(rng)
    data = Windows(padded(rows), np.arange(7.0)[:, None], batch_size=4, lengths=LENGTHS.tolist())
    batches = list(data.batches(rng))
    assert len(data) == len(batches) == 2
    for batch in batches:
        for b, k in enumerate(batch.target[:, 0].astype(int)):
            assert batch.lengths[b] == LENGTHS[k]
            np.testing.assert_array_equal(batch.x[: LENGTHS[k], b], rows[k])
    order = [k for batch in batches for k in batch.target[:, 0]]
    assert sorted(order) == list(range(7))
    assert order != list(range(7))


def test_padding_batches_and_weights_do_not_change_the_loss(rng):
    """It is the weighted mean of the losses of the sequences one by one."""
    rows = ragged(rng)
    weights = np.array([0, 1, 2, 0.5, 0, 1, 1])
    ends = [row.sum(keepdims=True)[0, :1] for row in rows]
    steps = [row.sum(axis=1, keepdims=True) for row in rows]
    one = SequenceModel(xlstm.LSTM(2, 3), 1, last=True)
    every = SequenceModel(xlstm.GRU(2, 3), 1)
    params = one.init(0, "numpy", "float64")
    each = [
        training.evaluate(one, params, Windows(row[None], y[None]))
        for row, y in zip(rows, ends, strict=True)
    ]
    x = padded(rows)
    for data, expected in (
        (Windows(x, ends, batch_size=4, lengths=LENGTHS), np.mean(each)),
        (
            Windows(x, ends, weights, batch_size=4, lengths=LENGTHS),
            np.average(each, weights=weights),
        ),
        (Sequences(rows, ends, weights, batch_size=4), np.average(each, weights=weights)),
    ):
        assert training.evaluate(one, params, data) == pytest.approx(expected, rel=1e-12)
    params = every.init(0, "numpy", "float64")
    alone = [
        Windows(row[None], y[None], every_step=True) for row, y in zip(rows, steps, strict=True)
    ]
    each = [training.evaluate(every, params, data) for data in alone]
    for size in (1, 3, 7):
        found = training.evaluate(
            every, params, Sequences(rows, steps, batch_size=size, every_step=True)
        )
        assert found == pytest.approx(np.average(each, weights=LENGTHS), rel=1e-12)


def test_every_step_windows_put_time_first():
    x = np.zeros((5, 4, 2))
    target = np.arange(20.0).reshape(5, 4, 1)
    (batch,) = Windows(x, target, target[..., 0] > 3, batch_size=8, every_step=True).batches()
    assert batch.x.shape == (4, 5, 2)
    np.testing.assert_array_equal(batch.target[:, :, 0], np.arange(20.0).reshape(5, 4).T)
    np.testing.assert_array_equal(batch.mask, batch.target[:, :, 0] > 3)


class Elsewhere:
    """An array that gives its numbers through DLPack alone."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_arrays_of_any_library(be, rng):
    x = rng.normal(size=(6, 3, 2))
    target = rng.normal(size=(6, 1))
    expected = list(Windows(x, target, target > 0).batches())
    for convert in (np.ndarray.tolist, be.asarray, Elsewhere):
        mask = (target > 0).tolist()
        found = list(Windows(convert(x), convert(target), mask).batches())
        assert all(
            type(array) is np.ndarray for array in (found[0].x, found[0].target, found[0].mask)
        )
        np.testing.assert_allclose(found[0].x, expected[0].x, rtol=1e-6)
    assert Windows(x, target).x is x


def test_tokens(tmp_path):
    """Whole numbers, of a file as well, are taken as they are."""
    tokens = np.arange(10).reshape(5, 2)
    (batch,) = Windows(tokens, tokens, batch_size=8, every_step=True).batches()
    np.testing.assert_array_equal(batch.x, tokens.T)
    ids = np.arange(11, dtype=np.uint16)
    expected = list(Streams(ids[:-1], ids[1:], 2, 5).batches())
    np.testing.assert_array_equal(expected[0].x, [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]])
    np.testing.assert_array_equal(expected[0].target, expected[0].x + 1)
    ids.tofile(tmp_path / "tokens")
    on_disk = np.memmap(tmp_path / "tokens", np.uint16)
    for values in (ids, on_disk):
        equal(expected, list(Streams.of_tokens(values, 2, 5).batches()))
    np.testing.assert_array_equal(
        next(Streams.of_tokens(ids.tolist(), 2, 5).batches()).target[0], [1, 6]
    )
    documents = Streams.of_tokens(on_disk, 2, 5, document_end=6)
    assert np.shares_memory(documents.x, on_disk)
    (batch,) = documents.batches()
    # the state is reset before the token after the end
    np.testing.assert_array_equal(np.argwhere(batch.options["resets"]), [[2, 1]])
    (batch,) = Sequences([np.array([1, 2, 3], np.uint8), np.array([4], np.uint8)], [0, 1]).batches()
    np.testing.assert_array_equal(batch.x, [[1, 4], [2, 0], [3, 0]])
    assert batch.x.dtype == np.uint8


# Sequences


@pytest.mark.parametrize("order", [None, 3])
def test_sequences_come_once_each_and_whole(rng, order):
    rows = ragged(rng)
    data = Sequences(rows, target=np.arange(7), mask=np.arange(7) != 3, batch_size=3, bucket=2)
    batches, again = (list(data.batches(order and np.random.default_rng(order))) for _ in range(2))
    equal(batches, again)
    assert len(batches) == len(data) == 3
    seen = []
    for batch in batches:
        assert batch.fresh
        assert batch.x.shape == (max(batch.lengths), len(batch.target), 2)
        np.testing.assert_array_equal(batch.mask, batch.target != 3)
        for b, k in enumerate(batch.target):
            assert batch.lengths[b] == LENGTHS[k]
            np.testing.assert_array_equal(batch.x[: LENGTHS[k], b], rows[k])
            assert not np.any(batch.x[LENGTHS[k] :, b])
            seen.append(k)
    assert sorted(seen) == list(range(7))
    assert (seen == list(range(7))) == (order is None)


def test_sequences_with_targets_at_every_step(rng):
    rows = ragged(rng)
    data = Sequences(
        rows, [2 * row for row in rows], [row > 0 for row in rows], batch_size=3, every_step=True
    )
    for batch in data.batches(rng):
        np.testing.assert_array_equal(batch.target, 2 * batch.x)
        np.testing.assert_array_equal(batch.mask, batch.x > 0)


def test_sequences_of_numbers_have_one_column():
    (batch,) = Sequences([np.ones(3, np.uint8), [0.5]], [0, 1]).batches()
    np.testing.assert_array_equal(batch.x[..., 0], [[1, 0.5], [1, 0], [1, 0]])


def test_buckets_leave_less_padding(rng):
    lengths = rng.integers(1, 100, 640)
    rows = [np.ones((n, 1)) for n in lengths]
    steps = {}
    for bucket in (1, 40):
        batches = list(
            Sequences(rows, lengths, batch_size=16, bucket=bucket).batches(np.random.default_rng(0))
        )
        steps[bucket] = sum(batch.x.size for batch in batches)
        first = [len(batch.x) for batch in batches]
        assert first != sorted(first)
    assert steps[40] < 1.2 * lengths.sum() < 1.5 * lengths.sum() < steps[1]


# Windows over several series


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("targets", [None, [1], [1, 0]])
def test_windows_over_several_series(stride, targets):
    lengths = [9, 3, 12]
    series = [100.0 * k + np.arange(2.0 * n).reshape(n, 2) for k, n in enumerate(lengths)]
    data = SeriesWindows(series, 4, 2, targets, batch_size=4, stride=stride)
    chosen = [0, 1] if targets is None else targets
    expected = [
        (one[start : start + 4], one[start + 4 : start + 6][:, chosen])
        for one in series
        for start in range(0, len(one) - 5, stride)
    ]
    batches = list(data.batches())
    assert len(batches) == len(data) == -(-len(expected) // 4)
    x = np.concatenate([batch.x for batch in batches], axis=1)
    target = np.concatenate([batch.target for batch in batches])
    np.testing.assert_array_equal(x, np.stack([e[0] for e in expected], axis=1))
    np.testing.assert_array_equal(target, np.stack([e[1] for e in expected]))
    assert all(batch.mask is None and batch.fresh for batch in batches)
    shuffled = list(data.batches(np.random.default_rng(0)))
    assert sorted(x[0, :, 0]) == sorted(np.concatenate([batch.x[0, :, 0] for batch in shuffled]))
    assert not np.array_equal(x[:, :4], shuffled[0].x)
    flat = list(dataclasses.replace(data, flat=True).batches())
    np.testing.assert_array_equal(flat[0].target, batches[0].target.reshape(4, -1))


def test_gaps_are_bridged_in_x_and_masked_as_targets():
    a = np.array([np.nan, 1, 2, np.nan, 4, 5, np.nan, 7])
    b = np.arange(10.0, 18.0)
    data = SeriesWindows(np.stack([a, b], axis=1), 2, 2, batch_size=9)
    (batch,) = data.batches()
    assert list(data.starts) == [1, 2, 3, 4]  # the first row has no value of a to begin with
    np.testing.assert_array_equal(batch.x[:, :, 0], [[1, 2, 2, 4], [2, 2, 4, 5]])
    np.testing.assert_array_equal(batch.mask[:, :, 0], [[0, 1], [1, 1], [1, 0], [0, 1]])
    assert batch.mask[:, :, 1].all()
    assert np.all(np.isfinite(batch.target))
    (flat,) = dataclasses.replace(data, flat=True, targets=[0]).batches()
    np.testing.assert_array_equal(flat.mask, batch.mask[:, :, 0])


def test_windows_over_series_take_memory_of_the_series_only():
    series = [np.ones((20_000, 1)), np.ones((20_000, 1))]
    tracemalloc.start()
    data = SeriesWindows(series, 1000, 10)
    next(data.batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * sum(one.nbytes for one in series)  # all windows are 1000 times as much


# Wrong arguments; tests/attacks/test_arguments.py has values that go with no argument

ROWS = [np.ones((3, 2)), np.ones((2, 2))]
X = np.ones((2, 3, 1))
GAP = np.array([[[1], [np.nan], [1]]] * 2)
REFUSED = {
    Windows: [((GAP, X[:, 0], None, 2, False, [3, 2]), r"x\[0, 1, 0\] is nan")],
    Sequences: [
        (([ROWS[0], np.ones((0, 2))], [0, 1]), r"sequences\[1\] is empty"),
        (([ROWS[0], np.full((1, 2), np.nan)], [0, 1]), r"sequences\[1\]\[0, 0\] is nan"),
        ((ROWS, ROWS[:1], None, 2, True), "target has 1 entries"),
        ((ROWS, [0, 1], [0.5, -1]), "mask has a weight of -1"),
        ((ROWS, ROWS[::-1], None, 2, True), r"target\[0\] has shape \(2, 2\), expected .* T = 3"),
    ],
    SeriesWindows: [
        (([np.ones((9, 2)), np.ones((9, 1))], 4), r"series have \[1, 2\] columns"),
        (([np.ones(9), np.array([1, np.inf, 1])], 4), r"series\[1\]\[1\] is inf"),
        (
            ([np.ones((9, 2)), np.full((9, 2), [1, np.nan])], 4),
            r"series\[1\] has no value in column 1",
        ),
    ],
}


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [(make, *case) for make, cases in REFUSED.items() for case in cases],
)
def test_wrong_arguments_are_named(make, arguments, words):
    with pytest.raises((TypeError, ValueError), match=f"^{make.__name__}: {words}"):
        make(*arguments)


def test_validation_without_batches_is_named_before_training():
    model = SequenceModel(xlstm.LSTM(1, 2), 1)
    data = Windows(np.ones((4, 2, 1)), np.ones((4, 1)))
    with pytest.raises(ValueError, match="train: validation has no batches"):
        training.train(
            model,
            model.init(0, "numpy"),
            data,
            optim.sgd(0.1),
            epochs=1,
            validation=[],
            progress=lambda now: pytest.fail("it trains"),
        )
