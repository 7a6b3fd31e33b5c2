"""CSV files of every kind that people have, and the parts, scales and windows of a series."""

import os
import sys

import numpy as np
import pytest

from xlstm.data import Split, carry_forward, split
from xlstm.data.series import bundled, read_csv


@pytest.fixture
def read(tmp_path):
    """Write a text to a file and read it as a series."""

    def read(text, column=None, **options):
        path = tmp_path / "data.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_csv(path, column, **options)

    return read


def rows(labels, header="date,v"):
    """A file with a label and a number in each row."""
    return f"{header}\n" + "".join(f"{label},{k}\n" for k, label in enumerate(labels))


def test_bundled_series():
    s = read_csv(bundled("sunspots"))
    assert (s.name, len(s.values), s.gaps, s.step) == ("sunspots", 2820, 0, "month")
    assert (s.values[0], s.values[-1], s.labels[0], s.labels[-1]) == (
        58.0,
        33.4,
        "1749-01",
        "1983-12",
    )
    assert s.after(2) == ["1984-01", "1984-02"]
    s = read_csv(bundled("co2"))
    assert (s.name, len(s.values), s.gaps, s.step) == ("co2_ppm", 2284, 59, "week")
    assert s.after(1) == ["2002-01-05"]


@pytest.mark.parametrize(
    ("dates", "step", "after"),
    [
        (["2001", "2002", "2003"], "year", "2004"),
        (["2001-11", "2001-12", "2002-01"], "month", "2002-02"),
        (["2001-02-15", "2001-05-15", "2001-08-15"], "quarter", "2001-11-15"),
        (["2001-01-01", "2001-01-16", "2001-02-01", "2001-02-16"], "half month", "2001-03-01"),
        (["2001-03-29T06:00", "2001-03-30T06:00", "2001-03-31T06:00"], "day", "2001-04-01T06:00"),
        (["2001-03-29T06:00", "2001-03-29T12:00", "2001-03-29T18:00"], "step", "2001-03-30T00:00"),
        (
            ["2001-01-01 00:00:00", "2001-02-01 00:00:00", "2001-03-01 00:00:00"],
            "month",
            "2001-04-01",
        ),
        (["2024-03-31T00:00Z", "2024-03-31T02:00+01:00"], "hour", "2024-03-31T02:00:00+00:00"),
    ],
)
def test_calendars(read, dates, step, after):
    s = read(rows(dates))
    assert (s.step, s.after(1)) == (step, [after])


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (["2001"], "a single date"),
        (["998", "999", "1000"], ""),
        (["x", "y", "z"], "no ISO 8601 dates"),
    ],
)
def test_labels_that_are_no_calendar(read, labels, note):
    s = read(rows(labels) + ("2002,\n" if len(labels) == 1 else ""))
    assert (s.calendar, s.labels, s.after(1), s.note.partition(",")[0]) == (
        None,
        labels,
        ["+1"],
        note,
    )
    assert s.values.tolist() == [*range(len(labels))]


def test_missing_rows_and_empty_cells_are_gaps(read):
    s = read(
        "day,v\n2001-01-01,\n2001-01-02,1\n2001-01-03,\n2001-01-04,3\n2001-01-07,4\n2001-01-08,\n"
    )
    np.testing.assert_array_equal(s.values, [1, np.nan, 3, np.nan, np.nan, 4])
    assert s.labels == [f"2001-01-0{k}" for k in range(2, 8)]
    assert (s.note, s.after(1)) == ("2 rows missing from the file", ["2001-01-08"])
    days = np.busday_offset("2024-01-01", np.arange(15))
    s = read(rows(np.delete(days, 7)))  # weekends are none
    assert (s.step, s.gaps, s.labels) == ("business day", 1, [*map(str, days)])
    assert s.after(2) == ["2024-01-22", "2024-01-23"]


