"""Dates of a table: ISO 8601 read, other notations recognised and refused, rows put on a calendar."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data.table import Table, Text, is_number

Dates = np.ndarray[Any, np.dtype[np.datetime64]]

# 1958, 1958-03, 1958-03-29, 1958-03-29T06, 1958-03-29 06:00, 1958-03-29T06:00:00.5Z
ISO_DATE = re.compile(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}([T ][0-9]{2}(:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?)?)?)?)?Z?")
HEADERS = {"", "date", "datetime", "time", "timestamp", "year", "month", "week", "day", "hour", "ds", "index"}
CLOCKS = {"date", "datetime", "time", "timestamp", "ds"}  # headers under which a large number is a date, too

WEEKDAY = "(mon|tue|wed|thu|fri|sat|sun)[a-z]*[., ]+"
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
# Notations of a date that are not ISO 8601 in full: groups of digits between signs, names of months, quarters, weeks
# and days of a year, times of day, and all that begins as an ISO date does; a day of the week may stand before them.
OTHER_DATE = re.compile(
    rf"({WEEKDAY})?("
    rf"[0-9]{{1,4}}[-/. ][0-9]{{1,2}}[-/. ][0-9]{{1,4}}\b.*"
    rf"|[0-9]{{1,4}}[-/][0-9]{{1,2}}([-/][0-9]{{1,4}})?|[0-9]{{1,2}}[-/.][0-9]{{4}}"
    rf"|([0-9]{{1,4}}(st|nd|rd|th)?[-/. ]*)?({MONTHS})[a-z]*[-/., ]*[0-9].*"
    rf"|[0-9]{{4}}[-/ ]?[qwhs][0-9]{{1,2}}.*|[qwh][0-9]{{1,2}}[-/ ]?[0-9]{{4}}|[1-4]q[-/ ]?[0-9]{{2,4}}"
    rf"|[0-9]{{4}}-[0-9]{{3}}|[0-9]{{1,2}}:[0-9]{{2}}(:[0-9.]+)?( ?[ap]m)?"
    rf"|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}.+|[0-9]{{8}}[T ][0-9]+.*|[0-9]{{4}}\u5e74.*)",
    re.IGNORECASE,
)
# Numbers that are dates under the headers of dates: days and months without signs, fractions of years, months before
# years; and under those of points in time the days of spreadsheets, and seconds, or parts of them, since 1970.
YEAR = "(1[5-9]|2[0-9])[0-9]{2}"
YEAR_MONTH = re.compile(rf"{YEAR}(0[1-9]|1[0-2])")
COMPACT = re.compile(rf"{YEAR_MONTH.pattern}(0[1-9]|[12][0-9]|3[01])")
NUMBERS = re.compile(rf"{COMPACT.pattern}|{YEAR_MONTH.pattern}|{YEAR}\.[0-9]+|(0?[1-9]|1[0-2])\.{YEAR}")
SERIAL = re.compile(r"[2-7][0-9]{4}(\.[0-9]+)?")
EPOCH = re.compile(r"[0-9]{9,19}(\.[0-9]+)?")
# Notations for which a refusal shows the ISO date.
FORMS = ("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d/%m/%y", "%m/%d/%y", "%d/%b/%Y", "%b/%d/%Y", "%b/%Y", "%Y/%b", "%m/%Y")
UNITS = {4: "Y", 7: "M", 10: "D", 13: "h", 16: "m", 19: "s"}  # by the length of the text
FILL = (10, 10**6)  # rows after filling gaps: at most so many times those of the file, and so many more


class Calendar(NamedTuple):
    """Rows at equal steps of time.

    Attributes
    ----------
    dates : datetime64 array
        The date of every step.
    place : int array
        The step of each row of the file.
    unit : str
        A NumPy datetime code, or "B" for business days.
    every : int
        Units from a step to the next.
    """

    dates: Dates
    place: np.ndarray[Any, np.dtype[np.int64]]
    unit: str
    every: int


def column(table: Table) -> int | None:
    """Find the column of dates: the first that is mostly ISO dates, else a first column that holds no numbers.

    Raises
    ------
    ValueError
        There is none, but a column looks like dates in another notation. Shows how the date is to be written.
    """
    strange: list[tuple[int, int]] = []  # columns and rows
    for k, name in enumerate(table.header):
        cells = [row[k] for row in table.sample]
        found = [cell for cell in cells if ISO_DATE.fullmatch(cell) and (k == 0 or "-" in cell)]
        if 2 * len(found) > len(cells) and (name.lower() in HEADERS or "-" in found[0]):
            return k
        others = [row for row, cell in enumerate(cells) if _other_date(name.lower(), cell)]
        if not others and k == 0 and len(table.header) > 1 and all(COMPACT.fullmatch(cell) for cell in cells):
            others = [0]
            found = cells[1:]
        if others and 2 * (len(found) + len(others)) > len(cells):
            strange.append((k, others[0]))
    if strange:
        raise ValueError(_not_understood(table, *strange[0]))
    if len(table.header) > 1 and (table.header[0].lower() in HEADERS or not table.numeric[0]):
        return 0
    return None


def read(cells: Text, line: Callable[[int], str]) -> Dates | None:
    """Read rising dates; None where the cells are labels or numbers instead.

    Parameters
    ----------
    cells : array (N,)
    line : function
        Names the line of a row.

    Raises
    ------
    ValueError
        Some cells are dates and others not, a date does not exist, is outside of what NumPy can hold, or does not
        come after the one before. Names the line.
    """
    strange = [row for row, cell in enumerate(cells) if not ISO_DATE.fullmatch(cell)]
    if len(strange) == len(cells) or (strange and all(cells[row].isdigit() for row in strange)):
        return None  # or an index that has just reached four digits
    try:
        if strange:
            raise ValueError
        dates = _datetimes(cells)
    except ValueError:
        row = next((row for row, cell in enumerate(cells) if not _exists(cell)), None)
        if row is None:
            raise ValueError(
                f"{line(0)}: dates to a billionth of a second are expected from 1678 to 2262, here and below"
            ) from None
        if cells[row] == "":
            raise ValueError(f"{line(row)}: the date is missing, expected one as in the other rows") from None
        raise ValueError(f"{line(row)}: {shown(str(cells[row]))} is not a date like the others") from None
    fall = np.flatnonzero(np.diff(dates.astype("int64")) <= 0)
    if fall.size:
        row = int(fall[0]) + 1
        raise ValueError(f"{line(row)}: date {cells[row]} does not come after {cells[row - 1]}")
    days = dates.astype("datetime64[D]")
    return days if np.all(days == dates) and dates.dtype > days.dtype else dates


def calendar(dates: Dates, line: Callable[[int], str]) -> Calendar | None:
    """Put rising dates on equal steps of time; None where there are fewer than two or they have no common rhythm.

    Raises
    ------
    ValueError
        They have a rhythm, and a gap so long that it would have to be filled with more rows than FILL allows.
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


