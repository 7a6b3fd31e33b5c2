"""How good forecasts are, beside those of baselines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.data.host import Host, Values
from xlstm.data.panels import Panel
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import baselines
from xlstm.estimators.baselines import mean
from xlstm.estimators.fitting import parts_of
from xlstm.estimators.intervals import error_rows
from xlstm.estimators.predictor import Predictor

ROWS = 12  # of a score that is printed, at most
AR_ORDER = 24  # coefficients of the linear autoregression that models are compared with


class Errors(NamedTuple):
    """Errors of one method by steps ahead, (horizon,), or (horizon, C) for several targets.

    Attributes
    ----------
    rmse, mae : array
        In the series' own units.
    mase : array
        The mean absolute error, divided by that of repeating the last season, or the last value
        where there is no season, one step ahead before the test part (Hyndman & Koehler 2006).
    smape : array
        Per cent; twice the error divided by the sum of the forecast's size and the truth's.
    """

    rmse: Values
    mae: Values
    mase: Values
    smape: Values


@dataclass(frozen=True)
class Score:
    """Forecasts of the test part and their errors, in the series' own units.

    Arrays by steps ahead are (horizon,), or (horizon, C) for several targets.

    Attributes
    ----------
    model, persistence, autoregression, seasonal : array
        Root mean square errors of the model, of repeating the last value, of a linear
        autoregression, and of repeating the last season.
    order : int
        Coefficients of the autoregression.
    points : int
        Values forecast one step ahead that are there to compare with.
    at : array (N,)
        Positions of the first value of each forecast.
    forecasts : array (N, horizon) or (N, horizon, C)
        Those of the model.
    season : int
        Steps of the season; 0 for none, and then `seasonal` repeats the last value.
    errors : dict of str to Errors
        Those of "model", "persistence", "autoregression" and "seasonal".
    quantiles : array (N, horizon, Q) or (N, horizon, C, Q)
        Those of the model, calibrated by errors that were known when the forecast was made.
    crps : array
        Continuous ranked probability scores, from the quantiles; NaN without any.
    coverage : array
        Shares of values within the widest interval; NaN without quantiles.
    interval : float
        The share that this interval is to cover.
    series : array (N,)
        The series of each forecast.
    targets : sequence of str
        Names of the targets of a table; empty where there was none.
    """

    model: Values
    persistence: Values
    autoregression: Values
    order: int
    points: int
    at: Host
    forecasts: Values
    seasonal: Values
    season: int
    errors: Mapping[str, Errors]
    quantiles: Values
    crps: Values
    coverage: Values
    interval: float
    series: Host
    targets: Sequence[str] = ()

    def __repr__(self) -> str:
        """Return a table by steps ahead: root mean square errors, and the share of values in the
        widest interval.
        """
        columns = {name: of_method.rmse for name, of_method in self.errors.items()}
        columns["coverage"] = self.coverage
        places = list(np.ndindex(self.model.shape))
        lines = [("step", *columns)]
        for h, *targets in places if len(places) <= ROWS else [*places[: ROWS - 1], places[-1]]:
            name = f"{h + 1}" + "".join(
                f", {self.targets[c] if self.targets else f'target {c}'}" for c in targets
            )
            lines.append((name, *(f"{values[(h, *targets)]:.4g}" for values in columns.values())))
        width = max(map(len, itertools.chain(*lines)))
        table = "\n".join("  ".join(f"{cell:>{width}}" for cell in line) for line in lines)
        return f"Score: root mean square errors of {len(self.at)} forecasts\n{table}"

    def item(self) -> float:
        """Return one number of which more is better, minus the mean of `model`.

        scikit-learn asks for it, so that searches of parameters and cross-validation can compare
        forecasters.
        """
        return -float(np.mean(self.model))


class Forecasts(NamedTuple):
    """Forecasts of one series, and the truth.

    Attributes
    ----------
    at : array (N,)
    mean, truth : array (N, H, C)
    quantiles : array (N, H, C, Q)
    """

    at: Host
    mean: Values
    quantiles: Values
    truth: Values


def score(
    several: Sequence[TimeSeries],
    forecasts: Sequence[Forecasts],
    levels: Sequence[float],
    season: int,
    panel: Panel,
) -> Score:
    """Return the score of forecasts of series; where all came flat, there is one target without an
    axis.
    """
    pairs = [(series, ahead.at) for series, ahead in zip(several, forecasts, strict=True)]
    counts = [len(at) for _, at in pairs]
    order = min(AR_ORDER, *(int(at[0]) // 3 for _, at in pairs))
    lag = season or 1
    targets: Any = 0 if all(panel.flat) else slice(None)
    mean, quantiles, truth = (part[:, :, targets] for part in joined(forecasts)[1:])
    H = truth.shape[1]
    methods = {
        "model": [ahead.mean for ahead in forecasts],
        "persistence": [baselines.seasonal(series.known, 1, H, at) for series, at in pairs],
        "autoregression": [
            baselines.autoregression(series.known, series.values, order, H, at)
            for series, at in pairs
        ],
        "seasonal": [baselines.seasonal(series.known, lag, H, at) for series, at in pairs],
    }
    scales = [naive_error(series.values[: at[0]], lag) for series, at in pairs]
    base = np.repeat(scales, counts, axis=0)[:, None, targets]
    errors = {
        name: _errors(np.concatenate(parts)[:, :, targets], truth, base)
        for name, parts in methods.items()
    }
    crps, coverage = _probabilistic(quantiles, truth, levels)
    return Score(
        **{name: of_method.rmse for name, of_method in errors.items()},
        order=order,
        points=int(np.count_nonzero(~np.isnan(truth[:, 0]))),
        at=np.concatenate([at + series.begin for series, at in pairs]),
        forecasts=mean,
        season=season,
        errors=errors,
        quantiles=quantiles,
        crps=crps,
        coverage=coverage,
        interval=levels[-1] - levels[0] if len(levels) > 1 else np.nan,
        series=np.repeat(np.arange(len(pairs)), counts),
        targets=panel.names,
    )


def naive_error(values: Values, season: int) -> Values:
    """Return the mean absolute error (C,) of repeating the last season of values (N, C), one step
    ahead.
    """
    lag = min(season, len(values) - 1)
    return mean(np.abs(values[lag:] - values[:-lag]))


def joined(parts: Sequence[Forecasts]) -> Forecasts:
    """Return forecasts behind each other."""
    return Forecasts(*map(np.concatenate, zip(*parts, strict=True)))


def _errors(forecasts: Values, truth: Values, base: Values) -> Errors:
    e = np.abs(forecasts - truth)
    sizes = np.abs(forecasts) + np.abs(truth)
    relative = 200 * e / np.where(sizes == 0, 1.0, sizes)  # where sizes are 0, so is e
    scaled = e / np.where(base > 0, base, np.nan)
    return Errors(np.sqrt(mean(e**2)), mean(e), mean(scaled), mean(relative))


def _probabilistic(
    quantiles: Values, truth: Values, levels: Sequence[float]
) -> tuple[Values, Values]:
    """Return the CRPS and the coverage of the widest interval, (H, C) each; NaN without quantiles.

    The CRPS is twice the integral of the pinball loss over all quantiles (Gneiting & Ranjan 2011),
    here by the trapezoidal rule; the loss of the quantiles 0 and 1 is 0.
    """
    crps = np.zeros(truth.shape[1:])
    nothing = np.full(truth.shape[1:], np.nan)
    if not levels:
        return nothing, nothing
    ends = [0.0, *levels, 1.0]
    for k, level in enumerate(levels):
        below = truth - quantiles[..., k]
        crps += (ends[k + 2] - ends[k]) * mean(np.maximum(level * below, (level - 1) * below))
    inside = (truth >= quantiles[..., 0]) & (truth <= quantiles[..., -1])
    return crps, mean(np.where(np.isnan(truth), np.nan, inside))


def rolling(
    predictor: Predictor, series: TimeSeries, units: Values, start: int, stop: int
) -> tuple[Forecasts, Values]:
    """Return forecasts of a series from the rows `start` to `stop`, and the widths (M, C) of their
    intervals, by the errors that are known at each row.
    """
    s = predictor.settings
    first = max(s.window, start - error_rows(s.horizon))
    origins = np.arange(first, stop)
    mean = predictor.forecast(series, units, origins)
    truth = baselines.targets(series, origins, s.horizon, len(series.values))
    width = units * predictor.intervals.width((truth - mean) / units)
    quantiles = predictor.quantiles(np, mean, width)
    late = slice(start - first, None)
    return Forecasts(*(part[late] for part in (origins, mean, quantiles, truth))), width[late]


def of_test_part(predictor: Predictor, series: TimeSeries, units: Values) -> Forecasts:
    """Return the forecasts of the test part of a series."""
    N = len(series.values)
    parts = []
    for start in range(parts_of(N, predictor.settings)["test"].start, N, baselines.CHUNK):
        stop = min(start + baselines.CHUNK, N)
        parts.append(rolling(predictor, series, units, start, stop)[0])
    return joined(parts)
