"""A time series from a CSV file: one column of numbers, dated where the file has dates, gaps allowed."""

from __future__ import annotations

import contextlib
import math
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays.checks import few, shown
from xlstm.data import calendars, dates
from xlstm.data.dates import Calendar
from xlstm.data.host import Values
from xlstm.data.table import Dialect, Table, Text

DATASETS = ("sunspots", "co2")
STEP_NAMES = {
    **{("M", 12): "year", ("M", 1): "month", ("M", 3): "quarter", ("SM", 1): "half month", ("D", 7): "week"},
    **{("D", 1): "day", ("B", 1): "business day", ("h", 1): "hour", ("m", 60): "hour"},
}


class Labels(Sequence[str]):
    """The date or number of each row as text, made when it is read: of millions of rows few are shown.

    Parameters
    ----------
    values : array (N,)
        Dates, numbers, or text.
    """

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, k: Any) -> Any:
        return [str(value) for value in self.values[k]] if isinstance(k, slice) else str(self.values[k])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Series:
    """Values at equal steps of time.

    Attributes
    ----------
    name : str
        The column's name.
    values : float64 array (N,)
        NaN where there is a gap.
    labels : sequence of str
        The date of each row, or its number where the file has no dates.
    calendar : Calendar or None
        The steps of the dates; None without dates.
    unit : str or None
        Unit of the calendar, a NumPy datetime code such as "M" or "D", "B" for business days, or "SM" for two days of
        each month; None without dates.
    every : int
        Units from one row to the next.
    note : str
        Changes to the rows in words; empty if there are none.
    """

    name: str
    values: Values
    labels: Sequence[str]
    calendar: Calendar | None = None
    note: str = ""

    @property
    def unit(self) -> str | None:
        """The unit of the calendar; None without dates."""
        return None if self.calendar is None else self.calendar.unit

    @property
    def every(self) -> int:
        """Units from one row to the next."""
        return 1 if self.calendar is None else self.calendar.every

    @property
    def step(self) -> str:
        """The time from one row to the next, such as "month"; "step" where that has no name."""
        return STEP_NAMES.get((self.unit or "", self.every), "step")

    @property
    def gaps(self) -> int:
        """The number of rows without a value."""
        return int(np.count_nonzero(np.isnan(self.values)))

    def after(self, steps: int) -> list[str]:
        """Return the labels of the `steps` rows that would come after the last one."""
        if self.calendar is None:
            return [f"+{k}" for k in range(1, steps + 1)]
        return [*map(str, calendars.after(self.calendar._replace(zone=None), steps))]


