"""Sample paths of what comes after a series, drawn from forecast quantiles.

The errors of the steps of one forecast go together: where a step turns out higher than forecast,
the next one mostly does, too. Steps that were drawn one by one would give paths that jump, and sums
over them whose spread is too small; a common level of all steps would make it too large. So a path
takes the levels of a forecast of the past: the ranks of its errors among those of the other
forecasts, step by step (the Schaake shuffle, Clark et al. 2004, and empirical copula coupling,
Schefzik et al. 2013). Each step alone has the forecast quantiles.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from xlstm.arrays.namespace import Array
from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators.intervals import NORMAL
from xlstm.estimators.predictor import Predictor

log = logging.getLogger("xlstm")
RANKED = 500  # forecasts whose ranks are stored, of all series
FARTHEST = 1e-9  # least level that is drawn, and least distance from 1
LONG = 10.0  # seconds from which on a forecast says how long it takes
PATHS = 1000  # that quantiles beyond the horizon are taken of


def ranks(errors: Sequence[Values]) -> Values:
    """Return the ranks of errors among those of the same step and target, from 0 on, (K, H, C).

    Errors (M, H, C) of each series are those of forecasts from successive rows; the last ones, of
    which not all are known, are left out, and a gap counts as no error. Evenly spaced ones are taken
    of more than RANKED.
    """
    horizon = errors[0].shape[1]
    whole = [each[: max(1, len(each) - horizon + 1)] for each in errors]
    every = np.nan_to_num(np.concatenate(whole))
    every = every[:: -(-len(every) // RANKED)]
    return np.argsort(np.argsort(every, axis=0, kind="stable"), axis=0).astype(np.float64)


def draw(
    quantiles: Values, levels: Sequence[float], ranked: Values, rng: np.random.Generator, n: int
) -> Values:
    """Return paths (n, H, C) of one forecast, or of n, with quantiles (1 or n, H, C, Q)."""
    drawn = (ranked[rng.integers(len(ranked), size=n)] + rng.random((n, 1, 1))) / len(ranked)
    return at_levels(quantiles, levels, np.clip(drawn, FARTHEST, 1 - FARTHEST))


def at_levels(quantiles: Values, levels: Sequence[float], others: Values) -> Values:
    """Return the quantiles of other levels (n, H or 1, C or 1), (n, H, C), of forecasts whose
    quantiles (1 or n, H, C, Q) of two or more levels are known.

    Between these, and beyond the outermost, they go on as those of a normal distribution do.
    """
    z = NORMAL(others)
    inner = NORMAL(levels)
    low = len(levels) // 2
    high = (len(levels) - 1) // 2  # the tails are as wide as the sides of the middle say
    first = quantiles[..., :1]
    last = quantiles[..., -1:]
    end = NORMAL(1 - FARTHEST)
    below = first - (end + inner[0]) / (inner[low] - inner[0]) * (quantiles[..., [low]] - first)
    above = last + (end - inner[-1]) / (inner[-1] - inner[high]) * (last - quantiles[..., [high]])
    knots = np.array([-end, *inner, end])
    values = np.concatenate((below, quantiles, above), axis=-1)
    wanted: Values = values[..., 0]
    for k in range(len(knots) - 1):
        rise = values[..., k + 1] - values[..., k]
        line = values[..., k] + (z - knots[k]) / (knots[k + 1] - knots[k]) * rise
        wanted = np.where((z >= knots[k]) | (k == 0), line, wanted)
    return wanted


def announced(steps: int, horizon: int) -> Iterator[int]:
    """Yield the first step of each horizon; a long forecast says how long it takes once a part of
    it is done.
    """
    firsts = range(0, steps, horizon)
    unsaid = True
    start = time.perf_counter()
    for done, first in enumerate(firsts, 1):
        yield first
        passed = time.perf_counter() - start
        if unsaid and passed > LONG / 10:
            unsaid = False
            seconds = passed / done * len(firsts)
            if seconds > LONG:
                log.warning(
                    "Forecaster: %d steps, %d at a time, take about %.0f s", steps, horizon, seconds
                )


def before(
    predictor: Predictor, series: TimeSeries, units: Values, ahead: Values
) -> tuple[Array, Values, Values]:
    """Return what `Predictor.before` does after each of n paths (n, t, C) behind a series; past
    covariates stay.

    For the other candidates paths are further targets, and for the network series behind each
    other. Rows that are too old to reach a forecast are left out.
    """
    n, t, C = ahead.shape
    s = predictor.settings
    combination = predictor.combination
    N = len(series.values)
    begin = max(0, N + t - max(s.window, combination.reach))
    past = series.past[min(begin, N - 1) :]
    future = series.future[begin:]
    observed = np.broadcast_to(series.known[begin:], (n, max(0, N - begin), C))
    values = np.concatenate((observed, ahead[:, max(0, begin - N) :]), axis=1)  # (n, L, C)
    L = values.shape[1]
    side = values.swapaxes(0, 1).reshape(L, n * C)
    beside = replace(predictor, combination=combination.repeated(n))
    base = beside.base(
        series._replace(values=side, known=side, future=future), np.tile(units, n), np.array([L])
    )
    rows = np.arange(L - s.window, L + s.horizon)
    behind = values[:, np.minimum(rows, L - 1)].reshape(-1, C)
    past, future = (
        np.tile(part[np.minimum(rows, len(part) - 1)], (n, 1)) for part in (past, future)
    )
    origins = s.window + len(rows) * np.arange(n)
    x, scale = predictor.windows(
        series._replace(known=behind, past=past, future=future), units, origins
    )
    return x, base.reshape(-1, n, C).swapaxes(0, 1), scale
