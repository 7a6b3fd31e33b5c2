"""Streams of TiRex: forecasts of series that grow, beside those of whole windows."""

import dataclasses

import numpy as np
import pytest

from tests.tables import LIBRARIES, columns_of, long_columns, table
from xlstm.models import HorizonWarning, TiRex, TiRex2

FIRST = TiRex(4, 2, 2, patch_size=2, quantiles=(0.2, 0.5), input_ff_size=3, context=8)
SIZES = {"patch_size": 2, "quantiles": (0.1, 0.5, 0.9), "input_ff_size": 3, "output_ff_size": 5, "context": 8}
SECOND = TiRex2(4, [("mlstm", 2, 2), ("slstm", 1, 1)], horizon=6, **SIZES)


def whole(model, params, series, horizon):
    """The forecast that a fresh stream gives."""
    options = {"rollout": -(-horizon // model.patch_size)} if isinstance(model, TiRex) else {"differencing": False}
    return model.forecast(params, series, horizon, **options)


@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["TiRex", "TiRex2"])
@pytest.mark.parametrize("L", [3, 8, 21])
def test_a_fresh_stream_forecasts_as_the_model_does(be, rng, model, L):
    """From a short series, from a window, and from more; values are missing, and quantiles are chosen."""
    params = model.init(0, be)
    x = rng.standard_normal((3, L))
    x[0, 1] = np.nan
    for horizon in (1, 5):
        found = model.stream(params, x).forecast(horizon)
        np.testing.assert_allclose(found.quantiles, whole(model, params, x, horizon).quantiles, rtol=1e-9, atol=1e-9)
    assert model.stream(params, x[1]).forecast(3, quantiles=[0.5]).quantiles.shape == (3, 1)


@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["TiRex", "TiRex2"])
def test_new_values_cost_a_token_and_change_nothing_else(monkeypatch, rng, model):
    """While its units are frozen a state is that of a whole pass over all values, of which a longer window has as many
    missing ones before them.
    """
    params = model.init(0, "numpy", "float64")
    x = rng.standard_normal((2, 6))
    stream = model.stream(params, x[:, :4], renew=0)
    units = stream._now().units
    monkeypatch.setattr(type(model.scaler), "units", lambda self, rows: units)
    tokens = []
    forward = type(model).forward

    def counted(self, params, x, *rest, **options):
        tokens.append(x.shape[1])
        return forward(self, params, x, *rest, **options)

    for t, context in ((4, 8), (5, 10)):
        stream.push(x[:, t])
        longer = dataclasses.replace(model, context=context)
        expected = whole(longer, params, x[:, : t + 1], 5).quantiles
        monkeypatch.setattr(type(model), "forward", counted)
        np.testing.assert_allclose(stream.forecast(5).quantiles, expected, rtol=1e-9, atol=1e-9)
        monkeypatch.setattr(type(model), "forward", forward)
    assert stream.count == 2
    assert tokens == [1, 3, 2, 1, 2]  # a missing patch and three; then one more; and two of the horizon each


def test_units_are_renewed(rng):
    """With `renew` a forecast is that of the last window again, as after a long while; without it a jump shows."""
    params = FIRST.init(0, "numpy", "float64")
    x = np.concatenate((rng.standard_normal(20), 1000 + rng.standard_normal(12)))
    assert FIRST.stream(params, x).renew == 1
    expected = FIRST.forecast(params, x, 2).quantiles
    steps = (x[20:22], x[22:30], x[30:])
    for renew, pushed, same in ((12, steps, True), (0, steps, False), (0, [x[20:]], True)):
        stream = FIRST.stream(params, x[:20], renew=renew)
        stream.forecast(2)
        for part in pushed:
            stream.push(part)
            found = stream.forecast(2).quantiles
        assert np.allclose(found, expected, rtol=1e-9 if same else 1e-3, atol=0) == same


def test_a_horizon_beyond_that_of_the_training_is_said_so():
    stream = SECOND.stream(SECOND.init(0, "numpy"), np.arange(9.0))
    stream.forecast(6)
    with pytest.warns(HorizonWarning, match="TiRex2.stream: horizon is 7, and the model was trained for 6") as found:
        assert stream.forecast(7).quantiles.shape == (7, 3)
    assert found[0].filename == __file__


def shops(x):
    """Columns of two shops, and the number of the day of each row."""
    columns = {name: column for name, column in long_columns(x, "days", (len(x), len(x))).items() if name != "price"}
    return columns, (columns["day"] - np.datetime64("2024-01-01")) // np.timedelta64(1, "D")


