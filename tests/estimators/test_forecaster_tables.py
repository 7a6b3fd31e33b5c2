"""A forecaster of tables: columns go by name and by their roles, rows by their dates, and tables
come back.
"""

import importlib.util

import numpy as np
import pytest

from tests.estimators.conftest import QUICK, SMALL, driven
from tests.tables import LIBRARIES, columns_of, table
from xlstm.data.panels import Panel
from xlstm.data.table import write_table
from xlstm.estimators import Forecaster
from xlstm.estimators.base import roles_of
from xlstm.estimators.forecaster import examples


@pytest.mark.parametrize(("step", "zone"), [("D", "Europe/Berlin"), ("QE-FEB", None)])
def test_targets_go_by_name_and_later_rows_by_date(step, zone):
    """Whatever the order of columns and rows, and as arrays that are given in their order."""
    pd = pytest.importorskip("pandas")
    values, price = driven()
    days = pd.date_range("1990-01-01", periods=306, freq=step, tz=zone, unit="s")
    given = pd.DataFrame(
        {"sales": values, "cost": values[::-1], "price": price[:300]}, index=days[:300]
    )
    later = pd.DataFrame({"price": price[300:306]}, index=days[300:])
    forecaster = Forecaster(**QUICK, future="price").fit(given)
    found = forecaster.predict(given, future=later)
    assert list(found.columns) == list(forecaster.feature_names_in_) == ["sales", "cost"]
    assert list(found.index) == list(days[300:])
    both = given[["sales", "cost"]].to_numpy()
    dates = days[:300]
    plain = Forecaster(**QUICK).fit(both, future=price[:300], dates=dates)
    np.testing.assert_array_equal(found, plain.predict(both, future=price[:306], dates=dates))
    pd.testing.assert_frame_equal(
        forecaster.predict(given[["price", "cost", "sales"]], future=later[::-1]), found
    )
    with pytest.raises(ValueError, match="the targets of the table are"):
        forecaster.predict(given.rename(columns={"cost": "x"}), future=later)


@pytest.mark.parametrize("library", LIBRARIES)
def test_dates_as_text(library, tmp_path):
    """In ISO 8601 they are dates, as in a file; in another notation a table or file is refused with
    the row, and names are no dates.
    """
    pd = pytest.importorskip("pandas")
    values = driven()[0][:60]
    forecaster = Forecaster(**{**QUICK, "candidates": ["linear"]}, targets="v")
    for freq in ("D", "MS"):
        days = pd.date_range("2024-11-30", periods=66, freq=freq)
        iso = days.strftime("%Y-%m-%d" if freq == "D" else "%Y-%m").tolist()
        given = table(library, {"day": iso[:60], "v": values})
        ahead = columns_of(forecaster.fit(given).predict(given))
        np.testing.assert_array_equal(ahead["day"].astype("datetime64[us]"), days[60:])
        indexed = pd.Series(values, iso[:60], name="v")
        found = Forecaster(**QUICK, targets="v").fit(indexed).predict(indexed)
        assert list(found.index) == list(days[60:])
    path = tmp_path / "t.csv"
    hint = r"--date-format .* in a file, pandas.to_datetime\(\.\.\., dayfirst=True\) in a table"
    for other in ("%d.%m.%Y", "%m/%d/%y", "%d %B %Y", "%d.%m.%Y %H:%M", "%Y/%m/%d"):
        text = days.strftime(other).tolist()[:60]
        write_table(path, {"shop": ["a"] * 60, "day": text, "v": values.tolist()})
        for call, place in (
            (lambda t: forecaster.fit(table(library, {"day": t, "v": values})), "day, row 0"),
            (lambda t: forecaster.fit(pd.Series(values, t, name="v")), "index, row 0"),
            (lambda t: Panel.from_file(path, roles_of(forecaster)), "t.csv: line 2"),
        ):
            with pytest.raises(ValueError, match=f"{place}: '{text[0]}' is not a date .*{hint}"):
                call(text)
    with pytest.raises(ValueError, match=r"index, row 59: '31\.12\.2024' is not a date"):
        forecaster.fit(pd.Series(values, [*iso[:59], "31.12.2024"], name="v"))
    with pytest.raises(ValueError, match="the table has 0 rows"):
        forecaster.fit(table(library, {"{day}": text, "v": values})[:0])
    for names in ([f"a{k}" for k in range(60)], [f"1.{k}.0.1" for k in range(60)], ["x"] * 60):
        found = forecaster.fit(table(library, {"note": names, "v": values})).predict(values)
        np.testing.assert_array_equal(found, forecaster.fit(values).predict(values))
        assert list(forecaster.fit(pd.DataFrame({"v": values}, names)).predict(values).shape) == [6]
    roles = {"static": "day", "series_id": "shop"}  # a column with a role is no date
    columns = {"day": ["2024-01-01"] * 60, "shop": ["1.1.2024"] * 60, "v": values}
    assert "day" in forecaster.set_params(**roles).fit(table(library, columns)).categories_


