"""Intervals around forecasts, by the errors of forecasts of the past.

This is split conformal prediction (Vovk et al. 2005) with errors from rolling origins, each made by
candidates that were fitted to earlier rows only; errors of values that a model is fitted to are too
small. Errors are counted in units of those that were known at the time, so that intervals follow a
series whose errors grow or shrink (Xu & Xie 2021; Barber et al. 2023 weigh errors instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from xlstm.arrays.namespace import Array
from xlstm.data.host import Values
from xlstm.estimators.baselines import mean

NORMAL = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])
LARGEST = 4.0  # root mean square errors beyond which an error counts as no larger
PRIOR = 4.0  # independent errors that a normal distribution counts as much as
HALF_LIFE = 8  # rows, and at least a horizon, after which the weight of an error is half as large
HALF_LIVES = 5  # that are looked at; what is older has a weight of 3 %


class Intervals(NamedTuple):
    """How far quantiles are from the mean.

    Attributes
    ----------
    spread : array (H, C)
        Root mean square errors, in the units of series.
    levels : array (C, Q)
        Quantiles of errors, in units of `spread` and of `width`, one distribution for all steps.
    """

    spread: Values
    levels: Values

    @classmethod
    def of(cls, errors: Sequence[Values], quantiles: Sequence[float]) -> Intervals:
        """Return the intervals that errors (M, H, C) of forecasts of each series say.

        Forecasts are from successive rows; errors are in the units of series, and NaN where the
        truth is not known. Forecasts of H steps overlap: if their errors are sums of H independent
        ones, M of them say as much of a variance as 1.5 M / H that do not overlap. The fewer these
        are, the more their quantiles are drawn to those of a normal distribution, and the farther
        they are from the median, as those of Student's distribution are (the first term of Abramowitz
        & Stegun 1964, 26.7.5).
        """
        squares = mean(np.concatenate(errors) ** 2)
        squares = np.where(np.isnan(squares), np.nanmax(squares, axis=0), squares)
        intervals = cls(np.sqrt(np.maximum(squares, 1e-300)), np.empty(0))
        z = NORMAL(quantiles)
        levels = []
        every = np.concatenate(intervals.standardized(errors))
        for scaled in np.moveaxis(every, 2, 0):
            there = scaled[~np.isnan(scaled)]
            n = max(1.0, 1.5 * len(there) / scaled.shape[1] ** 2)
            normal = np.sqrt(np.mean(there**2)) * z
            level = (n * np.quantile(there, quantiles) + PRIOR * normal) / (n + PRIOR)
            median = n * np.median(there) / (n + PRIOR)
            levels.append(median + (level - median) * (1 + (z**2 + 1) / (4 * n)))
        return intervals._replace(levels=np.array(levels))

    def standardized(self, errors: Sequence[Values]) -> list[Values]:
        """Return errors (M, H, C) of each series, in units of `spread` and of the `width` before
        each forecast.
        """
        return [each / (self.spread * self.width(each)[:, None]) for each in errors]

    def width(self, errors: Values) -> Values:
        """Return the root mean square (M, C) of the latest errors that are known before each of
        successive forecasts, in units of `spread`.

        Errors (M, H, C) are in the units of the series.
        """
        scaled = np.clip(errors / self.spread, -LARGEST, LARGEST)
        latest = errors_of_rows(np.matrix_transpose(scaled**2))
        squares = averages(latest, np.ones(1), len(self.spread))
        return np.maximum(np.sqrt(squares), 1 / LARGEST)

    def around(self, forecast: Array, width: Array) -> Array:
        """Return quantiles (M, H, C, Q) around a forecast (M, H, C), for a width (M, C) in the
        units of the series.
        """
        distance = self.spread * width[:, None]
        return forecast[..., None] + distance[..., None] * self.levels


def error_rows(horizon: int) -> int:
    """Return the number of latest rows whose errors decide about a forecast."""
    return HALF_LIVES * max(HALF_LIFE, horizon)


def averages(latest: Values, first: Values, horizon: int) -> Values:
    """Return for each row the moving average (R, ...) of a first error and of those of the latest
    rows.

    It begins as many rows before as `error_rows` says, so that it does not depend on which other
    rows there are.
    """
    levels = np.array(np.broadcast_to(first, latest.shape))
    weight = 1 - 0.5 ** (1 / max(HALF_LIFE, horizon))
    for age in reversed(range(min(error_rows(horizon), len(latest)))):
        errors = latest[: len(latest) - age]
        level = levels[age:]
        level = level + weight * np.where(np.isnan(errors), 0.0, errors - level)
        levels = np.concatenate((levels[:age], level))
    return levels


def errors_of_rows(squares: Values) -> Values:
    """Return the mean error, over steps ahead, of all forecasts of the value before each origin,
    (R, ...).

    Squared errors (R, ..., H) are those of forecasts from successive origins. NaN stands for what
    is not known.
    """
    R = len(squares)
    nothing = np.full(squares.shape[:-1], np.nan)
    errors = [
        np.concatenate((nothing[: h + 1], squares[: R - h - 1, ..., h]))
        for h in range(min(squares.shape[-1], R))
    ]
    return mean(np.stack(errors))
