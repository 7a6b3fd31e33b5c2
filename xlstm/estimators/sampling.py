"""Sample paths of what comes after a series, drawn from forecast quantiles.

The errors of the steps of one forecast go together: where a step turns out higher than forecast, the next one mostly
does, too. Steps that were drawn one by one would give paths that jump, and sums over them whose spread is too small; a
common level of all steps would make it too large. So a path takes the levels of a forecast of the past: the ranks of
its errors among those of the other forecasts, step by step (the Schaake shuffle, Clark et al. 2004, and empirical
copula coupling, Schefzik et al. 2013). Each step alone has the forecast quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from xlstm.data.host import Values
from xlstm.data.panels import TimeSeries
from xlstm.data.series_windows import carry_forward
from xlstm.estimators.evaluation import Forecasts
from xlstm.estimators.series_scaling import Origins

KEPT = 1000  # forecasts whose ranks are kept, at most
FARTHEST = 1e-9  # least level that is drawn, and least distance from 1
PATHS = 1000  # that quantiles beyond the horizon are taken of


def ranks(recent: Sequence[tuple[Forecasts, Values]]) -> Values:
    """Return the ranks of errors among those of the same step and target, from 0 on, (K, H, C).

    `recent` has the last forecasts of each series, and their scales (M, C). Forecasts whose horizon ends after the
    series do not count; a step without a truth has the error of the step before it, or of the one after it.
    """
    parts = []
    for made, scale in recent:
        _, H, C = made.truth.shape
        errors = ((made.truth - made.mean) / scale[:, None])[: len(scale) - H + 1]
        by_step = carry_forward(errors.swapaxes(0, 1).reshape(H, -1))
        by_step = carry_forward(by_step[::-1])[::-1]
        parts.append(np.nan_to_num(by_step).reshape(H, -1, C).swapaxes(0, 1))
    joined = np.concatenate(parts)
    joined = joined[:: -(-len(joined) // KEPT)]
    return np.argsort(np.argsort(joined, axis=0, kind="stable"), axis=0).astype(np.float64)


def draw(quantiles: Values, levels: Sequence[float], ranked: Values, rng: np.random.Generator, n: int) -> Values:
    """Return paths (n, H, C) of one forecast, or of n, with quantiles (1 or n, H, C, Q).

    Between quantiles, and beyond the outermost, they go on as those of a normal distribution do.
    """
    scores = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])
    drawn = (ranked[rng.integers(len(ranked), size=n)] + rng.random((n, 1, 1))) / len(ranked)
    z, known = scores(np.clip(drawn, FARTHEST, 1 - FARTHEST))[..., None], scores(levels)
    low, high = len(levels) // 2, (len(levels) - 1) // 2  # the tails are as wide as the sides of the middle say
    first, last, end = quantiles[..., :1], quantiles[..., -1:], scores(1 - FARTHEST)
    below = first - (end + known[0]) / (known[low] - known[0]) * (quantiles[..., [low]] - first)
    above = last + (end - known[-1]) / (known[-1] - known[high]) * (last - quantiles[..., [high]])
    knots, values = np.array([-end, *known, end]), np.concatenate((below, quantiles, above), axis=-1)
    left = np.clip(np.searchsorted(knots, z, side="right") - 1, 0, len(knots) - 2)  # (n, H, C, 1)
    values = np.broadcast_to(values, (n, *values.shape[1:]))
    start, stop = (np.take_along_axis(values, left + k, axis=-1) for k in (0, 1))
    return np.asarray(start + (z - knots[left]) / (knots[left + 1] - knots[left]) * (stop - start))[..., 0]


def paths(
    after: Callable[[Values], Values],
    levels: Sequence[float],
    ranked: Values,
    n: int,
    steps: int,
    rng: np.random.Generator,
) -> Values:
    """Return paths (n, steps, C); beyond the horizon each is fed back as if it had been observed.

    `after(ahead)` returns quantiles (n, H, C, Q) after a series and paths (n, t, C) behind it.
    """
    ahead = draw(after(np.empty((1, 0, ranked.shape[2]))), levels, ranked, rng, n)
    while ahead.shape[1] < steps:
        ahead = np.concatenate((ahead, draw(after(ahead), levels, ranked, rng, n)), axis=1)
    return ahead[:, :steps]


def side_by_side(series: TimeSeries, ahead: Values, back: int, horizon: int) -> tuple[TimeSeries, Origins]:
    """Return paths (n, t, C) after a series as one series, and where each ends.

    Each has the `back` rows before its end, and room for covariates of the horizon. A series is as at its beginning
    before it, and past covariates stay as they are.
    """
    (n, t, _), N = ahead.shape, len(series.values)
    rows = np.arange(N + t - back, N + t + horizon)

    def repeated(part: Values, end: int) -> Values:
        return np.tile(part[np.clip(rows, 0, end - 1)], (n, 1))

    known = np.concatenate((np.broadcast_to(series.known, (n, *series.known.shape)), ahead), axis=1)
    known = known[:, np.clip(rows, 0, N + t - 1)].reshape(n * len(rows), -1)
    past, future = repeated(series.past, N), repeated(series.future, len(series.future))
    return series._replace(values=known, known=known, past=past, future=future), back + len(rows) * np.arange(n)
