"""Dates of a table: those with one meaning are read, others refused, and rows put on a calendar."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data.notations import COMPACT, HEADERS, ISO_DATE, as_iso, is_other_date
from xlstm.data.table import Table, Text, is_number
from xlstm.data.translation import as_iso as translated
from xlstm.data.translation import is_translated, notation_of

Dates = np.ndarray[Any, np.dtype[np.datetime64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]

UNITS = {4: "Y", 7: "M", 10: "D", 13: "h", 16: "m", 19: "s"}  # by the length of the text
MONDAY = np.datetime64("0001-01-01")  # business days are counted from it
FILL = (10, 10**6)  # rows after filling gaps: at most so many times those of the file, and so many more


class Calendar(NamedTuple):
    """Rows at equal steps of time."""

    dates: Dates  # the date of every step; with a zone what its clocks show
    place: Counts  # the step of each row of the file
    unit: str  # a NumPy datetime code, "B" for business days, or "SM" for two days of each month
    every: int = 1  # units from a step to the next
    days: tuple[int, ...] = ()  # those of a month, where the unit is "M" or "SM"; 31 is the last day of any month
    time: Any = np.timedelta64(0, "D")  # that of the day, where steps are whole days
    zone: datetime.tzinfo | None = None

    def ticks(self, dates: Dates) -> Counts:
        """Return the numbers of the units that dates lie in."""
        if self.unit == "B":
            return np.busday_count(MONDAY, dates.astype("datetime64[D]")).astype(np.int64)
        if not self.days:
            return dates.astype(f"datetime64[{self.unit}]").astype(np.int64)
        months, day, last = _in_month(dates)
        passed: Counts = np.sum(day[:, None] > np.minimum(self.days, last[:, None]), axis=1)
        return passed + len(self.days) * months.astype(np.int64)

    def at(self, ticks: Counts) -> Dates:
        """Return the dates of numbers of units."""
        if self.unit == "B":
            found = np.busday_offset(MONDAY, ticks)
        elif not self.days:
            found = ticks.astype(f"datetime64[{self.unit}]")
        else:
            month, k = np.divmod(ticks, len(self.days))
            first, _, last = _in_month(month.astype("datetime64[M]"))
            day = np.minimum(np.take(self.days, k), last) - 1
            found = first.astype("datetime64[D]") + day.astype("timedelta64[D]")
        dates: Dates = (found + self.time).astype(self.dates.dtype)
        return dates


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
    for found in _rhythms(dates):
        ticks = found.ticks(dates)
        every = int(np.gcd.reduce(np.diff(ticks)))
        place = (ticks - ticks[0]) // every
        steps = np.diff(place)
        if np.mean(steps == 1) >= 0.5:
            break
    else:
        return None
    if place[-1] >= FILL[0] * len(place) + FILL[1]:
        row = int(np.argmax(steps)) + 1
        raise ValueError(
            f"{line(row)}: {steps[row - 1] - 1} rows are missing between {dates[row - 1]} and {dates[row]}, "
            f"expected at most {FILL[0]} times as many as the file has; split the file there"
        )
    return found._replace(dates=found.at(ticks[0] + every * np.arange(place[-1] + 1)), place=place, every=every)


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


def _rhythms(dates: Dates) -> Iterator[Calendar]:
    """Yield the units in which dates may have a common step, the likeliest first."""
    days, none = dates.astype("datetime64[D]"), np.zeros(0, np.int64)
    time = dates[0] - days[0]
    if np.any(dates - days != time):
        yield Calendar(dates, none, str(np.datetime_data(dates.dtype)[0]))
        return
    months, day, last = _in_month(days)
    usual = 31 if np.all(day == last) else int(np.max(day))
    if np.all(np.diff(months.astype(np.int64)) > 0) and np.all(day == np.minimum(usual, last)):
        yield Calendar(dates, none, "M", days=(usual,), time=time)
    rise = days.astype(np.int64)
    over_weekends = np.min(np.diff(rise)) == 1 and np.busday_count(days[0], days[-1]) < rise[-1] - rise[0]
    yield Calendar(dates, none, "B" if over_weekends and np.all(np.is_busday(days)) else "D", time=time)
    two = np.unique(np.where(day == last, 31, day))
    if len(two) == 2:
        yield Calendar(dates, none, "SM", days=(int(two[0]), int(two[1])), time=time)


def _in_month(dates: Dates) -> tuple[Dates, Counts, Counts]:
    """Return the months of dates, the days of the month, and the last days of these months."""
    months = dates.astype("datetime64[M]")
    following = months + np.timedelta64(1, "M")
    first, after = (some.astype("datetime64[D]").astype(np.int64) for some in (months, following))
    return months, dates.astype("datetime64[D]").astype(np.int64) - first + 1, after - first
