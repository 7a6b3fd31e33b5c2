"""Data for training: sequences of unequal length, windows over several series, prefetching, tables and their files."""

import dataclasses
import datetime
import itertools
import os
import random
import sys
import threading
import tracemalloc

import numpy as np
import pytest

import xlstm
from tests.tables import LIBRARIES, table
from xlstm import optim, training
from xlstm.data import (
    Batch,
    Prefetch,
    Sequences,
    SeriesWindows,
    Streams,
    Windows,
    is_table,
    read_table,
    table_like,
    table_of,
)
from xlstm.data import table as files
from xlstm.data.series import read_series
from xlstm.models.sequence import SequenceModel

LENGTHS = np.array([3, 1, 5, 2, 4, 5, 1])


def ragged(rng, D=2, lengths=LENGTHS):
    return [rng.normal(size=(n, D)) for n in lengths]


def padded(rows, fill=0.0):
    found = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill)
    for k, row in enumerate(rows):
        found[k, : len(row)] = row
    return found


def equal(one, other):
    """Compare batches, bit for bit."""
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.fresh == right.fresh
        for a, b in zip(left, right, strict=True):
            assert (a is None) == (b is None)
            assert a is None or (np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b))


# Windows, and where arrays come from


def test_windows_of_unequal_length(rng):
    rows = ragged(rng)
    data = Windows(padded(rows, np.nan), np.arange(7.0)[:, None], batch_size=4, lengths=LENGTHS.tolist())
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
    rows, weights = ragged(rng), np.array([0, 1, 2, 0.5, 0, 1, 1])
    ends, steps = [row.sum(keepdims=True)[0, :1] for row in rows], [row.sum(axis=1, keepdims=True) for row in rows]
    one, every = SequenceModel(xlstm.LSTM(2, 3), 1, last=True), SequenceModel(xlstm.GRU(2, 3), 1)
    params = one.init(0, "numpy", "float64")
    each = [training.evaluate(one, params, Windows(row[None], y[None])) for row, y in zip(rows, ends, strict=True)]
    x = padded(rows, np.nan)
    for data, expected in (
        (Windows(x, ends, batch_size=4, lengths=LENGTHS), np.mean(each)),
        (Windows(x, ends, weights, batch_size=4, lengths=LENGTHS), np.average(each, weights=weights)),
        (Sequences(rows, ends, weights, batch_size=4), np.average(each, weights=weights)),
    ):
        assert training.evaluate(one, params, data) == pytest.approx(expected, rel=1e-12)
    params = every.init(0, "numpy", "float64")
    alone = [Windows(row[None], y[None], every_step=True) for row, y in zip(rows, steps, strict=True)]
    each = [training.evaluate(every, params, data) for data in alone]
    for size in (1, 3, 7):
        found = training.evaluate(every, params, Sequences(rows, steps, batch_size=size, every_step=True))
        assert found == pytest.approx(np.average(each, weights=LENGTHS), rel=1e-12)


def test_every_step_windows_put_time_first():
    x, target = np.zeros((5, 4, 2)), np.arange(20.0).reshape(5, 4, 1)
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
    x, target = rng.normal(size=(6, 3, 2)), rng.normal(size=(6, 1))
    expected = list(Windows(x, target, target > 0).batches())
    for convert in (np.ndarray.tolist, be.asarray, Elsewhere):
        mask = (target > 0).tolist()
        found = list(Windows(convert(x), convert(target), mask).batches())
        assert all(type(array) is np.ndarray for array in (found[0].x, found[0].target, found[0].mask))
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
    np.testing.assert_array_equal(next(Streams.of_tokens(ids.tolist(), 2, 5).batches()).target[0], [1, 6])
    assert np.shares_memory(Streams.of_tokens(on_disk, 2, 5).x, on_disk)
    (batch,) = Streams.of_tokens(b"abcde", 1, 4).batches()
    assert bytes(batch.x[:, 0]) == b"abcd"
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
    data = Sequences(rows, [2 * row for row in rows], [row > 0 for row in rows], batch_size=3, every_step=True)
    for batch in data.batches(rng):
        np.testing.assert_array_equal(batch.target, 2 * batch.x)
        np.testing.assert_array_equal(batch.mask, batch.x > 0)


