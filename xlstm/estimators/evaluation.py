"""Errors of forecasts, and of baselines on the same rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.data.frames import load_pandas
from xlstm.data.host import Host, Values
from xlstm.data.panels import Panel
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import baselines
from xlstm.estimators.baselines import mean
from xlstm.estimators.fitting import parts_of
from xlstm.estimators.intervals import error_rows
from xlstm.estimators.predictor import Predictor

ROWS = 12  # most rows of a printed score
AR_ORDER = 24  # coefficients of the linear autoregression among the baselines


class Errors(NamedTuple):
    """Errors of one method by steps ahead: (horizon,), or (horizon, C) for C targets.

    Attributes
    ----------
    rmse, mae : array
        Root mean square error and mean absolute error, in the series' own units.
    mase : array
        Mean absolute scaled error: the mean absolute error, divided by that of a naive forecast one
        step ahead in the rows before the test part (Hyndman & Koehler 2006). The naive forecast
        repeats the last season, or the last value if there is no season.
    smape : array
        Symmetric mean absolute percentage error, in per cent: twice the error, divided by the sum
        of the absolute values of forecast and truth.
    rmsse : array
        Root mean square scaled error (Makridakis et al. 2022): each error is divided by the root
        mean square error of the same naive forecast of its series. So a series does not count for
        more because its level is higher.
    """

    rmse: Values
    mae: Values
    mase: Values
    smape: Values
    rmsse: Values


@dataclass(frozen=True)
class Score:
    """Forecasts of the test part of series, and their errors in the series' own units.

    Arrays by steps ahead are (horizon,), or (horizon, C) for C targets.

    Attributes
    ----------
    model, persistence, autoregression, seasonal : array
        Root mean square errors of the model, of repeating the last value, of a linear
        autoregression, and of repeating the last season.
    order : int
        Coefficients of the autoregression.
    points : int
        Number of observed values that forecasts one step ahead are compared with.
    at : array (N,)
        Positions of the first value of each forecast.
    forecasts : array (N, horizon) or (N, horizon, C)
        Forecasts of the model.
    season : int
        Steps of the season. If it is 0, there is none, and `seasonal` repeats the last value.
    errors : dict of str to Errors
        Errors of "model", "persistence", "autoregression" and "seasonal".
    quantiles : array (N, horizon, Q) or (N, horizon, C, Q)
        Quantiles of the model, calibrated with the errors that were known at the time of each
        forecast.
    crps : array
        Continuous ranked probability scores of the quantiles, in the series' own units; NaN if
        there are no quantiles.
    coverage : array
        Shares of values within the widest interval, from 0 to 1; NaN if there are no quantiles.
    interval : float
        The nominal share of values within this interval.
    series : array (N,)
        Number of the series of each forecast.
    targets : sequence of str
        Names of the targets of a table; empty if there was no table.
    by_series : sequence of dict
        Errors (C,) of the model over all steps ahead, for each series; `frame` returns them as a
        table.
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
    by_series: Sequence[Mapping[str, Any]] = ()

    def __repr__(self) -> str:
        """Return a table with a row for each step ahead: root mean square errors, scaled if there
        are several series, and the coverage of the widest interval.
        """
        scaled = len(self.by_series) > 1
        columns = {
            name: getattr(by_step, "rmsse" if scaled else "rmse")
            for name, by_step in self.errors.items()
        }
        columns["coverage"] = self.coverage
        places = list(np.ndindex(self.model.shape))
        lines = [("step", *columns)]
        for h, *targets in places if len(places) <= ROWS else [*places[: ROWS - 1], places[-1]]:
            name = f"{h + 1}" + "".join(f", {self.by_series[0]['target'][c]}" for c in targets)
            lines.append((name, *(f"{values[(h, *targets)]:.4g}" for values in columns.values())))
        width = max(map(len, itertools.chain(*lines)))
        table = "\n".join("  ".join(f"{cell:>{width}}" for cell in line) for line in lines)
        errors = f"root mean square {'scaled ' * scaled}errors"
        return f"Score: {errors} of {len(self.at)} forecasts\n{table}"

    def frame(self) -> Any:
        """Return a table of the model's errors over all steps ahead, with a row for each target of
        each series.

        Returns
        -------
        pandas.DataFrame
            The index has the levels "series" and "target". It has the names of the table that was
            scored; without a table, series are 0, 1, ... and targets "target 0", "target 1", ...
            The columns are "rmse", "mae", "mase", "smape" and "rmsse", as in `Errors`, "crps" and
            "coverage".

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        pandas = load_pandas("Score")
        return pandas.concat(map(pandas.DataFrame, self.by_series)).set_index(["series", "target"])

    def item(self) -> float:
        """Return the score as one number, higher being better: minus the mean of `model`, or of the
        RMSSE if there are several series or targets.

        scikit-learn calls it, so that its searches of parameters and its cross-validation can
        compare forecasters.
        """
        several = len(self.by_series) > 1 or self.model.ndim > 1
        return -float(mean(np.ravel(self.errors["model"].rmsse if several else self.model)))


class Forecasts(NamedTuple):
    """Forecasts of one series, and the observed values.

    Attributes
    ----------
    at : array (N,)
        Positions of the first value of each forecast.
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
    seasons: tuple[int, ...],
    panel: Panel,
) -> Score:
    """Return the score of forecasts of several series, and of baselines on the same rows.

    The seasonal baseline uses the shorter season. If all series came without an axis of targets,
    the score has none.
    """
    pairs = [(series, ahead.at) for series, ahead in zip(several, forecasts, strict=True)]
    counts = [len(at) for _, at in pairs]
    order = min(AR_ORDER, *(int(at[0]) // 3 for _, at in pairs))
    season = min(seasons, default=0)
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
    scales = np.stack([naive_errors(series.values[: at[0]], lag) for series, at in pairs], axis=1)
    base = np.repeat(scales, counts, axis=1)[:, :, None, targets]
    errors = {
        name: errors_of(np.concatenate(parts)[:, :, targets], truth, base)
        for name, parts in methods.items()
    }
    crps, coverage = probabilistic(quantiles, truth, levels)
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
        by_series=[*_each_series(panel, forecasts, scales, levels)],
    )


def naive_errors(values: Values, season: int) -> Values:
    """Return the mean absolute error and the root mean square error (2, C) of a naive forecast one
    step ahead, which repeats the last season of values (N, C).
    """
    lag = min(season, len(values) - 1)
    e = np.abs(values[lag:] - values[:-lag])
    return np.stack((mean(e), np.sqrt(mean(e**2))))


def joined(parts: Sequence[Forecasts]) -> Forecasts:
    """Return forecasts one after another as one."""
    return Forecasts(*map(np.concatenate, zip(*parts, strict=True)))


def _each_series(
    panel: Panel, forecasts: Sequence[Forecasts], scales: Values, levels: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Yield the errors (C,) of each series over all steps ahead."""
    for k, ahead in enumerate(forecasts):
        N, H = ahead.truth.shape[:2]
        parts = (np.reshape(part, (N * H, *part.shape[2:])) for part in ahead[1:])  # no copies
        mean, quantiles, truth = parts
        crps, coverage = probabilistic(quantiles, truth, levels)
        yield {
            "series": panel.ids[k] if panel.ids else k,
            "target": panel.names or [f"target {c}" for c in range(truth.shape[1])],
            **errors_of(mean, truth, scales[:, [k]])._asdict(),
            "crps": crps,
            "coverage": coverage,
        }


def errors_of(forecasts: Values, truth: Values, base: Values) -> Errors:
    """Return errors over the first axis; `base` holds the `naive_errors` of the series."""
    e = np.abs(forecasts - truth)
    sizes = np.abs(forecasts) + np.abs(truth)
    relative = 200 * e / np.where(sizes == 0, 1.0, sizes)  # if a size is 0, so is its e
    scaled, scaled_by_rms = e / np.where(base > 0, base, np.nan)
    rmse, rmsse = (np.sqrt(mean(errors**2)) for errors in (e, scaled_by_rms))
    return Errors(rmse, mean(e), mean(scaled), mean(relative), rmsse)


def probabilistic(
    quantiles: Values, truth: Values, levels: Sequence[float]
) -> tuple[Values, Values]:
    """Return the CRPS and the coverage of the widest interval, (H, C) each; NaN if there are no
    quantiles.

    The CRPS is twice the integral of the pinball loss over all quantiles (Gneiting & Ranjan 2011).
    The trapezoidal rule computes it here, with a loss of 0 for the quantiles 0 and 1.
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
    intervals.

    The width at a row follows from the errors that are known there.
    """
    s = predictor.settings
    first = max(s.window, start - error_rows(s.horizon))
    origins = np.arange(first, stop)
    mean = predictor.forecast(series, units, origins)
    truth = baselines.targets(series, origins, s.horizon, len(series.values))
    width = units * predictor.intervals.width((truth - mean) / units)
    quantiles = predictor.quantiles(mean, width)
    late = slice(start - first, None)
    return Forecasts(*(part[late] for part in (origins, mean, quantiles, truth))), width[late]


def of_judged_rows(predictor: Predictor, series: TimeSeries, units: Values) -> Forecasts:
    """Return the forecasts of the test part of a series, or of all rows after those of `fit`, if it
    begins with these.
    """
    N = len(series.values)
    first = -series.begin
    if first <= 0:
        first = parts_of(N, predictor.settings)["test"].start
    parts = []
    for start in range(first, N, baselines.CHUNK):
        stop = min(start + baselines.CHUNK, N)
        parts.append(rolling(predictor, series, units, start, stop)[0])
    return joined(parts)
