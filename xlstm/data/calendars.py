"""Features of dates: where in the year, the week and the day a row lies."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import dates as calendars
from xlstm.data.dates import Calendar, Dates
from xlstm.data.host import Values

DAY, WEEK, YEAR = 86_400.0, 7 * 86_400.0, 365.2425 * 86_400.0  # in seconds
HARMONICS = 2  # sines and cosines of a year: its half is one of them


def read(where: str, given: object) -> Calendar:
    """Return rising dates (N,) at the equal steps of time that they lie on; `where` is the caller, for errors.

    Raises
    ------
    TypeError, ValueError
        These are no rising dates, or they have no common rhythm.
    """
    found: Any = checks.host(where, "dates", given, "dates (N,)")
    try:
        found = found.astype("datetime64") if found.dtype.kind in "UTO" else found
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.dtype.kind != "M" or found.ndim != 1 or np.any(np.isnat(found)):
        raise TypeError(f"{where}: dates is {checks.shown(given)}, expected dates (N,)")
    fall = np.flatnonzero(np.diff(found.astype("int64")) <= 0)
    if fall.size:
        row = int(fall[0]) + 1
        raise ValueError(f"{where}: dates[{row}] is {found[row]}, expected a date after {found[row - 1]}")
    for unit in ("D", "h", "m", "s"):  # the coarsest that holds them
        coarse = found.astype(f"datetime64[{unit}]")
        if np.all(coarse == found):
            found = coarse if unit != "D" or str(np.datetime_data(found.dtype)[0]) not in "YMW" else found
            break
    place = calendars.calendar(found, lambda row: f"{where}: dates[{row}]")
    if place is None:
        raise ValueError(f"{where}: the {len(found)} dates have no common step, expected one for most of them")
    return place


def after(calendar: Calendar, steps: int, passed: int = 0) -> Dates:
    """Return the dates of `steps` rows that begin `passed` rows after the last one."""
    ahead, last = calendar.every * (passed + np.arange(1, steps + 1)), calendar.dates[-1]
    if calendar.unit == "B":
        found: Dates = np.busday_offset(last, ahead)
        return found
    return last + ahead.astype(f"timedelta64[{calendar.unit}]")  # type: ignore[no-any-return]


def steps_after(calendar: Calendar, dates: Dates) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many steps after the last date of a calendar each of some dates lies; 0 for one that is on no step."""
    last, unit = calendar.dates[-1], "D" if calendar.unit == "B" else calendar.unit
    coarse = dates.astype(f"datetime64[{unit}]")
    if calendar.unit == "B":
        ticks, there = np.busday_count(last, coarse), np.is_busday(coarse)
    else:
        ticks, there = (coarse - last).astype(np.int64), np.ones(len(dates), dtype=bool)
    if unit not in "YMW":  # within a month the day does not matter
        there &= coarse == dates
    return np.where(there & (ticks % calendar.every == 0), ticks // calendar.every, 0)


def features(dates: Dates, step: float) -> Values:
    """Return sines and cosines (N, F) of the time of the year, of the week and of the day.

    Only those are there that a step of `step` seconds can tell apart.
    """
    seconds = dates.astype("datetime64[s]")
    within_day = (seconds - seconds.astype("datetime64[D]")).astype(np.float64) / DAY
    days = seconds.astype("datetime64[D]").astype(np.int64)
    year = seconds.astype("datetime64[Y]").astype("datetime64[s]")
    found = []
    if step < YEAR / 2:
        found += [k * (seconds - year).astype(np.float64) / YEAR for k in range(1, HARMONICS + 1)]
    if step < WEEK / 2:
        found.append((days % 7 + within_day) / 7)
    if step < DAY / 2:
        found.append(within_day)
    turns = 2 * np.pi * np.array(found).reshape(len(found), len(dates))
    return np.concatenate((np.sin(turns), np.cos(turns))).T
