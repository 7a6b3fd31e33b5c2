"""Dates of rows: read as text, put on a calendar of equal steps, continued, and seen as
features.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values

Dates = np.ndarray[Any, np.dtype[np.datetime64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Line = Callable[[int], str]  # it names a row, for errors

# 1958, 1958-03, 1958-03-29, 1958-03-29T06, 1958-03-29 06:00, 1958-03-29T06:00:00.5Z,
# 1958-03-29T06:00+02:00
ISO_DATE = re.compile(
    r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}([T"
    r" ][0-9]{2}(:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?)?)?"
)
UNITS = {4: "Y", 7: "M"}  # of years and months, by the length of the text
MONDAY = np.datetime64("0001-01-01")  # business days are counted from it
TRADING = 5  # the last business day of a month is one of so many days: a holiday may come after it
# rows after filling gaps: at most so many times those of the file, and so many more
FILL = (10, 10**6)
DAY = 86_400.0
WEEK = 7 * 86_400.0
YEAR = 365.2425 * 86_400.0  # in seconds
SEVERAL = (
    "; if the table has several series, name the column that tells them apart in series_id"
    " (--series-id)"
)
HARMONICS = 2  # sines and cosines of a year: its half is one of them


class Calendar(NamedTuple):
    """Rows at equal steps of time."""

    dates: Dates  # the date of every step; with a zone what its clocks show
    place: Counts  # the step of each row
    # a NumPy datetime code, or "B" for business days, "BM" for the last of a month, "SM" for two
    # days of it
    unit: str
    every: int = 1  # units from a step to the next
    # those of a month, where the unit is "M" or "SM"; 31 is the last day of any month
    days: tuple[int, ...] = ()
    time: Any = np.timedelta64(0, "D")  # that of the day, where steps are whole days
    zone: datetime.tzinfo | None = None
    # the time zone that the dates came in; hours have UTC for their zone
    clocks: datetime.tzinfo | None = None
    holidays: str | None = None  # the country whose holidays are looked at

    @property
    def seconds(self) -> float:
        """The usual time from a step to the next."""
        return float(np.median(np.diff(self.dates.astype("datetime64[s]")).astype(np.float64)))

    def placed(self, values: Values) -> Values:
        """Return rows (N, C) on the steps of the calendar; those that are missing become gaps."""
        full = np.full((len(self.dates), values.shape[1]), np.nan)
        full[self.place] = values
        return full

    def ticks(self, dates: Dates) -> Counts:
        """Return the numbers of the units that dates lie in."""
        if self.unit == "B":
            return np.busday_count(MONDAY, dates.astype("datetime64[D]")).astype(np.int64)
        if self.unit == "BM":
            return dates.astype("datetime64[M]").astype(np.int64)
        if not self.days:
            return dates.astype(f"datetime64[{self.unit}]").astype(np.int64)
        months, day, last = _in_month(dates)
        passed: Counts = np.sum(day[:, None] > np.minimum(self.days, last[:, None]), axis=1)
        return passed + len(self.days) * months.astype(np.int64)

    def at(self, ticks: Counts) -> Dates:
        """Return the dates of numbers of units."""
        if self.unit == "B":
            days = np.busday_offset(MONDAY, ticks)
        elif self.unit == "BM":
            days = np.busday_offset(
                (ticks + 1).astype("datetime64[M]").astype("datetime64[D]"), -1, roll="forward"
            )
        elif not self.days:
            days = ticks.astype(f"datetime64[{self.unit}]")
        else:
            month, k = np.divmod(ticks, len(self.days))
            first, _, last = _in_month(month.astype("datetime64[M]"))
            day = np.minimum(np.take(self.days, k), last) - 1
            days = first.astype("datetime64[D]") + day.astype("timedelta64[D]")
        dates: Dates = (days + self.time).astype(self.dates.dtype)
        return dates


def read_dates(
    cells: Sequence[str], line: Line, date_format: str | None = None
) -> tuple[Dates, str | None]:
    """Return text (N,) as dates, and the name of the time zone that they have.

    They are in ISO 8601, or in a format of `datetime.strptime`. Those with a zone become those of
    UTC, which is also the name of several. Where a cell is no date, or a date does not exist, a
    ValueError names the line, by `line` of its row.
    """
    read = (
        _iso_date
        if date_format is None
        else lambda cell: datetime.datetime.strptime(cell, date_format)
    )
    expected = (
        "a date like the others"
        if date_format is None
        else f"a date of the format {checks.shown(date_format)}"
    )
    moments = []
    zones = set[Any]()
    for row, cell in enumerate(cells):
        try:
            moment = read(cell)
            zones.add(moment.utcoffset())
            if None in zones and len(zones) > 1:
                raise ValueError
            moments.append(
                moment.astimezone(datetime.UTC).replace(tzinfo=None) if moment.tzinfo else moment
            )
        except (ValueError, OverflowError):
            raise ValueError(f"{line(row)}: {checks.shown(cell)} is not {expected}") from None
    dates = coarsest(np.array(moments, "datetime64[us]"))
    unit = UNITS.get(max(map(len, cells))) if date_format is None else None
    zone = None if None in zones else str(datetime.timezone(*zones)) if len(zones) == 1 else "UTC"
    return dates if unit is None else dates.astype(f"datetime64[{unit}]"), zone


def check_rising(dates: Dates, line: Line, hint: str = "") -> None:
    """Raise ValueError, with `line` of the row and a hint, unless each date comes after the one
    before.
    """
    fall = np.flatnonzero(~(dates[1:] > dates[:-1]))  # also where one is missing
    if fall.size:
        row = int(fall[0]) + 1
        raise ValueError(
            f"{line(row)} is {dates[row]}, expected a date after {dates[row - 1]}{hint}"
        )


def calendar_of(where: str, dates: object, zone: str | None = None, hint: str = "") -> Calendar:
    """Return rising dates (N,) at the equal steps of time that they lie on; `where` is the caller,
    for errors.

    A calendar is returned as it is. Dates of a time zone come in UTC, or know it as those of pandas
    and Polars do. A hint is added to the error where dates do not rise.

    Raises
    ------
    TypeError, ValueError
        These are no rising dates, or they are irregular; the first row that is off is named.
    """
    if isinstance(dates, Calendar):
        return dates
    dtype: Any = getattr(dates, "dtype", None)
    if (known := getattr(dtype, "tz", None) or getattr(dtype, "time_zone", None)) is not None:
        dates = np.asarray(dates, "datetime64[us]")
        zone = str(known)
    array: Any = checks.host(where, "dates", dates, "dates (N,)")
    try:
        array = array.astype("datetime64") if array.dtype.kind in "UTO" else array
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.dtype.kind != "M" or array.ndim != 1:
        raise TypeError(f"{where}: dates is {checks.shown(dates)}, expected dates (N,)")

    def line(row: int) -> str:
        return f"{where}: dates[{row}]"

    placed = calendar(array, line, zone, hint)
    if placed is None:
        raise ValueError(
            f"{where}: dates has {len(array)} rows, expected two or more, which have a common step"
        )
    return placed


def calendar(dates: Dates, line: Line, zone: str | None = None, hint: str = "") -> Calendar | None:
    """Put dates on equal steps of time; None where there are fewer than two.

    Dates that do not rise or are irregular, or a gap that would have to be filled with more rows
    than FILL allows, are a ValueError that names the line. Those of a time zone come in UTC.
    """
    check_rising(dates, line, hint)
    if len(dates) < 2:
        return None
    dates, zone_of_dates, clocks = local(dates, zone)
    dates = coarsest(dates)
    for found in _rhythms(dates):
        ticks = found.ticks(dates)
        every = int(np.gcd.reduce(np.diff(ticks)))
        place = (ticks - ticks[0]) // every
        steps = np.diff(place)
        if np.mean(steps == 1) >= 0.5:
            break
    else:
        raise ValueError(_irregular(dates, line))
    if place[-1] >= FILL[0] * len(place) + FILL[1]:
        row = int(np.argmax(steps)) + 1
        missing = f"{steps[row - 1] - 1} rows are missing between {dates[row - 1]} and {dates[row]}"
        expected = f"expected at most {FILL[0]} times as many as there are; split the series there"
        raise ValueError(f"{line(row)}: {missing}, {expected}")
    steps_taken = found.at(ticks[0] + every * np.arange(place[-1] + 1))
    return found._replace(
        dates=steps_taken, place=place, every=every, zone=zone_of_dates, clocks=clocks
    )


def local(
    dates: Dates, zone: str | None
) -> tuple[Dates, datetime.tzinfo | None, datetime.tzinfo | None]:
    """Return dates of UTC on the clocks of a zone, where these always show the same time of day,
    and the zone twice.

    Otherwise the dates are not days apart, but hours or less, and stay as they are, and the first
    zone is UTC.
    """
    if zone is None:
        return dates, None, None
    try:
        clocks = (
            datetime.datetime.strptime(zone.removeprefix("UTC"), "%z").tzinfo
            if ":" in zone
            else ZoneInfo(zone)
        )
    except (KeyError, OSError, ValueError):  # there is no such zone on this machine
        return dates, datetime.UTC, datetime.UTC
    if np.all(np.diff(dates) >= np.timedelta64(12, "h")):
        shown = converted(dates, datetime.UTC, clocks)
        times = shown - shown.astype("datetime64[D]")
        if np.all(times == times[0]):
            return shown, clocks, clocks
    return dates, datetime.UTC, clocks


def coarsest(dates: Dates) -> Dates:
    """Return dates in days, minutes or seconds, the first of which holds them, where their unit is
    a finer one.
    """
    for unit in ("D", "m", "s"):
        coarse = dates.astype(f"datetime64[{unit}]")
        if coarse.dtype <= dates.dtype and np.all(coarse == dates):
            return coarse
    return dates


def next_dates(calendar: Calendar, steps: int) -> Dates:
    """Return the dates of `steps` rows after the last one, in the zone of the calendar."""
    return calendar.at(
        calendar.ticks(calendar.dates[-1:]) + calendar.every * np.arange(1, steps + 1)
    )


def next_moments(calendar: Calendar, steps: int) -> list[datetime.datetime]:
    """Return these dates in the time zone that those of the calendar came in, or without one."""
    return moments(next_dates(calendar, steps), calendar.zone, calendar.clocks)


def after(calendar: Calendar, steps: int) -> Dates:
    """Return the dates of `steps` rows after the last one, in UTC where they have a zone."""
    return converted(next_dates(calendar, steps), calendar.zone, calendar.zone and datetime.UTC)


def converted(dates: Dates, zone: datetime.tzinfo | None, clocks: datetime.tzinfo | None) -> Dates:
    """Return dates of a zone as the clocks of another zone show them."""
    if zone is clocks:
        return dates
    return coarsest(
        np.array(
            [one.replace(tzinfo=None) for one in moments(dates, zone, clocks)], "datetime64[us]"
        )
    )


def moments(
    dates: Dates, zone: datetime.tzinfo | None, clocks: datetime.tzinfo | None
) -> list[datetime.datetime]:
    """Return dates of a zone as moments of another zone, or dates without a zone as they are."""
    plain: list[datetime.datetime] = dates.astype("datetime64[us]").tolist()
    return (
        plain
        if zone is None
        else [moment.replace(tzinfo=zone).astimezone(clocks) for moment in plain]
    )


def features(dates: Dates, step: float) -> Values:
    """Return sines and cosines (N, F) of the time of the year, of the week and of the day.

    Only those are there that a step of `step` seconds can tell apart.
    """
    seconds = dates.astype("datetime64[s]")
    within_day = (seconds - seconds.astype("datetime64[D]")).astype(np.float64) / DAY
    days = seconds.astype("datetime64[D]").astype(np.int64)
    within_year = (seconds - seconds.astype("datetime64[Y]").astype("datetime64[s]")).astype(
        np.float64
    ) / YEAR
    parts = [k * within_year for k in range(1, HARMONICS + 1)] if step < YEAR / 2 else []
    parts += [(days % 7 + within_day) / 7] if step < WEEK / 2 else []
    parts += [within_day] if step < DAY / 2 else []
    turns = 2 * np.pi * np.array(parts).reshape(len(parts), len(dates))
    return np.concatenate((np.sin(turns), np.cos(turns))).T


def holiday_shares(where: str, country: str, calendar: Calendar, dates: Dates) -> Values:
    """Return the shares of days that are public holidays, (N, 1), in the steps that begin at the
    dates of a calendar.

    Steps of a day or less belong to the day of their date, and those that end months, quarters or
    years to the days up to their date. A country has the code of ISO 3166, and a part of it, too,
    such as "DE-BY".
    """
    try:
        import holidays
    except ImportError as error:
        needed = "needs the package holidays; pip install holidays"
        raise ImportError(f"{where}: holidays={country!r} {needed}") from error
    first = dates.astype("datetime64[D]")
    stop = first + np.timedelta64(1, "D")
    if calendar.days == (31,) or calendar.unit == "BM":
        first = (dates.astype("datetime64[M]") - np.timedelta64(calendar.every - 1, "M")).astype(
            "datetime64[D]"
        )
    elif calendar.seconds > DAY and (calendar.unit != "B" or calendar.every > 1):
        stop = calendar.at(calendar.ticks(dates) + calendar.every).astype("datetime64[D]")
    years = first[[0, -1]].astype("datetime64[Y]").astype(int) + 1970
    code, _, part = country.partition("-")
    try:
        found = holidays.country_holidays(code, part or None, years=range(years[0], years[1] + 2))
    except NotImplementedError as error:
        expected = (
            'expected a code of ISO 3166 that the package holidays knows, such as "DE" or "DE-BY"'
        )
        raise ValueError(
            f"{where}: holidays is {checks.shown(country)}, {expected} ({error})"
        ) from None
    free = np.array(sorted(found), "datetime64[D]")
    counts = np.searchsorted(free, stop) - np.searchsorted(free, first)
    return np.asarray(counts / (stop - first).astype(np.int64))[:, None]


def _iso_date(cell: str) -> datetime.datetime:
    if not ISO_DATE.fullmatch(cell):
        raise ValueError
    return datetime.datetime.fromisoformat(cell if len(cell) >= 10 else f"{cell}-01-01"[:10])


def _rhythms(dates: Dates) -> Iterator[Calendar]:
    """Yield the units in which dates may have a common step, the likeliest first."""
    days = dates.astype("datetime64[D]")
    none = np.zeros(0, np.int64)
    time = dates[0] - days[0]
    if np.any(dates - days != time):
        yield Calendar(dates, none, str(np.datetime_data(dates.dtype)[0]))
        return
    months, day, last = _in_month(days)
    usual = 31 if np.all(day == last) else int(np.max(day))
    apart = bool(np.all(np.diff(months.astype(np.int64)) > 0))
    if apart and np.all(day == np.minimum(usual, last)):
        yield Calendar(dates, none, "M", days=(usual,), time=time)
    all_days = np.diff(days.astype(np.int64))
    business_days = np.diff(np.busday_count(MONDAY, days))
    over_weekends = np.min(all_days) == np.gcd.reduce(business_days) and np.sum(
        business_days
    ) < np.sum(all_days)
    yield Calendar(
        dates, none, "B" if over_weekends and np.all(np.is_busday(days)) else "D", time=time
    )
    if apart and np.all(np.is_busday(days)) and np.all(day > last - TRADING):
        yield Calendar(dates, none, "BM", time=time)
    two = np.unique(np.where(day == last, 31, day))
    if len(two) == 2:
        yield Calendar(dates, none, "SM", days=(int(two[0]), int(two[1])), time=time)


def _irregular(dates: Dates, line: Line) -> str:
    """Return which row is off the commonest step of dates, that of months or that of their own
    unit, and by what.
    """
    days = dates.astype("datetime64[D]")
    none = np.zeros(0, np.int64)
    _, day, last = _in_month(days)
    usual = int(np.argmax(np.bincount(np.where(day == last, 31, day))))
    time = dates[0] - days[0]
    found = []
    for grid in (
        Calendar(dates, none, "M", days=(usual,), time=time),
        Calendar(dates, none, str(np.datetime_data(dates.dtype)[0])),
    ):
        ticks = grid.ticks(dates)
        sizes, counts = np.unique(np.maximum(np.diff(ticks), 1), return_counts=True)
        every = sizes[np.argmax(counts)]
        off = (np.diff(ticks) % every != 0) | (grid.at(ticks) != dates)[1:]
        found.append(
            (
                np.count_nonzero(off),
                off if np.any(off) else np.diff(ticks) != every,
                grid.at(ticks + every),
            )
        )
    _, off, following = min(found, key=lambda one: one[0])
    row = int(np.argmax(off)) + 1
    expected = (
        f"expected {following[row - 1]}, or a date that is a whole number of such steps later for"
        " a gap"
    )
    return (
        f"{line(row)} is {dates[row]}, which follows {dates[row - 1]}; {expected}, with fewer gaps"
        " than steps"
    )


def _in_month(dates: Dates) -> tuple[Dates, Counts, Counts]:
    """Return the months of dates, the days of the month, and the last days of these months."""
    months = dates.astype("datetime64[M]")
    first, after = (
        some.astype("datetime64[D]").astype(np.int64)
        for some in (months, months + np.timedelta64(1, "M"))
    )
    return months, dates.astype("datetime64[D]").astype(np.int64) - first + 1, after - first
