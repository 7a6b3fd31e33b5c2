"""Rows that come after those of a table, where its series grow together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars, frames, panels
from xlstm.data.dates import FILL, Calendar
from xlstm.data.host import Values
from xlstm.data.panels import Given, Roles
from xlstm.data.tracks import Track
from xlstm.data.values import series


def check_ends(where: str, given: Given, read: Sequence[Track]) -> None:
    """Raise ValueError unless all series of a table end with one date, if they have dates, and have one step."""
    ends = [None if one.calendar is None else _end(one.calendar) for one in read]
    for k, end in enumerate(ends):
        if end != ends[0]:
            first, other = (checks.shown(given.labels[n]) for n in (0, k))
            raise ValueError(f"{where}: series {other} ends with {end}, expected {ends[0]}, as series {first}")


def _end(calendar: Calendar) -> str:
    """Return the last date and the step of a calendar in words."""
    return f"{calendar.dates[-1]} and steps of {calendar.every} {calendar.unit}"


def following(
    where: str, name: str, given: Given, read: Sequence[Track], roles: Roles, table: Any, passed: int
) -> list[Values]:
    """Return rows that come after those of a table, (n, C) for each of its series.

    Rows that are missing between dates, or at the end of some series, are gaps.

    Parameters
    ----------
    where, name : str
        The caller, and its argument with the rows, for errors.
    given : Given
    read : list of Track
    roles : Roles
        Those of the table.
    table : table
        The rows, with the columns of the table, in any order if they have dates.
    passed : int
        Steps after the ends of the series that came before.

    Raises
    ------
    ValueError, TypeError
        As of `given`; or there are rows of another series, with dates that are no steps after the last ones, or of some
        series more than of others where they have no dates.
    """
    parts = panels.tables_of(where, table, roles)
    for label in parts:
        if label not in given.labels:
            ours = checks.few(given.ids)
            raise ValueError(f"{where}: {name} has rows of series {checks.shown(label)}, expected some of {ours}")
    found = []
    for label, track in zip(given.labels, read, strict=True):
        rows: Values = np.empty((0, len(given.names)))
        if len(parts.get(label, ())):  # as an array, a table may be empty
            columns = frames.table_of(where, parts[label], given.names)
            rows = series(where, panels.numbers_of(where, columns, given.names), gaps=True)
            panels.check_zones(where, name, columns, given.zone)
            if track.calendar is not None:
                rows = _placed(where, name, rows, panels.dates_of(columns), track.calendar, passed)
        found.append(rows)
    counts = [len(rows) for rows in found]
    if len(set(counts)) > 1 and read[0].calendar is None:
        raise ValueError(f"{where}: {name} has {min(counts)} to {max(counts)} rows of a series, expected one number")
    return [np.pad(rows, ((0, max(counts) - len(rows)), (0, 0)), constant_values=np.nan) for rows in found]


def _placed(where: str, name: str, rows: Values, dates: Any, calendar: Calendar, passed: int) -> Values:
    """Return rows (n, C) at the steps of their dates after the last one, with gaps between them.

    Raises
    ------
    ValueError
        A row has no date, or one that is no step after the last one.
    """
    if dates is None:
        raise ValueError(f"{where}: the rows of {name} have no dates, expected some, as in the table of the series")
    order = np.argsort(dates)
    place = calendars.steps_after(calendar, dates[order]) - passed - 1
    wrong = np.flatnonzero(np.diff(place, prepend=-1) <= 0)
    if wrong.size:
        row, wanted = dates[order[wrong[0]]], calendars.after(calendar, 1, passed)[0]
        raise ValueError(f"{where}: {name} has a row for {row}, expected {wanted} or later steps, each once")
    if place[-1] >= FILL[0] * len(place) + FILL[1]:
        raise ValueError(f"{where}: {name} has a row for {dates[order[-1]]}, more than {FILL[1]} steps later")
    placed = np.full((place[-1] + 1, rows.shape[1]), np.nan)
    placed[place] = rows[order]
    return placed