@pytest.mark.parametrize("numbers", [[np.ones(3, np.uint8), [0.5]], [np.ones(2), np.ones((3, 1))], [[1.0, 2.0], [3]]])
def test_sequences_of_numbers_have_one_column(numbers):
    (batch,) = Sequences(numbers, [0, 1]).batches()
    assert batch.x.shape == (max(map(len, numbers)), 2, 1)
    assert batch.x.dtype == np.float64


def test_buckets_leave_less_padding(rng):
    lengths = rng.integers(1, 100, 640)
    rows = [np.ones((n, 1)) for n in lengths]
    steps = {}
    for bucket in (1, 40):
        batches = list(Sequences(rows, lengths, batch_size=16, bucket=bucket).batches(np.random.default_rng(0)))
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

ROWS, X = [np.ones((3, 2)), np.ones((2, 2))], np.ones((2, 3, 1))
GAP = np.array([[[1], [np.nan], [1]]] * 2)
REFUSED = {
    Windows: [
        ((GAP, X[:, 0], None, 2, False, [3, 2]), ValueError, r"x\[0, 1, 0\] is nan"),
        ((X, X[:, 0], None, 2, False, [1]), ValueError, r"lengths has shape \(1,\), expected \(B,\) = \(2,\)"),
        ((X, X[:, :2], None, 2, True), ValueError, r".*expected \(N, T, D\) and \(N, T, \.\.\.\)"),
        (
            (np.ones((5, 2)), np.ones((5, 2)), None, 2, True),
            ValueError,
            r"x has shape \(5, 2\) .* x may also be tokens",
        ),
    ],
    Streams: [
        (([[1.0], [1.0, 2.0]], ROWS[0], 1, 1), ValueError, "x is ragged"),
        ((np.ma.masked_array(X[0]), X[0], 1, 1), TypeError, "x is a masked array, expected an array without a mask"),
        ((Elsewhere, X[0], 1, 1), TypeError, "x is the class Elsewhere"),
        ((np.ones(10), np.ones(10), 2, 2), ValueError, r"x has shape \(10,\) .* tokens, whole numbers \(N,\)"),
    ],
    Streams.of_tokens: [
        ((np.ones(5), 2, 5), ValueError, r"tokens has dtype float64 and shape \(5,\), expected whole numbers"),
    ],
    Sequences: [
        (([], [1]), ValueError, "there are no sequences"),
        (([1.0, 2.0], [0, 1]), TypeError, r"sequences\[0\] is 1.0, expected an array"),
        (([ROWS[0], np.ones((0, 2))], [0, 1]), ValueError, r"sequences\[1\] is empty"),
        (([ROWS[0], np.ones((2, 3))], [0, 1]), ValueError, r"sequences\[1\] has shape \(2, 3\) and .*0.* \(3, 2\)"),
        (([ROWS[0], np.full((1, 2), np.nan)], [0, 1]), ValueError, r"sequences\[1\]\[0, 0\] is nan"),
        ((ROWS, [0]), ValueError, r"target has shape \(1,\), expected \(N, ...\) with N = 2"),
        ((ROWS, [0, 1], [0, 1]), TypeError, "mask is .* expected an array of bool, or of weights"),
        ((ROWS, [0, 1], [0.5, -1]), ValueError, "mask has a weight of -1"),
        ((ROWS, ROWS[::-1], None, 2, True), ValueError, r"target\[0\] has shape \(2, 2\), expected .* T = 3"),
        ((ROWS, ROWS[:1], None, 2, True), ValueError, "target has 1 entries, expected one for each of 2"),
    ],
    SeriesWindows: [
        (([np.ones((9, 2)), np.ones((9, 1))], 4), ValueError, r"series have \[1, 2\] columns, expected one"),
        (([np.ones(9), np.array([1, np.inf, 1])], 4), ValueError, r"series\[1\]\[1\] is inf"),
        (([np.ones((9, 2)), np.full((9, 2), [1, np.nan])], 4), ValueError, r"series\[1\] has no value in column 1"),
        (([np.ones(4), np.ones(2)], 4), ValueError, "a window of 4 and a horizon of 1 need 5 rows, the longest .* 4"),
        ((np.ones((9, 1)), 4, 1, [1]), ValueError, r"targets\[0\] is 1, expected at most 0"),
    ],
    Prefetch: [((3,), TypeError, "data is 3, expected Windows")],
}


