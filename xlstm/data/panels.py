"""Series as forecasters take them, with all that is known beside them, as arrays or in tables;
forecasts as tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars, frames, host
from xlstm.data.calendars import Calendar
from xlstm.data.frames import Columns
from xlstm.data.host import Values
from xlstm.data.series_windows import carry_forward, first_row

# where the last target begins, as a share of the rows: in the middle of those that are trained on
LATEST = 0.3

BySeries = Mapping[Any, Columns]


class TimeSeries(NamedTuple):
    """One series.

    Attributes
    ----------
    values : array (N, C)
        NaN where there is a gap.
    known : array (N, C)
        Each gap bridged by the value before it; before its first value a target is as there.
    past : array (N, P)
        Covariates that are known up to the last value.
    future : array (N + more, F)
        Covariates that are known in advance: features of the calendar, holidays, and those that
        were given.
    static : array (S,)
        Numbers that do not change.
    calendar : Calendar or None
    marks : int
        Features of the calendar.
    begin : int
        Rows that are left out at the beginning.
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
    """Numbers that are known beside the values, each for one series or a list of them for
    several.
    """

    past: Any = None
    future: Any = None
    static: Any = None
    dates: Any = None

    @classmethod
    def of(cls, where: str, given: CovariateArguments) -> Covariates:
        """Return the keywords of a caller, a forecaster `where`; TypeError where one is unknown."""
        for name in given:
            if name not in cls._fields:
                others = f"horizon and quantiles are set in {where}(...), steps in predict"
                raise TypeError(
                    f"{where}: argument {name} is unknown, expected {checks.few(cls._fields)};"
                    f" {others}"
                )
        return cls(**given)

    def each(self, where: str, number: int) -> list[Covariates]:
        """Return the covariates of each of several series."""
        for name, value in self._asdict().items():
            listed = (
                isinstance(value, list | tuple | np.ndarray) and getattr(value, "shape", None) != ()
            )
            if value is not None and (not listed or len(value) != number):
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
    where: str,
    values: Sequence[Any],
    covariates: Sequence[Covariates],
    more: int,
    look: bool,
    gaps: bool = False,
) -> list[TimeSeries]:
    """Return series with their covariates, with room for `more` rows of the calendar.

    With `look` features of dates are among the covariates that are known in advance, and so are the
    holidays of a calendar that has some. With `gaps` covariates keep their gaps, and all may begin
    with some; else rows are left out before the first value of any target, before the first of any
    covariate, and before those that would leave a target without a value in the first LATEST of
    them. Errors name the caller, `where`.

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


def _one(
    where: str, value: Any, covariates: Covariates, more: int, look: bool, gaps: bool
) -> TimeSeries:
    values = host.series(where, value)
    N = len(values)
    begun = 0 if gaps else first_row(f"{where}: the series", values)
    past, future = (
        _covariates(where, name, getattr(covariates, name), N, begun, gaps)
        for name in ("past", "future")
    )
    static: Values = np.empty(0)
    if covariates.static is not None:
        numbers = checks.host(where, "static", covariates.static, "real numbers (S,)")
        static = host.columns(where, "static", np.atleast_1d(numbers))[:, 0]
    if not np.all(np.isfinite(static)):
        raise ValueError(
            f"{where}: static has a number that is not finite, expected finite numbers (S,)"
        )
    calendar = None if covariates.dates is None else calendars.calendar_of(where, covariates.dates)
    ahead = max(0, len(future) - N)
    features = 0
    if calendar is not None:
        if len(calendar.place) != N:
            raise ValueError(
                f"{where}: dates has {len(calendar.place)} rows, expected {N}, as many as the"
                " series"
            )
        values = calendar.placed(values)
        past = calendar.placed(past)
        future = np.concatenate((calendar.placed(future[:N]), future[N:]))
    if not future.shape[1]:
        future = np.empty((len(values) + more, 0))
    if calendar is not None:
        later = calendars.next_dates(calendar, max(more, ahead))
        dates = calendars.converted(
            np.concatenate((calendar.dates, later)), calendar.zone, calendar.clocks
        )
        if calendar.holidays is not None:
            shares = calendars.holiday_shares(where, calendar.holidays, calendar, dates)
            future = np.concatenate((shares[: len(future)], future), axis=1)
        if look:
            of_dates = calendars.features(dates, calendar.seconds)
            features = of_dates.shape[1]
            future = np.concatenate((of_dates[: len(future)], future), axis=1)
    known = _begun(carry_forward(values))
    begin = 0
    if not gaps:
        begin = _first(values, past, future)
        past = carry_forward(past)
        future = carry_forward(future)
    values, known, past, future = (part[begin:] for part in (values, known, past, future))
    return TimeSeries(values, known, past, future, static, calendar, features, begin)


def _first(values: Values, past: Values, future: Values) -> int:
    """Return the first row of a series that is used: see `read_series`."""
    N = len(values)
    any_target = int(np.argmax(np.any(~np.isnan(values), axis=1)))
    late = math.ceil((first_row("the series", values) - LATEST * N) / (1 - LATEST))
    return max(
        any_target,
        late,
        *(first_row("covariates", part[:N]) for part in (past, future) if part.shape[1]),
    )


def _covariates(where: str, name: str, value: Any, N: int, begin: int, gaps: bool) -> Values:
    """Return covariates (N, K) or, of the future, of more rows; raise where they are infinite.

    Without `gaps` those that have no value up to row `begin` raise, too.
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


