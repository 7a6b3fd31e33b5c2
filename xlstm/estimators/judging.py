"""Forecasts of a network over rows that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm.data.host import Values
from xlstm.data.tracks import Track
from xlstm.estimators import highway, intervals
from xlstm.estimators.predictor import Predictor
from xlstm.estimators.preparation import parts_of
from xlstm.estimators.scaling import Origins
from xlstm.estimators.scores import Judged


class Unseen(NamedTuple):
    """Forecasts from the validation part on.

    Attributes
    ----------
    origins : array (M,)
    test : int
        The number of those that begin before the test part.
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


def unseen(judge: Predictor, track: Track, units: Values) -> Unseen:
    """Return the forecasts of a series from its validation part on."""
    s = judge.settings
    parts = parts_of(len(track.values), s)
    first = parts["validation"].start
    origins = np.arange(first, len(track.values))
    mean, quantiles, scale = judge.forecast(track, units, origins)
    truth = highway.targets(track, origins, s.horizon, len(track.values))
    outside = intervals.errors(quantiles, truth, scale, s.quantiles)
    return Unseen(origins, parts["test"].start - first, mean, quantiles, truth, scale, outside)


def tested(judge: Predictor, track: Track, units: Values) -> Judged:
    """Return the forecasts of the test part of a series, with intervals calibrated by what was known."""
    found, levels = unseen(judge, track, units), judge.settings.quantiles
    test = slice(found.test, None)
    by = intervals.rolling(found.outside, found.test, levels)
    quantiles = intervals.widen(found.quantiles[test], found.scale[test], by, levels)
    return Judged(found.origins[test], found.mean[test], judge.limited(quantiles), found.truth[test])


def last(found: Judged, folds: int, horizon: int) -> Judged:
    """Return the last forecasts that follow each other, a horizon apart."""
    rows = len(found.at) - horizon * np.arange(folds, 0, -1)
    if rows[0] < 0:
        raise ValueError(
            f"Forecaster: {folds} folds of {horizon} steps need {folds * horizon} rows in the test part, "
            f"it has {len(found.at)}; with refit=True it may be shorter"
        )
    return Judged(*(part[rows] for part in found))


def joined(track: Track, rounds: Sequence[tuple[int, Values, Values]]) -> Judged:
    """Return forecasts of one series: the first row, the mean (H, C) and quantiles (H, C, Q) of each."""
    ends, means, quantiles = zip(*rounds, strict=True)
    at = np.array(ends)
    truth = highway.targets(track, at, len(means[0]), len(track.values))
    return Judged(at, np.stack(means), np.stack(quantiles), truth)
