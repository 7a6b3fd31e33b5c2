"""The series of a table, with covariates, and forecasts of them as the columns of a long table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars
from xlstm.data.calendars import Calendar
from xlstm.data.frames import Columns, places_of
from xlstm.data.host import Values
from xlstm.data.panels import Roles, dates_of, numbers_of
from xlstm.data.series import Series
from xlstm.data.table import Dialect, read_groups, read_header


class Part(NamedTuple):
    """One series of a table.

    Attributes
    ----------
    name : str
        Empty where the table is one series.
    targets : array (N, C)
        Up to the last row that has one.
    past : array (N, P)
    future : array (N + more, F)
    calendar : Calendar or None
    """

    name: str
    targets: Values
    past: Values
    future: Values
    calendar: Calendar | None

    def series(self, c: int, name: str) -> Series:
        """Return a target as a series, to label and to draw."""
        calendar, values = self.calendar, self.targets[:, c]
        name = f"{self.name} {name}".strip()
        if calendar is None:
            return Series(name, values, np.arange(1, len(values) + 1))
        placed = np.full(len(calendar.dates), np.nan)
        placed[calendar.place] = values
        return Series(name, placed, calendar.dates, calendar)


def read(path: Path, roles: Roles, dialect: Dialect) -> tuple[list[Part], list[str], list[str]]:
    """Return the series of a table, the names of their targets, and those of columns that are left out.

    Rows at the end of a series without a target are those of what is known in advance.

    Parameters
    ----------
    path : Path
    roles : Roles
        Checked. Without targets all other columns that hold a number are.
    dialect : Dialect
        How a CSV file is written.

    Raises
    ------
    OSError, TypeError, ValueError, ImportError
        The file cannot be read, a column is missing, a target or a series has no value, or dates do not rise or go on.
    """
    beside = [*roles.past, *roles.future]
    wanted = [*roles.targets, *beside] if roles.targets else None
    found = read_groups(path, roles.id_name or None, wanted, dialect)
    first = next(iter(found.values())).names
    places_of(str(path), first, [*roles.targets, *beside])  # a column of dates is none of numbers
    names = roles.targets or [name for name in first if name not in beside]
    if not names:
        raise ValueError(f"{path}: all columns of numbers are covariates, expected one to forecast")
    held = {
        name
        for one in found.values()
        for name, empty in zip(one.names, np.isnan(one.values).all(0), strict=True)
        if not empty
    }
    empty = [name for name in names if name not in held]
    left: list[str] = []
    if not roles.targets:
        names = [name for name in names if name in held] or names
        used = {*names, *beside, *roles.series_id, next(iter(found.values())).index_name}
        left = [name for name in read_header(path, dialect)[0] if name not in used]
    elif empty and len(empty) < len(names):
        raise ValueError(f"{path}: column {checks.shown(empty[0])} has no value to forecast from")
    return [_part(path, name, columns, names, roles) for name, columns in found.items()], names, left


def _part(path: Path, name: str, columns: Columns, names: Sequence[str], roles: Roles) -> Part:
    targets, past, future = (numbers_of(str(path), columns, some) for some in (names, roles.past, roles.future))
    where = f"{path}: {name or 'the table'}"
    there = np.flatnonzero(np.any(~np.isnan(targets), axis=1))
    if not len(there):
        raise ValueError(f"{where} has no value to forecast from")
    end = int(there[-1]) + 1
    dates = dates_of(columns)
    calendar = None if dates is None else calendars.calendar_of(where, dates[:end], columns.zone)
    if calendar is not None and future.shape[1] and len(future) > end:
        later, expected = dates[end:], calendars.after(calendar, len(future) - end)
        wrong = np.flatnonzero(later.astype(expected.dtype) != expected)
        if wrong.size:
            row = wrong[0]
            raise ValueError(f"{where} has a row for {later[row]}, expected {expected[row]}, the next step")
    return Part(name, targets[:end], past[:end], future, calendar)


def columns(
    parts: Sequence[Part],
    names: Sequence[str],
    series_id: str | None,
    quantiles: Sequence[Values],
    known: Sequence[float],
    levels: Sequence[float],
) -> dict[str, list[Any]]:
    """Return the columns of a long table: the series, the time, and for each target its median and its quantiles.

    Parameters
    ----------
    parts : list of Part
    names : list of str
        Those of the C targets.
    series_id : str or None
        The name of the column that tells series apart.
    quantiles : list of array (H, C, Q)
    known : list of float
        The levels of the Q quantiles, 0.5 among them.
    levels : list of float
        The levels that become columns.
    """
    steps, places = len(quantiles[0]), {level: k for k, level in enumerate(known)}
    found: dict[str, list[Any]] = {}
    if series_id is not None:
        found[series_id] = [part.name for part in parts for _ in range(steps)]
    found["time"] = [label for part in parts for label in part.series(0, "").after(steps)]
    for c, name in enumerate(names):
        for level, column in ((0.5, name), *((level, f"{name} {level:g}") for level in levels)):
            found[column] = np.concatenate([one[:, c, places[level]] for one in quantiles]).tolist()
    return found
