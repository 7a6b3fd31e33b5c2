"""Series with all that is known beside them, as a forecaster looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars
from xlstm.data.dates import Calendar
from xlstm.data.host import Values
from xlstm.data.preparation import carry_forward
from xlstm.data.values import numbers, series


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
        """Return the track as it was before row `end`; what is known in advance stays."""
        return self._replace(values=self.values[:end], known=self.known[:end], past=self.past[:end])


class Covariates(NamedTuple):
    """Numbers that are known beside the values, each for one series or a list of them for several."""

    past: Any = None
    future: Any = None
    static: Any = None
    dates: Any = None

    @classmethod
    def of(cls, where: str, given: Mapping[str, Any]) -> Covariates:
        """Return keywords of a caller as what they stand for; raise TypeError where one is unknown."""
        if unknown := given.keys() - set(cls._fields):
            raise TypeError(f"{where}: {min(unknown)} is no argument, expected some of {', '.join(cls._fields)}")
        return cls(**given)


class Known(TypedDict, total=False):
    """Keywords that stand for a `Beside`."""

    past: Any
    future: Any
    static: Any
    dates: Any


def read_series(
    where: str, values: Any, beside: Covariates, more: int, look: bool, gaps: bool = False
) -> list[TimeSeries]:
    """Return tracks of one series or of several, with room for `more` rows of the calendar.

    With `look` features of dates are among the covariates that are known in advance. With `gaps` covariates keep their
    gaps, and all may begin with some; `known` then has the first value in their place, or 0 where there is none. Errors
    name the caller, `where`.

    Raises
    ------
    ValueError, TypeError
        Series are not sound, or what is beside them has not as many rows.
    """
    if not is_several(values):
        return [_track(where, values, beside, more, look, gaps)]
    if len(values) == 0:
        raise ValueError(f"{where}: values is an empty list, expected a series or more")
    several = [_each(where, name, given, len(values)) for name, given in beside._asdict().items()]
    found = []
    for k, one in enumerate(values):
        try:
            found.append(_track(where, one, Covariates(*(given[k] for given in several)), more, look, gaps))
        except (TypeError, ValueError) as error:
            error.add_note(f"in series {k}")
            raise
    widths = {(t.values.shape[1], t.past.shape[1], t.future.shape[1], len(t.static)) for t in found}
    if len(widths) > 1:
        raise ValueError(
            f"{where}: the series differ in their columns (values, past, future, static), {sorted(widths)}"
        )
    return found


def is_several(values: Any) -> bool:
    """Return whether an argument is a list of series, and not one series."""
    return isinstance(values, list | tuple) and any(axes(one) > 0 for one in values[:1])


def axes(given: Any) -> int:
    """Return the number of axes of what may be an array or a list."""
    return 1 if isinstance(given, range) else np.ndim(given)


def _each(where: str, name: str, given: Any, number: int) -> Any:
    """Return what stands beside each of several series."""
    if given is None:
        return [None] * number
    if not isinstance(given, list | tuple | np.ndarray) or len(given) != number:
        raise ValueError(f"{where}: {name} is {checks.shown(given)}, expected one for each of {number} series")
    return given


def _track(where: str, given: Any, beside: Covariates, more: int, look: bool, gaps: bool) -> TimeSeries:
    values = series(where, given)
    N = len(values)
    begin = 0 if gaps else int(np.max(np.argmax(~np.isnan(values), axis=0)))
    lead = 0 if gaps else begin + 1
    for c in np.flatnonzero(np.all(np.isnan(values[:lead]), axis=0)) if lead else ():
        raise ValueError(f"{where}: the series has no value in column {c}, expected some")
    calendar = None if beside.dates is None else calendars.read(where, beside.dates)
    place, rows = np.arange(N), N
    if calendar is not None:
        if len(calendar.place) != N:
            raise ValueError(f"{where}: dates has {len(calendar.place)} rows, expected {N}, as many as the series")
        place, rows = calendar.place, len(calendar.dates)
        values = _placed(values, place, rows)
    past = _covariates(where, "past", beside.past, N, N, lead)
    future = _covariates(where, "future", beside.future, N, None, lead)
    ahead = np.concatenate((place, rows + np.arange(len(future) - N))) if len(future) else place
    future = _placed(future, ahead, rows + max(0, len(future) - N)) if len(future) else np.empty((rows + more, 0))
    marks = 0
    if calendar is not None and look:
        later = calendars.after(calendar._replace(zone=None), max(more, len(future) - rows))
        dates = np.concatenate((calendar.dates, later))
        step = float(np.median(np.diff(calendar.dates.astype("datetime64[s]")).astype(np.float64)))
        found = calendars.features(dates, step)
        marks, future = found.shape[1], np.concatenate((found[: len(future)], future), axis=1)
    static = np.empty(0) if beside.static is None else numbers(where, "static", np.atleast_1d(beside.static))[:, 0]
    if not np.all(np.isfinite(static)):
        raise ValueError(f"{where}: static has a number that is not finite, expected finite numbers (S,)")
    past, known = _placed(past, place, rows), _bridged(values)
    if gaps:
        return TimeSeries(values, _begun(known), past, future, static, calendar, marks)
    begin = int(place[begin])
    values, known, past, future = (rows[begin:] for rows in (values, known, _bridged(past), _bridged(future)))
    return TimeSeries(values, known, past, future, static, calendar, marks, begin)


def _covariates(where: str, name: str, given: Any, N: int, most: int | None, lead: int) -> Values:
    """Return covariates (N, K) or, without `most`, of more rows; those that are infinite raise.

    Those that have no value in the first `lead` rows raise, too.
    """
    if given is None:
        return np.empty((N if most else 0, 0))
    found = numbers(where, name, given, "real numbers (N,) or (N, K)")
    if len(found) < N or (most is not None and len(found) > most):
        more = "" if most else " or more"
        raise ValueError(f"{where}: {name} has {len(found)} rows, expected {N}{more}, as many as the series")
    if np.any(np.isinf(found)) or (lead and np.any(np.all(np.isnan(found[:lead]), axis=0))):
        raise ValueError(f"{where}: {name} begins with a gap or is infinite somewhere, expected finite numbers")
    return found


def _placed(values: Values, place: Any, rows: int) -> Values:
    """Put rows on the steps of a calendar; those that are missing become gaps."""
    if len(values) == rows:
        return values
    full = np.full((rows, values.shape[1]), np.nan)
    full[place] = values
    return full


def _begun(known: Values) -> Values:
    """Return bridged values with the first one of each column in the place of gaps before it."""
    there = ~np.isnan(known)
    first = np.take_along_axis(known, np.argmax(there, axis=0)[None], axis=0)
    return np.where(there, known, np.where(np.isnan(first), 0.0, first))


def _bridged(values: Values) -> Values:
    return np.stack([carry_forward(column) for column in values.T], axis=1) if values.shape[1] else values
