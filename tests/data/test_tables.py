"""Tables of pandas, Polars and PyArrow: their columns, indices and dates; tables that are made, and
their files.
"""

import datetime
import random

import numpy as np
import pytest

from tests.attacks.damage import flipped
from tests.data.conftest import equal
from tests.tables import LIBRARIES, table
from xlstm.data import SeriesWindows, Windows, is_table, read_table, table_like, table_of
from xlstm.data import table as files
from xlstm.data.series import read_csv

DAYS = [datetime.date(2020, 1, day) for day in (1, 2, 4)]


def dates_for(library):
    """Dates as its tables hold them."""
    return np.array(DAYS, "datetime64[us]") if library == "pandas" else DAYS


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_columns_of_a_table(library):
    """One that is asked for may be empty: its kind says nothing then. Read with all others it has
    to hold numbers.
    """
    days = {"day": dates_for(library)}
    numbers = {"a": [1, 2, 3], "b": [0.5, None, 1.5], "c": [True, False, True]}
    given = table(library, {"a": numbers["a"]} | days | numbers)
    found = table_of("f", given)
    assert is_table(given)
    assert (found.names, found.index_name) == (["a", "b", "c"], "day")
    np.testing.assert_array_equal(found.values, [[1, 0.5, 1], [2, np.nan, 0], [3, 1.5, 1]])
    np.testing.assert_array_equal(
        found.index.astype("datetime64[D]"), np.array(DAYS, "datetime64[D]")
    )
    empty = table(library, {"a": [1.0, 2.0], "b": [None, None]})
    np.testing.assert_array_equal(
        table_of("f", empty, ["a", "b"]).values, [[1, np.nan], [2, np.nan]]
    )
    for columns, words in (
        ({"a": [1.0, 2.0], "b": [None, None]}, "column 'b' holds"),
        ({"a": [1.0, np.inf]}, "column 'a' is inf in row 1"),
        (days | {"u": days["day"]}, "columns day, u hold dates"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^f: {words}"):
            table_of("f", table(library, columns))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dated", [True, False])
def test_tables_in_tables_out(library, dated):
    given = table(library, ({"day": dates_for(library)} if dated else {}) | {"a": [1, 2, 3]})
    made = table_like(given, {"p": np.arange(3.0), "q": np.ones(3)})
    assert type(made) is type(given)
    back = table_of("f", made)
    expected = table_of("f", given)
    assert (back.names, back.index_name) == (["p", "q"], expected.index_name)
    np.testing.assert_array_equal(back.values[:, 0], [0, 1, 2])
    if not dated:
        assert back.index is None
        assert len(table_of("f", table_like(given, {"p": np.ones(5)})).values) == 5
        return
    assert back.index.dtype == expected.index.dtype
    np.testing.assert_array_equal(back.index, expected.index)
    ahead = table_of(
        "f", table_like(given, {"p": [1.0]}, index=np.array(["2020-01-05"], "datetime64[D]"))
    )
    assert (ahead.index_name, ahead.index.dtype) == ("day", expected.index.dtype)
    assert str(ahead.index[0])[:10] == "2020-01-05"


@pytest.mark.parametrize(
    ("zone", "hour"), [(None, 0), ("Europe/Berlin", -1), ("America/New_York", 5)]
)
def test_the_index_of_pandas(zone, hour):
    pd = pytest.importorskip("pandas")
    index = pd.date_range("2020-01-01", periods=3, freq="D", name="day", tz=zone)
    given = pd.DataFrame({"a": [1, 2, 3]}, index=index)
    found = table_of("f", given)
    assert found.index_name == "day"
    assert (found.index[0], found.zone) == (
        np.datetime64("2020-01-01") + np.timedelta64(hour, "h"),
        zone,
    )
    for like in (given, given["a"]):
        made = table_like(like, {"p": np.ones(3)})
        assert type(made) is type(like)
        assert made.index.equals(index)
        assert made.index.freq == index.freq
    ahead = table_like(
        given, {"p": np.ones(2)}, index=found.index[-1] + np.array([1, 2], "timedelta64[D]")
    )
    assert ahead.index.equals(pd.date_range("2020-01-04", periods=2, freq="D", tz=zone))
    assert ahead.index.name == "day"


def test_periods_and_missing_numbers_of_pandas():
    pd = pytest.importorskip("pandas")
    months = pd.DataFrame({"a": [1, 2]}, index=pd.period_range("2020-01", periods=2, freq="M"))
    np.testing.assert_array_equal(
        table_of("f", months).index, np.array(["2020-01", "2020-02"], "datetime64[M]")
    )
    ahead = table_like(months, {"p": [1.0]}, index=np.array(["2020-03"], "datetime64[M]"))
    assert list(ahead.index) == [pd.Period("2020-03", "M")]
    missing = pd.DataFrame(
        {"a": pd.array([1, None], "Int64"), "b": pd.array([True, None], "boolean")}
    )
    np.testing.assert_array_equal(table_of("f", missing).values, [[1, 1], [np.nan, np.nan]])


def test_tables_as_series_and_columns_as_targets():
    v = np.sin(np.arange(20.0))
    tables = [table("polars", {"a": v, "b": 2 * v}), table("polars", {"a": v[:9], "b": v[:9]})]
    arrays = [np.stack([v, 2 * v], axis=1), np.stack([v[:9], v[:9]], axis=1)]
    equal(list(SeriesWindows(tables, 4).batches()), list(SeriesWindows(arrays, 4).batches()))
    (batch,) = Windows(np.ones((3, 2, 1)), table("polars", {"class": [0, 1, 1]})["class"]).batches()
    assert (batch.target.dtype, batch.target.shape) == (np.int64, (3,))


# Files of tables


def names_of(path, column):
    return files.names_in(files.opened(path), column)


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
        np.testing.assert_array_equal(
            found.index.astype("datetime64[D]"), np.array(DAYS, "datetime64[D]")
        )
    file = files.opened(path)
    assert (file.names, file.dated) == ([*columns], ["day"])
    assert (names_of(path, "name").tolist(), names_of(path, "b").tolist()) == (
        ["x", "y", "z"],
        ["4", "5", "6"],
    )
    for read, column, words in (
        (read_table, None, "column '?name'? holds"),
        (read_table, ["c"], "column 'c' is not in the header, which has day, a, b, name"),
        (names_of, "a", "column 'a' is empty in row 2"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"t\.{suffix}.*{words}"):
            read(path, column)
    files.write_table(path, {"note": ["x", "y"], "v": [1.0, 2.0]})
    assert (read_csv(path).name, read_csv(path).values.tolist()) == ("v", [1, 2])


def test_damaged_parquet_files_are_named(tmp_path):
    """Whatever Arrow raises, and whatever it quotes from the file: one line with the path."""
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.parquet"
    rng = random.Random(0)
    refused = 0
    days = np.arange(40).astype("datetime64[D]").tolist()
    names = [f"\u00e9{k % 3}" for k in range(40)]
    files.write_table(path, {"day": days, "x": np.arange(40.0), "name": names, "n": range(40)})
    blob = path.read_bytes()
    for _ in range(60):
        path.write_bytes(flipped(blob, rng))
        for read, columns in ((read_table, ["x", "n"]), (names_of, "name"), (read_csv, "x")):
            try:
                read(path, columns)
            except (ValueError, TypeError) as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)  # noqa: PT017, PT018 (not all fail)
                refused += 1
    assert refused > 20


def test_threads_of_pyarrow_hold_no_file_of_python(tmp_path, monkeypatch):
    """They let it go when Python may have ended, which aborts: 3 of 25 runs of `xlstm predict` did
    so.
    """
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"v": [1.0, 2.0, 3.0]}), tmp_path / "a.parquet")
    opened = parquet.ParquetFile
    kinds = []
    monkeypatch.setattr(
        parquet, "ParquetFile", lambda file, **o: kinds.append(type(file)) or opened(file, **o)
    )
    assert (read_table(tmp_path / "a.parquet").values.tolist(), {*kinds}) == (
        [[1], [2], [3]],
        {pyarrow.OSFile},
    )
