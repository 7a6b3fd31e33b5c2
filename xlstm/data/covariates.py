"""Series with all that is known beside them, as a forecaster looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars
from xlstm.data.calendars import Calendar
from xlstm.data.host import Values, columns, series
from xlstm.data.series_windows import carry_forward, first_row


class TimeSeries(NamedTuple):
    """One series.

    Attributes
    ----------
    values : array (N, C)
        NaN where there is a gap.
    known : array (N, C)
        Each gap bridged by the value before it.
    past : array (N, P)
        Covariates that are known up to the last value.
    future : array (N + more, F)
        Covariates that are known in advance, features of the calendar first.
    static : array (S,)
        Numbers that do not change.
    calendar : Calendar or None
    marks : int
        Features of the calendar.
    begin : int
        Rows that are left out, before the first at which all targets have begun.
    """

    values: Values
    known: Values
    past: Values
    future: Values
    static: Values
    calendar: Calendar | None
    marks: int = 0
    begin: int = 0

    def until(self, end: int) -> TimeSeries:
        """Return the series as it was before row `end`; what is known in advance stays."""
        return self._replace(values=self.values[:end], known=self.known[:end], past=self.past[:end])


class Covariates(NamedTuple):
    """Numbers that are known beside the values, each for one series or a list of them for several."""

    past: Any = None
    future: Any = None
    static: Any = None
    dates: Any = None

    def each(self, where: str, number: int) -> list[Covariates]:
        """Return the covariates of each of several series."""
        for name, value in self._asdict().items():
            listed = value is None or isinstance(value, list | tuple | np.ndarray)
            if not listed or (value is not None and len(value) != number):
                expected = f"one for each of {number} series"
                raise ValueError(f"{where}: {name} is {checks.shown(value)}, expected {expected}")
        lists = ([None] * number if value is None else value for value in self)
        return [*map(Covariates, *lists)]


class CovariateArguments(TypedDict, total=False):
    """The keywords of a caller that stand for `Covariates`."""

    past: Any
    future: Any
    static: Any
    dates: Any


def read_series(
    where: str, values: Sequence[Any], covariates: Sequence[Covariates], more: int, look: bool, gaps: bool = False
) -> list[TimeSeries]:
    """Return series with their covariates, with room for `more` rows of the calendar.

    With `look` features of dates are among the covariates that are known in advance. With `gaps` covariates keep their
    gaps, and all may begin with some; `known` then has the first value in their place, or 0 where there is none. Errors
    name the caller, `where`.

    Raises
    ------
    ValueError, TypeError
        Series are not sound, or covariates have not as many rows.
    """
    read = []
    for k, (one, beside) in enumerate(zip(values, covariates, strict=True)):
        try:
            read.append(_one(where, one, beside, more, look, gaps))
        except (TypeError, ValueError) as error:
            error.add_note(f"in series {k}")
            raise
    widths = {(t.values.shape[1], t.past.shape[1], t.future.shape[1], len(t.static)) for t in read}
    if len(widths) > 1:
        names = "(values, past, future, static)"
        raise ValueError(f"{where}: the series differ in their columns {names}, {sorted(widths)}")
    return read


def _one(where: str, value: Any, covariates: Covariates, more: int, look: bool, gaps: bool) -> TimeSeries:
    values = series(where, value)
    N, begin = len(values), 0 if gaps else first_row(f"{where}: the series", values)
    past, future = (_covariates(where, name, getattr(covariates, name), N, begin, gaps) for name in ("past", "future"))
    static: Values = np.empty(0)
    if covariates.static is not None:
        static = columns(where, "static", np.atleast_1d(covariates.static))[:, 0]
    if not np.all(np.isfinite(static)):
        raise ValueError(f"{where}: static has a number that is not finite, expected finite numbers (S,)")
    calendar = None if covariates.dates is None else calendars.calendar_of(where, covariates.dates)
    ahead, features = max(0, len(future) - N), 0
    if calendar is not None:
        if len(calendar.place) != N:
            raise ValueError(f"{where}: dates has {len(calendar.place)} rows, expected {N}, as many as the series")
        begin = int(calendar.place[begin])
        values, past = calendar.placed(values), calendar.placed(past)
        future = np.concatenate((calendar.placed(future[:N]), future[N:]))
    if not future.shape[1]:
        future = np.empty((len(values) + more, 0))
    if calendar is not None and look:
        later = calendars.after(calendar._replace(zone=None), max(more, ahead))
        of_dates = calendars.features(np.concatenate((calendar.dates, later)), calendar.seconds)
        features, future = of_dates.shape[1], np.concatenate((of_dates[: len(future)], future), axis=1)
    known = carry_forward(values)
    if gaps:
        return TimeSeries(values, _begun(known), past, future, static, calendar, features)
    parts = (values, known, carry_forward(past), carry_forward(future))
    values, known, past, future = (part[begin:] for part in parts)
    return TimeSeries(values, known, past, future, static, calendar, features, begin)


def _covariates(where: str, name: str, value: Any, N: int, begin: int, gaps: bool) -> Values:
    """Return covariates (N, K) or, of the future, of more rows; raise where they are infinite.

    Without `gaps` those that have no value up to row `begin` raise, too.
    """
    if value is None:
        return np.empty((N, 0))
    rows = columns(where, name, value, "real numbers (N,) or (N, K)")
    if len(rows) < N or (name == "past" and len(rows) > N):
        more = " or more" if name == "future" else ""
        raise ValueError(f"{where}: {name} has {len(rows)} rows, expected {N}{more}, as many as the series")
    if np.any(np.isinf(rows)) or (not gaps and np.any(np.all(np.isnan(rows[: begin + 1]), axis=0))):
        raise ValueError(f"{where}: {name} begins with a gap or is infinite somewhere, expected finite numbers")
    return rows


def _begun(known: Values) -> Values:
    """Return bridged values with the first one of each column in the place of gaps before it."""
    there = ~np.isnan(known)
    first = np.take_along_axis(known, np.argmax(there, axis=0)[None], axis=0)
    return np.where(there, known, np.where(np.isnan(first), 0.0, first))
