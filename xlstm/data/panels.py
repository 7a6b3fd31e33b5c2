"""Series and covariates for forecasters, from arrays, tables and files, and forecasts of the same
kind.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.data import calendars, frames, host
from xlstm.data.calendars import Calendar, Line
from xlstm.data.csv_file import PLAIN, CsvFile, Dialect
from xlstm.data.frames import Columns
from xlstm.data.host import SeriesError, Values
from xlstm.data.series import Series, only_column, series_of
from xlstm.data.table import ParquetFile, opened, rows_by
from xlstm.data.time_series import Covariates, TimeSeries, read_one

DATED = "no dates", "dates without a time zone", "dates with a time zone"
BySeries = Mapping[Any, Columns]
# for each column of text, by name, the share of rows of each category
Categories = dict[str, dict[str, float]]


class Roles(NamedTuple):
    """The roles of a table's columns; by default all are targets.

    Attributes
    ----------
    targets, past, future, static : list of str, str or None
    series_id : str or None
        The column that names the series of each row.
    """

    targets: Any = None
    past: Any = None
    future: Any = None
    static: Any = None
    series_id: Any = None

    def checked(self, where: str) -> Roles:
        """Return the roles as lists of names, also for a single name. Errors name the caller."""
        lists: dict[str, list[str]] = {}
        taken: dict[str, str] = {}
        for role, value in self._asdict().items():
            names = [value] if isinstance(value, str) else [] if value is None else value
            most = 1 if role == "series_id" else checks.LARGEST
            names = checks.several(where, role, names, "names of columns", checks.text, most)
            for column in names:
                if column in taken:
                    raise ValueError(
                        f"{where}: column {checks.shown(column)} is in {taken[column]} and {role},"
                        " expected one role"
                    )
                taken[column] = role
            lists[role] = names
        return Roles(**lists)

    def parameters(self) -> dict[str, Any]:
        """Return checked roles as the parameters of a forecaster, with None for roles without
        columns.
        """
        return {
            **{name: names or None for name, names in self._asdict().items()},
            "series_id": self.id_name or None,
        }

    @property
    def texts(self) -> list[str]:
        """The columns of checked roles that may hold text."""
        return [*self.future, *self.static]

    @property
    def id_name(self) -> str:
        """The column of checked roles that names series, or an empty text."""
        return "".join(self.series_id)


@dataclass(frozen=True, eq=False)
class Panel:
    """Series as they were given, with all that is needed to return forecasts of the same kind.

    Attributes
    ----------
    values : list of array (N,) or (N, C)
    covariates : list of Covariates
    single : bool
        Whether a single series was given, not a list.
    flat : list of bool
        For each series, whether it was given without an axis of targets.
    roles : Roles
    names : list of str
        Names of targets; empty if no table was given.
    table : object
        The given table, or None.
    groups : dict of object to Columns
        The columns of each series of a table or file, by the series' name. Without a column of
        names there is one series, named "".
    time : str
        The name of the column of dates, or of steps, in tables of forecasts.
    kinds : dict of str to pyarrow.DataType
        Types of the columns of times and of series' names, if they come from a Parquet file.
    left_out : list of str
        Columns of a file without a role.
    categories : dict of str to dict
        The categories that `data.categories.encoded` has replaced by columns of 0 and 1.
    """

    values: Sequence[Any]
    covariates: list[Covariates]
    single: bool
    flat: list[bool]
    roles: Roles
    names: Sequence[str] = ()
    table: Any = None
    groups: BySeries = field(default_factory=dict)
    time: str = "time"
    kinds: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    categories: Categories = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        where: str,
        values: Any,
        beside: Covariates,
        roles: Roles,
        fitted: Sequence[str] = (),
        later: str = "future",
    ) -> Self:
        """Return the panel of arrays or of a table; a panel is returned unchanged.

        Parameters
        ----------
        where : str
            The caller, for errors.
        values : array, list of arrays, table, or Panel
        beside : Covariates
            With a table, `future` is a table of the rows after it, or None. If `values` is a single
            column and there are no roles, covariates are matched by row, as with an array, and have
            no dates.
        roles : Roles
            Checked roles.
        fitted : list of str
            The names that the targets of a table must have, in this order.
        later : str
            The name, for errors, of the caller's argument with the rows after a table.

        Raises
        ------
        ValueError, TypeError
            A column is missing, the targets differ from `fitted`, or a table is combined with
            arrays.
        """
        if isinstance(values, cls):
            return values
        if not frames.is_table(values):
            return cls.from_arrays(where, values, beside)
        values = calendars.with_dates(where, values, roles)
        is_column = not (any(roles[1:]) or frames.has_columns(values))
        for name, other in beside._asdict().items():
            is_later = name == "future" and roles.future and frames.is_table(other)
            if not (other is None or is_later or (is_column and name != "dates")):
                raise ValueError(
                    f"{where}: {name} is {checks.shown(other)}, expected columns of the table, by"
                    " name; past, future and static may be arrays beside arrays or one column"
                )
        after: BySeries = {}
        if beside.future is not None and not is_column:
            after = by_series(f"{where}: {later}", beside.future, roles, roles.future)
        used = [*roles.past, *roles.future, *roles.static]
        groups = by_series(where, values, roles, [*roles.targets, *used] if roles.targets else None)
        names = roles.targets
        if not names:
            names = [name for name in next(iter(groups.values())).names if name not in used]
        if fitted and sorted(names) != sorted(fitted):
            raise ValueError(
                f"{where}: the targets of the table are {checks.few(names)}, expected"
                f" {checks.few(fitted)}, as in fit"
            )
        names = fitted or names
        panel = cls._from_columns(where, groups, roles, names, after, later, {}, table=values)
        if is_column:
            panel.covariates[0] = beside._replace(dates=panel.covariates[0].dates)
        return panel

    @classmethod
    def from_arrays(cls, where: str, values: Any, beside: Covariates) -> Self:
        """Return the panel of one series, or of a list of series, with their covariates."""
        several = isinstance(values, list | tuple) and any(
            _axes(where, first) for first in values[:1]
        )
        series = values if several else [values]
        covariates = beside.each(where, len(series)) if several else [beside]
        flat = [_axes(where, value) == 1 for value in series]
        return cls(series, covariates, not several, flat, Roles().checked(where))

    @classmethod
    def from_file(
        cls,
        path: Path,
        roles: Roles,
        dialect: Dialect = PLAIN,
        later: Path | None = None,
        default: str | None = None,
        all_columns: bool = False,
    ) -> Self:
        """Read the series of a CSV or Parquet file.

        Rows at the end of a series without a target hold covariates that are known in advance.

        Parameters
        ----------
        path : Path
        roles : Roles
            Checked roles. If no target is named, it is the only column of numbers without a role.
        dialect : Dialect
        later : Path, optional
            A table of the covariates that are known in advance.
        default : str, optional
            The target if none is named and several columns are possible.
        all_columns : bool
            If no target is named, use all columns that hold a number as targets.

        Raises
        ------
        OSError, TypeError, ValueError, ImportError
            The file cannot be read, a column is missing, a target or a series has no value, or
            dates do not rise or do not continue.
        """
        if later is not None and not roles.future:
            raise ValueError(
                f"{later}: no column is known in advance, expected one where there is --future-file"
            )
        file = opened(path, dialect)
        covariates = [*roles.past, *roles.future, *roles.static]
        names = _targets(file, roles, covariates, default, all_columns)
        table = file.columns([*names, *covariates], roles.texts)
        empty = np.all(np.isnan(table.numbers(str(path), names)), axis=0)
        if roles.targets and np.any(empty):
            column = checks.shown(names[int(np.argmax(empty))])
            raise ValueError(f"{path}: column {column} has no value to forecast from")
        names = list(itertools.compress(names, ~empty)) or names
        groups = {}
        after = {}
        lines = {}
        for label, rows in rows_by(file, roles.id_name).items():
            columns = table.take(rows)
            end = _end(np.any(~np.isnan(columns.numbers(str(path), names)), axis=1))
            if not end:
                raise ValueError(f"{path}: {label or 'the table'} has no value to forecast from")
            groups[label] = columns.take(slice(end))
            after[label] = columns.take(slice(end, None))
            lines[label] = _line_of(file, rows)
        if later is not None:
            rest = opened(later, dialect)
            columns = rest.columns(roles.future, roles.future)
            after = {
                label: columns.take(rows) for label, rows in rows_by(rest, roles.id_name).items()
            }
        time = "step" if "time" in file.names else "time"
        if table.dates is not None:
            time = str(table.index_name)
        used = {*names, *covariates, *roles.series_id, table.index_name, ""}
        return cls._from_columns(
            str(path),
            groups,
            roles,
            names,
            after,
            str(later or "the table"),
            lines,
            time=time,
            kinds={
                name: file.kinds[name] for name in (*roles.series_id, time) if name in file.kinds
            },
            left_out=[name for name in file.names if name not in used],
        )

    @classmethod
    def _from_columns(
        cls,
        where: str,
        groups: BySeries,
        roles: Roles,
        names: Sequence[str],
        after: BySeries,
        later: str,
        lines: Mapping[Any, Line],
        **fields: Any,
    ) -> Self:
        """Return series with targets `names`, made of the columns of each series and the columns
        `after` them.

        `lines` name the rows of each series in errors. Forecasts of a file's only target are flat.
        """
        values = []
        covariates = []
        for label, columns in groups.items():
            values.append(columns.numbers(where, names))
            past, future, static = (
                columns.numbers(where, role) if role else None
                for role in (roles.past, roles.future, roles.static)
            )
            calendar = None
            if columns.dates is not None:
                series = f"{where}: series {checks.shown(label)}" if roles.id_name else where
                hint = "" if roles.id_name else calendars.SEVERAL
                calendar = calendars.calendar_of(
                    series, columns.dates, columns.zone, hint, lines.get(label)
                )
            if future is not None and label in after:
                ahead = _next_rows(where, later, after[label], roles.future, calendar, columns.zone)
                future = np.concatenate((future, ahead))
            if static is not None:
                missing = static != static
                if np.any((static != static[0]) & ~(missing & missing[0])):
                    raise ValueError(
                        f"{where}: static columns {checks.few(roles.static)} have gaps or change"
                        " within a series"
                    )
                static = static[0]
            covariates.append(Covariates(past, future, static, calendar))
        flat = [bool(lines) and len(names) == 1] * len(values)
        return cls(values, covariates, False, flat, roles, names, groups=groups, **fields)

    def __str__(self) -> str:
        """Return a description of a file's series in one line."""
        first = self.shown[0]
        sizes = [len(series.values) for series in self.shown]
        if len(sizes) > 1:
            many = f"{len(sizes)} series of {min(sizes)} to {max(sizes)} {first.step}s"
            return f"{self.title}, {many}"
        gaps = f", {first.gaps} of them gaps" if first.gaps else ""
        note = f" ({first.note})" if first.note else ""
        span = f"from {first.labels[0]} to {first.labels[-1]}"
        return f"{self.title}, {sizes[0]} {first.step}s {span}{gaps}{note}"

    @cached_property
    def shown(self) -> list[Series]:
        """The first target of each series of a file, for display: dates are local times of their
        zone.
        """
        several = []
        for (label, columns), beside in zip(self.groups.items(), self.covariates, strict=True):
            series = series_of(self.names[0], columns, beside.dates)
            several.append(replace(series, name=f"{series.name} of {label}") if label else series)
        return several

    @property
    def title(self) -> str:
        """The names of the targets."""
        return ", ".join(self.names)

    @property
    def alone(self) -> bool:
        """Whether it is one series, given as an array or a table and not in a list."""
        return self.single or (self.table is not None and not self.roles.id_name)

    @property
    def ids(self) -> list[str]:
        """The names of the series, if a column has them."""
        return [str(label) for label in self.groups] if self.roles.id_name else []

    def first(self, count: int) -> Panel:
        """Return a panel of the first `count` series, whose forecasts are arrays."""
        return replace(
            self,
            values=self.values[:count],
            covariates=self.covariates[:count],
            flat=self.flat[:count],
            groups=dict(itertools.islice(self.groups.items(), count)),
            table=None,
        )

    @property
    def rows_ahead(self) -> dict[str, int]:
        """For each series of a file, how many rows after its end have known future covariates."""
        rows_ahead = {}
        for series, values, beside in zip(self.shown, self.values, self.covariates, strict=True):
            if beside.future is not None:
                ahead = beside.future[len(values) :]
                # NaN and a missing text are not known
                rows_ahead[series.name] = _end(np.all((ahead == ahead) & (ahead != ""), axis=1))
        return rows_ahead

    def check_ahead(self, steps: int) -> None:
        """Raise ValueError if future covariates are not known for `steps` steps."""
        for name, rows in self.rows_ahead.items():
            if rows < steps:
                raise ValueError(
                    f"{checks.few(self.roles.future)}: known for {rows} steps after {name} ends,"
                    f" expected {steps}; add rows without {self.title}, or give --future-file"
                )

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Name the date of an unusable value in errors, while an estimator takes the series of a
        file.
        """
        try:
            yield
        except SeriesError as error:
            for series in self.shown:
                for row in np.flatnonzero(series.values == error.value):
                    raise ValueError(
                        f"{series.name}, {series.step} {series.labels[row]}: {error}"
                    ) from error
            raise

    def read(
        self,
        where: str,
        more: int = 0,
        look: bool = False,
        gaps: bool = False,
        holidays: str | None = None,
    ) -> list[TimeSeries]:
        """Return the series with their covariates, as numbers.

        Parameters
        ----------
        where : str
            The caller, for errors.
        more : int
            Number of steps of the calendar after the end.
        look : bool
            Whether to add features of dates to the covariates that are known in advance.
        gaps : bool
            Whether covariates keep their gaps, and every column may begin with one. If False, rows
            at the beginning are left out: rows before the first value of any target, rows before
            the first value of any covariate, and as many rows as are needed for every target to
            have a value within the first LATEST share of the rest.
        holidays : str, optional
            A country whose holidays become a covariate that is known in advance.

        Raises
        ------
        ValueError, TypeError
            Series are not valid, or covariates differ from them in their number of rows.
        """
        read = []
        for k, (value, beside) in enumerate(zip(self.values, self.covariates, strict=True)):
            try:
                read.append(read_one(where, value, beside, more, look, gaps, holidays))
            except (TypeError, ValueError) as error:
                error.add_note(f"in series {k}")
                raise
        widths = {
            (s.values.shape[1], s.past.shape[1], s.future.shape[1], len(s.static)) for s in read
        }
        if len(widths) > 1:
            raise ValueError(
                f"{where}: the series differ in their columns (values, past, future, static),"
                f" {sorted(widths)}"
            )
        return read

    def forecast_frame(
        self,
        forecasts: Sequence[Values],
        suffixes: Sequence[str] = ("",),
    ) -> Any:
        """Return forecasts after the ends of series, in the kind of the given series.

        Parameters
        ----------
        forecasts : list of arrays (steps, C, ...)
        suffixes : list of str
            Suffixes of the names of columns, for the last axis of forecasts, if there is one.
        """
        if self.table is None:
            pairs = zip(forecasts, self.flat, strict=True)
            shaped = [ahead[:, 0] if flat else ahead for ahead, flat in pairs]
            return shaped[0] if self.single else shaped
        steps = len(forecasts[0])
        columns: dict[str, Any] = {}
        if self.roles.id_name:
            columns[self.roles.id_name] = np.repeat(np.array([*self.groups]), steps)
        columns |= self.forecast_columns(forecasts, suffixes)
        ahead = [
            calendars.in_utc(beside.dates.following(steps))
            for beside in self.covariates
            if beside.dates is not None
        ]
        labels = [group.index for group in self.groups.values() if group.index is not None]
        ahead = ahead or [_numbers_after(rows, steps) for rows in labels]
        return frames.table_like(self.table, columns, np.concatenate(ahead) if ahead else None)

    def forecast_columns(
        self, forecasts: Sequence[Values], suffixes: Sequence[str]
    ) -> dict[str, Any]:
        """Return the columns of a table of forecasts, all series below one another, by target and
        suffix.
        """
        rows = np.concatenate(forecasts)
        rows = rows.reshape(len(rows), len(self.names), len(suffixes))
        return {
            f"{name}{suffix}": rows[:, c, k]
            for c, name in enumerate(self.names)
            for k, suffix in enumerate(suffixes)
        }


def _axes(where: str, series: Any) -> int:
    return checks.host(where, "values", series, host.SERIES).ndim


def _targets(
    file: CsvFile | ParquetFile,
    roles: Roles,
    covariates: Sequence[str],
    default: str | None,
    all_columns: bool,
) -> Sequence[str]:
    """Return the columns of a file that are targets; raise ValueError if that is not clear."""
    path = str(file.path)
    used = [*covariates, *roles.series_id]
    frames.places_of(path, file.names, [*roles.targets, *used], "the header")
    for name in (*roles.targets, *covariates):
        if name in file.dated:
            raise ValueError(f"{path}: column {checks.shown(name)} holds dates, expected numbers")
    if roles.targets:
        return list(roles.targets)
    names = [name for name in file.numeric if name not in used]
    if covariates and not names:
        raise ValueError(f"{path}: all columns of numbers are covariates, expected one to forecast")
    return names if names and all_columns else [only_column(file, names, default)]


def _end(is_there: Any) -> int:
    """Return the number of rows up to the last one that is present, from booleans (N,)."""
    rows = np.flatnonzero(is_there)
    return int(rows[-1]) + 1 if len(rows) else 0


def _line_of(file: CsvFile | ParquetFile, rows: frames.Rows) -> Line:
    """Return a function that names the lines of some rows of a file."""
    return lambda row: file.line(int(rows[row]))


def by_series(where: str, table: Any, roles: Roles, only: Sequence[str] | None) -> BySeries:
    """Return the columns of each series, by its name."""
    table = calendars.with_dates(where, table, roles)
    columns = frames.table_of(where, table, only, roles.id_name, roles.texts)
    if not roles.id_name:
        return {"": columns}
    return {
        label: columns.take(rows)
        for label, rows in frames.rows_by(where, table, roles.id_name).items()
    }


def _next_rows(
    where: str,
    name: str,
    later: Columns,
    names: Sequence[str],
    calendar: Calendar | None,
    zone: str | None,
) -> Values:
    """Return rows (n, C) that follow a table, in the order of their dates, if they have dates.

    A ValueError says that only the rows, or only the table, have dates or a time zone, or names a
    date that is not the next step.
    """
    rows = later.numbers(where, names)
    dates = later.dates
    theirs = (dates is not None) + (later.zone is not None)
    ours = (calendar is not None) + (zone is not None)
    if theirs != ours:
        raise ValueError(
            f"{where}: the rows of {name} have {DATED[theirs]}, expected {DATED[ours]}, as in the"
            " table of the series"
        )
    if calendar is None:
        return rows
    order = np.argsort(dates)
    expected = calendars.in_utc(calendar.following(len(dates)))
    for date, wanted in zip(dates[order], expected, strict=True):
        if date.astype(expected.dtype) != wanted:
            raise ValueError(
                f"{where}: {name} has a row for {date}, expected {wanted}, the next step of the"
                " series"
            )
    return rows[order]


def _numbers_after(labels: Any, steps: int) -> Any:
    """Return the next labels: whole numbers (N,) continue in their step, or in steps of 1; other
    labels by row numbers.
    """
    labels = labels if labels.dtype.kind in "iu" else np.arange(len(labels))
    rises = {*np.diff(labels.astype(np.int64)).tolist()}
    every = rises.pop() if len(rises) == 1 else 1
    return int(labels[-1]) + max(every, 1) * np.arange(1, steps + 1)