def _begun(known: Values) -> Values:
    """Return bridged values with the first one of each column in the place of gaps before it."""
    there = ~np.isnan(known)
    first = np.take_along_axis(known, np.argmax(there, axis=0)[None], axis=0)
    return np.where(there, known, np.where(np.isnan(first), 0.0, first))


class Roles(NamedTuple):
    """Which columns of a table are what; by default all are targets.

    Attributes
    ----------
    targets, past, future, static : list of str, str or None
    series_id : str or None
        The column that tells series apart.
    """

    targets: Any = None
    past: Any = None
    future: Any = None
    static: Any = None
    series_id: Any = None

    def checked(self, where: str) -> Roles:
        """Return the roles with lists of names; a single name stands for a list of it. Errors name
        the caller.
        """
        lists: dict[str, list[str]] = {}
        for role, value in self._asdict().items():
            names = [value] if isinstance(value, str) or value is None else value
            names = checks.several(
                where, role, names, "names of columns", checks.optional(checks.text)
            )
            lists[role] = [name for name in names if name is not None]
        if len(lists["series_id"]) > 1:
            raise ValueError(
                f"{where}: series_id is {checks.shown(self.series_id)}, expected the name of one"
                " column"
            )
        taken: dict[str, str] = {}
        for role, column in ((role, column) for role, names in lists.items() for column in names):
            if column in taken:
                problem = (
                    f"column {checks.shown(column)} is in {taken[column]} and {role}, expected one"
                    " role"
                )
                raise ValueError(f"{where}: {problem}")
            taken[column] = role
        return Roles(**lists)

    def given(self) -> dict[str, Any]:
        """Return checked roles as the parameters of a forecaster, None where there are no
        columns.
        """
        return {
            **{name: names or None for name, names in self._asdict().items()},
            "series_id": self.id_name or None,
        }

    @property
    def id_name(self) -> str:
        """The column of checked roles that tells series apart, or no text."""
        return "".join(self.series_id)


