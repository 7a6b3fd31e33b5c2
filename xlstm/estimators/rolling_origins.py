"""Forecasts from rolling origins, by which candidates are validated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from xlstm.arrays.cached import cached_property
from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import baselines
from xlstm.estimators.baselines import mean
from xlstm.estimators.series_scaling import Origins, SeriesScaling

FOLDS = 4  # each takes a fit of every candidate to all rows before it
ORIGINS = 400  # of a series, at most, so that the time does not grow with its length
Candidate = TypeVar("Candidate", covariant=True)


class Validated(NamedTuple, Generic[Candidate]):
    """A fitted candidate and its validation error.

    Attributes
    ----------
    candidate : LinearBaseline or Smoothing
    error : float
        The mean square error from rolling origins, relative to that of repeating the last value.
    folds : list of LinearBaseline or of Smoothing
        The candidate as it was fitted to the rows before each fold; no file keeps them.
    """

    candidate: Candidate
    error: float
    folds: Sequence[Candidate] = ()


@dataclass(frozen=True)
class RollingOrigins:
    """Series up to the rows `stops`, and origins in their second half, one row after another, from
    which candidates forecast for validation.
    """

    several: Sequence[TimeSeries]
    scaling: SeriesScaling
    stops: Sequence[int]
    horizon: int
    seasons: tuple[int, ...] = ()
    most: int = ORIGINS

    @cached_property
    def cuts(self) -> list[list[int]]:
        """The row of each series at which each fold begins, and the end of the last one.

        They begin after the first longest season, if half of the rest is left.
        """
        stops = np.array(self.stops)
        begins = np.maximum(stops // 2, np.minimum(max(self.seasons, default=0), stops * 3 // 4))
        counts = np.minimum(stops - begins, self.most)
        return [(stops - counts + counts * k // FOLDS).tolist() for k in range(FOLDS + 1)]

    @property
    def periods(self) -> tuple[int, ...]:
        """The seasons that the longest series has seen once before the first fold."""
        return tuple(m for m in self.seasons if m <= max(self.cuts[0]))

    def fold(self, k: int) -> Iterator[tuple[TimeSeries, Values, Origins, int]]:
        """Return each series, its units, its origins in a fold, and the row that it stops at."""
        origins = [np.arange(*ends) for ends in zip(self.cuts[k], self.cuts[k + 1], strict=True)]
        return zip(self.several, self.scaling.units, origins, self.stops, strict=True)

    @cached_property
    def truth(self) -> Values:
        """By how much the targets after each origin differ from the last value, (M, H, C), in
        units.
        """
        return np.concatenate(
            [
                baselines.changes(series, origins, self.horizon, stop, units)
                for k in range(FOLDS)
                for series, units, origins, stop in self.fold(k)
            ]
        )

    @cached_property
    def naive_squares(self) -> Values:
        """The mean square of these changes, (H, C)."""
        squares = mean(self.truth**2)
        if np.any(missing := np.all(np.isnan(squares), axis=0)):
            raise ValueError(
                f"Forecaster: column {int(np.argmax(missing))} has no values among the"
                f" {len(self.truth)} rows that candidates are validated by, expected some"
            )
        return np.maximum(np.where(np.isnan(squares), np.nanmax(squares), squares), 1e-12)

    @property
    def horizons(self) -> float:
        """The number of horizons that fit into the origins of all series."""
        return (sum(self.cuts[FOLDS]) - sum(self.cuts[0])) / self.horizon

    def error(self, ahead: Values) -> float:
        """Return the error of forecasts from all origins, relative to that of repeating the last
        value.
        """
        squares = mean((ahead - self.truth) ** 2)
        return float(np.nanmean(squares / self.naive_squares))
