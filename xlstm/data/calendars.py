"""Dates of rows, with pandas: read them from text, put them at equal steps, continue them, make
features.
"""

from __future__ import annotations

import bisect
import contextlib
import datetime
import functools
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data import frames
from xlstm.data.frames import load_pandas
from xlstm.data.host import Values

Dates = np.ndarray[Any, np.dtype[np.datetime64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Line = Callable[[int], str]  # names a row in errors

# 1958, 1958-03, 1958-03-29, 1958-03-29T06, 1958-03-29 06:00, 1958-03-29T06:00:00.5Z,
# 1958-03-29T06:00+02:00
ISO_DATE = re.compile(
    r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}([T"
    r" ][0-9]{2}(:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?)?)?"
)
# 29.03.1958, 3/29/58 06:00, 29-Mar-1958, 29 March 1958, 1958/3/29
OTHER_DATE = re.compile(
    r"([0-9]{4}|[0-3]?[0-9])([-./] ?| )"
    r"([0-3]?[0-9]|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*)\2"
    r"([0-9]{4}|[0-3]?[0-9])([T ].*)?",
    re.IGNORECASE,
)
ZONE = re.compile(r"(Z|[+-][0-9]{2}:?[0-9]{2})$")
UNITS = {4: "Y", 7: "M"}  # units of years and months, by the length of the text
# the most rows after filling gaps: this factor times the file's rows, plus this number
FILL = (10, 10**6)
# the last business day of a month is one of its last days, so many because of holidays
TRADING = 5
DAY = 86_400.0
WEEK = 7 * DAY
YEAR = 365.2425 * DAY  # seconds
# Names of steps, with the smallest and the largest median step in days.
STEP_NAMES = {
    "hour": (1 / 24, 1 / 24),
    "day": (1, 1),
    "week": (7, 7),
    "half month": (15, 16),
    "month": (28.5, 31),
    "quarter": (90, 92),
    "year": (365, 366),
}
SEVERAL = (
    "; if the table has several series, name the column that tells them apart in series_id"
    " (--series-id)"
)
HARMONICS = 2  # pairs of sine and cosine of a year: the year and half a year


class Calendar(NamedTuple):
    """Rows at equal steps of time.

    Attributes
    ----------
    grid : pandas.DatetimeIndex
        The date of every step without a time zone, as clocks in the zone `clocks` show it.
    place : array (N,)
        The step of each row.
    offset : pandas.DateOffset
        The offset from one step to the next.
    clocks, zone : str or None
        The time zone in which steps are equal, and the time zone of the given dates. Steps of a day
        or longer are equal on the clocks of their zone, shorter steps in UTC.
    """

    grid: Any
    place: Counts
    offset: Any
    clocks: str | None
    zone: str | None

    @property
    def seconds(self) -> float:
        """The median time from one step to the next, in seconds."""
        return float(np.median(np.diff(self.grid.asi8))) / 1e6

    @property
    def step(self) -> str:
        """The name of the time between two steps, such as "month"; "step" if it has none."""
        if self.offset.freqstr == "B":
            return "business day"
        days = self.seconds / DAY
        names = (name for name, (low, high) in STEP_NAMES.items() if low <= days <= high)
        return next(names, "step")

    @property
    def dates(self) -> Any:
        """The dates of all steps, in the time zone of the given dates."""
        return self._zoned(self.grid)

    def following(self, steps: int) -> Any:
        """Return the dates of `steps` steps after the last one, in the same time zone."""
        return self._zoned(_grid(self.grid[-1], steps + 1, self.offset)[1:])

    def placed(self, values: Values) -> Values:
        """Return rows (N, C) on the steps of the calendar; missing rows become gaps."""
        full = np.full((len(self.grid), values.shape[1]), np.nan)
        full[self.place] = values
        return full

    def _zoned(self, grid: Any) -> Any:
        if self.clocks is None:
            return grid
        # If clocks show a time twice, it means the first; if they skip it, it means an hour later.
        summer = np.ones(len(grid), bool)
        hour = datetime.timedelta(hours=1)
        zoned = grid.tz_localize(self.clocks, ambiguous=summer, nonexistent=hour)
        return zoned.tz_convert(self.zone)


def in_utc(dates: Any) -> Dates:
    """Return dates of pandas as NumPy dates, in UTC if they have a time zone."""
    utc: Dates = (dates if dates.tz is None else dates.tz_convert(None)).to_numpy()
    return utc


def on_clocks(dates: Any) -> Dates:
    """Return dates of pandas as NumPy dates, as the clocks of their time zone show them."""
    shown: Dates = dates.tz_localize(None).to_numpy()
    return shown


def coarsest(dates: Dates) -> Dates:
    """Return dates in the coarsest exact unit among days, minutes, seconds and microseconds, unless
    theirs is coarser.
    """
    for unit in ("D", "m", "s", "us"):
        coarse = dates.astype(f"datetime64[{unit}]")
        if coarse.dtype <= dates.dtype and np.all(coarse == dates):
            return coarse
    return dates


def read_dates(
    cells: Sequence[str], line: Line, date_format: str | None
) -> tuple[Dates, str | None]:
    """Return text (N,) as dates, and the name of their time zone.

    The text is in ISO 8601, or in a format of `datetime.strptime`. Dates with a zone are converted
    to UTC; if there are several zones, the name is UTC. If a cell is not a date, or the date does
    not exist, a ValueError names the line, which `line` returns for a row.
    """
    pandas = load_pandas(line(0))
    moments = pandas.to_datetime(
        pandas.Series(cells, dtype=object),
        format=date_format or "ISO8601",
        utc=True,
        errors="coerce",
    )
    wrong = moments.isna().to_numpy()
    zones = [match and match[0] for match in map(ZONE.search, cells)]
    if date_format is None:
        wrong = wrong | [ISO_DATE.fullmatch(cell) is None for cell in cells]
    elif "%z" not in date_format:
        zones = [None] * len(cells)
    wrong = wrong | [(zone is None) != (zones[0] is None) for zone in zones]
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{line(row)}: {checks.shown(cells[row])} is not a date like the others, in"
            f" {date_format or 'ISO 8601'}; --date-format (date_format=) reads other notations in a"
            " file, pandas.to_datetime(..., dayfirst=True) in a table; pandas 2 reads the years 1678"
            " to 2261"
        )
    dates = coarsest(moments.dt.tz_localize(None).to_numpy())
    unit = UNITS.get(max(map(len, cells)))
    if date_format is None and unit is not None:
        dates = dates.astype(f"datetime64[{unit}]")
    zone = zones[0]
    if zone is None or zone == "Z" or len({*zones}) > 1:
        return dates, zone and "UTC"
    return dates, f"{zone[:3]}:{zone[-2:]}"


def is_date(cell: str) -> bool:
    """Return whether text is a date in ISO 8601, to the month at least, or in another notation."""
    return bool(OTHER_DATE.fullmatch(cell) or ("-" in cell and ISO_DATE.fullmatch(cell)))


def with_dates(where: str, table: Any, roles: Sequence[Sequence[str]]) -> Any:
    """Return a table with dates in place of text in ISO 8601, if it has no other dates.

    The text is the index of pandas, or a column without a role. If it begins with a date, but a row
    is not in ISO 8601, a ValueError names the row.
    """
    nw, frame, _, index, dated, _ = frames.framed(where, table)
    if dated is not None or hasattr(index, "freq"):
        return table
    for column in (index, *map(frame.get_column, frame.columns)):
        name: Any = getattr(column, "name", None)
        kind = getattr(column, "inferred_type", getattr(column, "dtype", None))
        if kind in ("string", nw.String) and name not in itertools.chain(*roles):
            cells = [*map(str, column)]
            if any(map(is_date, cells[:1])):
                line = functools.partial("{}: {}, row {}".format, where, name or "index")
                read_dates(cells, line, None)
                dates = load_pandas(where).DatetimeIndex(cells, name=name)
                if column is index:
                    return table.set_axis(dates)
                space = nw.get_native_namespace(frame)
                dates = nw.new_series(name, dates, native_namespace=space)
                return nw.to_native(frame.with_columns(dates))
    return table


def check_rising(dates: Dates, line: Line, hint: str) -> None:
    """Raise ValueError, with the line and a hint, unless each date is later than the one before."""
    fall = np.flatnonzero(~(dates[1:] > dates[:-1]))  # also if a date is missing
    if fall.size:
        row = int(fall[0]) + 1
        raise ValueError(
            f"{line(row)} is {dates[row]}, expected a date after {dates[row - 1]}{hint}"
        )


def calendar_of(
    where: str, dates: object, zone: str | None = None, hint: str = "", line: Line | None = None
) -> Calendar:
    """Return the calendar of rising dates (N,): the equal steps of time on which they lie.

    Parameters
    ----------
    where : str
        The caller, for errors.
    dates : array (N,), or Calendar
        A calendar is returned unchanged. Dates with a time zone are in UTC with `zone`, or carry
        their zone as in pandas and Polars.
    zone : str, optional
        The time zone of dates in UTC.
    hint : str
        A text that is added to the error if dates do not rise.
    line : callable, optional
        A function that names a row in errors.

    Raises
    ------
    TypeError, ValueError
        `dates` are not rising dates, or they are irregular, or a gap needs more rows than FILL
        allows. The error names the first wrong row.
    """
    if isinstance(dates, Calendar):
        return dates
    line = line or f"{where}: dates[{{}}]".format
    array, zone = _plain(where, dates, zone)
    if not array.dtype <= np.dtype("datetime64[us]"):
        array = array.astype("datetime64[us]")
    check_rising(array, line, hint)
    if len(array) < 2:
        raise ValueError(
            f"{where}: dates has {len(array)} rows, expected two or more, which have a common step"
        )
    pandas = load_pandas(line(0))
    moments = pandas.DatetimeIndex(array.astype("datetime64[us]"))
    clocks = None
    if zone is not None:
        zoned = moments.tz_localize("UTC")
        # the dates stay in UTC if this machine does not know the zone
        with contextlib.suppress(KeyError, OSError, ValueError):
            zoned = zoned.tz_convert(zone)
        clocks = str(zoned.tz) if _is_daily(zoned) else "UTC"
        moments = zoned.tz_convert(clocks).tz_localize(None)
        zone = str(zoned.tz)
    steps = _equal_steps(pandas, moments, line)
    if steps is None:
        raise ValueError(_irregular(pandas, moments, line))
    return Calendar(*steps, clocks, zone)


def features(calendar: Calendar, steps: int = 0) -> Values:
    """Return sines and cosines of the time of year, week and day, (N + steps, F), for a calendar
    and `steps` further steps.

    Cycles that the calendar's step cannot resolve are left out.
    """
    step = calendar.seconds
    parts = [on_clocks(dates) for dates in (calendar.dates, calendar.following(steps))]
    seconds = np.concatenate(parts).astype("datetime64[s]")
    within_day = (seconds - seconds.astype("datetime64[D]")).astype(np.float64) / DAY
    days = seconds.astype("datetime64[D]").astype(np.int64)
    within_year = (seconds - seconds.astype("datetime64[Y]")).astype(np.float64) / YEAR
    shares = [k * within_year for k in range(1, HARMONICS + 1)] if step < YEAR / 2 else []
    shares += [(days % 7 + within_day) / 7] if step < WEEK / 2 else []
    shares += [within_day] if step < DAY / 2 else []
    turns = 2 * np.pi * np.array(shares).reshape(len(shares), len(seconds))
    return np.concatenate((np.sin(turns), np.cos(turns))).T


def holiday_shares(where: str, country: str, calendar: Calendar, steps: int = 0) -> Values:
    """Return the share of public holidays in each step, (N + steps, 1), for a calendar and `steps`
    further steps.

    Steps of a day or less belong to the day of their date. Steps that end months, quarters or years
    cover the days up to their date. `country` is a code of ISO 3166, also of a part of a country,
    such as "DE-BY".
    """
    try:
        import holidays
    except ImportError as error:
        raise ImportError(
            f"{where}: holidays={checks.shown(country)} needs the package holidays; pip install holidays"
        ) from error
    dates = calendar.dates.append(calendar.following(steps + 1)).tz_localize(None)
    first = on_clocks(dates[:-1]).astype("datetime64[D]")
    stop = first + np.timedelta64(1, "D")
    if calendar.seconds > DAY:
        pandas = load_pandas(where)
        begin = dates.to_period("M").to_timestamp()
        if np.all(dates >= begin + pandas.offsets.BusinessMonthEnd()):
            before = pandas.DatetimeIndex([dates[0] - calendar.offset, *dates[:-2]])
            first = on_clocks((before.to_period("M") + 1).to_timestamp()).astype("datetime64[D]")
        else:
            stop = on_clocks(dates[1:]).astype("datetime64[D]")
    years = range(first[0].tolist().year, stop[-1].tolist().year + 1)
    code, _, part = country.partition("-")
    try:
        days = holidays.country_holidays(code, part or None, years=years)
    except NotImplementedError:
        raise ValueError(
            f"{where}: holidays is {checks.shown(country)}, expected a code of ISO 3166 that the"
            ' package holidays knows, such as "DE" or "DE-BY"'
        ) from None
    free = np.array(sorted(days), "datetime64[D]")
    counts = np.searchsorted(free, stop) - np.searchsorted(free, first)
    return np.asarray(counts / (stop - first).astype(np.int64))[:, None]


def _plain(where: str, dates: Any, zone: str | None) -> tuple[Dates, str | None]:
    """Return dates (N,) as NumPy dates, in UTC if they have a time zone, and the zone's name."""
    dtype: Any = getattr(dates, "dtype", None)
    own_zone = getattr(dtype, "tz", None) or getattr(dtype, "time_zone", None)
    if own_zone is not None:
        dates = np.asarray(dates, "datetime64[us]")
        zone = str(own_zone)
    array: Any = checks.host(where, "dates", dates, "dates (N,)")
    if array.dtype.kind in "UTO":
        with contextlib.suppress(TypeError, ValueError):
            array = array.astype("datetime64")
    if array.dtype.kind != "M" or array.ndim != 1:
        raise TypeError(f"{where}: dates is {checks.shown(dates)}, expected dates (N,)")
    return array, zone


def _is_daily(moments: Any) -> bool:
    """Return whether dates are at least half a day apart and at the same time of day."""
    shown = moments.tz_localize(None)
    times = shown - shown.normalize()
    half_day = 1e6 * DAY / 2  # in microseconds
    return bool(np.all(np.diff(moments.asi8) >= half_day) and np.all(times == times[0]))


def _grid(first: Any, count: int, offset: Any) -> Any:
    """Return `count` dates, each an offset after the one before."""
    return load_pandas("dates").date_range(first, periods=count, freq=offset, unit="us")


def _inferred(pandas: Any, dates: Any) -> Any:
    """Return the offset between all dates, or None if pandas finds none."""
    if len(dates) < 3:
        return None
    with warnings.catch_warnings():
        # pandas 3 warns that `infer_freq` will return an offset instead of its name.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pandas.tseries.frequencies.to_offset(pandas.infer_freq(dates))


def _equal_steps(pandas: Any, dates: Any, line: Line) -> tuple[Any, Counts, Any] | None:
    """Return the grid, places and offset of dates, as in `Calendar`, or None if most are not one
    step apart.
    """
    offset = _inferred(pandas, dates)
    if offset is not None:
        if isinstance(offset, pandas.offsets.BusinessHour):
            hours = np.unique(dates.strftime("%H:%M"))
            closing = (pandas.Timestamp(hours[-1]) + pandas.Timedelta(hours=1)).strftime("%H:%M")
            offset = pandas.offsets.BusinessHour(start=hours[0], end=closing)
        return dates, np.arange(len(dates)), offset
    for unit, counts in _units(pandas, dates):
        every = int(np.gcd.reduce(np.diff(counts)))
        place = (counts - counts[0]) // max(every, 1)
        steps = np.diff(place)
        if every == 0 or np.mean(steps == 1) < 0.5:
            continue
        if place[-1] >= FILL[0] * len(place) + FILL[1]:
            row = int(np.argmax(steps)) + 1
            raise ValueError(
                f"{line(row)}: {steps[row - 1] - 1} rows are missing between {dates[row - 1]} and"
                f" {dates[row]}, expected at most {FILL[0]} times as many as there are; split the"
                " series there"
            )
        offset = unit * every
        grid = _grid(dates[0], int(place[-1]) + 1, offset)
        # before a holiday, the last business day of a month may be earlier
        if unit.freqstr == "BME" or np.all(grid[place] == dates):
            return grid, place, offset
    return None


def _units(pandas: Any, dates: Any) -> Iterator[tuple[Any, Counts]]:
    """Yield offsets that may be the step of dates, or divide it, the likeliest first, with their
    count at each date.
    """
    offsets = pandas.offsets
    days = dates.normalize()
    if np.any(dates - days != dates[0] - days[0]):
        yield _fixed(pandas, dates)
        return
    months = np.asarray(12 * dates.year + dates.month, np.int64)
    once_a_month = bool(np.all(np.diff(months) > 0))
    weekdays = bool(np.all(dates.day_of_week < 5))
    if once_a_month:
        day = 31 if np.all(dates.is_month_end) else int(dates.day.max())
        yield offsets.DateOffset(months=1, day=day), months
    monday = np.datetime64("0001-01-01")
    business = np.busday_count(monday, days.to_numpy("datetime64[D]")).astype(np.int64)
    all_days = np.diff(days.to_numpy("datetime64[D]")).astype(np.int64)
    over_weekends = np.min(all_days) == np.gcd.reduce(np.diff(business))
    if weekdays and over_weekends and business[-1] - business[0] < np.sum(all_days):
        yield offsets.BusinessDay(), business
    else:
        yield _fixed(pandas, dates)
    if once_a_month and weekdays and np.all(dates.day > dates.days_in_month - TRADING):
        yield offsets.BusinessMonthEnd(), months
    end = dates.is_month_end
    begin = dates.is_month_start
    for semimonth, second, middle in (
        (offsets.SemiMonthEnd, end, ~end),
        (offsets.SemiMonthBegin, ~begin, ~begin),
    ):
        days_of_month = np.unique(dates.day[middle])
        if len(days_of_month) == 1 and 1 < days_of_month[0] < 28:
            yield semimonth(day_of_month=int(days_of_month[0])), 2 * months + second


def _fixed(pandas: Any, dates: Any) -> tuple[Any, Counts]:
    """Return the largest time that divides all steps, and its count up to each date."""
    passed = dates.asi8 - dates.asi8[0]
    size = int(np.gcd.reduce(passed))
    return pandas.tseries.frequencies.to_offset(pandas.Timedelta(size, "us")), passed // size


def _irregular(pandas: Any, dates: Any, line: Line) -> str:
    """Return an error text: the first row that leaves the step, and the date that was expected."""
    regular = (
        2
        + bisect.bisect(  # the number of first rows with equal steps
            range(3, len(dates)),
            False,
            key=lambda count: _equal_steps(pandas, dates[:count], line) is None,
        )
    )
    grid, _, offset = _equal_steps(pandas, dates[:regular], line) or (dates, None, None)
    before, after, expected = coarsest(
        np.array([dates[regular - 1], dates[regular], grid[-1] + offset], "datetime64[us]")
    )
    return (
        f"{line(regular)} is {after}, which follows {before}; expected {expected}, or a date that"
        " is a whole number of such steps later for a gap, with fewer gaps than steps"
    )
