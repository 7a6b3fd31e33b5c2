"""Tables of series as a forecaster takes them, and its forecasts as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars, covariates, frames, numbering
from xlstm.data.covariates import Covariates, TimeSeries
from xlstm.data.dates import Calendar
from xlstm.data.frames import Columns
from xlstm.data.host import Values


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
        """Return the roles with lists of names; a single name stands for a list of it. Errors name the caller."""
        found: dict[str, Any] = {}
        for name, value in self._asdict().items():
            given = [value] if isinstance(value, str) or value is None else value
            if frames.has_columns(given) or getattr(getattr(given, "dtype", None), "kind", "O") not in "OUT":
                raise TypeError(f"{where}: {name} is {checks.shown(given)}, expected names of columns")
            named = checks.several(where, name, given, "names of columns", checks.LARGEST)
            found[name] = [checks.text(where, f"{name}[{k}]", n) for k, n in enumerate(named) if n is not None]
        if len(found["series_id"]) > 1:
            raise ValueError(f"{where}: series_id is {checks.shown(self.series_id)}, expected the name of one column")
        uses = [(column, role) for role, names in found.items() for column in names]
        for column in dict(uses):
            roles = [role for other, role in uses if other == column]
            if len(roles) > 1:
                raise ValueError(
                    f"{where}: column {checks.shown(column)} is in {' and '.join(roles)}, expected one role"
                )
        return Roles(**found)

    def given(self) -> dict[str, Any]:
        """Return checked roles as the parameters of a forecaster, None where there are no columns."""
        return {**{name: names or None for name, names in self._asdict().items()}, "series_id": self.id_name or None}

    @property
    def id_name(self) -> str:
        """The column of checked roles that tells series apart, or no text."""
        return "".join(self.series_id)


class Given(NamedTuple):
    """Series as they were given: as arrays, with what is needed to give forecasts in the same kind.

    Attributes
    ----------
    values : array, or list of arrays
    beside : Beside
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
        For each series of the table labels of its rows that are no dates; empty where rows have none.
    zone : str or None
        The time zone of its dates.
    """

    values: Any
    beside: Covariates
    flat: list[bool]
    names: list[str] = []  # noqa: RUF012 (never changed)
    table: Any = None
    labels: Sequence[Any] = ()
    id_name: str = ""
    rows: Sequence[Any] = ()
    zone: str | None = None

    @property
    def ids(self) -> list[str]:
        """Names of the series, where a column has them."""
        return [str(label) for label in self.labels] if self.id_name else []

    def like(
        self, found: Sequence[Values], read: Sequence[TimeSeries], suffixes: Sequence[str] = ("",), passed: int = 0
    ) -> Any:
        """Return forecasts after the ends of series in the kind that the series came in.

        Parameters
        ----------
        found : list of arrays (steps, C, ...)
        read : list of Track
        suffixes : list of str
            Ends of the names of columns, along the last axis of forecasts, if there is one.
        passed : int
            Steps between the ends of the series and the first of forecasts.
        """
        if self.table is None:
            shaped = [one[:, 0] if flat else one for one, flat in zip(found, self.flat, strict=True)]
            return shaped if covariates.is_several(self.values) else shaped[0]
        steps = len(found[0])
        columns: dict[str, Any] = {}
        if self.id_name:
            columns[self.id_name] = np.repeat(np.array(self.labels), steps)
        rows = np.concatenate(found).reshape(steps * len(found), len(self.names), len(suffixes))
        for c, name in enumerate(self.names):
            for k, suffix in enumerate(suffixes):
                columns[f"{name}{suffix}"] = rows[:, c, k]
        ahead = [calendars.after(one.calendar, steps, passed) for one in read if one.calendar is not None]
        ahead = ahead or [numbering.after(labels, steps, passed) for labels in self.rows]
        index = np.concatenate(ahead) if ahead else None
        if index is not None and index.dtype.kind == "M" and str(np.datetime_data(index.dtype)[0]) not in ("us", "ns"):
            index = index.astype("datetime64[us]")  # not every library has coarser ones
        return frames.table_like(self.table, columns, index)


def given(
    where: str, values: Any, beside: Covariates, roles: Roles, fitted: Sequence[str] = (), later: str = "future"
) -> Given:
    """Return series as arrays, from a table or from what are arrays already.

    Parameters
    ----------
    where : str
        The caller, for errors.
    values : array, list of arrays, or table
    beside : Beside
        With a table `future` is one of the rows after it, or None.
    roles : Roles
    fitted : list of str
        Names of the targets of a table, in their order, if they have to be these.
    later : str
        The argument of the caller that has the rows after a table, for errors.

    Raises
    ------
    ValueError, TypeError
        A column is not there, the targets are not those of `fitted`, or a table comes with arrays beside it.
    """
    if not frames.is_table(values):
        several = values if covariates.is_several(values) else [values]
        return Given(values, beside, [covariates.axes(one) == 1 for one in several])
    for name, other in beside._asdict().items():
        if other is not None and not (name == "future" and roles.future and frames.is_table(other)):
            raise ValueError(f"{where}: {name} is {checks.shown(other)}, expected columns of the table, by name")
    parts = tables_of(where, values, roles)
    after = {} if beside.future is None else tables_of(f"{where}: {later}", beside.future, roles)
    used = [*roles.past, *roles.future, *roles.static]
    only = [*roles.targets, *used] if roles.targets else None
    read = {label: frames.table_of(where, part, only) for label, part in parts.items()}
    names = roles.targets or [name for name in next(iter(read.values())).names if name not in used]
    if fitted and sorted(names) != sorted(fitted):
        few = checks.few
        raise ValueError(f"{where}: the targets of the table are {few(names)}, expected {few(fitted)}, as in fit")
    names = [*fitted] or names
    arrays, past, future, static, dates, rows = [], [], [], [], [], []
    for label, columns in read.items():
        own = f"{where}: series {checks.shown(label)}" if roles.id_name else where
        arrays.append(numbers_of(where, columns, names))
        past.append(numbers_of(where, columns, roles.past))
        ahead, dated = numbers_of(where, columns, roles.future), dates_of(columns)
        dated = None if dated is None else calendars.read(own, dated, columns.zone)
        if label in after:
            more = frames.table_of(f"{where}: {later}", after[label], roles.future)
            check_zones(where, later, more, columns.zone)
            more = _in_order(where, later, more, dated)
            ahead = np.concatenate((ahead, numbers_of(where, more, roles.future)))
        future.append(ahead if roles.future else None)
        fixed = numbers_of(where, columns, roles.static)
        if np.any(np.isnan(fixed)):
            name = roles.static[int(np.argmax(np.any(np.isnan(fixed), axis=0)))]
            raise ValueError(f"{where}: static column {checks.shown(name)} has missing values, expected one number")
        if np.any(fixed != fixed[:1]):
            raise ValueError(f"{where}: static columns {checks.few(roles.static)} change within a series")
        static.append(fixed[0])
        dates.append(dated)
        rows += [columns.index] if dated is None and columns.index is not None else []
    found = Covariates(past if roles.past else None, future, static if roles.static else None, dates)
    return Given(arrays, found, [False] * len(arrays), names, values, list(parts), roles.id_name, rows, columns.zone)


def tables_of(where: str, table: Any, roles: Roles) -> Mapping[Any, Any]:
    """Return the tables of all series by their names."""
    return frames.groups(where, table, roles.id_name) if roles.id_name else {"": table}


def dates_of(columns: Columns) -> Any:
    """Return the dates of rows (N,), or None."""
    return columns.index if columns.index is not None and columns.index.dtype.kind == "M" else None


def check_zones(where: str, name: str, later: Columns, zone: str | None) -> None:
    """Raise ValueError unless the dates of rows have a time zone where `zone` says that those before them have one."""
    if dates_of(later) is not None and (later.zone is None) != (zone is None):
        own, other = ("no time zone" if one is None else f"time zone {one}" for one in (later.zone, zone))
        raise ValueError(f"{where}: the dates of {name} have {own}, expected {other}, as in the table of the series")


def _in_order(where: str, name: str, later: Columns, calendar: Calendar | None) -> Columns:
    """Return rows after those of a calendar, which errors call `name`, in the order of their dates, if they have some.

    Raises
    ------
    ValueError
        They are not for the steps right after the last date.
    """
    own = dates_of(later)
    if own is None:
        return later
    if calendar is None:
        raise ValueError(f"{where}: the rows of {name} have dates, expected none, as in the table of the series")
    order, expected = np.argsort(own), calendars.after(calendar, len(own))
    wrong = np.flatnonzero(own[order].astype(expected.dtype) != expected)
    if wrong.size:
        row, wanted = order[wrong[0]], expected[wrong[0]]
        raise ValueError(f"{where}: {name} has a row for {own[row]}, expected {wanted}, the next step of the series")
    return replace(later, values=later.values[order], index=own[order])


def numbers_of(where: str, columns: Columns, names: Sequence[str]) -> Values:
    """Return some columns, (N, K)."""
    frames.check_has(where, columns.names, *names)
    places = {name: k for k, name in enumerate(columns.names)}
    return columns.values[:, [places[name] for name in names]]
