"""Sample paths after the end of a series, drawn from forecast quantiles.

Errors of successive steps are correlated: if a step turns out higher than forecast, the next one
mostly does, too. Steps drawn independently would give paths that jump, and sums over a path would
have too small a spread. With one level for all steps, their spread would be too large. So each path
takes its levels from one past forecast: at every step, the rank of its error among the errors of
the other forecasts (the Schaake shuffle, Clark et al. 2004, and empirical copula coupling, Schefzik
et al. 2013). Each step by itself has the forecast quantiles.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators.intervals import NORMAL
from xlstm.estimators.predictor import Predictor

log = logging.getLogger("xlstm")
RANKED = 500  # most forecasts, of all series, whose ranks are stored
FARTHEST = 1e-9  # least drawn level, and its least distance from 1
LONG = 10.0  # seconds: a longer forecast says in the log how long it takes
PATHS = 1000  # sample paths behind quantiles beyond the horizon


def ranks(errors: Sequence[Values]) -> Values:
    """Return the ranks of errors, from 0 on, among those of the same step and target, (K, H, C).

    Errors (M, H, C) of each series come from forecasts of successive rows. The last forecasts,
    whose errors are not all known, are left out, and a gap counts as an error of 0. If there are
    more than RANKED forecasts, evenly spaced ones are used.
    """
    horizon = errors[0].shape[1]
    whole = [each[: max(1, len(each) - horizon + 1)] for each in errors]
    every = np.nan_to_num(np.concatenate(whole))
    every = every[:: -(-len(every) // RANKED)]
    return np.argsort(np.argsort(every, axis=0, kind="stable"), axis=0).astype(np.float64)


def draw(
    quantiles: Values, levels: Sequence[float], ranked: Values, rng: np.random.Generator, n: int
) -> Values:
    """Return paths (n, H, C) of one forecast, or one path of each of n forecasts, from their
    quantiles (1 or n, H, C, Q).
    """
    drawn = (ranked[rng.integers(len(ranked), size=n)] + rng.random((n, 1, 1))) / len(ranked)
    return at_levels(quantiles, levels, np.clip(drawn, FARTHEST, 1 - FARTHEST))


def at_levels(quantiles: Values, levels: Sequence[float], others: Values) -> Values:
    """Return the quantiles (n, H, C) at the levels `others` (n, H or 1, C or 1), from two or more
    known quantiles (1 or n, H, C, Q) of each forecast.

    Between the known quantiles and beyond them, they continue like those of a normal distribution.
    """
    z = NORMAL(others)
    inner = NORMAL(levels)
    low = len(levels) // 2
    high = (len(levels) - 1) // 2  # tails continue the slope from the middle to the outermost level
    first = quantiles[..., :1]
    last = quantiles[..., -1:]
    end = NORMAL(1 - FARTHEST)
    below = first - (end + inner[0]) / (inner[low] - inner[0]) * (quantiles[..., [low]] - first)
    above = last + (end - inner[-1]) / (inner[-1] - inner[high]) * (last - quantiles[..., [high]])
    knots = np.array([-end, *inner, end])
    values = np.concatenate((below, quantiles, above), axis=-1)
    k: Any = np.clip(np.searchsorted(knots, z, side="right"), 1, len(knots) - 1)  # the knot above
    before, after = (np.take_along_axis(values, at[..., None], -1)[..., 0] for at in (k - 1, k))
    line: Values = before + (z - knots[k - 1]) / (knots[k] - knots[k - 1]) * (after - before)
    return line


def announced(steps: int, horizon: int) -> Iterator[int]:
    """Yield the first step of each horizon.

    If the whole forecast will take long, a warning in the log says how long, once a part of it is
    done.
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


def after(predictor: Predictor, series: TimeSeries, units: Values, ahead: Values) -> Values:
    """Return the mean forecasts (n, H, C) after each of n paths (t, n, C) that continue a series;
    past covariates keep their last values.

    The predictor has a combination that is `carried` from call to call, and the paths grow by one
    horizon each time, from none on. So a call costs as much as one horizon, however long the paths
    are.

    The other candidates see paths as more targets, and the network sees them as series one after
    another. Rows that are too old to influence a forecast are left out.
    """
    t, n, C = ahead.shape
    s = predictor.settings
    N = len(series.values)
    begin = max(0, N + t - max(s.window, predictor.combination.reach))
    observed = np.broadcast_to(series.known[begin:, None], (max(0, N - begin), n, C))
    values = np.concatenate((observed, ahead[max(0, begin - N) :]))  # (L, n, C)
    L = len(values)
    beside = series._replace(known=values.reshape(L, n * C), future=series.future[begin:])
    base = predictor.base(beside, units, np.array([L]))
    rows = np.arange(N + t - s.window, N + t + s.horizon)
    behind = values[np.minimum(rows - begin, L - 1)].swapaxes(0, 1).reshape(-1, C)
    past, future = (
        np.tile(part[np.minimum(rows, len(part) - 1)], (n, 1))
        for part in (series.past, series.future)
    )
    windows = series._replace(known=behind, past=past, future=future)
    origins = s.window + len(rows) * np.arange(n)
    return predictor.finished(base, windows, units, origins)
