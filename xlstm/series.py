"""A time series from a CSV file: one column of numbers, dated where the file has dates, gaps allowed."""

from __future__ import annotations

import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.data import Values

Dates = np.ndarray[Any, np.dtype[np.datetime64]]

DATASETS = ("sunspots", "co2")
STEP_NAMES = {
    ("Y", 1): "year",
    ("M", 1): "month",
    ("D", 7): "week",
    ("D", 1): "day",
    ("B", 1): "business day",
    ("h", 1): "hour",
    ("m", 60): "hour",
}
# 1958, 1958-03, 1958-03-29, 1958-03-29T06, 1958-03-29 06:00, 1958-03-29T06:00:00.5Z
ISO_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?)?)?Z?")
DATE_HEADERS = {"", "date", "datetime", "time", "timestamp", "year", "month", "week", "day", "hour", "ds", "index"}


@dataclass(frozen=True)
class Series:
    """Values at equal steps of time.

    Attributes
    ----------
    name : str
        The column's name.
    values : float64 array (N,)
        NaN where there is a gap.
    labels : list of str
        The date of each row, or its number where the file has no dates.
    unit : str or None
        Unit of the calendar, a NumPy datetime code such as "M" or "D", or "B" for business days; None
        without dates.
    every : int
        Units from one row to the next.
    note : str
        What was done to the rows, for people; empty if nothing.
    """

    name: str
    values: Values
    labels: list[str]
    unit: str | None = None
    every: int = 1
    note: str = ""

    @property
    def step(self) -> str:
        """What one row is in time, "month" for example; "step" where that has no name."""
        return STEP_NAMES.get((self.unit or "", self.every), "step")

    @property
    def gaps(self) -> int:
        """Rows without a value."""
        return int(np.count_nonzero(np.isnan(self.values)))

    def after(self, steps: int) -> list[str]:
        """Labels of the `steps` rows that would come after the last one."""
        if self.unit is None:
            return [f"+{k}" for k in range(1, steps + 1)]
        ahead = self.every * np.arange(1, steps + 1)
        if self.unit == "B":
            return [str(date) for date in np.busday_offset(np.datetime64(self.labels[-1], "D"), ahead)]
        return [str(date) for date in np.array(self.labels[-1], dtype=f"datetime64[{self.unit}]") + ahead]


def bundled(name: str) -> Path:
    """Path of a CSV file that comes with the package: "sunspots" (monthly, 1749-1983) or "co2" (weekly, 1958-2001)."""
    if name not in DATASETS:
        raise ValueError(f"dataset: {name!r} is unknown, expected one of {', '.join(DATASETS)}")
    return Path(__file__).parent / "datasets" / f"{name}.csv"


def read_csv(path: str | os.PathLike[str], column: str | None = None, usual: str | None = None) -> Series:
    """Read one column of a CSV file as a series.

    The file has a header line and commas, semicolons (then a decimal comma is understood), tabs or
    bars between cells. If a column holds dates (ISO 8601 in UTC or without a zone: 1958, 1958-03,
    1958-03-29, 1958-03-29T06:00), or the first ones are year and month, they must rise, and rows
    missing from their rhythm become gaps, weekends excepted where no row falls on one. An empty cell
    is a gap; gaps at the beginning and the end are dropped.

    Parameters
    ----------
    path : path
    column : str, optional
        Name of the column; not needed if only one holds numbers.
    usual : str, optional
        Taken if no column is named, several hold numbers, and this is one of them.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is empty or malformed, the column is unknown or could be several, a cell is not a
        finite number, or dates do not rise. Names file, row and column.
    """
    path = Path(path)
    header, rows, decimal = _read(path)
    date = _date_column(header, rows)
    index = _column(path, header, rows, column, usual, date)
    name = header[index]
    values = np.array([_number(path, line, name, row[index], decimal) for line, row in rows], dtype=np.float64)
    there = np.flatnonzero(~np.isnan(values))
    if there.size == 0:
        raise ValueError(f"{path}: column {name} has no numbers")
    rows, values = rows[there[0] : there[-1] + 1], values[there[0] : there[-1] + 1]
    if date is None or index == date:
        return Series(name, values, [str(k + 1) for k in range(len(rows))])
    cells = [(line, row[date]) for line, row in rows]
    dates = _dates(path, cells)
    if dates is not None:
        return _on_calendar(name, values, *_calendar(dates))
    labels = [cell for _, cell in cells]
    note = "" if any(label.isdigit() for label in labels) else "no ISO 8601 dates, rows taken as equal steps"
    return Series(name, values, labels, note=note)


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """Header, rows with their line numbers, and the decimal sign."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t|", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from error
    if not lines:
        raise ValueError(f"{path}: the file is empty, expected a header line and rows")
    (_, header), *rows = lines
    if all(_is_number(cell) or ISO_DATE.fullmatch(cell) for cell in header):
        raise ValueError(f"{path}: line 1 holds data, expected a header with the names of the columns")
    if [name.lower() for name in header[:2]] == ["year", "month"]:
        header, rows = _join_months(header, rows)
    if len(rows) < 2:
        raise ValueError(f"{path}: {len(rows)} rows under the header, expected a series")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}: line {line} has {len(row)} cells, expected {len(header)} as in the header")
    return header, rows, "," if delimiter == ";" else "."


def _date_column(header: list[str], rows: list[tuple[int, list[str]]]) -> int | None:
    """The first column that is mostly ISO dates, else the first one if it is no column of numbers."""
    for k in range(len(header)):
        dates = [row[k] for _, row in rows if ISO_DATE.fullmatch(row[k]) and (k == 0 or "-" in row[k])]
        if 2 * len(dates) > len(rows) and (header[k].lower() in DATE_HEADERS or "-" in dates[0]):
            return k
    if len(header) > 1 and (header[0].lower() in DATE_HEADERS or not any(_is_number(row[0]) for _, row in rows)):
        return 0
    return None


def _column(
    path: Path,
    header: list[str],
    rows: list[tuple[int, list[str]]],
    column: str | None,
    usual: str | None,
    date: int | None,
) -> int:
    if column is not None:
        if header.count(column) != 1:
            problem = "is not in" if column not in header else "is more than once in"
            raise ValueError(f"{path}: column {column!r} {problem} the header, which has {', '.join(header)}")
        return header.index(column)
    numeric = [k for k in range(len(header)) if k != date and any(_is_number(row[k]) for _, row in rows)]
    if not numeric:
        raise ValueError(f"{path}: no column holds numbers; the header has {', '.join(header)}")
    if len(numeric) > 1:
        names = [header[k] for k in numeric]
        if usual is not None and names.count(usual) == 1:
            return header.index(usual)
        raise ValueError(f"{path}: several columns hold numbers, choose one of {', '.join(names)} with --column")
    return numeric[0]


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, name: str, cell: str, decimal: str) -> float:
    if cell == "":
        return np.nan
    try:
        value = float(cell.replace(decimal, "."))
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(
            f"{path}: line {line}, column {name} holds {cell!r}, expected a finite number or nothing for a gap"
        )
    return value


def _join_months(header: list[str], rows: list[tuple[int, list[str]]]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Columns "year" and "month", and "day" after them, as one column of dates."""
    n = 3 if header[2:3] and header[2].lower() == "day" else 2
    joined = [(line, ["-".join(cell.zfill(2) for cell in row[:n]), *row[n:]]) for line, row in rows]
    return ["date", *header[n:]], joined