def test_only_columns_with_a_role_are_read(values):
    pd = pytest.importorskip("pandas")
    given = pd.DataFrame(
        {
            "sales": values,
            "note": ["dull"] * 300,
            "gap": np.nan,
            "mix": ["x", 2.0] * 150,
            "size": pd.Categorical([1.0] * 300),
        }
    )
    forecaster = Forecaster(**QUICK, static="size", targets="sales").fit(given)
    assert forecaster.categories_ == {"size": {"1": 1.0}}
    few = given[["sales", "size"]]
    expected = Forecaster(**QUICK, static="size").fit(few).predict(few)
    np.testing.assert_array_equal(forecaster.predict(given), expected)
    for roles, words in (
        ({}, "column 'note' holds String, expected numbers, dates, or names of series .series_id."),
        ({"targets": "sales", "static": "mix"}, "'mix' holds Object, .*; row 1 is 2.0"),
        ({"targets": "sales", "static": "gap"}, "static.* is nan, expected finite"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            Forecaster(**QUICK, **roles).fit(given)
    with pytest.raises(ValueError, match="past is a DataFrame of shape"):
        forecaster.fit(few, past=few)


@pytest.mark.parametrize("library", LIBRARIES)
def test_tables_of_several_series(library, tmp_path):
    """Units of a series go with its name, in whatever order names come, and into the file."""
    values, price = driven()
    several = [values, 1e3 * values[::-1]]
    price = price[20:]
    day = np.datetime64("2020-01-01", "us") + np.arange(306) * np.timedelta64(1, "D")
    columns = {
        "day": np.tile(day[:300], 2),
        "shop": np.repeat(["a", "b"], 300),
        "sales": np.concatenate(several),
    }
    columns |= {
        "size": np.repeat([1.0, 2.0], 300),
        "price": np.tile(price, 2),
        "rain": np.tile(values, 2),
    }
    ahead = {
        "day": np.tile(day[300:], 2),
        "shop": np.repeat(["a", "b"], 6),
        "price": np.tile(price[:6], 2),
    }
    later = table(library, ahead)

    def rows(*shops):
        chosen = np.concatenate([np.flatnonzero(columns["shop"] == shop) for shop in shops])
        return table(library, {name: column[chosen] for name, column in columns.items()})

    roles = {
        "targets": "sales",
        "past": "rain",
        "future": ["price"],
        "static": "size",
        "series_id": "shop",
    }
    forecaster = Forecaster(**QUICK, **roles).fit(rows("a", "b"))
    found = columns_of(forecaster.predict(rows("a", "b"), future=later))
    assert found["shop"].tolist() == ["a"] * 6 + ["b"] * 6
    np.testing.assert_array_equal(found["day"].astype("datetime64[us]"), ahead["day"])
    covariates = {"past": [values] * 2, "static": [[1.0], [2.0]], "dates": [day[:300]] * 2}
    plain = Forecaster(**QUICK).fit(several, future=[price] * 2, **covariates)
    expected = plain.predict(several, future=[np.concatenate((price, price[:6]))] * 2, **covariates)
    np.testing.assert_array_equal(found["sales"], np.concatenate(expected))
    forecaster.save(tmp_path / "f")
    loaded = Forecaster.load(tmp_path / "f", "numpy")
    assert [getattr(loaded, role) for role in roles] == [
        ["sales"],
        ["rain"],
        ["price"],
        ["size"],
        "shop",
    ]
    for model in (forecaster, loaded):
        alone = columns_of(model.predict(rows("b"), future=later))
        np.testing.assert_array_equal(alone["sales"], found["sales"][6:])


def test_forecasts_that_are_fed_back_are_those_of_a_longer_series():
    """A series with a name keeps its units, however long it is; what is only known of the past
    stays as it is.
    """
    pd = pytest.importorskip("pandas")
    values, price = driven(312)
    every = pd.DataFrame(
        {
            "pier": "a",
            "level": values,
            "depth": 1000 + values[::-1],
            "moon": price[:312],
            "wind": values,
        }
    )
    given = every[:300]
    roles = {"series_id": "pier", "targets": ["level", "depth"], "future": "moon", "past": "wind"}
    forecaster = Forecaster(**QUICK, **roles).fit(given)
    ahead = forecaster.predict(given, 12, future=every[300:])
    longer = every[:306].copy()
    longer.loc[300:, ["level", "depth"]] = ahead[:6][["level", "depth"]].to_numpy()
    longer.loc[300:, "wind"] = values[299]
    again = forecaster.predict(longer, future=every[306:])
    np.testing.assert_allclose(again[["level", "depth"]], ahead[6:][["level", "depth"]], rtol=1e-5)
    (paths,) = forecaster.sample(given, 5, 12, future=every[300:])
    assert paths.shape == (5, 12, 2)
    assert np.all(np.abs(paths - [10, 1010]) < 20)


def test_a_column_of_a_wide_table_may_begin_later():
    """The other columns are trained on from their own beginning, and nothing depends on rows before
    any value.
    """
    values, price = driven()
    # one is missing
    days = np.datetime64("2020-01-01", "us") + np.delete(np.arange(320), 5) * np.timedelta64(1, "D")
    columns = {
        "day": days[:299],
        "a": values[:299],
        "b": np.arange(299.0) ** 1.5,
        "price": price[:299],
    }
    columns["b"][:90] = np.nan
    columns["a"][39] = np.nan
    columns["a"][:20] = np.nan
    columns["price"][:3] = np.nan
    later = table("polars", {"day": days[299:305], "price": price[299:305]})
    forecaster = Forecaster(horizon=6, future="price", calendar=True, **SMALL)
    whole, cut = (
        table("polars", {name: column[k:] for name, column in columns.items()}) for k in (0, 20)
    )
    one = forecaster.fit(whole).predict(whole, future=later)
    two = forecaster.fit(cut).predict(cut, future=later)
    np.testing.assert_array_equal(one["b"], two["b"])
    np.testing.assert_array_equal(one["day"], two["day"])
    np.testing.assert_array_equal(forecaster.score(whole).at - 21, forecaster.score(cut).at)


def test_targets_that_begin_at_different_rows(values):
    """By hand: which rows train each of them, and its unit."""
    both = np.stack([values[20:299], np.arange(20, 299.0) ** 1.5], axis=1)
    both[19, 0] = np.nan
    both[:70, 1] = np.nan
    forecaster = Forecaster(horizon=6, **SMALL)
    data = examples(forecaster, both)["train"]
    np.testing.assert_array_equal(data.origins, np.arange(83, 167))
    first = data.mask[:, 0::2].any(axis=1), data.mask[:, 1::2].any(axis=1)
    assert (first[0].argmax(), first[1].argmax()) == (0, 0)
    changes = [
        np.mean((both[70 + lag : 167, 1] - both[70 : 167 - lag, 1]) ** 2) for lag in range(1, 48)
    ]
    assert data.predictor.scaling.units[0, 1] == pytest.approx(np.sqrt(np.mean(changes)))
    both[:200, 1] = np.nan  # then it has half of the rows that are trained on
    (one,) = examples(forecaster, both)["train"].several
    assert (one.begin, np.count_nonzero(np.isnan(one.values[:, 1]))) == (167, 33)


@pytest.mark.parametrize("library", LIBRARIES)
def test_categories_are_columns_of_0_and_1(library, tmp_path):
    """In tables and files as in columns made by hand; a missing one is a category, and an unknown
    one the average of all.
    """
    values, _ = driven(318)
    names = ["", "gift", "sale"]
    fields = {"kind": names * 106, "size": ["small"] * 159 + [""] * 159}
    fields |= {"shop": ["a"] * 159 + ["b"] * 159, "sales": values.tolist()}
    roles = {"targets": "sales", "future": "kind", "static": "size", "series_id": "shop"}

    def cut(*rows):
        rows = np.r_[rows]
        cells = {name: [column[k] or None for k in rows] for name, column in fields.items()}
        return table(library, cells)

    given = cut(slice(153), slice(159, 312))
    forecaster = Forecaster(**QUICK, **roles).fit(given)
    assert forecaster.categories_["kind"] == dict.fromkeys(names, 1 / 3)
    later = cut(slice(153, 159), slice(312, 318))
    found = columns_of(forecaster.predict(given, future=later))["sales"]
    several = [values[:153], values[159:312]]
    hand = [np.tile(np.eye(3), (53, 1)) for _ in several]
    static = [[0, 1], [1, 0]]
    plain = Forecaster(**QUICK).fit(several, future=[rows[:153] for rows in hand], static=static)
    expected = plain.predict(several, future=hand, static=static)
    np.testing.assert_array_equal(found, np.concatenate(expected))
    # the size of this series is missing in all rows
    forecaster.predict(cut(slice(159, 312)), future=cut(slice(312, 318)))
    forecaster.save(tmp_path / "f")
    loaded = Forecaster.load(tmp_path / "f", "numpy")
    for ending in ("csv", "parquet") if importlib.util.find_spec("pyarrow") else ("csv",):
        sales = [None if k % 159 >= 153 else value for k, value in enumerate(fields["sales"])]
        write_table(tmp_path / f"t.{ending}", {**fields, "sales": sales})
        panel = Panel.from_file(tmp_path / f"t.{ending}", roles_of(Forecaster(**roles)))
        assert panel.shown[0].gaps == 0
        same = np.concatenate(loaded.predict(panel))
        np.testing.assert_allclose(same, found, rtol=1e-6)
    fields["kind"][153:155] = ["new"] * 2
    with pytest.warns(UserWarning, match="column 'kind' has 2 rows with categories .*: 'new'"):
        found = columns_of(loaded.predict(given, future=cut(slice(153, 159), slice(312, 318))))
    hand[0][153:155] = 1 / 3
    expected = plain.predict(several, future=hand, static=static)
    np.testing.assert_array_equal(found["sales"], np.concatenate(expected))


@pytest.mark.parametrize(
    ("fitted", "given", "words"),
    [
        ([*"ab"] * 53, [1.0] * 106, r"column 'future\[0\]' holds .*1.0.*, expected text"),
        ([["a", 1.0]] * 106, [["a", 1.0]] * 105 + [[2, 1.0]], r"'future\[0\]' holds 2, .* text"),
        ([1.0] * 106, [*"ab"] * 53, r"'future\[0\]' holds text, expected numbers, as in fit"),
    ],
)
def test_a_category_is_no_number(values, fitted, given, words):
    forecaster = Forecaster(**QUICK).fit(values[:100], future=fitted)
    with pytest.raises(TypeError, match=words):
        forecaster.predict(values[:100], future=given)


def test_categories_of_each_series_beside_arrays(values):
    forecaster = Forecaster(**QUICK).fit([values, values], static=[["x"], [None]])
    assert forecaster.categories_ == {"static[0]": {"": 0.5, "x": 0.5}}
    with pytest.raises(ValueError, match=r"'static\[0\]' is missing"):
        forecaster.predict(values)
    with pytest.warns(UserWarning, match="has 1 series with"):
        forecaster.predict(values, static=["y"])


def test_covariates_beside_one_column():
    """They go by row, and the dates are those of the column."""
    pd = pytest.importorskip("pandas")
    values, price = driven()
    beside = {"future": pd.Series(price)}
    sales = pd.Series(values, pd.date_range("2020-01-01", periods=300))
    found = Forecaster(**QUICK).fit(sales, **beside).predict(sales, **beside)
    beside["dates"] = sales.index
    expected = Forecaster(**QUICK).fit(values, **beside).predict(values, **beside)
    np.testing.assert_array_equal(found, expected)
