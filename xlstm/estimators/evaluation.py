"""Forecasts of a network over rows that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm.data.covariates import TimeSeries
from xlstm.data.host import Values
from xlstm.estimators import intervals, linear_baseline
from xlstm.estimators.predictor import Predictor
from xlstm.estimators.preparation import parts_of
from xlstm.estimators.scaling import Origins
from xlstm.estimators.scores import Judged


class Unseen(NamedTuple):
    """Forecasts that follow each other, of rows that the network was not fitted to.

    Attributes
    ----------
    origins : array (M,)
    test : int
        The number of those that only decide about the intervals of the others.
    mean, truth : array (M, H, C)
    quantiles : array (M, H, C, Q)
    scale : array (M, C)
    outside : array (M, H, C, P)
        `intervals.errors`.
    """

    origins: Origins
    test: int
    mean: Values
    quantiles: Values
    truth: Values
    scale: Values
    outside: Values


def unseen(judge: Predictor, track: TimeSeries, units: Values, start: int | None = None) -> Unseen:
    """Return a chunk of forecasts of a series from row `start` on, by default its end.

    Before them are those by whose errors their first intervals are calibrated.
    """
    s, N = judge.settings, len(track.values)
    start = N if start is None else start
    first = max(parts_of(N, s)["validation"].start, start - intervals.RECENT - s.horizon)
    origins = np.arange(first, min(start + linear_baseline.CHUNK, N))
    mean, quantiles, scale = judge.forecast(track, units, origins)
    truth = linear_baseline.targets(track, origins, s.horizon, N)
    outside = intervals.errors(quantiles, truth, scale, s.quantiles)
    return Unseen(origins, start - first, mean, quantiles, truth, scale, outside)


def tested(judge: Predictor, track: TimeSeries, units: Values) -> Judged:
    """Return the forecasts of the test part of a series, with intervals calibrated by what was known."""
    levels, (H, C), N = judge.settings.quantiles, judge.spread.shape, len(track.values)
    at = np.arange(parts_of(N, judge.settings)["test"].start, N)
    made = Judged(at, *(np.empty((len(at), H, C, *more)) for more in ((), (len(levels),), ())))
    for k in range(0, len(at), linear_baseline.CHUNK):
        found = unseen(judge, track, units, int(at[k]))
        test, part = slice(found.test, None), slice(k, k + linear_baseline.CHUNK)
        by = intervals.rolling(found.outside, found.test, levels)
        quantiles = intervals.widen(found.quantiles[test], found.scale[test], by, levels)
        made.quantiles[part] = judge.limited(quantiles)
        made.forecasts[part], made.truth[part] = found.mean[test], found.truth[test]
    return made


def last(found: Judged, folds: int, horizon: int) -> Judged:
    """Return the last forecasts that follow each other, a horizon apart."""
    rows = len(found.at) - horizon * np.arange(folds, 0, -1)
    if rows[0] < 0:
        raise ValueError(
            f"Forecaster: {folds} folds of {horizon} steps need {folds * horizon} rows in the test part, "
            f"it has {len(found.at)}; with refit=True it may be shorter"
        )
    return Judged(*(part[rows] for part in found))


def joined(track: TimeSeries, rounds: Sequence[tuple[int, Values, Values]]) -> Judged:
    """Return forecasts of one series: the first row, the mean (H, C) and quantiles (H, C, Q) of each."""
    ends, means, quantiles = zip(*rounds, strict=True)
    at = np.array(ends)
    truth = linear_baseline.targets(track, at, len(means[0]), len(track.values))
    return Judged(at, np.stack(means), np.stack(quantiles), truth)
