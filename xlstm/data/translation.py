"""Dates in notations that have one meaning, or whose order of day and month is said, brought into ISO 8601."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data.notations import COMPACT, ISO_DATE, QUARTER, first_month
from xlstm.data.table import Text

# 2024-01-01T06:00+02:00, 2024-01-01 06:00:00.5+0200, 2024-01-01T06:00Z
ZONED = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2})(:[0-9]{2}(?:\.[0-9]{1,9})?)?"
    r" ?(?:Z|([+-])(0[0-9]|1[0-4]):?([0-5][0-9])?)"
)
# 31/12/2024, 12/31/2024, 31.12.2024, 31-12-2024 06:00
DAY_MONTH = re.compile(r"([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4})(?:[T ]([0-9]{1,2})(:[0-9]{2}(?::[0-9]{2})?))?")
NOTATIONS = (ZONED, QUARTER, DAY_MONTH, COMPACT)
CLOCKS_CHANGE = 60  # minutes between the offsets of one zone at most

Where = Callable[[int], str]  # it names a row, for errors


def notation_of(cells: Sequence[str]) -> re.Pattern[str] | None:
    """Return the notation of more than half of some cells; None where there is none, or it is ISO without a zone."""
    for notation in NOTATIONS:
        if 2 * sum(notation.fullmatch(cell) is not None for cell in cells) > len(cells):
            return notation
    return None


def is_translated(cell: str) -> bool:
    """Return whether a cell is a date in one of the notations that are no numbers."""
    return any(notation.fullmatch(cell) for notation in NOTATIONS if notation is not COMPACT)


def as_iso(cells: Text, notation: re.Pattern[str], day_first: bool | None, where: Where) -> Text:
    """Return cells (N,) in ISO 8601, in UTC; those in another notation stay as they are.

    Raises
    ------
    ValueError
        It is open, or differs, whether the day or the month comes first; cells are of several zones, or some of none.
    """
    write: Callable[[re.Match[str]], str] = first_month
    if notation is ZONED:
        _check_zone(cells, where)
        write = _in_utc
    elif notation is DAY_MONTH:
        write = functools.partial(_day, day_first=_order(cells, day_first, where))
    elif notation is COMPACT:
        write = _with_signs
    iso = cells.copy()
    for row, match in _matches(cells, notation):
        iso[row] = write(match)
    return iso


def _matches(cells: Text, notation: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield the rows of cells in a notation, and the parts of each: of millions they are not kept."""
    for row, cell in enumerate(cells):
        if (match := notation.fullmatch(cell)) is not None:
            yield row, match


def _offset(match: re.Match[str]) -> int:
    """Return the minutes by which a local time is ahead of UTC."""
    minutes = 60 * int(match[4] or 0) + int(match[5] or 0)
    return -minutes if match[3] == "-" else minutes


def _check_zone(cells: Text, where: Where) -> None:
    """Raise ValueError unless dates are of one zone, whose clocks may change."""
    rows: dict[int, int] = {}  # the first row of each offset
    for row, match in _matches(cells, ZONED):
        rows.setdefault(_offset(match), row)
        if len(rows) > 2 or max(rows) - min(rows) > CLOCKS_CHANGE:
            first = next(iter(rows.values()))
            raise ValueError(f"{where(row)}: {cells[row]} is of another zone than {cells[first]}, expected one zone")
    for row, cell in enumerate(cells):
        if ISO_DATE.fullmatch(cell) and not cell.endswith("Z"):
            raise ValueError(f"{where(row)}: {cell} has no zone, expected one as in the other rows")


def _in_utc(match: re.Match[str]) -> str:
    try:
        minute = np.datetime64(match[1]) - np.timedelta64(_offset(match), "m")
    except ValueError:  # the calendar does not have it
        return match[0]
    return f"{minute}{match[2] or ''}"


def _order(cells: Text, said: bool | None, where: Where) -> bool:
    """Return whether the day comes before the month, as was said or as a part above 12 shows."""
    rows: dict[bool | None, int] = {}  # the first row with the day first, with the month first, and with two readings
    for row, match in _matches(cells, DAY_MONTH):
        first, second = int(match[1]), int(match[3])
        if first > 12 and second > 12:
            raise ValueError(f"{where(row)}: {cells[row]} has no month")
        if first != second:
            rows.setdefault(None if max(first, second) <= 12 else first > 12, row)
    if True in rows and False in rows:
        row, other = max(rows[True], rows[False]), min(rows[True], rows[False])
        raise ValueError(f"{where(row)}: in {cells[row]} day and month are in another order than in {cells[other]}")
    if said is not None and (not said) in rows:
        order = "day" if said else "month"
        row = rows[not said]
        raise ValueError(f"{where(row)}: {cells[row]} does not have the {order} first, as was said")
    if said is not None or True in rows or False in rows:
        return True in rows if said is None else said
    if not rows:
        return True  # both orders mean the same
    cell = str(cells[rows[None]])
    day, month = (DAY_MONTH.sub(functools.partial(_day, day_first=first), cell) for first in (True, False))
    raise ValueError(
        f"{where(rows[None])} holds {shown(cell)}, which is {day} with the day first and {month} with the month first; "
        "say --day-first or --month-first (day_first=True or False)"
    )


def _with_signs(match: re.Match[str]) -> str:
    return f"{match[0][:4]}-{match[0][4:6]}-{match[0][6:]}"


def _day(match: re.Match[str], day_first: bool) -> str:
    day, month = (match[1], match[3]) if day_first else (match[3], match[1])
    time = "" if match[5] is None else f"T{match[5]:0>2}{match[6]}"
    return f"{match[4]}-{month:0>2}-{day:0>2}{time}"
