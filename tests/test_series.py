"""CSV files of every kind that people have."""

import os

import numpy as np
import pytest

from xlstm.data import Scaler, Split, Streams, Windows, carry_forward, split, windows
from xlstm.data.series import bundled, read_csv


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "data.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_bundled_sunspots():
    s = read_csv(bundled("sunspots"))
    assert (s.name, len(s.values), s.gaps, s.unit, s.every) == ("sunspots", 2820, 0, "M", 1)
    assert (s.values[0], s.values[-1], s.labels[0], s.labels[-1]) == (58.0, 33.4, "1749-01", "1983-12")
    assert s.after(2) == ["1984-01", "1984-02"]


def test_bundled_co2():
    s = read_csv(bundled("co2"))
    assert (s.name, len(s.values), s.gaps, s.unit, s.every) == ("co2_ppm", 2284, 59, "D", 7)
    assert s.after(1) == ["2002-01-05"]


def test_unknown_dataset():
    with pytest.raises(ValueError, match="'moon' is unknown, expected one of sunspots, co2"):
        bundled("moon")


@pytest.mark.parametrize(
    ("dates", "unit", "every", "after"),
    [
        (["2001", "2002", "2003"], "M", 12, "2004"),
        (["2001-11", "2001-12", "2002-01"], "M", 1, "2002-02"),
        (["2001-01-01", "2001-02-01", "2001-03-01"], "M", 1, "2001-04-01"),
        (["2001-01-15", "2001-02-15", "2001-03-15"], "M", 1, "2001-04-15"),
        (["2001-01-01", "2002-01-01", "2003-01-01"], "M", 12, "2004-01-01"),
        (["2001-12-31", "2002-12-31", "2003-12-31"], "M", 12, "2004-12-31"),
        (["2001-06-30", "2001-09-30", "2001-12-31"], "M", 3, "2002-03-31"),
        (["2001-01-15", "2001-01-31", "2001-02-15", "2001-02-28"], "SM", 1, "2001-03-15"),
        (["2001-03-29T06:00", "2001-03-30T06:00", "2001-03-31T06:00"], "D", 1, "2001-04-01T06:00"),
        (["2001-03-29", "2001-03-30", "2001-03-31"], "D", 1, "2001-04-01"),
        (["2001-03-29T06:00", "2001-03-29T12:00", "2001-03-29T18:00"], "m", 360, "2001-03-30T00:00"),
    ],
)
def test_calendars(write, dates, unit, every, after):
    s = read_csv(write("date,v\n" + "".join(f"{d},{k}\n" for k, d in enumerate(dates))))
    assert (s.unit, s.every, s.after(1)) == (unit, every, [after])


def test_missing_rows_and_empty_cells_are_gaps(write):
    s = read_csv(write("day,v\n2001-01-01,\n2001-01-02,1\n2001-01-03,\n2001-01-04,3\n2001-01-07,4\n2001-01-08,\n"))
    np.testing.assert_array_equal(s.values, [1, np.nan, 3, np.nan, np.nan, 4])
    assert s.labels == [f"2001-01-0{k}" for k in range(2, 8)]
    assert s.note == "2 rows missing from the file"
    assert s.after(1) == ["2001-01-08"]


def test_dates_without_a_rhythm_are_equal_steps(write):
    s = read_csv(write("date,v\n2001-01-01,1\n2001-01-02,2\n2001-03-17,3\n2001-09-30,4\n"))
    np.testing.assert_array_equal(s.values, [1, 2, 3, 4])
    assert "no common rhythm" in s.note
    assert s.after(2) == ["+1", "+2"]


def test_several_columns(write):
    path = write('when,name,"a, b",c\nx1,p,1,5\nx2,q,2,6\nx3,r,3,7\n')
    np.testing.assert_array_equal(read_csv(path, "c").values, [5, 6, 7])
    np.testing.assert_array_equal(read_csv(path, "a, b").values, [1, 2, 3])
    assert read_csv(path, "c").labels == ["x1", "x2", "x3"]
    with pytest.raises(ValueError, match="several columns hold numbers, choose one of a, b, c with --column"):
        read_csv(path)