def part(library, columns, some, step=1):
    """Some rows; with step -1 the last first."""
    return table(library, {name: column[some][::step] for name, column in columns.items()})


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["TiRex", "TiRex2"])
def test_tables_go_in_and_come_out(rng, model, library):
    """A long table is the beginning; later rows of it, in any order, and arrays follow, and so do the dates."""
    params, x = model.init(0, "numpy", "float64"), rng.standard_normal((20, 3))
    columns, day = shops(x)
    stream = model.stream(params, part(library, columns, day < 12), series_id="shop")
    arrays = model.stream(params, x[:12, :2].T)
    for begin, end in ((12, 12), (12, 13), (13, 17)):
        if end > begin:
            stream.push(part(library, columns, (begin <= day) & (day < end), -1))
            arrays.push(x[begin:end, :2].T)
        found, expected = stream.forecast(3, quantiles=[0.5]), arrays.forecast(3, quantiles=[0.5])
        assert found.levels == (0.5,)
        mean, quantiles = columns_of(found.mean), columns_of(found.quantiles)
        assert (list(mean), list(quantiles)) == (["day", "shop", "sales"], ["day", "shop", "sales 0.5"])
        assert mean["shop"].tolist() == ["north"] * 3 + ["south"] * 3
        assert str(mean["day"][3])[:10] == f"2024-01-{end + 1}"
        np.testing.assert_array_equal(mean["sales"], expected.mean.ravel())
        np.testing.assert_array_equal(quantiles["sales 0.5"], expected.quantiles.ravel())


def test_steps_without_a_row_are_missing_values(rng):
    """Between dates, for one of the series, and before the last row of another one; arrays may follow."""
    params, x = FIRST.init(0, "numpy", "float64"), rng.standard_normal((20, 3))
    columns, day = shops(x)
    stream = FIRST.stream(params, part("pandas", columns, day < 12), series_id="shop")
    arrays = FIRST.stream(params, x[:12, :2].T)
    stream.push(part("pandas", columns, (day == 13) | ((day == 15) & (columns["shop"] == "north"))))
    arrays.push([[np.nan, x[13, 0], np.nan, x[15, 0]], [np.nan, x[13, 1], np.nan, np.nan]])
    for one in (stream, arrays):
        one.push(x[17, :2])
        assert one.count == 5
    found = columns_of(stream.forecast(2).mean)
    np.testing.assert_array_equal(found["sales"], arrays.forecast(2).mean.ravel())
    assert str(found["day"][0])[:10] == "2024-01-18"


@pytest.mark.parametrize("library", LIBRARIES)
def test_wide_tables_without_dates(library, rng):
    """Each column is a series; the rows of one column are numbers, too, and a table without rows changes nothing."""
    params, x = FIRST.init(0, "numpy", "float64"), rng.standard_normal((14, 2))
    stream = FIRST.stream(params, table(library, {"b": x[:9, 1], "a": x[:9, 0], "c": x[:9, 0]}), targets=["a", "b"])
    stream.push(table(library, {"b": x[9:, 1], "a": x[9:, 0], "more": x[9:, 0]}))
    stream.push(table(library, {"a": x[:0, 0], "b": x[:0, 1]}))
    assert stream.count == 5
    found, expected = columns_of(stream.forecast(2).mean), FIRST.stream(params, x.T).forecast(2).mean
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal([found["a"], found["b"]], expected)
    single = FIRST.stream(params, table(library, {"a": x[:9, 0]}))
    for values in (x[9:13, 0], float(x[13, 0]), table(library, {"a": [None]})):
        single.push(values)
    expected = FIRST.stream(params, np.append(x[:, 0], np.nan)).forecast(2).mean
    np.testing.assert_array_equal(columns_of(single.forecast(2).mean)["a"], expected)


def test_labels_of_rows_go_on(rng):
    pandas = pytest.importorskip("pandas")
    params, x = FIRST.init(0, "numpy", "float64"), rng.standard_normal(16)
    months = pandas.date_range("2024-01-31", periods=16, freq="ME", name="month")
    days = pandas.bdate_range("2024-01-01", periods=16)  # one of them may be without a row
    numbers = pandas.Index([*range(3, 51, 3)])
    for index, pushed, count in ((months, [12, 13], 2), (days, [12, 14], 3), (numbers, [12, 13], 2)):
        stream = FIRST.stream(params, pandas.DataFrame({"a": x[:12]}, index=index[:12]))
        stream.push(pandas.DataFrame({"a": x[pushed]}, index=index[pushed]))
        assert stream.count == count
        found = stream.forecast(1).mean
        assert (found.index[0], found.index.name) == (index[12 + count], index.name)


