"""Features of dates: where in the year, the week and the day a row lies."""

from __future__ import annotations

import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from xlstm.arrays import checks
from xlstm.data import dates as calendars
from xlstm.data.dates import Calendar, Dates
from xlstm.data.host import Values

DAY, WEEK, YEAR = 86_400.0, 7 * 86_400.0, 365.2425 * 86_400.0  # in seconds
HARMONICS = 2  # sines and cosines of a year: its half is one of them


def read(where: str, given: object, zone: str | None = None) -> Calendar:
    """Return rising dates (N,) at the equal steps of time that they lie on; `where` is the caller, for errors.

    A calendar is returned as it is. Dates of a time zone come in UTC.

    Raises
    ------
    TypeError, ValueError
        These are no rising dates, or they have no common rhythm.
    """
    if isinstance(given, Calendar):
        return given
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
    found, clocks = local(found, zone)
    place = calendars.calendar(coarsest(found), lambda row: f"{where}: dates[{row}]")
    if place is None:
        unknown = zone is not None and clocks is None
        advice = f"; the clocks of {zone} may not be known here, local dates have no zone" if unknown else ""
        raise ValueError(f"{where}: the {len(found)} dates have no common step, expected one for most of them{advice}")
    return place._replace(zone=clocks)


def local(dates: Dates, zone: str | None) -> tuple[Dates, datetime.tzinfo | None]:
    """Return what the clocks of a zone show at dates of UTC, and the zone, where they always show the same time of day.

    Otherwise the dates are not days apart, but hours or less, and stay in UTC.
    """
    if zone is None or len(dates) < 2 or not np.all(np.diff(dates) >= np.timedelta64(12, "h")):
        return dates, None
    try:
        clocks = datetime.datetime.strptime(zone.removeprefix("UTC"), "%z").tzinfo if ":" in zone else ZoneInfo(zone)
    except (KeyError, OSError, ValueError):  # there is no such zone on this machine
        return dates, None
    shown = dates + _ahead(dates, clocks, datetime.UTC)
    times = shown - shown.astype("datetime64[D]")
    return (shown, clocks) if np.all(times == times[0]) else (dates, None)


def coarsest(dates: Dates) -> Dates:
    """Return dates in days, minutes or seconds, the first of which holds them, where their unit is a finer one."""
    for unit in ("D", "m", "s"):
        coarse = dates.astype(f"datetime64[{unit}]")
        if coarse.dtype <= dates.dtype and np.all(coarse == dates):
            return coarse
    return dates


def _ahead(dates: Dates, zone: datetime.tzinfo | None, of: datetime.tzinfo | None) -> Any:
    """Return by how much the clocks of a zone are ahead of UTC, (N,), at dates of the zone `of`."""
    moments = (moment.replace(tzinfo=of).astimezone(zone) for moment in dates.astype("datetime64[s]").astype(object))
    return np.array([moment.utcoffset() for moment in moments], "timedelta64[s]")


def after(calendar: Calendar, steps: int, passed: int = 0) -> Dates:
    """Return the dates of `steps` rows that begin `passed` rows after the last one, in UTC where they have a zone."""
    ahead = calendar.every * (passed + np.arange(1, steps + 1))
    found = calendar.at(calendar.ticks(calendar.dates[-1:]) + ahead)
    return found if calendar.zone is None else found - _ahead(found, calendar.zone, calendar.zone)


def steps_after(calendar: Calendar, dates: Dates) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many steps after the last date of a calendar each of some dates lies; 0 for one that is on no step."""
    shown = dates if calendar.zone is None else dates + _ahead(dates, calendar.zone, datetime.UTC)
    ticks = calendar.ticks(shown)
    ahead = ticks - calendar.ticks(calendar.dates[-1:])
    return np.where((calendar.at(ticks) == shown) & (ahead % calendar.every == 0), ahead // calendar.every, 0)


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
