"""One series as forecasters take it: its values and covariates as numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypedDict

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars, host
from xlstm.data.calendars import Calendar
from xlstm.data.host import Values
from xlstm.data.series_windows import carry_forward, first_row

# The last target must begin before this share of the rows, the middle of the training rows.
LATEST = 0.3


class TimeSeries(NamedTuple):
    """One series with its covariates, as numbers.

    Attributes
    ----------
    values : array (N, C)
        The targets; NaN is a gap.
    known : array (N, C)
        The targets with each gap filled by the value before it; gaps before the first value stay.
    past : array (N, P)
        Covariates that are known up to the last value.
    future : array (N + more, F)
        Covariates that are known in advance: features of the calendar, holidays, and the given
        ones.
    static : array (S,)
        Covariates that do not change with time.
    calendar : Calendar or None
    marks : int
        Number of features of the calendar.
    begin : int
        Number of rows that are left out at the beginning.
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
        """Return the series up to row `end`; covariates known in advance stay."""
        return self._replace(values=self.values[:end], known=self.known[:end], past=self.past[:end])

    def continued(self, later: TimeSeries) -> TimeSeries:
        """Return the series followed by the rows of a later one, gaps included.

        Its `begin` makes rows count from the first row of the later one.
        """
        N = len(self.values)
        future = carry_forward(np.concatenate((self.future[:N], later.future)))
        return self._replace(
            values=np.concatenate((self.values, later.values)),
            known=carry_forward(np.concatenate((self.known, later.values))),
            past=carry_forward(np.concatenate((self.past, later.past))),
            future=future,
            begin=-N,
        )


class Covariates(NamedTuple):
    """The covariates beside the values: an entry each for one series, or lists for several."""

    past: Any = None
    future: Any = None
    static: Any = None
    dates: Any = None

    @classmethod
    def of(cls, where: str, arguments: CovariateArguments) -> Covariates:
        """Return the keywords of a forecaster `where`; raise TypeError if one is unknown."""
        for name in arguments:
            if name not in cls._fields:
                raise TypeError(
                    f"{where}: argument {name} is unknown, expected {checks.few(cls._fields)};"
                    f" horizon and quantiles are set in {where}(...), steps in predict"
                )
        return cls(**arguments)

    def each(self, where: str, number: int) -> list[Covariates]:
        """Return the covariates of each of `number` series."""
        for name, value in self._asdict().items():
            listed = isinstance(value, list | tuple) or len(getattr(value, "shape", ())) > 0
            if value is not None and (not listed or len(value) != number):
                raise ValueError(
                    f"{where}: {name} is {checks.shown(value)}, expected one for each of {number}"
                    " series"
                )
        lists = ([None] * number if value is None else value for value in self)
        return [*map(Covariates, *lists)]


class CovariateArguments(TypedDict, total=False):
    """The keyword arguments from which `Covariates` are made."""

    past: Any
    future: Any
    static: Any
    dates: Any


def read_one(
    where: str,
    value: Any,
    covariates: Covariates,
    more: int,
    look: bool,
    gaps: bool,
    holidays: str | None,
) -> TimeSeries:
    """Return one series with its covariates; `Panel.read` documents the arguments and errors."""
    values = host.series(where, value)
    N = len(values)
    begun = 0 if gaps else first_row(f"{where}: the series", values)
    past = _covariates(where, "past", covariates.past, N, begun, gaps)
    future = _covariates(where, "future", covariates.future, N, begun, gaps)
    static: Values = np.empty(0)
    if covariates.static is not None:
        numbers = checks.host(where, "static", covariates.static, "real numbers (S,)")
        static = host.columns(where, "static", np.atleast_1d(numbers), "real numbers (S,)")[:, 0]
        host.finite(where, "static", static)
    ahead = max(more, len(future) - N)
    calendar = None
    marks = 0
    if covariates.dates is not None:
        calendar = calendars.calendar_of(where, covariates.dates)
        rows = len(calendar.place)
        if rows != N:
            raise ValueError(f"{where}: dates has {rows} rows, expected {N}, as many as the series")
        values = calendar.placed(values)
        past = calendar.placed(past)
        future = np.concatenate((calendar.placed(future[:N]), future[N:]))
    elif holidays is not None:
        raise ValueError(
            f"{where}: holidays={checks.shown(holidays)} needs dates, the series has none; expected a column"
            " of dates, or dates="
        )
    if not future.shape[1]:
        future = np.empty((len(values) + more, 0))
    if calendar is not None:
        parts = [future]
        if holidays is not None:
            parts.insert(0, calendars.holiday_shares(where, holidays, calendar, ahead))
        if look:
            parts.insert(0, calendars.features(calendar, ahead))
            marks = parts[0].shape[1]
        future = np.concatenate([part[: len(future)] for part in parts], axis=1)
    bridged = _begun(carry_forward(values))
    begin = 0
    if not gaps:
        begin = _first(values, past, future)
        past = carry_forward(past)
        future = carry_forward(future)
    values, bridged, past, future = (part[begin:] for part in (values, bridged, past, future))
    return TimeSeries(values, bridged, past, future, static, calendar, marks, begin)


def _first(values: Values, past: Values, future: Values) -> int:
    """Return the first row of a series that is used; see `Panel.read`."""
    N = len(values)
    begins = [first_row("covariates", part[:N]) for part in (past, future) if part.shape[1]]
    begins.append(int(np.argmax(np.any(~np.isnan(values), axis=1))))
    late = math.ceil((first_row("the series", values) - LATEST * N) / (1 - LATEST))
    return max(late, *begins)


def _covariates(where: str, name: str, value: Any, N: int, begin: int, gaps: bool) -> Values:
    """Return covariates (N, K), or with more rows for the future; raise an error if they are
    infinite.

    Without `gaps`, a covariate without a value up to row `begin` is an error, too.
    """
    if value is None:
        return np.empty((N, 0))
    rows = host.columns(where, name, value, "real numbers (N,) or (N, K)")
    if len(rows) < N or (name == "past" and len(rows) > N):
        more = " or more" if name == "future" else ""
        raise ValueError(
            f"{where}: {name} has {len(rows)} rows, expected {N}{more}, as many as the series"
        )
    if np.any(np.isinf(rows)) or (not gaps and np.any(np.all(np.isnan(rows[: begin + 1]), axis=0))):
        raise ValueError(
            f"{where}: {name} begins with a gap or is infinite somewhere, expected finite numbers"
        )
    return rows


def _begun(bridged: Values) -> Values:
    """Return values whose gaps at the beginning are filled with each column's first value."""
    there = ~np.isnan(bridged)
    first = np.take_along_axis(bridged, np.argmax(there, axis=0)[None], axis=0)
    return np.where(there, bridged, np.where(np.isnan(first), 0.0, first))
