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
    """With `renew` a forecast is that of the last window again, and without it is not; a jump shows it."""
    params = FIRST.init(0, "numpy", "float64")
    x = np.concatenate((rng.standard_normal(20), 1000 + rng.standard_normal(12)))
    frozen, renewed = FIRST.stream(params, x[:20], renew=0), FIRST.stream(params, x[:20], renew=12)
    assert FIRST.stream(params, x).renew == 1
    for stream in (frozen, renewed):
        stream.forecast(2)
        for part in (x[20:22], x[22:30], x[30:]):
            stream.push(part)
            assert stream.forecast(2).quantiles.shape == (2, 2)
    expected = FIRST.forecast(params, x, 2).quantiles
    np.testing.assert_allclose(renewed.forecast(2).quantiles, expected, rtol=1e-9)
    assert not np.allclose(frozen.forecast(2).quantiles, expected, rtol=1e-3)


def test_a_stream_that_was_left_alone_reads_a_window_again(rng):
    params = FIRST.init(0, "numpy", "float64")
    x = rng.standard_normal(40)
    stream = FIRST.stream(params, x[:20], renew=0)
    stream.forecast(2)
    stream.push(x[20:])
    np.testing.assert_allclose(stream.forecast(2).quantiles, FIRST.forecast(params, x, 2).quantiles, rtol=1e-9)


def test_a_horizon_beyond_that_of_the_training_is_said_so():
    stream = SECOND.stream(SECOND.init(0, "numpy"), np.arange(9.0))
    stream.forecast(6)
    with pytest.warns(HorizonWarning, match="TiRex2.stream: horizon is 7, and the model was trained for 6") as found:
        assert stream.forecast(7).quantiles.shape == (7, 3)
    assert found[0].filename == __file__


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), r"TiRex.stream: values has shape \(3,\), expected \(B,\) or \(B, n\) with B = 2"),
        (np.zeros((2, 1, 1)), r"values has shape \(2, 1, 1\)"),
        (["a", "b"], "expected numbers"),
    ],
)
def test_values_that_do_not_fit_are_named(values, message):
    stream = FIRST.stream(FIRST.init(0, "numpy"), np.zeros((2, 5)))
    with pytest.raises((TypeError, ValueError), match=message):
        stream.push(values)
    assert stream.count == 0


DAY = np.timedelta64(1, "D")


def shops(x, rows, **columns):
    """Columns of two shops, and marks of those of their first rows."""
    every = {name: column for name, column in long_columns(x, "days", (len(x), len(x))).items() if name != "price"}
    return every | columns, every["day"] < np.datetime64("2024-01-01") + rows * DAY


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["TiRex", "TiRex2"])
def test_tables_go_in_and_come_out(rng, model, library):
    """A long table is the beginning; later rows of it, in any order, and arrays follow, and so do the dates."""
    params, x = model.init(0, "numpy", "float64"), rng.standard_normal((20, 3))
    every, first = shops(x, 12)
    stream = model.stream(params, table(library, {n: c[first] for n, c in every.items()}), series_id="shop")
    arrays = model.stream(params, x[:12, :2].T)
    for begin, end in ((12, 12), (12, 13), (13, 17)):
        new = ~first & (every["day"] < np.datetime64("2024-01-01") + end * DAY)
        new &= every["day"] >= np.datetime64("2024-01-01") + begin * DAY
        if np.any(new):
            stream.push(table(library, {n: c[new][::-1] for n, c in every.items()}))
            arrays.push(x[begin:end, :2].T)
        found, expected = stream.forecast(3, quantiles=[0.5]), arrays.forecast(3, quantiles=[0.5])
        assert found.levels == (0.5,)
        mean, quantiles = columns_of(found.mean), columns_of(found.quantiles)
        assert list(mean) == ["day", "shop", "sales"]
        assert list(quantiles) == ["day", "shop", "sales 0.5"]
        assert mean["shop"].tolist() == ["north"] * 3 + ["south"] * 3
        assert str(mean["day"][3])[:10] == f"2024-01-{end + 1}"
        np.testing.assert_array_equal(mean["sales"], expected.mean.ravel())
        np.testing.assert_array_equal(quantiles["sales 0.5"], expected.quantiles.ravel())
    stream.push(x[17, :2])
    assert str(columns_of(stream.forecast(1).mean)["day"][0])[:10] == "2024-01-19"
    assert stream.count == arrays.count + 1


