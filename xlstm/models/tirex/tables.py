"""Tables of series as a TiRex takes them, and forecasts of tables and of tracks, at any rows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.data import frames, panels
from xlstm.data.covariates import Covariates, TimeSeries, read_series
from xlstm.data.host import Values
from xlstm.data.panels import Given, Roles
from xlstm.models.tirex import quantiles as levels_of
from xlstm.models.tirex.forecast import MEDIAN, Forecast

VALUES = 1 << 23  # values of series that are copied at once


class Table(NamedTuple):
    """The series of a table.

    Attributes
    ----------
    given : Given
        How they were given.
    found : list of Track
    roles : Roles
        Those of the columns.
    """

    given: Given
    found: list[TimeSeries]
    roles: Roles

    @classmethod
    def of(cls, where: str, model: Any, table: Any, roles: Roles) -> Table:
        """Return the series of a table for a model; errors are those of `forecast`, and name the caller, `where`."""
        roles = roles.checked(where)
        return cls(*read(where, model, table, Covariates(), roles, 0), roles)

    @property
    def columns(self) -> list[Values]:
        """Each target of each series by itself, (L,)."""
        return [column for track in self.found for column in track.values.T]

    def following(self, where: str, name: str, rows: Any, passed: int) -> Values:
        """Return more rows of the table, (B, n), by the columns; see `data.panels.following`."""
        found = panels.following(where, name, self.given, self.found, self.roles, rows, passed)
        return np.concatenate([one.T for one in found])

    def forecast(self, q: Values, trained: Sequence[float], levels: tuple[float, ...], passed: int) -> Forecast:
        """Return quantiles (B, H, Q) of trained levels, after `passed` more rows, as tables of other levels."""
        q = q.reshape(len(self.found), -1, *q.shape[1:]).swapaxes(1, 2)  # (S, H, C, Q)
        median = levels_of.between(q, trained, MEDIAN)[..., 0]
        return _forecast(self.given, self.found, median, levels_of.between(q, trained, levels), levels, passed)


class Pretrained(NamedTuple):
    """A TiRex with its parameters and the options of its forecasts.

    Attributes
    ----------
    model : TiRex or TiRex2
    params : dict of str to array
    options : dict
        Keywords of its `forecast`.
    """

    model: Any
    params: Params
    options: Mapping[str, Any]

    def after(self, given: Given, found: Sequence[TimeSeries], steps: int) -> Forecast:
        """Return forecasts after the ends of series, in the kind that the series came in."""
        median, quantiles = self.all_of([(track, len(track.values)) for track in found], steps)
        return _forecast(given, found, median, quantiles, self.options["quantiles"])

    def forecast(self, track: TimeSeries, origins: Sequence[int], steps: int) -> tuple[Values, Values]:
        """Return the median (M, H, C) and quantiles (M, H, C, Q) after the rows before each origin."""
        count = max(1, VALUES // track.values.size)
        parts = [
            self.all_of([(track, end) for end in origins[k : k + count]], steps) for k in range(0, len(origins), count)
        ]
        median, quantiles = (np.concatenate(part) for part in zip(*parts, strict=True))
        return median, quantiles

    def all_of(self, looks: Sequence[tuple[TimeSeries, int]], steps: int) -> tuple[Values, Values]:
        """Return the median (M, H, C) and quantiles (M, H, C, Q) after the first rows of each track."""
        C = looks[0][0].values.shape[1]
        given = arguments(self.model, looks, steps)
        found = self.model.forecast(self.params, horizon=steps, **given, **self.options)
        q = found.quantiles.reshape(len(looks), C, steps, len(found.levels))
        return found.mean.reshape(len(looks), C, steps).swapaxes(1, 2), q.swapaxes(1, 2)


def is_one(where: str, name: str, series: Any, **names: Any) -> bool:
    """Return whether an argument is a table; raise ValueError where it is not, and one of `names` is there for it."""
    if frames.has_columns(series):
        return True
    for other, given in names.items():
        if given is not None:
            raise ValueError(f"{where}: {other} is {checks.shown(given)}, expected None, as {name} is no table")
    return False


def forecast(
    model: Any,
    params: Params,
    table: Any,
    horizon: int,
    roles: Roles,
    later: Any,
    quantiles: Any,
    options: Mapping[str, Any],
) -> Forecast:
    """Run `forecast` of a model, which describes the arguments, on a table."""
    where = type(model).__name__
    horizon, roles = checks.size(where, "horizon", horizon), roles.checked(where)
    levels = levels_once(where, quantiles, model.quantiles)
    if later is not None and not (roles.future and frames.has_columns(later)):
        expected = "a table" if roles.future else "None, as future names no column"
        raise TypeError(f"{where}: later is {checks.shown(later)}, expected {expected}")
    if roles.future and later is None:
        raise TypeError(
            f"{where}: later is None, expected a table with the {horizon} rows ahead of the columns of future"
        )
    given, found = read(where, model, table, Covariates(future=later), roles, horizon, later="later")
    return Pretrained(model, params, {**options, "quantiles": levels}).after(given, found, horizon)


def levels_once(where: str, given: Any, trained: Sequence[float]) -> tuple[float, ...]:
    """Return levels of quantiles that become columns; raise as `quantiles.levels` does, or where there is one twice."""
    levels = levels_of.levels(where, given, trained)
    if len(set(levels)) < len(levels):
        raise ValueError(f"{where}: quantiles is {checks.shown(given)}, expected each level once")
    return levels


def read(
    where: str,
    model: Any,
    values: Any,
    beside: Covariates,
    roles: Roles,
    steps: int,
    fitted: Sequence[str] = (),
    later: str = "future",
) -> tuple[Given, list[TimeSeries]]:
    """Return series as they were given and as tracks, with `steps` rows ahead; see `data.panels.given`.

    Raises
    ------
    ValueError, TypeError
        As of `data.panels.given` and `data.covariates.read_series`, or covariates are not those that the model takes.
    """
    given = panels.given(where, values, beside, roles, fitted, later)
    found = read_series(where, given.values, given.covariates, steps, False, gaps=True)
    for k, track in enumerate(found):
        if track.static.size:
            raise ValueError(f"{where}: static has {track.static.size} numbers, expected none")
        covariates = track.past.shape[1] + track.future.shape[1]
        if covariates and not model.COVARIATES:
            problem = f"past and future have {covariates} columns"
            raise ValueError(f"{where}: {problem}, expected none: TiRex takes no covariates, TiRex2 does")
        more = len(track.future) - len(track.values)
        if track.future.shape[1] and more < steps:
            of = f"series {checks.shown(given.labels[k])}" if given.id_name else "the series"
            raise ValueError(f"{where}: {later} has {more} rows after {of}, expected {steps}")
    return given, found


def arguments(model: Any, looks: Sequence[tuple[TimeSeries, int]], steps: int) -> dict[str, Any]:
    """Return series, past and future, as `forecast` takes them, of the first rows of each track and `steps` later ones.

    Those of a model without covariates are the targets, each by itself.
    """
    if not model.COVARIATES:
        return {"series": [column for track, end in looks for column in track.values[:end].T]}
    return {
        "series": [track.values[:end].T for track, end in looks],
        "past": [track.past[:end].T if track.past.size else None for track, end in looks],
        "future": [_until(track.future, end + steps).T if track.future.size else None for track, end in looks],
    }


def _forecast(
    given: Given,
    found: Sequence[TimeSeries],
    median: Values,
    quantiles: Values,
    levels: tuple[float, ...],
    passed: int = 0,
) -> Forecast:
    """Return the median (S, H, C) and quantiles (S, H, C, Q) in the kind that the series came in."""
    named = given.like(list(quantiles), found, [f" {level:g}" for level in levels], passed)
    return Forecast(named, given.like(list(median), found, passed=passed), levels)


def _until(rows: Values, end: int) -> Values:
    """Return rows up to `end` at least, with gaps after the last one."""
    more = max(0, end - len(rows))
    return np.pad(rows, ((0, more), (0, 0)), constant_values=np.nan) if more else rows
