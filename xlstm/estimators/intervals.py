"""Intervals around forecasts, from the errors of past forecasts.

This is split conformal prediction (Vovk et al. 2005) with errors from rolling origins. The
candidates behind each error were fitted to earlier rows only, since errors on rows that a model is
fitted to are too small. Each error is divided by the size of the errors that were known at its
time. So intervals follow a series whose errors grow or shrink (Xu & Xie 2021; Barber et al. 2023
weigh errors instead), and each series of a panel has intervals of its own width.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.namespace import Array
from xlstm.data.host import Values
from xlstm.estimators.baselines import mean

NORMAL = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])
LARGEST = 4.0  # root mean square errors at which an error is cut
LEAST = 0.01  # least root mean square error of a series, as a share of that of all series
PRIOR = 4.0  # weight of a normal distribution, in independent errors
HALF_LIFE = 8  # rows after which the weight of an error is half as large; at least a horizon
HALF_LIVES = 5  # how far back errors count; older ones would have a weight of 3 %


class Intervals(NamedTuple):
    """Distances of quantiles from the mean.

    Attributes
    ----------
    spread : array (H, C)
        Root mean square errors, in the units of the series.
    levels : array (C, Q)
        Quantiles of errors, in units of `spread` and of `width`; all steps share one distribution.
    scales : array (2, C)
        The smallest and the largest mean square error of a fitted series, in units of `spread`: 1
        and 1 if there was one series.
    """

    spread: Values
    levels: Values
    scales: Any = (1.0, 1.0)

    @classmethod
    def of(cls, errors: Sequence[Values], quantiles: Sequence[float]) -> Intervals:
        """Return the intervals that follow from errors (M, H, C) of forecasts of each series.

        The forecasts are from successive rows. Errors are in the units of the series, and NaN if
        the truth is not known.

        Forecasts of H steps overlap. If their errors are sums of H independent errors, M of them
        determine a variance as well as 1.5 M / H forecasts that do not overlap. The smaller this
        number is, the nearer the quantiles are drawn to those of a normal distribution. They also
        move away from the median, like the quantiles of Student's distribution (the first term of
        Abramowitz & Stegun 1964, 26.7.5).
        """
        squares = mean(np.concatenate(errors) ** 2)
        squares = np.where(np.isnan(squares), np.nanmax(squares, axis=0), squares)
        squares = np.maximum(squares, 1e-300)
        own = np.stack([mean(mean(each**2) / squares) for each in errors])
        scales = np.maximum(np.nanquantile(own, (0, 1), axis=0), LEAST**2)
        intervals = cls(np.sqrt(squares), np.empty(0), scales)
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
        """Return errors (M, H, C) of each series, in units of `spread` and of the `width` at each
        forecast.
        """
        return [each / (self.spread * self.width(each)[:, None]) for each in errors]

    def width(self, errors: Values) -> Values:
        """Return the root mean square (M, C) of the latest errors that are known at each of
        successive forecasts, in units of `spread`.

        The errors (M, H, C) of a series are in its units. Each average begins with the mean square
        of the same errors, within `scales`. If few errors are known, it is drawn to 1, the mean
        square of all series, as a geometric mean with the weights of the average.
        """
        low, high = self.scales
        squares = np.minimum((errors / self.spread) ** 2, LARGEST**2 * high)
        latest = errors_of_rows(np.matrix_transpose(squares))
        known, from_one = (averages(latest, first, len(self.spread)) for first in (0.0, 1.0))
        share = 1 - (from_one - known)  # of the known errors in the average
        own = np.clip((known / np.maximum(share, 1e-9)) ** share, low, high)
        return np.sqrt(np.maximum(known + (1 - share) * own, own / LARGEST**2))

    def around(self, forecast: Array, width: Array) -> Array:
        """Return quantiles (M, H, C, Q) around a forecast (M, H, C), for a width (M, C).

        The forecast and the width are in the units of the series.
        """
        distance = self.spread * width[:, None]
        return forecast[..., None] + distance[..., None] * self.levels


def error_rows(horizon: int) -> int:
    """Return the number of latest rows whose errors set the width of a forecast."""
    return HALF_LIVES * max(HALF_LIFE, horizon)


def averages(latest: Values, first: float, horizon: int) -> Values:
    """Return for each row the moving average (R, ...) of the errors of the latest rows, starting
    from a first error.

    Each average starts `error_rows` rows before its own row, so that it does not depend on older
    rows.
    """
    levels = np.full_like(latest, first)
    weight = 1 - 0.5 ** (1 / max(HALF_LIFE, horizon))
    for age in reversed(range(min(error_rows(horizon), len(latest)))):
        errors = latest[: len(latest) - age]
        level = levels[age:]
        level = level + weight * np.where(np.isnan(errors), 0.0, errors - level)
        levels = np.concatenate((levels[:age], level))
    return levels


def errors_of_rows(squares: Values) -> Values:
    """Return for each origin the mean error (R, ...) of all forecasts of the value before it.

    `squares` (R, ..., H) are squared errors of forecasts from successive origins. NaN marks unknown
    values.
    """
    R = len(squares)
    nothing = np.full(squares.shape[:-1], np.nan)
    errors = [
        np.concatenate((nothing[: h + 1], squares[: R - h - 1, ..., h]))
        for h in range(min(squares.shape[-1], R))
    ]
    return mean(np.stack(errors))