def test_no_dates_other_delimiters_and_a_byte_order_mark(write):
    np.testing.assert_array_equal(read_csv(write("v\n1\n2\n3\n")).values, [1, 2, 3])
    assert read_csv(write("v\n1\n2\n3\n")).labels == ["1", "2", "3"]
    np.testing.assert_array_equal(read_csv(write("\ufeffdate;v\r\n2001;1.5\r\n2002;2.5\r\n")).values, [1.5, 2.5])
    np.testing.assert_array_equal(read_csv(write("date\tv\n2001\t1\n2002\t2\n")).values, [1, 2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("date,v\n", "0 rows under the header"),
        ("date,v\n2001,1\n", "1 rows under the header"),
        ("date,v\n2001,1\n2002\n", "line 3 has 1 cells, expected 2"),
        ("date,v\n2001,1\n2002,nan\n", "line 3, column v holds 'nan'"),
        ("date,v\n2001,1\n2002,inf\n", "line 3, column v holds 'inf'"),
        ("date,v\n2001,1\n2002,high\n", "line 3, column v holds 'high'"),
        ("date,v\n2001,\n2002,\n", "no column holds numbers"),
        ("date,v\n2001-02,1\n2001-01,2\n", "line 3 is 2001-01, expected a date after 2001-02"),
        ("date,v\n2001-02,1\n2001-02,2\n", "line 3 is 2001-02, expected a date after"),
        ('date,v\n2001,"1\n', "not a CSV file"),
    ],
)
def test_bad_files_are_named(write, text, words):
    path = write(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_csv(path)
    assert str(path) in str(caught.value)


def test_bad_column_and_encoding(write, tmp_path):
    path = write("date,v,v\n2001,1,2\n2002,2,3\n")
    with pytest.raises(ValueError, match="column 'w' is not in the header, which has date, v, v"):
        read_csv(path, "w")
    with pytest.raises(ValueError, match="column 'v' is more than once in the header"):
        read_csv(path, "v")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_csv(write("date,größe\n2001,1\n", "latin-1"))
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        read_csv(tmp_path / "absent.csv")


def test_carry_forward_uses_only_the_past():
    v = np.array([np.nan, 1.0, np.nan, np.nan, 2.0, np.nan])
    np.testing.assert_array_equal(carry_forward(v), [np.nan, 1, 1, 1, 2, 2])
    assert np.isnan(v[2])


def test_split_is_by_time():
    assert split(100, 0.1, 0.2) == Split(slice(0, 70), slice(70, 80), slice(80, 100))
    for bad in ((2, 0.2, 0.2), (100, 0.5, 0.5), (100, 0.0, 0.2)):
        with pytest.raises(ValueError, match="split"):
            split(*bad)


def test_scaler():
    s = Scaler.fit(np.array([1.0, np.nan, 3.0]))
    assert (s.mean, s.std) == (2.0, 1.0)
    np.testing.assert_allclose(s.invert(s.apply(np.array([5.0]))), [5.0])
    assert Scaler.fit(np.array([3.0, -4.0]), center=False).std == pytest.approx(12.5**0.5)
    with pytest.raises(ValueError, match="constant at 7"):
        Scaler.fit(np.full(5, 7.0))
    with pytest.raises(ValueError, match="no values"):
        Scaler.fit(np.full(5, np.nan))


def test_windows():
    x, target = windows(np.arange(6.0), 3, 2)
    np.testing.assert_array_equal(x, [[0, 1, 2], [1, 2, 3]])
    np.testing.assert_array_equal(target, [[3, 4], [4, 5]])
    with pytest.raises(ValueError, match="a window of 5 and a horizon of 2 need 7 rows, the series has 6"):
        windows(np.arange(6.0), 5, 2)


def test_batches_cover_everything_once():
    data = Windows(np.arange(10.0).reshape(10, 1, 1), np.arange(10.0)[:, None], batch_size=4)
    rows = [b.target[:, 0] for b in data.batches(np.random.default_rng(0))]
    assert len(data) == len(rows) == 3
    assert sorted(np.concatenate(rows)) == list(range(10))
    assert list(np.concatenate(rows)) != list(range(10))


def test_business_days(write):
    days = np.busday_offset("2024-01-01", np.arange(15))
    kept = [k for k in range(15) if k != 7]
    s = read_csv(write("date,v\n" + "".join(f"{days[k]},{k}\n" for k in kept)))
    assert (s.unit, s.step, s.gaps, len(s.values)) == ("B", "business day", 1, 15)
    assert s.labels == [str(day) for day in days]
    assert s.after(2) == ["2024-01-22", "2024-01-23"]


@pytest.mark.parametrize("labels", [["998", "999", "1000"], ["x1", "x2", "x3"], ["12345678", "12345679", "12345680"]])
def test_first_columns_that_are_no_calendar(write, labels):
    note = "" if labels[0].isdigit() else "no ISO 8601 dates, rows taken as equal steps"
    s = read_csv(write("date,v\n" + "".join(f"{d},{k}\n" for k, d in enumerate(labels))))
    assert (s.unit, s.note, s.labels, s.after(1)) == (None, note, labels, ["+1"])


def dated(dates):
    """The columns of a table with dates first, behind numbers, and behind text."""
    for header, before in (("date,v", ""), ("v2,date,v", "7,"), ("row,date,v", "x,")):
        yield header + "\n" + "".join(f'{before}"{date}",{k}\n' for k, date in enumerate(dates))


@pytest.mark.parametrize(
    "dates",
    [
        *(["1/2/24", "1/3/24"], ["2024/1/5", "2024/1/6"], ["05/2024", "06/2024"], ["01/02/2024", "2024-02-02"]),
        *(["20240101T060000", "20240101T070000"], ["2024-W05", "2024-W06"], ["2024-060", "2024-061"]),
        *(
            ["5 Jan 2024", "6 Jan 2024"],
            ["January 5, 2024", "January 6, 2024"],
            ["Jan-24", "Feb-24"],
            ["06:00", "07:00"],
        ),
        *(["202402", "202403"], ["20240101", "20240102"], ["1700000000", "1700000060"], ["1700000000000"] * 2),
        *(["2024Q3", "2024Q4"], ["Q3 2024", "Q4 2024"], ["3Q24", "4Q24"], ["2024-H1", "2024-H2"]),
        *(["Monday, 1 January 2024", "Tuesday, 2 January 2024"], ["1st January 2024", "2nd January 2024"]),
        *(["20240101 10:00", "20240101 11:00"], ["2024\u5e741\u67081\u65e5", "2024\u5e741\u67082\u65e5"]),
        ["2024-01-01T00:00:00.000000001", "2024-01-01T00:00:01.000000001"],
    ],
)
def test_dates_in_another_notation_are_refused(write, dates):
    """They were taken as labels of equal steps: the newest first was trained with time reversed, gaps were not seen."""
    for text in dated(dates):
        with pytest.raises(
            ValueError, match="looks like a date but is not in ISO 8601; say its format with --date-for"
        ) as e:
            read_csv(write(text), "v")
        assert f"line 2, column date holds {dates[0]!r}" in str(e.value)


def test_labels_are_no_dates(write):
    labels = ["x1", "summer", "marble 3", "A-12-3", "1.5 kg", "10-20 people", "30 may come", "10.0.0.1"]
    text = "name,v\n" + "".join(f"{label},{k}\n" for k, label in enumerate(labels))
    assert read_csv(write(text)).labels == labels


@pytest.mark.parametrize(
    ("dates", "form", "labels", "step"),
    [
        (["30/12/2023", "31/12/2023", "01/01/2024"], "%d/%m/%Y", ["2023-12-30", "2023-12-31", "2024-01-01"], "day"),
        (["01/02/2024", "02/02/2024", "03/02/2024"], "%d/%m/%Y", ["2024-02-01", "2024-02-02", "2024-02-03"], "day"),
        (["01/02/2024", "02/02/2024", "03/02/2024"], "%m/%d/%Y", ["2024-01-02", "2024-02-02", "2024-03-02"], "month"),
        (["31/12/2024 9:00", "31/12/2024 10:00"], "%d/%m/%Y %H:%M", ["2024-12-31T09:00", "2024-12-31T10:00"], "hour"),
        (["20240228", "20240229", "20240301"], "%Y%m%d", ["2024-02-28", "2024-02-29", "2024-03-01"], "day"),
        (["Jan 2024", "Feb 2024"], "%b %Y", ["2024-01-01", "2024-02-01"], "month"),
        (
            ["1.1.2024 1:00 +0200", "1.1.2024 1:00 +0100"],
            "%d.%m.%Y %H:%M %z",
            ["2023-12-31T23:00", "2024-01-01T00:00"],
            "hour",
        ),
        (["2024-01-01T01:00+02:00", "2024-01-01T02:00+0200"], None, ["2023-12-31T23:00", "2024-01-01T00:00"], "hour"),
        (
            ["2024-10-27T02:00+02:00", "2024-10-27T02:00+01:00", "2024-10-27T03:00+01:00"],  # the clocks go back
            None,
            ["2024-10-27T00:00", "2024-10-27T01:00", "2024-10-27T02:00"],
            "hour",
        ),
        (["2024-03-31T00:00Z", "2024-03-31T02:00+01:00"], None, ["2024-03-31T00:00", "2024-03-31T01:00"], "hour"),
    ],
)
def test_formats_and_zones_of_dates(write, dates, form, labels, step):
    for text in dated(dates):
        series = read_csv(write(text), "v", date_format=form)
        assert (series.labels, series.step) == (labels, step)


BAD = ("2024-02-31", "Feb 3", "2024-02-03 noon", "5")


@pytest.mark.parametrize(
    ("dates", "form", "words"),
    [
        (
            ["30/02/2024", "01/03/2024", "02/03/2024"],
            "%d/%m/%Y",
            "line 2: '30/02/2024' is not a date of the format '%d/%m/%Y'",
        ),
        (["01/02/2024", "2024-02-02"], "%Y-%m", "no column holds dates of the format '%Y-%m'"),
        (["31.01.2024", "30.01.2024"], "%d.%m.%Y", "line 3 is 2024-01-30, expected a date after 2024-01-31"),
        *((["2024-02-01", "2024-02-02", bad], None, f"line 4: {bad!r} is not a date like the others") for bad in BAD),
        (["2024-02-01", "", "2024-02-04"], None, "line 3: the date is missing, expected one as in the other rows"),
        (["2024-01-01T00:00+02:00", "2024-01-01T01:00+02:00", "2024-01-01T02:00"], None, "line 4: .* has no zone"),
        (["2024-02-31T00:00+02:00", "2024-03-01T01:00+02:00"], None, "line 2: .* is not a date like the others"),
    ],
)
def test_dates_that_are_refused(write, dates, form, words):
    with pytest.raises(ValueError, match=words):
        read_csv(write("date,v\n" + "".join(f"{date},{k}\n" for k, date in enumerate(dates))), date_format=form)


def test_decimal_commas_are_declared(write):
    for path in (write("date\tv\n2001\t3,14\n2002\t2\n"), write('date,v\n2001,"3,14"\n2002,2\n')):
        np.testing.assert_array_equal(read_csv(path, decimal=",").values, [3.14, 2])
        with pytest.raises(ValueError, match=r"line 2, column v holds '3,14', .*say so with --decimal , \(decimal='"):
            read_csv(path)
    path = write("date;v\n2001;3,14\n2002;.5\n")
    with pytest.raises(ValueError, match=r"line 3, column v holds '\.5', .* the decimal sign is a comma, as was said"):
        read_csv(path, decimal=",")
    with pytest.raises(ValueError, match=r"line 2, column v holds '3,14', .*say so with --decimal"):
        read_csv(path, decimal=".")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252"])
def test_encodings_are_declared(write, encoding):
    path = write("date,gr\u00f6\u00dfe\n2001,1\n2002,2\n", encoding)
    s = read_csv(path, encoding=encoding)
    assert (s.name, list(s.values), s.labels) == ("gr\u00f6\u00dfe", [1, 2], ["2001", "2002"])
    with pytest.raises(
        ValueError, match=r"not UTF-8 text \(.*\); if it is in utf-16 or latin-1 or cp1252, say so with"
    ):
        read_csv(path)


def test_what_no_dialect_is(write):
    path = write("date,v\n2001,1\n2002,2\n")
    with pytest.raises(ValueError, match=r"not UTF-16 text"):
        read_csv(path, encoding="utf-16")
    with pytest.raises(ValueError, match="encoding is 'hex', expected one of utf-8, utf-16, latin-1, cp1252"):
        read_csv(path, encoding="hex")
    with pytest.raises(ValueError, match="decimal is ';', expected"):
        read_csv(path, decimal=";")
    with pytest.raises(ValueError, match=r"date_format is 'day', expected a format such as '%d/%m/%Y'"):
        read_csv(path, date_format="day")


def test_numbers_are_no_dates(write):
    for cells in (
        ["1.5", "2.25"],
        ["20240101", "20240102"],
        ["1700000000", "1700000060"],
        ["-3", "1e5"],
        ["1.2345", "3.2024"],
    ):
        np.testing.assert_array_equal(read_csv(write("v\n" + "\n".join(cells))).values, [float(c) for c in cells])


def test_a_gap_beyond_all_measure_is_refused(write):
    seconds = np.array([*range(10), *range(20_000_000, 20_000_010)], "timedelta64[s]")
    dates = np.datetime64("2001-01-01T00:00:00") + seconds
    path = write("time,v\n" + "".join(f"{d},{k}\n" for k, d in enumerate(dates)))
    with pytest.raises(ValueError, match=r"line 12: 19999990 rows are missing between .* split the series there"):
        read_csv(path)


def test_more_columns_than_a_table_has(write):
    path = write(",".join(f"c{k}" for k in range(20_000)) + "\n")
    with pytest.raises(ValueError, match="the header has 20000 columns, expected at most 10000"):
        read_csv(path)
    path = write(",".join(f"c{k}" for k in range(9_000)) + "\n" + 2 * (",".join(["1"] * 9_000) + "\n"))
    with pytest.raises(ValueError, match=r"choose one of c0, .*, c15 and 8984 more with --column"):
        read_csv(path)


def test_a_pipe_can_be_read(write):
    """It cannot be read twice, nor from its beginning: `xlstm train <(command)` in a shell."""
    source, drain = os.pipe()
    os.write(drain, b"date,v\n2001,1\n\n2002,2\n2004,x\n")
    os.close(drain)
    with pytest.raises(ValueError, match=r"line 5, column v holds 'x'"):
        read_csv(f"/dev/fd/{source}")
    os.close(source)


def test_the_usual_column(write):
    path = write("date,a,b\n2001,1,5\n2002,2,6\n")
    assert read_csv(path, usual="b").name == "b"
    assert read_csv(path, "a", usual="b").name == "a"
    with pytest.raises(ValueError, match="choose one of a, b"):
        read_csv(path, usual="c")


def test_every_step_windows_put_time_first():
    x, target = np.zeros((5, 4, 2)), np.arange(20.0).reshape(5, 4, 1)
    (batch,) = Windows(x, target, target[..., 0] > 3, batch_size=8, every_step=True).batches()
    assert batch.x.shape == (4, 5, 2)
    np.testing.assert_array_equal(batch.target[:, :, 0], np.arange(20.0).reshape(5, 4).T)
    np.testing.assert_array_equal(batch.mask, batch.target[:, :, 0] > 3)
    with pytest.raises(ValueError, match=r"expected \(N, T, D\) and \(N, T, \.\.\.\)"):
        Windows(x, np.zeros((5, 3, 1)), every_step=True)
    with pytest.raises(ValueError, match="mask has shape"):
        Windows(x, target, np.ones(4, bool))
    with pytest.raises(TypeError, match="target is '123', expected an array of real numbers"):
        Windows(x, "123")


def test_scaler_refuses_nonsense():
    for mean, std in ((0.0, 0.0), (np.nan, 1.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="must be finite"):
            Scaler(mean, std)
    with pytest.raises(ValueError, match="must be finite"):
        Scaler.fit(np.array([1e300, -1e300]))


def test_dates_behind_an_index_column(write):
    s = read_csv(write(",date,v\n0,2001-01-01,5\n1,2001-01-02,6\n2,2001-01-03,8\n"), "v")
    assert (s.unit, s.after(1)) == ("D", ["2001-01-04"])


def test_midnights_are_days(write):
    s = read_csv(write("date,v\n2001-01-01 00:00:00,5\n2001-02-01 00:00:00,6\n2001-03-01 00:00:00,8\n"))
    assert (s.unit, s.after(1)) == ("M", ["2001-04-01"])


def test_a_single_column_of_any_name(write):
    np.testing.assert_array_equal(read_csv(write("index\n1\n2\n")).values, [1, 2])


def test_a_file_without_a_header_is_refused(write):
    with pytest.raises(ValueError, match="line 1 holds data, expected a header"):
        read_csv(write("2001-01,1\n2001-02,2\n2001-03,3\n"))


def test_a_single_dated_value_has_no_rhythm(write):
    s = read_csv(write("date,v\n2001,1\n2002,\n"))
    assert (s.unit, s.labels, s.after(1)) == (None, ["2001"], ["+1"])


def test_windows_and_streams_of_tokens():
    tokens = np.arange(10)
    (batch,) = Windows(tokens.reshape(5, 2), tokens.reshape(5, 2), batch_size=8, every_step=True).batches()
    np.testing.assert_array_equal(batch.x, tokens.reshape(5, 2).T)
    first, second = Streams(tokens, tokens, 2, 2).batches()
    np.testing.assert_array_equal(first.x, [[0, 5], [1, 6]])
    np.testing.assert_array_equal(second.target, [[2, 7], [3, 8]])
    with pytest.raises(
        ValueError, match=r"Windows: x has shape \(5, 2\) .* x may also be tokens, whole numbers \(N, T\)"
    ):
        Windows(np.ones((5, 2)), np.ones((5, 2)), every_step=True)
    with pytest.raises(ValueError, match=r"Streams: x has shape \(10,\) .* tokens, whole numbers \(N,\)"):
        Streams(np.ones(10), np.ones(10), 2, 2)


def test_lines_are_counted_from_the_beginning_of_the_file(tmp_path):
    """Rows without a value at the beginning are dropped, and errors name the line all the same."""
    (tmp_path / "s.csv").write_text("day,v\n2001-01-01,\n2001-01-02,1\n2001-01-03,2\n2001-01-02,3\n")
    with pytest.raises(ValueError, match=r"s\.csv: line 5"):
        read_csv(tmp_path / "s.csv")