def test_columns(read):
    text = 'when,name,"a, b",c\nx1,p,1,5\nx2,q,2,6\nx3,r,3,7\n'
    np.testing.assert_array_equal(read(text, "c").values, [5, 6, 7])
    np.testing.assert_array_equal(read(text, "a, b").values, [1, 2, 3])
    assert read(text, "c").labels == ["x1", "x2", "x3"]
    assert read(text, usual="c").name == "c"
    for usual in (None, "d"):
        with pytest.raises(
            ValueError, match="several columns hold numbers, choose one of a, b, c with --column"
        ):
            read(text, usual=usual)
    s = read(",date,v\n0,2001-01-01,5\n1,2001-01-02,6\n2,2001-01-03,8\n", "v")
    assert (s.step, s.after(1)) == ("day", ["2001-01-04"])
    born = "born,date,v\n1.2.1990,2001-01-01,5\n3.4.1980,2001-01-02,6\n"
    assert read(born, "v").labels == ["2001-01-01", "2001-01-02"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("v\n1.5\n2\n", ["1", "2"]),
        ("index\n1.5\n2\n", ["1", "2"]),
        ("\ufeffdate;v\r\n2001;1.5\r\n2002;2\r\n", ["2001", "2002"]),
        ("date\tv\n2001\t1.5\n2002\t2\n", ["2001", "2002"]),
    ],
)
def test_dialects(read, text, labels):
    s = read(text)
    assert (s.values.tolist(), s.labels) == ([1.5, 2], labels)


def test_numbers_and_labels_are_no_dates(read):
    for cells in (
        ["1.5", "2.25"],
        ["20240101", "20240102"],
        ["1700000000", "1700000060"],
        ["-3", "1e5"],
        ["3.2024"] * 2,
    ):
        np.testing.assert_array_equal(
            read("v\n" + "\n".join(cells)).values, [float(c) for c in cells]
        )
    labels = [
        "x1",
        "summer",
        "marble 3",
        "A-12-3",
        "1.5 kg",
        "10-20 people",
        "30 may come",
        "10.0.0.1",
    ]
    assert read(rows(labels, "name,v")).labels == labels


def dated(dates):
    """Files with dates first, behind numbers, and behind text."""
    for header, before in (("date,v", ""), ("v2,date,v", "7,"), ("row,date,v", "x,")):
        yield rows([f'{before}"{date}"' for date in dates], header)


@pytest.mark.parametrize(
    ("dates", "form", "labels", "step"),
    [
        (
            ["30/12/2023", "31/12/2023", "01/01/2024"],
            "%d/%m/%Y",
            ["2023-12-30", "2023-12-31", "2024-01-01"],
            "day",
        ),
        (
            ["01/02/2024", "02/02/2024", "03/02/2024"],
            "%m/%d/%Y",
            ["2024-01-02", "2024-02-02", "2024-03-02"],
            "month",
        ),
        (
            ["31/12/2024 9:00", "31/12/2024 10:00"],
            "%d/%m/%Y %H:%M",
            ["2024-12-31T09:00", "2024-12-31T10:00"],
            "hour",
        ),
        (
            ["1.1.2024 1 +0200", "1.1.2024 1 +0100"],
            "%d.%m.%Y %H %z",
            ["2023-12-31T23:00", "2024-01-01T00:00"],
            "hour",
        ),
        (
            ["2024-01-01T01:00+02:00", "2024-01-01T02:00+0200"],
            None,
            ["2023-12-31T23:00", "2024-01-01T00:00"],
            "hour",
        ),
        (
            ["2024-03-31T00:00Z", "2024-03-31T02:00+01:00"],
            None,
            ["2024-03-31T00:00", "2024-03-31T01:00"],
            "hour",
        ),
    ],
)
def test_formats_and_zones_of_dates(read, dates, form, labels, step):
    for text in dated(dates):
        series = read(text, "v", date_format=form)
        assert (series.labels, series.step) == (labels, step)


TWO_ZONES = "2024-01-01T00:00+02:00", "2024-01-01T01:00+02:00"


@pytest.mark.parametrize(
    ("dates", "form", "words"),
    [
        (
            ["30/02/2024", "01/03/2024", "02/03/2024"],
            "%d/%m/%Y",
            "no column holds dates of the format '%d/%m/%Y'",
        ),
        (
            ["31.01.2024", "30.01.2024"],
            "%d.%m.%Y",
            "line 3 is 2024-01-30, expected a date after 2024-01-31",
        ),
        (["31.01.2024", "01.02.2024"], None, "line 2: '31.01.2024' is not a date .*date_format="),
        (["2001-02", "2001-02"], None, "line 3 is 2001-02, expected a date after"),
        *(
            (
                ["2024-02-01", "2024-02-02", bad],
                None,
                f"line 4: {bad!r} is not a date like the others",
            )
            for bad in ("2024-02-31", "Feb 3", "2024-02-03 noon", "5")
        ),
        (["2024-02-01", "", "2024-02-04"], None, "line 3: '' is not a date like the others"),
        ([*TWO_ZONES, "2024-01-01T02:00"], None, "line 4: .* is not a date like the others"),
        (
            ["2024-02-31T00:00+02:00", TWO_ZONES[1]],
            None,
            "line 2: .* is not a date like the others",
        ),
    ],
)
def test_dates_that_are_refused(read, dates, form, words):
    with pytest.raises(ValueError, match=words):
        read(rows(dates), date_format=form)


