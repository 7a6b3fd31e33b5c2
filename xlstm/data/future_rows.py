"""Rows that come after those of a table, where its series grow together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars, frames, numbering, panels
from xlstm.data.covariates import TimeSeries
from xlstm.data.dates import FILL, Calendar
from xlstm.data.host import Values
from xlstm.data.panels import Given, Roles
from xlstm.data.values import series


def check_ends(where: str, given: Given, read: Sequence[TimeSeries]) -> None:
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
    where: str, name: str, given: Given, read: Sequence[TimeSeries], roles: Roles, table: Any, passed: int
) -> list[Values]:
    """Return rows that come after those of a table, (n, C) for each of its series.

    Rows that are missing between dates, or at the end of some series, are gaps. Whole numbers in the index of pandas
    count time as dates do where they rise by one step, and where several series end with the same one.

    Parameters
    ----------
    where, name : str
        The caller, and its argument with the rows, for errors.
    given : Given
    read : list of Track
    roles : Roles
        Those of the table.
    table : table
        The rows, with the columns of the table, in any order if they have dates or such numbers.
    passed : int
        Steps after the ends of the series that came before.

    Raises
    ------
    ValueError, TypeError
        As of `given`; or there are rows of another series, with dates or numbers that are no steps after the last ones,
        or of some series more than of others where they have none of these.
    """
    own = frames.labels_of(table)
    counted = own is not None and own.dtype.kind in "iu" and numbering.counts(given.rows)
    parts = panels.tables_of(where, table, roles)
    for label in parts:
        if label not in given.labels:
            ours = checks.few(given.ids)
            raise ValueError(f"{where}: {name} has rows of series {checks.shown(label)}, expected some of {ours}")
    found = []
    for k, (label, track) in enumerate(zip(given.labels, read, strict=True)):
        rows: Values = np.empty((0, len(given.names)))
        if len(parts.get(label, ())):  # as an array, a table may be empty
            columns = frames.table_of(where, parts[label], given.names)
            rows = series(where, panels.numbers_of(where, columns, given.names))
            labels, dates = columns.index, panels.dates_of(columns)
            if (dates is None) != (track.calendar is None):
                problem = "no dates, expected some" if dates is None else "dates, expected none"
                raise ValueError(f"{where}: the rows of {name} have {problem}, as in the table of the series")
            panels.check_zones(where, name, columns, given.zone)
            if track.calendar is not None:
                steps, first = calendars.steps_after(track.calendar, dates), calendars.after(track.calendar, 1, passed)
                rows = _placed(where, name, rows, dates, steps - passed - 1, first[0])
            elif counted:
                steps, first = numbering.steps_after(given.rows[k], labels), numbering.after(given.rows[k], 1, passed)
                rows = _placed(where, name, rows, labels, steps - passed - 1, first[0])
        found.append(rows)
    counts = [len(rows) for rows in found]
    if len(set(counts)) > 1 and not (counted or read[0].calendar is not None):
        raise ValueError(f"{where}: {name} has {min(counts)} to {max(counts)} rows of a series, expected one number")
    return [np.pad(rows, ((0, max(counts) - len(rows)), (0, 0)), constant_values=np.nan) for rows in found]


def _placed(where: str, name: str, rows: Values, labels: Any, place: Any, first: Any) -> Values:
    """Return rows (n, C) at their places (n,), with gaps between them.

    The places count steps from 0, which has the label `first`. Those of labels (n,) that are on no step are below 0.

    Raises
    ------
    ValueError
        A label is on no step, is there twice, or is too late.
    """
    order = np.argsort(labels)
    place = place[order]
    wrong = np.flatnonzero(np.diff(place, prepend=-1) <= 0)
    if wrong.size:
        row = labels[order[wrong[0]]]
        raise ValueError(f"{where}: {name} has a row for {row}, expected {first} or later steps, each once")
    if place[-1] >= FILL[0] * len(place) + FILL[1]:
        raise ValueError(f"{where}: {name} has a row for {labels[order[-1]]}, more than {FILL[1]} steps later")
    placed = np.full((place[-1] + 1, rows.shape[1]), np.nan)
    placed[place] = rows[order]
    return placed