def test_steps_without_a_row_are_missing_values(rng):
    """Between dates, for one of the series, and before the last row of another one."""
    params, x = FIRST.init(0, "numpy", "float64"), rng.standard_normal((20, 3))
    every, first = shops(x, 12)
    stream = FIRST.stream(params, table("pandas", {n: c[first] for n, c in every.items()}), series_id="shop")
    day = (every["day"] - np.datetime64("2024-01-01")) // DAY
    new = np.isin(day, [13, 15]) & ~((day == 15) & (every["shop"] == "south"))
    stream.push(table("pandas", {n: c[new] for n, c in every.items()}))
    arrays = FIRST.stream(params, x[:12, :2].T)
    north, south = [np.nan, x[13, 0], np.nan, x[15, 0]], [np.nan, x[13, 1], np.nan, np.nan]
    arrays.push([north, south])
    assert stream.count == 4
    np.testing.assert_array_equal(columns_of(stream.forecast(2).mean)["sales"], arrays.forecast(2).mean.ravel())


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
    single.push(x[9:13, 0])
    single.push(float(x[13, 0]))
    np.testing.assert_array_equal(columns_of(single.forecast(2).mean)["a"], expected[0])
    single.push(table(library, {"a": [None]}))
    expected = FIRST.stream(params, np.append(x[:, 0], np.nan)).forecast(2).mean
    np.testing.assert_array_equal(columns_of(single.forecast(2).mean)["a"], expected)


def test_labels_of_rows_go_on(rng):
    pandas = pytest.importorskip("pandas")
    params, x = FIRST.init(0, "numpy", "float64"), rng.standard_normal(9)
    stream = FIRST.stream(params, pandas.DataFrame({"a": x[:3]}, index=[3, 5, 8]))
    stream.push([2.0, 3.0])
    assert stream.forecast(2).mean.index.tolist() == [11, 12]
    months = pandas.date_range("2024-01-31", periods=9, freq="ME", name="month")
    stream = FIRST.stream(params, pandas.DataFrame({"a": x[:5]}, index=months[:5]))
    stream.push(pandas.DataFrame({"a": x[5:7]}, index=months[5:7]))
    found = stream.forecast(2).mean
    assert [str(date)[:7] for date in found.index] == ["2024-08", "2024-09"]
    assert found.index.name == "month"
    days = pandas.bdate_range("2024-01-01", periods=16)
    stream = FIRST.stream(params, pandas.DataFrame({"a": np.arange(12.0)}, index=days[:12]))
    stream.push(pandas.DataFrame({"a": [3.0, 4.0]}, index=days[[12, 14]]))
    assert stream.count == 3
    assert stream.forecast(1).mean.index[0] == days[15]


@pytest.mark.parametrize(
    ("days", "columns", "message"),
    [
        ([12, 12], {}, "values has a row for 2024-01-13.*, expected 2024-01-13 or later steps, each once"),
        ([11, 12], {}, "values has a row for 2024-01-12.*, expected 2024-01-13"),
        ([12.5], {}, "values has a row for 2024-01-13T12.*, expected 2024-01-13 or later"),
        ([9e6], {}, "values has a row for 26665-.*, more than 1000000 steps later"),
        ([12], {"shop": "east"}, "values has rows of series 'east', expected some of north, south"),
        ([12], {"sales": None}, "column 'sales' is not in the table, which has day"),
        ([12], {"shop": None}, "column 'shop' is not in the table"),
        ([12], {"day": None}, "the rows of values have no dates, expected some, as in the table of the series"),
        ([12], {"sales": 1e200}, r"values\[0\] is 1e\+200, expected numbers from"),
        ([12], {"sales": "x"}, "column 'sales' holds .*, expected numbers"),
    ],
)
def test_rows_that_do_not_follow_are_named(rng, days, columns, message):
    polars = pytest.importorskip("polars")
    every, first = shops(rng.standard_normal((20, 3)), 12)
    params = FIRST.init(0, "numpy")
    stream = FIRST.stream(params, polars.DataFrame({n: c[first] for n, c in every.items()}), series_id="shop")
    day = np.datetime64("2024-01-01T00", "us") + (np.array(days) * 24).astype("timedelta64[h]")
    given = {"shop": "north", "day": day, "sales": np.ones(len(days))} | columns
    rows = polars.DataFrame({name: column for name, column in given.items() if column is not None})
    with pytest.raises((TypeError, ValueError), match=f"^TiRex.stream: {message}"):
        stream.push(rows)
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
    words = "series 'south' ends with 2024-01-15 and steps of 1 D, expected 2024-01-20 and steps of 1 D, as series 'no"
    with pytest.raises(ValueError, match=f"^TiRex2.stream: {words}"):
        SECOND.stream(params, apart, series_id="shop")
    with pytest.raises(ValueError, match=r"^TiRex2.stream: targets is 'a', expected None, as series is no table"):
        SECOND.stream(params, x.T, targets="a")
    with pytest.raises(TypeError, match=r"^TiRex2.stream: values is a table, expected an array, as the series were no"):
        SECOND.stream(params, x.T).push(apart)
    plain = pandas.DataFrame({"id": ["a"] * 5 + ["b"] * 4, "y": np.arange(9.0)})
    stream = SECOND.stream(params, plain, series_id="id")
    with pytest.raises(ValueError, match=r"^TiRex2.stream: values has 0 to 2 rows of a series, expected one number"):
        stream.push(plain[:2])
    with pytest.raises(ValueError, match=r"^TiRex2.stream: quantiles is \[0.5, 0.5\], expected each level once"):
        stream.forecast(2, quantiles=[0.5, 0.5])