@pytest.mark.parametrize(
    ("make", "arguments", "error", "words"), [(make, *case) for make, cases in REFUSED.items() for case in cases]
)
def test_wrong_arguments_are_named(make, arguments, error, words):
    with pytest.raises(error, match=f"^{make.__qualname__.partition('.')[0]}: {words}"):
        make(*arguments)


def fit_one(data, **options):
    model = SequenceModel(xlstm.LSTM(1, 2), 1)
    return training.train(model, model.init(0, "numpy"), data, optim.sgd(0.1), epochs=1, **options)


class Yields(tuple):
    """Batches that are whatever it holds."""

    def batches(self, rng=None):
        return iter(self)


@pytest.mark.parametrize(("batch", "words"), [((1, 2), r"\(1, 2\)"), (X, "an array of float64 of shape"), ({}, "{}")])
def test_a_batch_that_is_none_is_named(batch, words):
    words = f"the batch is {words}.*, expected an xlstm.data.Batch"
    with pytest.raises(TypeError, match=f"train: epoch 1, step 1: {words}"):
        fit_one(Yields([batch]))
    model = SequenceModel(xlstm.LSTM(1, 2), 1)
    step = training.Step(model, optim.sgd(0.1))
    with pytest.raises(TypeError, match=f"step: {words}"):
        step(step.init(model.init(0, "numpy")), batch)


@pytest.mark.parametrize("name", ["data", "validation"])
def test_data_without_batches_are_named_before_training(name):
    data = {"data": Streams(np.ones((4, 1)), np.ones((4, 1)), 1, 2), "validation": None, name: Yields()}
    with pytest.raises(ValueError, match=f"train: {name} has no batches"):
        fit_one(**data, progress=lambda now: pytest.fail("it trains"))


# Prefetching


class Drawing:
    """Batches that take random numbers as they come, and the last one some more; `fail` is the batch that raises."""

    def __init__(self, count=5, fail=None):
        self.count, self.fail, self.made = count, fail, 0

    def __len__(self):
        return self.count

    def batches(self, rng=None):
        rng = np.random.default_rng(7) if rng is None else rng
        for k in range(self.count):
            if k == self.fail:
                raise OSError("the file is gone")
            self.made += 1
            yield Batch(rng.normal(size=(4, 2, 1)), np.full((2, 1), float(k)), None, True)
        rng.normal(size=3)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xlstm-prefetch")]


@pytest.mark.parametrize("ahead", [1, 20])
def test_prefetched_batches_are_those_of_the_data(ahead):
    data = Drawing()
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    found = []
    inner = data.batches(one)
    for batch in Prefetch(data, ahead).batches(two):
        found.append((next(inner), batch))
        assert one.bit_generator.state == two.bit_generator.state
    assert next(inner, None) is None
    assert len(found) == len(Prefetch(data)) == 5
    equal(*zip(*found, strict=True))
    assert one.bit_generator.state == two.bit_generator.state
    equal(list(data.batches()), list(Prefetch(data, ahead).batches()))
    assert not threads()