class Given(NamedTuple):
    """Series as they were given: as arrays, with what is needed to give forecasts in the same kind.

    Attributes
    ----------
    values : list of array
    covariates : list of Covariates
    single : bool
        Whether one series came by itself, and not in a list.
    flat : list of bool
        Which of the series came without an axis of targets.
    names : list of str
        Names of targets; empty where there was no table.
    table : object
        The table, or None.
    labels : list
        The entry of the column `id_name` for each series.
    id_name : str
    rows : list of array
        For each series of the table labels of its rows that are no dates; empty where rows have
        none.
    """

    values: Sequence[Any]
    covariates: list[Covariates]
    single: bool
    flat: list[bool]
    names: Sequence[str] = ()
    table: Any = None
    labels: Sequence[Any] = ()
    id_name: str = ""
    rows: Sequence[Any] = ()

    @property
    def ids(self) -> list[str]:
        """Names of the series, where a column has them."""
        return [str(label) for label in self.labels] if self.id_name else []

    def like(
        self,
        forecasts: Sequence[Values],
        read: Sequence[TimeSeries],
        suffixes: Sequence[str] = ("",),
    ) -> Any:
        """Return forecasts after the ends of series in the kind that the series came in.

        Parameters
        ----------
        forecasts : list of arrays (steps, C, ...)
        read : list of TimeSeries
        suffixes : list of str
            Ends of the names of columns, along the last axis of forecasts, if there is one.
        """
        if self.table is None:
            shaped = [
                one[:, 0] if flat else one for one, flat in zip(forecasts, self.flat, strict=True)
            ]
            return shaped[0] if self.single else shaped
        steps = len(forecasts[0])
        columns: dict[str, Any] = (
            {self.id_name: np.repeat(np.array(self.labels), steps)} if self.id_name else {}
        )
        rows = np.concatenate(forecasts).reshape(
            steps * len(forecasts), len(self.names), len(suffixes)
        )
        for c, name in enumerate(self.names):
            columns |= {f"{name}{suffix}": rows[:, c, k] for k, suffix in enumerate(suffixes)}
        ahead = [calendars.after(one.calendar, steps) for one in read if one.calendar is not None]
        ahead = ahead or [_numbers_after(labels, steps) for labels in self.rows]
        index = np.concatenate(ahead) if ahead else None
        if (
            index is not None
            and index.dtype.kind == "M"
            and str(np.datetime_data(index.dtype)[0]) not in ("us", "ns")
        ):
            index = index.astype("datetime64[us]")  # not every library has coarser ones
        return frames.table_like(self.table, columns, index)


def given(
    where: str,
    values: Any,
    beside: Covariates,
    roles: Roles,
    fitted: Sequence[str] = (),
    later: str = "future",
) -> Given:
    """Return series as arrays, from a table or from what are arrays already.

    Parameters
    ----------
    where : str
        The caller, for errors.
    values : array, list of arrays, table, or what `given` has returned
    beside : Covariates
        With a table `future` is one of the rows after it, or None.
    roles : Roles
    fitted : list of str
        Names of the targets of a table, in their order, if they have to be these.
    later : str
        The argument of the caller that has the rows after a table, for errors.

    Raises
    ------
    ValueError, TypeError
        A column is not there, the targets are not those of `fitted`, or a table comes with arrays
        beside it.
    """
    if isinstance(values, Given):
        return values
    if not frames.is_table(values):

        def ndim(one: Any) -> int:
            return checks.host(where, "values", one, host.SERIES).ndim

        several = isinstance(values, list | tuple) and any(map(ndim, values[:1]))
        series = values if several else [values]
        every = beside.each(where, len(series)) if several else [beside]
        return Given(series, every, not several, [ndim(one) == 1 for one in series])
    for name, other in beside._asdict().items():
        if other is not None and not (name == "future" and roles.future and frames.is_table(other)):
            raise ValueError(
                f"{where}: {name} is {checks.shown(other)}, expected columns of the table, by name"
            )
    after: BySeries = {}
    if beside.future is not None:
        after = by_series(f"{where}: {later}", beside.future, roles, roles.future)
    used = [*roles.past, *roles.future, *roles.static]
    only = [*roles.targets, *used] if roles.targets else None
    read = by_series(where, values, roles, only)
    names = roles.targets or [name for name in next(iter(read.values())).names if name not in used]
    if fitted and sorted(names) != sorted(fitted):
        few = checks.few
        raise ValueError(
            f"{where}: the targets of the table are {few(names)}, expected {few(fitted)}, as in fit"
        )
    return of_columns(where, read, roles, [*fitted] or names, after, later)._replace(table=values)