def _dates(path: Path, cells: list[tuple[int, str]]) -> Dates | None:
    """Rising dates from cells with their line numbers; None where they are no ISO dates."""
    strange = [cell for _, cell in cells if not ISO_DATE.fullmatch(cell)]
    if len(strange) == len(cells) or (strange and all(cell.isdigit() for cell in strange)):
        return None  # or an index that has just reached four digits
    for line, cell in cells:
        if not _is_date(cell):
            raise ValueError(f"{path}: line {line}: {cell!r} is not a date like the others")
    dates = np.array([cell.rstrip("Z") for _, cell in cells], dtype="datetime64")
    fall = np.flatnonzero(np.diff(dates.astype("int64")) <= 0)
    if fall.size:
        (_, before), (line, cell) = cells[int(fall[0])], cells[int(fall[0]) + 1]
        raise ValueError(f"{path}: line {line}: date {cell} does not come after {before}")
    days = dates.astype("datetime64[D]")
    return days if np.all(days == dates) and dates.dtype > days.dtype else dates


def _is_date(cell: str) -> bool:
    try:
        np.datetime64(cell.rstrip("Z"))
    except ValueError:  # 2024-02-31
        return False
    return ISO_DATE.fullmatch(cell) is not None


def _calendar(dates: Dates) -> tuple[Dates, str]:
    """Dates in the coarsest unit that has a rhythm: first or last days of months differ in days, not in months."""
    unit = str(np.datetime_data(dates.dtype)[0])
    if unit != "D":
        return dates, unit
    for coarse in ("Y", "M"):
        for shift in (0, 1):
            moved = dates + shift  # the day after the last day of a month is a first day
            coarser = dates.astype(f"datetime64[{coarse}]")
            offsets = moved - moved.astype(f"datetime64[{coarse}]").astype(dates.dtype)
            if np.unique(offsets).size == 1 and np.unique(coarser).size == dates.size:
                return coarser, coarse
    spans_weekends = dates.size >= 10 and np.min(np.diff(dates.astype("int64"))) == 1
    return dates, "B" if spans_weekends and np.all(np.is_busday(dates)) else "D"


def _on_calendar(name: str, values: Values, dates: Dates, unit: str) -> Series:
    """Rows at equal steps, with gaps where a row is missing from the rhythm of the others."""
    ticks = np.busday_count(dates[0], dates) if unit == "B" else (dates - dates[0]).astype("int64")
    every = int(np.gcd.reduce(np.diff(ticks)))
    place = ticks // every
    if np.mean(np.diff(place) == 1) < 0.5 or place[-1] > 100 * len(values):
        note = "dates have no common rhythm, rows taken as equal steps"
        return Series(name, values, [str(date) for date in dates], note=note)
    full = np.full(place[-1] + 1, np.nan)
    full[place] = values
    steps = every * np.arange(len(full))
    labels = [str(date) for date in (np.busday_offset(dates[0], steps) if unit == "B" else dates[0] + steps)]
    missing = len(full) - len(values)
    return Series(name, full, labels, unit, every, f"{missing} rows missing from the file" if missing else "")