@pytest.mark.parametrize(
    ("days", "changes", "message"),
    [
        ([12, 12], {}, "values has a row for 2024-01-13.*, expected 2024-01-14.* or one of 1000000 later steps"),
        ([11, 12], {}, "values has a row for 2024-01-12.*, expected 2024-01-13"),
        ([12.5], {}, "values has a row for 2024-01-13T12.*, expected 2024-01-13"),
        ([9e6], {}, "values has a row for 26665-.*, expected 2024-01-13"),
        ([12], {"shop": "east"}, "values has rows of series 'east', expected some of north, south"),
        ([12], {"sales": None}, "column 'sales' is not in the table, which has day"),
        ([12], {"shop": None}, "column 'shop' is not in the table"),
        ([12], {"day": None}, "the rows of values have no dates, expected some, as in the table of the series"),
        ([12], {"sales": 1e200}, r"values\[0\] is 1e\+200, expected numbers from"),
        ([12], {"sales": "x"}, "column 'sales' holds .*, expected numbers"),
        ([], {"values": np.zeros(3)}, r"values has shape \(3,\), expected \(B,\) or \(B, n\) with B = 2"),
        ([], {"values": np.zeros((2, 1, 1))}, r"values has shape \(2, 1, 1\)"),
        ([], {"values": ["a", "b"]}, "values is .*, expected numbers"),
    ],
)
def test_rows_that_do_not_follow_are_named(rng, days, changes, message):
    columns, day = shops(rng.standard_normal((20, 3)))
    stream = FIRST.stream(FIRST.init(0, "numpy"), part("polars", columns, day < 12), series_id="shop")
    dates = np.datetime64("2024-01-01T00", "us") + (np.array(days) * 24).astype("timedelta64[h]")
    rows = {"shop": ["north"] * len(days), "day": dates, "sales": np.ones(len(days))} | changes
    values = rows.pop("values", None)
    rows = {name: np.repeat(c, len(days)) if np.ndim(c) == 0 else c for name, c in rows.items() if c is not None}
    with pytest.raises((TypeError, ValueError), match=f"^TiRex.stream: {message}"):
        stream.push(table("polars", rows) if values is None else values)
    assert stream.count == 0


def test_time_zones_are_not_mixed(rng):
    pandas = pytest.importorskip("pandas")
    params, x = SECOND.init(0, "numpy"), rng.standard_normal(12)
    zoned = pandas.DataFrame({"a": x, "price": x}, index=pandas.date_range("2024-01-01", periods=12, tz="UTC"))
    local, wanted = zoned.tz_localize(None), "as in the table of the series"
    for first, rows, words in (
        (zoned, local, "no time zone, expected time zone UTC"),
        (local, zoned, "time zone UTC, expected no time zone"),
    ):
        with pytest.raises(ValueError, match=f"^TiRex2.stream: the dates of values have {words}, {wanted}"):
            SECOND.stream(params, first[:10]).push(rows[10:])
        with pytest.raises(ValueError, match=f"^TiRex2: the dates of later have {words}, {wanted}"):
            SECOND.forecast(params, first[:10], 2, future=["price"], later=rows[10:])


def test_tables_that_are_no_beginning_are_named(rng):
    pandas = pytest.importorskip("pandas")
    params, x = SECOND.init(0, "numpy"), rng.standard_normal((20, 3))
    apart = pandas.DataFrame(long_columns(x, "shops", (20, 15))).drop(columns="price")
    plain = pandas.DataFrame({"id": ["a"] * 5 + ["b"] * 4, "y": np.arange(9.0)})
    stream = SECOND.stream(params, plain, series_id="id")
    ends = "series 'south' ends with 2024-01-15 and steps of 1 D, expected 2024-01-20 and steps of 1 D, as series 'no"
    for call, words in (
        (lambda: SECOND.stream(params, apart, series_id="shop"), ends),
        (lambda: SECOND.stream(params, x.T, targets="a"), "targets is 'a', expected None, as series is no table"),
        (lambda: SECOND.stream(params, x.T).push(apart), "values is a table, expected an array, as the series were no"),
        (lambda: stream.push(plain[:2]), "values has 0 to 2 rows of a series, expected one number"),
        (lambda: stream.forecast(2, quantiles=[0.5, 0.5]), r"quantiles is \[0.5, 0.5\], expected each level once"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^TiRex2.stream: {words}"):
            call()
