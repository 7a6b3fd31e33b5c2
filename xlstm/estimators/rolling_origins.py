"""Rolling origins: the rows of the past from which candidates forecast for validation."""

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

FOLDS = 4  # each needs a fit of every candidate to all rows before it
ORIGINS = 400  # most origins of a series, so that the time does not grow with its length
Candidate = TypeVar("Candidate", covariant=True)


class Validated(NamedTuple, Generic[Candidate]):
    """A fitted candidate with its validation error.

    Attributes
    ----------
    candidate : LinearBaseline or Smoothing
    error : float
        The mean square error from rolling origins, relative to the error of repeating the last
        value.
    folds : list of LinearBaseline or of Smoothing
        The candidate fitted to the rows before each fold; no file keeps these.
    """

    candidate: Candidate
    error: float
    folds: Sequence[Candidate] = ()


@dataclass(frozen=True)
class RollingOrigins:
    """Series up to the rows `stops`, and the origins from which candidates forecast for validation.

    Origins are successive rows in the second half of each series. If `fixed`, candidates have all
    `seasons`; otherwise they choose among those that the series are long enough for.
    """

    several: Sequence[TimeSeries]
    scaling: SeriesScaling
    stops: Sequence[int]
    horizon: int
    seasons: tuple[int, ...] = ()
    fixed: bool = False
    most: int = ORIGINS

    @cached_property
    def cuts(self) -> list[list[int]]:
        """The first row of each fold in each series, and the end of the last fold.

        The first fold begins in the second half, after one longest season if a quarter of the rows
        is left then.
        """
        stops = np.array(self.stops)
        begins = np.maximum(stops // 2, np.minimum(max(self.seasons, default=0), stops * 3 // 4))
        counts = np.minimum(stops - begins, self.most)
        return [(stops - counts + counts * k // FOLDS).tolist() for k in range(FOLDS + 1)]

    @property
    def choices(self) -> list[tuple[int, ...]]:
        """The seasons to try: none, the shorter one, or both.

        The longest series has seen each of them at least once before the first fold.
        """
        if self.fixed:
            return [self.seasons]
        periods = [m for m in self.seasons if m <= max(self.cuts[0])]
        return [tuple(periods[:k]) for k in range(len(periods) + 1)]

    def fold(self, k: int) -> Iterator[tuple[TimeSeries, Values, Origins, int]]:
        """Return each series with its units, its origins in fold k, and its row of `stops`."""
        origins = [np.arange(*ends) for ends in zip(self.cuts[k], self.cuts[k + 1], strict=True)]
        return zip(self.several, self.scaling.units, origins, self.stops, strict=True)

    @cached_property
    def truth(self) -> Values:
        """The targets (M, H, C) after each origin, minus the last value, in units."""
        return np.concatenate(
            [
                baselines.changes(series, origins, self.horizon, stop, units)
                for k in range(FOLDS)
                for series, units, origins, stop in self.fold(k)
            ]
        )

    @cached_property
    def naive_squares(self) -> Values:
        """The mean square of `truth`, (H, C): the error of repeating the last value."""
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
        """Return the mean square error of forecasts from all origins, relative to repeating the
        last value.
        """
        squares = mean((ahead - self.truth) ** 2)
        return float(np.nanmean(squares / self.naive_squares))
