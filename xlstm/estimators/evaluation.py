"""Forecasts of rows that the network was not fitted to, and intervals that cover what they promise.

Conformalized quantile regression (Romano et al. 2019): the interval between two quantiles is widened, or narrowed, by
as much as would have made it cover the right share of forecasts whose truth is known and to which the network was not
fitted. Only the most recent of these count, since a series changes. Errors are in scales of their windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.data.covariates import TimeSeries
from xlstm.data.host import Values
from xlstm.estimators import baselines
from xlstm.estimators.fitting import parts_of
from xlstm.estimators.predictor import Predictor
from xlstm.estimators.scores import Forecasts

RECENT = 100  # forecasts whose errors decide


def pairs(quantiles: Sequence[float]) -> list[tuple[int, int]]:
    """Return the positions of quantiles q and 1 - q, the widest interval first."""
    both = itertools.combinations(range(len(quantiles)), 2)
    return [(low, high) for low, high in both if math.isclose(quantiles[low] + quantiles[high], 1.0)]


def errors(levels: Values, truth: Values, scale: Values, quantiles: Sequence[float]) -> Values:
    """Return by how much truths lie outside of the intervals, (M, H, C, P); below 0 inside, NaN where there is none.

    Those of the forecast quantiles, `levels` (M, H, C, Q), are in the scale (M, C) of each window.
    """
    outside = [np.maximum(levels[..., low] - truth, truth - levels[..., high]) for low, high in pairs(quantiles)]
    stacked = np.stack(outside, axis=-1) if outside else np.empty((*truth.shape, 0))
    return np.asarray(stacked / scale[:, None, :, None])


def adjustment(outside: Sequence[Values], quantiles: Sequence[float]) -> Values:
    """Return by how much to widen intervals after the last forecasts of several series, (H, C, P)."""
    recent = np.concatenate([one[-RECENT:] for one in outside])
    by: Values = _limit(np.moveaxis(recent, 0, -1), quantiles)
    return by


def rolling(outside: Values, first: int, quantiles: Sequence[float]) -> Values:
    """Return by how much to widen each interval from forecast `first` on, (M - first, H, C, P).

    Only errors (M, H, C, P) that are known when a forecast is made decide; forecasts begin one row after another.
    """
    by = np.empty((len(outside) - first, *outside.shape[1:]))
    for h in range(outside.shape[1]):
        unknown = np.full((RECENT + h, *outside.shape[2:]), np.nan)
        padded = np.concatenate((unknown, outside[:, h]))
        recent = np.lib.stride_tricks.sliding_window_view(padded, RECENT, axis=0)  # row i: what is known at i
        by[:, h] = _limit(recent[first : len(outside)], quantiles)
    return by


def widen(levels: Values, scale: Values, by: Values, quantiles: Sequence[float]) -> Values:
    """Return quantiles (M, H, C, Q) whose intervals are widened by (..., P) scales; they do not cross."""
    levels = levels.copy()
    for p, (low, high) in enumerate(pairs(quantiles)):
        more = by[..., p] * scale[:, None]
        levels[..., low] -= more
        levels[..., high] += more
    return np.sort(levels, axis=-1)


def _limit(recent: Values, quantiles: Sequence[float]) -> Any:
    """Return the error (..., P) that the right share of errors (..., P, K) does not exceed; 0 where there are none."""
    shares = np.array([quantiles[high] - quantiles[low] for low, high in pairs(quantiles)])
    count = np.count_nonzero(~np.isnan(recent), axis=-1)
    rank = np.clip(np.ceil((count + 1) * shares).astype(np.int64), 1, np.maximum(count, 1)) - 1
    limits = np.take_along_axis(np.sort(recent, axis=-1), rank[..., None], axis=-1)[..., 0]
    return np.where(count > 0, limits, 0.0)


def _chunk(predictor: Predictor, series: TimeSeries, units: Values, start: int) -> tuple[Forecasts, Values, Values]:
    """Return a chunk of forecasts from row `start` on, their scales and their `errors`.

    Before them are those by whose errors their first intervals are calibrated.
    """
    s, N = predictor.settings, len(series.values)
    first = max(parts_of(N, s)["validation"].start, start - RECENT - s.horizon)
    origins = np.arange(first, min(start + baselines.CHUNK, N))
    mean, quantiles, scale = predictor.forecast(series, units, origins)
    truth = baselines.targets(series, origins, s.horizon, N)
    return Forecasts(origins, mean, quantiles, truth), scale, errors(quantiles, truth, scale, s.quantiles)


def last_errors(predictor: Predictor, series: TimeSeries, units: Values) -> Values:
    """Return the `errors` of the last forecasts of a series."""
    return _chunk(predictor, series, units, len(series.values))[2]


def of_test_part(predictor: Predictor, series: TimeSeries, units: Values) -> Forecasts:
    """Return the forecasts of the test part of a series, with intervals calibrated by what was known."""
    levels, N, parts = predictor.settings.quantiles, len(series.values), []
    for start in range(parts_of(N, predictor.settings)["test"].start, N, baselines.CHUNK):
        chunk, scale, outside = _chunk(predictor, series, units, start)
        before = start - int(chunk.at[0])
        at, mean, quantiles, truth = (part[before:] for part in chunk)
        quantiles = widen(quantiles, scale[before:], rolling(outside, before, levels), levels)
        parts.append(Forecasts(at, mean, predictor.limited(quantiles), truth))
    return parts[0] if len(parts) == 1 else Forecasts(*map(np.concatenate, zip(*parts, strict=True)))