def test_prefetching_is_some_batches_ahead_and_no_more():
    data = Drawing(20)
    batches = Prefetch(data, 3).batches()
    next(batches)
    while data.made < 4:  # the first, and three more
        pass
    assert len(threads()) == 1
    batches.close()
    assert data.made == 4
    assert not threads()


def test_an_error_of_the_data_comes_after_the_batches_before_it():
    batches = Prefetch(Drawing(fail=3)).batches(np.random.default_rng(0))
    assert len(list(itertools.islice(batches, 3))) == 3
    with pytest.raises(OSError, match="the file is gone"):
        next(batches)
    assert not threads()


# Tables

DAYS = [datetime.date(2020, 1, day) for day in (1, 2, 4)]


def dates_for(library):
    """Dates as its tables hold them."""
    return np.array(DAYS, "datetime64[us]") if library == "pandas" else DAYS


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_columns_of_a_table(library):
    """One that is asked for may be empty: its kind says nothing then. Read with all others it has to hold numbers."""
    days = {"day": dates_for(library)}
    numbers = {"a": [1, 2, 3], "b": [0.5, None, 1.5], "c": [True, False, True]}
    given = table(library, {"a": numbers["a"]} | days | numbers)
    found = table_of("f", given)
    assert is_table(given)
    assert (found.names, found.index_name) == (["a", "b", "c"], "day")
    np.testing.assert_array_equal(found.values, [[1, 0.5, 1], [2, np.nan, 0], [3, 1.5, 1]])
    np.testing.assert_array_equal(found.index.astype("datetime64[D]"), np.array(DAYS, "datetime64[D]"))
    empty = table(library, {"a": [1.0, 2.0], "b": [None, None]})
    np.testing.assert_array_equal(table_of("f", empty, ["a", "b"]).values, [[1, np.nan], [2, np.nan]])
    for refused, error, words in (
        (empty, TypeError, "column 'b' holds .*, expected numbers"),
        (table(library, {"a": [1], "city": ["x"]}), TypeError, "column 'city' holds .*; leave it out or encode it"),
        (table(library, {"a": [1.0, np.inf]}), ValueError, "column 'a' is inf in row 1, expected a finite number"),
        (table(library, {"a": np.ones(0)}), ValueError, "the table has 0 rows and 1 columns of numbers"),
        (table(library, days), ValueError, "the table has 3 rows and 0 columns of numbers"),
        (table(library, days | {"u": days["day"]}), ValueError, "columns day, u hold dates, expected at most one"),
    ):
        with pytest.raises(error, match=f"^f: {words}"):
            table_of("f", refused)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dated", [True, False])
def test_tables_in_tables_out(library, dated):
    given = table(library, ({"day": dates_for(library)} if dated else {}) | {"a": [1, 2, 3]})
    made = table_like(given, {"p": np.arange(3.0), "q": np.ones(3)})
    assert type(made) is type(given)
    back, expected = table_of("f", made), table_of("f", given)
    assert (back.names, back.index_name) == (["p", "q"], expected.index_name)
    np.testing.assert_array_equal(back.values[:, 0], [0, 1, 2])
    if not dated:
        assert back.index is None
        assert len(table_of("f", table_like(given, {"p": np.ones(5)})).values) == 5
        return
    assert back.index.dtype == expected.index.dtype
    np.testing.assert_array_equal(back.index, expected.index)
    ahead = table_of("f", table_like(given, {"p": [1.0]}, index=np.array(["2020-01-05"], "datetime64[D]")))
    assert (ahead.index_name, ahead.index.dtype, str(ahead.index[0])[:10]) == (
        "day",
        expected.index.dtype,
        "2020-01-05",
    )
    with pytest.raises(ValueError, match="columns have 2 rows, expected 3, or index="):
        table_like(given, {"p": np.ones(2)})


