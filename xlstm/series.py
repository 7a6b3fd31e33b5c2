"""A time series from a CSV file: one column of numbers, dated where the file has dates, gaps allowed."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.data import Values

DATASETS = ("sunspots", "co2")
STEP_NAMES = {("Y", 1): "year", ("M", 1): "month", ("D", 7): "week", ("D", 1): "day", ("h", 1): "hour"}
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
        Unit of the calendar, a NumPy datetime code such as "M" or "D"; None without dates.
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
        last = np.array(self.labels[-1], dtype=f"datetime64[{self.unit}]")
        return [str(date) for date in last + self.every * np.arange(1, steps + 1)]


def bundled(name: str) -> Path:
    """Path of a CSV file that comes with the package: "sunspots" (monthly, 1749-1983) or "co2" (weekly, 1958-2001)."""
    if name not in DATASETS:
        raise ValueError(f"dataset: {name!r} is unknown, expected one of {', '.join(DATASETS)}")
    return Path(str(resources.files("xlstm") / "datasets" / f"{name}.csv"))


def read_csv(path: str | os.PathLike[str], column: str | None = None, usual: str | None = None) -> Series:
    """Read one column of a CSV file as a series.

    The file has a header line. If its first column holds dates (ISO 8601: 1958, 1958-03, 1958-03-29,
    1958-03-29T06:00) they must rise, and rows missing from their rhythm become gaps. An empty cell
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
    header, rows = _read(path)
    dated = _has_dates(header, rows)
    index = _column(path, header, rows, column, usual, dated)
    values = np.array([_number(path, line, header[index], row[index]) for line, row in rows], dtype=np.float64)
    there = np.flatnonzero(~np.isnan(values))
    if there.size == 0:
        raise ValueError(f"{path}: column {header[index]} has no numbers")
    rows, values = rows[there[0] : there[-1] + 1], values[there[0] : there[-1] + 1]
    if dated and index != 0:
        calendar = _calendar(path, rows)
        if calendar is not None:
            return _on_calendar(header[index], values, *calendar)
    labels = [row[0] if dated and index != 0 else str(k + 1) for k, (_, row) in enumerate(rows)]
    return Series(header[index], values, labels)


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and rows with their line numbers."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from error
    if not lines:
        raise ValueError(f"{path}: the file is empty, expected a header line and rows")
    (_, header), *rows = lines
    if len(rows) < 2:
        raise ValueError(f"{path}: {len(rows)} rows under the header, expected a series")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}: line {line} has {len(row)} cells, expected {len(header)} as in the header")
    return header, rows


def _has_dates(header: list[str], rows: list[tuple[int, list[str]]]) -> bool:
    return header[0].lower() in DATE_HEADERS or not any(_is_number(row[0]) for _, row in rows)


def _column(
    path: Path,
    header: list[str],
    rows: list[tuple[int, list[str]]],
    column: str | None,
    usual: str | None,
    dated: bool,
) -> int:
    if column is not None:
        if header.count(column) != 1:
            problem = "is not in" if column not in header else "is more than once in"
            raise ValueError(f"{path}: column {column!r} {problem} the header, which has {', '.join(header)}")
        return header.index(column)
    numeric = [k for k in range(int(dated), len(header)) if any(_is_number(row[k]) for _, row in rows)]
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
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, name: str, cell: str) -> float:
    if cell == "":
        return np.nan
    value = float(cell) if _is_number(cell) else np.nan
    if not np.isfinite(value):
        raise ValueError(
            f"{path}: line {line}, column {name} holds {cell!r}, expected a finite number or nothing for a gap"
        )
    return value


def _calendar(path: Path, rows: list[tuple[int, list[str]]]) -> tuple[np.ndarray[Any, Any], str] | None:
    """Dates in the coarsest unit that tells the rows apart; None where the first column holds no ISO dates."""
    try:
        dates = np.array([row[0] for _, row in rows], dtype="datetime64")
    except ValueError:
        return None
    unit = np.datetime_data(dates.dtype)[0]
    fall = np.flatnonzero(np.diff(dates.astype("int64")) <= 0)
    if fall.size:
        line, row = rows[int(fall[0]) + 1]
        raise ValueError(f"{path}: line {line}: date {row[0]} does not come after {rows[int(fall[0])][1][0]}")
    for coarse in ("Y", "M"):  # months differ in days, but first days of months are one month apart
        if unit == "D" and np.unique(dates - dates.astype(f"datetime64[{coarse}]").astype(dates.dtype)).size == 1:
            coarser = dates.astype(f"datetime64[{coarse}]")
            if np.unique(coarser).size == dates.size:
                return coarser, coarse
    return dates, unit


def _on_calendar(name: str, values: Values, dates: np.ndarray[Any, Any], unit: str) -> Series:
    """Rows at equal steps, with gaps where a row is missing from the rhythm of the others."""
    ticks = dates.astype("int64")
    steps = np.diff(ticks)
    every = int(np.gcd.reduce(steps))
    place = (ticks - ticks[0]) // every
    if place[-1] + 1 > 2 * len(values):
        note = "dates have no common rhythm: rows taken as equal steps"
        return Series(name, values, [str(d) for d in dates], note=note)
    full = np.full(place[-1] + 1, np.nan)
    full[place] = values
    labels = [str(date) for date in dates[0] + every * np.arange(len(full))]
    missing = len(full) - len(values)
    return Series(name, full, labels, unit, every, f"{missing} missing rows taken as gaps" if missing else "")