GERMAN = "date,gr\u00f6\u00dfe\n2001,1\n2002,2\n"
SECONDS = np.datetime64("2001-01-01T00:00:00") + np.array(
    [*range(10), *range(20_000_000, 20_000_010)]
)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("date,v\n2001,1\n2002\n", {}, "line 3 has 1 cells, expected 2"),
        *(
            (f"date,v\n2001,1\n2002,{bad}\n", {}, f"line 3, column v holds '{bad}'")
            for bad in ("nan", "inf", "high")
        ),
        ("2001-01,1\n2001-02,2\n2001-03,3\n", {}, "line 1 holds data, expected a header"),
        # rows without a value at the beginning are dropped, and lines are counted all the same
        ("day,v\n2001-01-01,\n2001-01-02,1\n2001-01-03,2\n2001-01-02,3\n", {}, "line 5"),
        (
            "date,v,v\n2001,1,2\n2002,2,3\n",
            {"column": "v"},
            "column 'v' is more than once in the header",
        ),
        (rows(SECONDS), {}, "line 12: 19999990 rows are missing between .* split the series there"),
        (
            rows([1]).encode("latin-1") + b"\xff",
            {},
            r"not UTF-8 text \(.*; if it is in utf-16 or latin-1 or cp1252, say",
        ),
        (
            "date\tv\n2001\t3,14\n2002\t2\n",
            {},
            r"line 2, column v holds '3,14', .*--decimal , \(decimal='",
        ),
        ("date;v\n2001;3,14\n2002;.5\n", {"decimal": ","}, r"line 3, column v holds '\.5'"),
    ],
)
def test_bad_files_are_named(read, text, options, words):
    with pytest.raises(ValueError, match=f"data.csv: .*{words}"):
        read(text, **options)


def test_decimal_commas_and_encodings_are_declared(read):
    for text in ("date\tv\n2001\t3,14\n2002\t2\n", 'date,v\n2001,"3,14"\n2002,2\n'):
        np.testing.assert_array_equal(read(text, decimal=",").values, [3.14, 2])
    for encoding in ("utf-16", "latin-1", "cp1252"):
        s = read(GERMAN.encode(encoding), encoding=encoding)
        assert (s.name, list(s.values), s.labels) == ("gr\u00f6\u00dfe", [1, 2], ["2001", "2002"])


def test_a_pipe_is_read():
    """It cannot be read twice, nor from its beginning: `xlstm train <(command)` in a shell."""
    source, drain = os.pipe()
    os.write(drain, b"date,v\n2001,1\n\n2002,2\n2004,x\n")
    os.close(drain)
    with pytest.raises(ValueError, match=r"line 5, column v holds 'x'"):
        read_csv(f"/dev/fd/{source}")
    os.close(source)


def test_carry_forward_uses_only_the_past():
    values = np.array([[np.nan, 1], [2, np.nan], [np.nan, np.nan], [4, 4]])
    np.testing.assert_array_equal(carry_forward(values), [[np.nan, 1], [2, 1], [2, 1], [4, 4]])
    np.testing.assert_array_equal(carry_forward(values[:, 0]), [np.nan, 2, 2, 4])
    assert np.isnan(values[2, 0])


def test_split_is_by_time():
    assert split(100, 0.1, 0.2) == Split(slice(0, 70), slice(70, 80), slice(80, 100))


def test_dates_need_pandas_and_other_rows_do_not(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert read("x,v\na,1\nb,2\n").values.tolist() == [1, 2]
    with pytest.raises(ImportError, match=r"data.csv: line 2: dates need pandas.*xlstm-xp\[tables"):
        read(rows(["2001-01", "2001-02"]))