def _other_date(header: str, cell: str) -> bool:
    """Whether a cell looks like a date in a notation that `read` does not take."""
    if ISO_DATE.fullmatch(cell):
        return False
    if is_number(cell):
        point_in_time = header in CLOCKS and (SERIAL.fullmatch(cell) or EPOCH.fullmatch(cell))
        return bool(point_in_time or (header in HEADERS and NUMBERS.fullmatch(cell)))
    return OTHER_DATE.fullmatch(cell) is not None


def _not_understood(table: Table, k: int, row: int) -> str:
    """The refusal of a date, with what would be understood."""
    cell = table.sample[row][k]
    written = " or ".join(_as_iso(cell)) or "2024-02-29, 2024-02 or 2024-02-29T06:00"
    return (
        f"{table.line(row)}, column {table.header[k]} holds {shown(cell)}, which looks like a date but is not in "
        f"ISO 8601 (in UTC or without a zone); write {written}, or leave the column out to take rows as equal steps in "
        "the order of the file"
    )


def _as_iso(cell: str) -> list[str]:
    """The dates that a cell in another notation may mean."""
    found: list[str] = []
    if EPOCH.fullmatch(cell) and not COMPACT.fullmatch(cell):
        seconds = float(cell) / 1000.0 ** max(0, (len(cell.partition(".")[0]) - 8) // 3)
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return [f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}"]
    if SERIAL.fullmatch(cell):
        return [str(datetime.date(1899, 12, 30) + datetime.timedelta(int(float(cell))))]
    if YEAR_MONTH.fullmatch(cell):
        return [f"{cell[:4]}-{cell[4:]}"]
    if quarter := re.fullmatch(r"([0-9]{4})[-/ ]?q([1-4])|q?([1-4])q?[-/ ]?([0-9]{4})", cell, re.IGNORECASE):
        year, number = quarter[1] or quarter[4], int(quarter[2] or quarter[3])
        return [f"{year}-{3 * number - 2:02d}"]
    with contextlib.suppress(ValueError, OverflowError):  # zones, weeks, days without signs between
        moment = datetime.datetime.fromisoformat(cell)
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC)
        if (moment.hour, moment.minute, moment.second) == (0, 0, 0) and "T" not in cell and ":" not in cell:
            return [f"{moment:%Y-%m-%d}"]
        return [f"{moment:%Y-%m-%dT%H:%M:%S}"]
    plain = re.sub(f"^{WEEKDAY}", "", cell, flags=re.IGNORECASE)
    plain = re.sub(rf"([0-9])(st|nd|rd|th)\b|({MONTHS})[a-z]*", r"\1\3", plain, flags=re.IGNORECASE)
    plain = re.sub(r"[-/., ]+", "/", plain)
    for form in FORMS:
        with contextlib.suppress(ValueError):
            date = datetime.datetime.strptime(plain, form)
            iso = f"{date:%Y-%m-%d}" if "%d" in form else f"{date:%Y-%m}"
            if iso not in found:
                found.append(iso)
    return found


def _exists(cell: str) -> bool:
    """Whether a cell is an ISO date that the calendar has, unlike 2024-02-31, and that `_datetimes` can hold."""
    if not ISO_DATE.fullmatch(cell):
        return False
    try:
        _datetimes(np.array([cell], dtype=np.dtypes.StringDType()))
    except ValueError:
        return False
    return True


def _datetimes(cells: Text) -> Dates:
    """ISO dates in the unit of the longest of them."""
    plain = np.strings.rstrip(cells, "Z")
    length = int(np.max(np.strings.str_len(plain)))
    unit = UNITS.get(length) or ("ms", "us", "ns")[(length - 21) // 3]
    dates = plain.astype(f"datetime64[{unit}]")
    if unit == "ns" and np.any(
        dates.astype("datetime64[s]") != np.array([cell[:19] for cell in plain], "datetime64[s]")
    ):
        raise ValueError("dates in billionths of a second lie between 1678 and 2262")
    return dates


def _coarsest(dates: Dates) -> tuple[Dates, str]:
    """Dates in the coarsest unit that has a rhythm: first or last days of months differ in days, not in months."""
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
