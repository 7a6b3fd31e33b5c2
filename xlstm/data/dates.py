"""Dates of a table: those with one meaning are read, others refused, and rows put on a calendar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data.notations import COMPACT, HEADERS, ISO_DATE, as_iso, is_other_date
from xlstm.data.table import Table, Text, is_number
from xlstm.data.translation import as_iso as translated
from xlstm.data.translation import is_translated, notation_of

Dates = np.ndarray[Any, np.dtype[np.datetime64]]

UNITS = {4: "Y", 7: "M", 10: "D", 13: "h", 16: "m", 19: "s"}  # by the length of the text
FILL = (10, 10**6)  # rows after filling gaps: at most so many times those of the file, and so many more


class Calendar(NamedTuple):
    """Rows at equal steps of time."""

    dates: Dates  # the date of every step
    place: np.ndarray[Any, np.dtype[np.int64]]  # the step of each row of the file
    unit: str  # a NumPy datetime code, or "B" for business days
    every: int  # units from a step to the next


def check_header(table: Table) -> None:
    """Raise ValueError where the first line of a table holds numbers and dates instead of names."""
    if all(is_number(cell) or ISO_DATE.fullmatch(cell) or is_translated(cell) for cell in table.header):
        raise ValueError(f"{table.path}: line 1 holds data, expected a header with the names of the columns")


def is_date(cell: str) -> bool:
    """Return whether a cell is a date that is read, and no number."""
    return (ISO_DATE.fullmatch(cell) is not None and "-" in cell) or is_translated(cell)


def column(table: Table) -> int | None:
    """Find the column of dates: the first that is mostly ISO dates, else dates in another notation that is read.

    Else it is a first column that holds no numbers. Where there is none of these, but a column looks like dates in
    another notation, a ValueError shows how to write them.
    """
    read: list[int] = []
    strange: list[tuple[int, int]] = []  # columns and rows
    for k, name in enumerate(table.header):
        cells = [row[k] for row in table.sample]
        found = [cell for cell in cells if ISO_DATE.fullmatch(cell) and (k == 0 or "-" in cell)]
        if 2 * len(found) > len(cells) and (name.lower() in HEADERS or "-" in found[0]):
            return k
        days = name.lower() in HEADERS or (k == 0 and len(table.header) > 1 and all(map(COMPACT.fullmatch, cells)))
        notation = notation_of(cells)
        if notation is not None and (notation is not COMPACT or days):
            read.append(k)
        others = [row for row, cell in enumerate(cells) if is_other_date(name.lower(), cell)]
        if others and 2 * (len(found) + len(others)) > len(cells):
            strange.append((k, others[0]))
    if read:
        return read[0]
    if strange:
        k, row = strange[0]
        cell = table.sample[row][k]
        written = " or ".join(as_iso(cell)) or "2024-02-29, 2024-02 or 2024-02-29T06:00"
        raise ValueError(
            f"{table.line(row)}, column {table.header[k]} holds {shown(cell)}, which looks like a date but is not in "
            f"a notation that is read; write {written}, or leave the column out to take rows as equal "
            "steps in the order of the file"
        )
    if len(table.header) > 1 and (table.header[0].lower() in HEADERS or not table.numeric[0]):
        return 0
    return None


def text(table: Table, k: int) -> Text:
    """Return the cells of a column of dates, (N,), in ISO 8601 where they are in another notation that is read."""
    cells, notation = table.text(k), notation_of([row[k] for row in table.sample])
    if notation is None:
        return cells
    name = table.header[k]
    return translated(cells, notation, table.dialect.day_first, lambda row: f"{table.line(row)}, column {name}")


def read(cells: Text, line: Callable[[int], str]) -> Dates | None:
    """Read cells (N,) as rising dates; None where they are labels or numbers instead.

    Where some cells are dates and others not, or a date does not exist, is outside of the range of NumPy, or does not
    come after the one before, a ValueError names the line, by `line` of its row.
    """
    strange = [row for row, cell in enumerate(cells) if not ISO_DATE.fullmatch(cell)]
    if len(strange) == len(cells) or (strange and all(cell.isdigit() for cell in cells)):
        return None  # or an index that has just reached four digits
    dates = None if strange else _datetimes(cells)
    if dates is None:
        row = next((row for row, cell in enumerate(cells) if not _exists(cell)), None)
        if row is None:
            expected = "dates to a billionth of a second are expected from 1678 to 2262"
            raise ValueError(f"{line(0)}: {expected}, here and below")
        if cells[row] == "":
            raise ValueError(f"{line(row)}: the date is missing, expected one as in the other rows")
        raise ValueError(f"{line(row)}: {shown(str(cells[row]))} is not a date like the others")
    fall = np.flatnonzero(np.diff(dates.astype("int64")) <= 0)
    if fall.size:
        row = int(fall[0]) + 1
        raise ValueError(f"{line(row)}: date {cells[row]} does not come after {cells[row - 1]}")
    days = dates.astype("datetime64[D]")
    return days if np.all(days == dates) and dates.dtype > days.dtype else dates


def calendar(dates: Dates, line: Callable[[int], str]) -> Calendar | None:
    """Put rising dates on equal steps of time; None where there are fewer than two or they have no common rhythm.

    A gap that would have to be filled with more rows than FILL allows is a ValueError that names its line.
    """
    if len(dates) < 2:
        return None
    dates, unit = _coarsest(dates)
    ticks = np.busday_count(dates[0], dates) if unit == "B" else (dates - dates[0]).astype("int64")
    every = int(np.gcd.reduce(np.diff(ticks)))
    place = ticks // every
    steps = np.diff(place)
    if np.mean(steps == 1) < 0.5:
        return None
    if place[-1] >= FILL[0] * len(place) + FILL[1]:
        row = int(np.argmax(steps)) + 1
        raise ValueError(
            f"{line(row)}: {steps[row - 1] - 1} rows are missing between {dates[row - 1]} and {dates[row]}, "
            f"expected at most {FILL[0]} times as many as the file has; split the file there"
        )
    span = every * np.arange(place[-1] + 1)
    whole = np.busday_offset(dates[0], span) if unit == "B" else dates[0] + span.astype(f"timedelta64[{unit}]")
    return Calendar(whole, place, unit, every)


def _exists(cell: str) -> bool:
    """Return whether a cell is an ISO date that the calendar has, unlike 2024-02-31, and that NumPy can hold."""
    return bool(ISO_DATE.fullmatch(cell)) and _datetimes(np.array([cell], dtype=np.dtypes.StringDType())) is not None


def _datetimes(cells: Text) -> Dates | None:
    """Return ISO dates in the unit of the longest of them; None where one does not exist or does not fit."""
    plain = np.strings.rstrip(cells, "Z")
    length = int(np.max(np.strings.str_len(plain)))
    unit = UNITS.get(length) or ("ms", "us", "ns")[(length - 21) // 3]
    try:
        dates: Dates = plain.astype(f"datetime64[{unit}]")
        seconds = np.array([cell[:19] for cell in plain], "datetime64[s]") if unit == "ns" else None
    except ValueError:
        return None
    # Dates in billionths of a second outside of 1678 to 2262 wrap around.
    return dates if seconds is None or np.all(dates.astype("datetime64[s]") == seconds) else None


def _coarsest(dates: Dates) -> tuple[Dates, str]:
    """Return dates in the coarsest unit that has a rhythm: first or last days of months become months."""
    unit = str(np.datetime_data(dates.dtype)[0])
    if unit != "D":
        return dates, unit
    for coarse in ("Y", "M"):
        for shift in (0, 1):
            moved = dates + np.timedelta64(shift, "D")  # the day after the last day of a month is a first day
            coarser = dates.astype(f"datetime64[{coarse}]")
            offsets = moved - moved.astype(f"datetime64[{coarse}]").astype(dates.dtype)
            if np.unique(offsets).size == 1 and np.unique(coarser).size == dates.size:
                return coarser, coarse
    spans_weekends = dates.size >= 10 and np.min(np.diff(dates.astype("int64"))) == 1
    return dates, "B" if spans_weekends and np.all(np.is_busday(dates)) else "D"