def of_columns(
    where: str, read: BySeries, roles: Roles, names: Sequence[str], after: BySeries, later: str
) -> Given:
    """Return series with targets `names` of the columns of each, and of those `after` them, as
    `given` does.
    """
    series = []
    every = []
    rows = []
    for label, columns in read.items():
        series.append(numbers_of(where, columns, names))
        past, future, static = (
            numbers_of(where, columns, some) for some in (roles.past, roles.future, roles.static)
        )
        calendar = None
        if (dated := dates_of(columns)) is not None:
            named = f"{where}: series {checks.shown(label)}" if roles.id_name else where
            calendar = calendars.calendar_of(
                named, dated, columns.zone, calendars.SEVERAL * (not roles.id_name)
            )
        elif columns.index is not None:
            rows.append(columns.index)
        if label in after:
            ahead = _next_rows(where, later, after[label], roles.future, calendar, columns.zone)
            future = np.concatenate((future, ahead))
        if np.any(static != static[:1]):  # as missing values are
            raise ValueError(
                f"{where}: static columns {checks.few(roles.static)} have gaps or change within a"
                " series"
            )
        parts = ((past, roles.past), (future, roles.future), (static[0], roles.static))
        every.append(
            Covariates._make([*(part if some else None for part, some in parts), calendar])
        )
    flat = [False] * len(series)
    return Given(
        series, every, False, flat, names, labels=list(read), id_name=roles.id_name, rows=rows
    )


def by_series(where: str, table: Any, roles: Roles, only: Sequence[str] | None) -> BySeries:
    """Return the columns of all series by their names."""
    columns = frames.table_of(where, table, only, without=roles.id_name)
    if not roles.id_name:
        return {"": columns}
    return {
        label: columns.take(rows)
        for label, rows in frames.rows_by(where, table, roles.id_name).items()
    }


def dates_of(columns: Columns) -> Any:
    """Return the dates of rows (N,), or None."""
    return columns.index if columns.index is not None and columns.index.dtype.kind == "M" else None


def numbers_of(where: str, columns: Columns, names: Sequence[str]) -> Values:
    """Return some columns, (N, K)."""
    return columns.values[:, frames.places_of(where, columns.names, names)]


def _next_rows(
    where: str,
    name: str,
    later: Columns,
    names: Sequence[str],
    calendar: Calendar | None,
    zone: str | None,
) -> Values:
    """Return rows (n, C) that come after those of a table, in the order of their dates, if they
    have some.

    A ValueError says where they have dates, or a time zone, and the table has none, or the reverse,
    and names a date that is not the next step.
    """
    rows = numbers_of(where, later, names)
    dates = dates_of(later)
    if (dates is None) != (calendar is None):
        problem = "no dates, expected some" if dates is None else "dates, expected none"
        raise ValueError(
            f"{where}: the rows of {name} have {problem}, as in the table of the series"
        )
    if calendar is None:
        return rows
    if (later.zone is None) != (zone is None):
        theirs, ours = (
            "no time zone" if one is None else f"time zone {one}" for one in (later.zone, zone)
        )
        raise ValueError(
            f"{where}: the dates of {name} have {theirs}, expected {ours}, as in the table of the"
            " series"
        )
    order = np.argsort(dates)
    expected = calendars.after(calendar, len(dates))
    for date, wanted in zip(dates[order], expected, strict=True):
        if date.astype(expected.dtype) != wanted:
            problem = f"{name} has a row for {date}, expected {wanted}, the next step of the series"
            raise ValueError(f"{where}: {problem}")
    return rows[order]


def _numbers_after(labels: Any, steps: int) -> Any:
    """Return the next whole numbers in the step of labels (N,), or in steps of 1; after other
    labels those of rows.
    """
    last = len(labels) - 1
    every = 1
    if labels.dtype.kind in "iu":
        rises = np.diff(labels.astype(np.int64))
        last = int(labels[-1])
        every = int(rises[0]) if len(rises) and rises[0] > 0 and np.all(rises == rises[0]) else 1
    return last + every * np.arange(1, steps + 1)