def bundled(name: str) -> Path:
    """Return the path of a CSV file of the package.

    Parameters
    ----------
    name : {"sunspots", "co2"}
        Monthly sunspots, 1749-1983, or weekly CO2, 1958-2001.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        There is no such series.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset: {name!r} is unknown, expected one of {', '.join(DATASETS)}")
    return Path(__file__).parent / "datasets" / f"{name}.csv"


def read_csv(
    path: str | os.PathLike[str],
    column: str | None = None,
    usual: str | None = None,
    *,
    day_first: bool | None = None,
    decimal: str | None = None,
    encoding: str = "utf-8",
) -> Series:
    """Read one column of a CSV file as a series.

    The file has a header line and commas, semicolons (then a decimal comma is understood), tabs or bars between cells.
    If a column holds dates (ISO 8601: 1958, 1958-03, 1958-03-29, 1958-03-29T06:00, 1958-03-29T06:00+02:00, which is
    brought to UTC; 19580329, 1958Q1; 29/03/1958, 29.03.1958 or 03/29/1958 where the order is said or a part above 12
    shows it), or the first ones are year and month, they must rise, and rows missing from their rhythm become gaps,
    weekends excepted where no row falls on one. An empty cell is a gap; gaps at the beginning and the end are dropped.

    Parameters
    ----------
    path : path
    column : str, optional
        Name of the column; not needed if only one holds numbers.
    usual : str, optional
        Taken if no column is named, several hold numbers, and this is one of them.
    day_first : bool, optional
        Whether 01/02/2024 is the first of February; False makes it the second of January.
    decimal : {".", ","}, optional
        The decimal sign; by default a point, and a comma, too, where semicolons stand between cells.
    encoding : {"utf-8", "utf-16", "latin-1", "cp1252"}
        How letters are stored.

    Returns
    -------
    Series

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is empty or malformed, the column is unknown or could be several, a cell is not a finite number, dates
        do not rise, have two readings or are in a notation that is not read, or a gap is too long to be filled. Names
        file, row and column.
    """
    table = Table(path, Dialect(day_first, decimal, encoding))
    where = table.path
    dates.check_header(table)
    if table.rows < 2:
        raise ValueError(f"{where}: {table.rows} rows under the header, expected a series")
    date = dates.column(table)
    index = _column(table, column, usual, date)
    text = None if date is None or index == date else dates.text(table, date)
    name = table.header[index]
    return series_of(f"{where}: column {name}", name, column_numbers(table, [index])[:, 0], text, table.line)


def series_of(where: str, name: str, values: Values, dated: Text | None, line: Callable[[int], str]) -> Series:
    """Return rows as a series: gaps at the ends are dropped, and rows missing from the rhythm of dates become gaps.

    Parameters
    ----------
    where : str
        File and column, for errors.
    name : str
    values : array (N,)
        NaN where there is a gap.
    dated : array (N,) of text, or None
        Dates or labels of the rows.
    line : callable
        It names a row, for errors.

    Raises
    ------
    ValueError
        There are no numbers, dates do not rise, or a gap is too long to be filled.
    """
    there = np.flatnonzero(~np.isnan(values))
    if there.size == 0:
        raise ValueError(f"{where} has no numbers")
    first, last = int(there[0]), int(there[-1])
    values = values[first : last + 1]
    if dated is None:
        return Series(name, values, Labels(np.arange(1, len(values) + 1)))
    labels = Labels(dated[first : last + 1])

    def named(row: int) -> str:
        return line(first + row)

    found = dates.read(labels.values, named)
    if found is None:
        note = "" if any(label.isdigit() for label in labels) else "no ISO 8601 dates, rows taken as equal steps"
        return Series(name, values, labels, note=note)
    calendar = dates.calendar(found, named)
    if calendar is None:
        return Series(name, values, Labels(found), note="dates have no common rhythm, rows taken as equal steps")
    full = np.full(len(calendar.dates), np.nan)
    full[calendar.place] = values
    missing = len(full) - len(values)
    note = f"{missing} rows missing from the file" if missing else ""
    return Series(name, full, Labels(calendar.dates), calendar, note)


def _column(table: Table, column: str | None, usual: str | None, date: int | None) -> int:
    """Return the index of the column of values."""
    header = table.header
    if column is not None:
        if header.count(column) != 1:
            problem = "is not in" if column not in header else "is more than once in"
            raise ValueError(f"{table.path}: column {column!r} {problem} the header, which has {few(header)}")
        return header.index(column)
    numeric = [k for k, found in enumerate(table.numeric) if found and k != date]
    if not numeric:
        raise ValueError(f"{table.path}: no column holds numbers; the header has {few(header)}")
    if len(numeric) > 1:
        names = [header[k] for k in numeric]
        if usual is not None and names.count(usual) == 1:
            return header.index(usual)
        raise ValueError(f"{table.path}: several columns hold numbers, choose one of {few(names)} with --column")
    return numeric[0]


def column_numbers(table: Table, columns: Sequence[int]) -> Values:
    """Return the numbers of columns, (N, C), NaN for empty cells; the file is read once."""
    found, start = np.empty((table.rows, len(columns))), 0
    for block in table.blocks(*columns):
        for c, (k, cells) in enumerate(zip(columns, block, strict=True)):
            found[start : start + len(cells), c] = _floats(table, k, start, cells)
        start += len(block[0])
    return found


def _floats(table: Table, k: int, start: int, cells: list[str]) -> Values:
    """Return the numbers of some cells of a column, from row `start` on."""
    texts, found = [cell or "nan" for cell in cells], array("d")
    if table.decimal == ",":
        if table.dialect.decimal == ",":  # a point is that of thousands, or a mistake
            texts = [text.replace(".", "x") for text in texts]
        texts = [text.replace(",", ".") for text in texts]
    with contextlib.suppress(ValueError):  # the cell after the last one that is read is no number
        found.extend(map(float, texts))
    read = np.array(found)
    if len(read) < len(cells) or not np.all(np.isfinite(read)):
        for row, cell in enumerate(cells):
            if row == len(read) or (cell and not math.isfinite(read[row])):
                comma = "," in cell and table.decimal == "."
                hint = "; if the comma is a decimal sign, say so with --decimal , (decimal=',')" if comma else ""
                if "." in cell and table.dialect.decimal == ",":
                    hint = "; the decimal sign is a comma, as was said"
                raise ValueError(
                    f"{table.line(start + row)}, column {table.header[k]} holds {shown(cell)}, "
                    f"expected a finite number or nothing for a gap{hint}"
                )
    return read