@pytest.mark.parametrize(("zone", "hour"), [(None, 0), ("Europe/Berlin", -1), ("America/New_York", 5)])
def test_the_index_of_pandas(zone, hour):
    pd = pytest.importorskip("pandas")
    index = pd.date_range("2020-01-01", periods=3, freq="D", name="day", tz=zone)
    given = pd.DataFrame({"a": [1, 2, 3]}, index=index)
    found = table_of("f", given)
    assert found.index_name == "day"
    assert (found.index[0], found.zone) == (np.datetime64("2020-01-01") + np.timedelta64(hour, "h"), zone)
    made = table_like(given, {"p": np.ones(3)})
    assert made.index.equals(index)
    assert made.index.freq == index.freq
    ahead = table_like(given, {"p": np.ones(2)}, index=found.index[-1] + np.array([1, 2], "timedelta64[D]"))
    assert list(ahead.index) == list(pd.date_range("2020-01-04", periods=2, freq="D", tz=zone))
    assert ahead.index.name == "day"
    assert list(table_like(given, {"p": np.ones(2)}, index=["u", "v"]).index) == ["u", "v"]
    one = table_like(given["a"], {"p": np.ones(3)})
    assert type(one) is pd.Series
    assert one.index.equals(index)
    months = pd.DataFrame({"a": [1, 2]}, index=pd.period_range("2020-01", periods=2, freq="M"))
    np.testing.assert_array_equal(table_of("f", months).index, np.array(["2020-01", "2020-02"], "datetime64[M]"))
    ahead = table_like(months, {"p": [1.0]}, index=np.array(["2020-03"], "datetime64[M]"))
    assert list(ahead.index) == [pd.Period("2020-03", "M")]
    labels = pd.DataFrame({"a": [1, 2]}, index=["u", "v"])
    assert list(table_of("f", labels).index) == ["u", "v"]
    assert list(table_like(labels, {"p": [1, 2]}).index) == ["u", "v"]
    missing = pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": pd.array([True, None], "boolean")})
    np.testing.assert_array_equal(table_of("f", missing).values, [[1, 1], [np.nan, np.nan]])


def test_what_is_no_table():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    assert not is_table(np.ones(3))
    assert not is_table([1])
    assert not is_table(pd.DataFrame)
    for given, words in (
        (pl.LazyFrame({"a": [1]}), r"f: a polars.LazyFrame is not taken as a table"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), r"f: a pandas.DataFrame is not taken as a table .*unique.* 'a'"),
        (pd.DataFrame({"a": [object()]}), r"column 'a' holds Object"),
        (np.ones(3), "f: a numpy.ndarray is not taken"),
    ):
        with pytest.raises(TypeError, match=words):
            table_of("f", given)


@pytest.mark.parametrize("library", LIBRARIES)
def test_tables_as_series_and_columns_as_targets(library):
    v = np.sin(np.arange(20.0))
    tables = [table(library, {"a": v, "b": 2 * v}), table(library, {"a": v[:9], "b": v[:9]})]
    arrays = [np.stack([v, 2 * v], axis=1), np.stack([v[:9], v[:9]], axis=1)]
    equal(list(SeriesWindows(tables, 4).batches()), list(SeriesWindows(arrays, 4).batches()))
    (batch,) = Windows(np.ones((3, 2, 1)), table(library, {"class": [0, 1, 1]})["class"]).batches()
    assert (batch.target.dtype, batch.target.shape) == (np.int64, (3,))
    with pytest.raises(TypeError, match=r"SeriesWindows: series\[0\]: column 'a' holds"):
        SeriesWindows([table(library, {"a": ["x"]})], 4)


# Files of tables


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_that_are_written_and_read(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"t.{suffix}"
    columns = {"day": DAYS, "a": [1, None, -2.5e-9], "b": [4, 5, 6], "name": ["x", "y", "z"]}
    files.write_table(path, columns)
    for names, expected in (
        (["b", "a"], [[4, 1], [5, np.nan], [6, -2.5e-9]]),
        (["day", "a"], [[1], [np.nan], [-2.5e-9]]),
    ):
        found = read_table(str(path), names)
        assert (found.names, found.index_name) == ([name for name in names if name != "day"], "day")
        np.testing.assert_array_equal(found.values, expected)
        np.testing.assert_array_equal(found.index.astype("datetime64[D]"), np.array(DAYS, "datetime64[D]"))
    file = files.opened(path)
    assert (file.names, file.dated) == ([*columns], ["day"])
    assert (names_of(path, "name").tolist(), names_of(path, "b").tolist()) == (["x", "y", "z"], ["4", "5", "6"])
    for read, column, error, words in (
        (read_table, None, (TypeError, ValueError), "column '?name'? holds .*, expected"),
        (read_table, ["c"], ValueError, "column 'c' is not in the header, which has day, a, b, name"),
        (read_table, "a", TypeError, "columns is 'a', expected a list of names"),
        (names_of, "c", ValueError, "column 'c' is not in the header, which has day, a, b, name"),
        (names_of, "a", ValueError, "column 'a' is empty in row 2"),
    ):
        with pytest.raises(error, match=rf"t\.{suffix}.*{words}"):
            read(path, column)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / f"none.{suffix}")
    files.write_table(path, {"note": ["x", "y"], "v": [1.0, 2.0]})
    assert (read_series(path).name, read_series(path).values.tolist()) == ("v", [1, 2])
    files.write_table(path, {"note": ["x", "y"]})
    with pytest.raises(ValueError, match=rf"t\.{suffix}: .*number"):
        read_series(path)


def test_damaged_parquet_files_are_named(tmp_path):
    """Whatever Arrow raises, and whatever it quotes from the file: one line with the path."""
    pytest.importorskip("pyarrow")
    path, rng, refused = tmp_path / "t.parquet", random.Random(0), 0
    days = np.arange(40).astype("datetime64[D]").tolist()
    names = [f"\u00e9{k % 3}" for k in range(40)]
    files.write_table(path, {"day": days, "x": np.arange(40.0), "name": names, "n": range(40)})
    blob = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(blob)
        damaged[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        for read, columns in ((read_table, ["x", "n"]), (names_of, "name"), (read_series, "x")):
            try:
                read(path, columns)
            except (ValueError, TypeError) as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)  # noqa: PT017, PT018 (not all fail)
                refused += 1
    assert refused > 20


def test_tables_without_their_libraries(tmp_path, monkeypatch):
    given = pytest.importorskip("pandas").DataFrame({"a": [1]})
    for package, read, words in (
        ("narwhals.stable.v1", lambda: table_of("f", given), "f: tables need narwhals; pip install narwhals"),
        ("pyarrow", lambda: read_table(tmp_path / "t.parquet"), "Parquet files need .*; pip install pyarrow narwhals"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=words):
            read()


def names_of(path, column):
    return files.names_in(files.opened(path), column)


def test_tables_that_cannot_be_written(tmp_path):
    for name, words in {"t.txt": "ends in '.txt', expected .csv or .parquet", "no/t.csv": "no/t.csv"}.items():
        with pytest.raises((ValueError, OSError), match=words):
            files.check_table(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_threads_of_pyarrow_hold_no_file_of_python(tmp_path, monkeypatch):
    """They let it go when Python may have ended, which aborts: 3 of 25 runs of `xlstm predict` did so."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"v": [1.0, 2.0, 3.0]}), tmp_path / "a.parquet")
    opened, kinds = parquet.ParquetFile, []
    monkeypatch.setattr(parquet, "ParquetFile", lambda file, **o: kinds.append(type(file)) or opened(file, **o))
    assert (read_table(tmp_path / "a.parquet").values.tolist(), {*kinds}) == ([[1], [2], [3]], {pyarrow.OSFile})
