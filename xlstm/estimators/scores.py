"""How good forecasts are, beside those of baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.data.covariates import TimeSeries
from xlstm.data.host import Values
from xlstm.estimators import baselines
from xlstm.estimators.baselines import mean

ROWS = 12  # of a score that is printed, at most
AR_ORDER = 24  # coefficients of the linear autoregression that models are compared with


class Errors(NamedTuple):
    """Errors of one method by steps ahead, (horizon,), or (horizon, C) for several targets.

    Attributes
    ----------
    rmse, mae : array
        In the series' own units.
    mase : array
        The mean absolute error, divided by that of repeating the last season, or the last value where there is no
        season, one step ahead before the test part (Hyndman & Koehler 2006).
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
        Root mean square errors of the model, of repeating the last value, of a linear autoregression, and of repeating
        the last season.
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
    """

    model: Values
    persistence: Values
    autoregression: Values
    order: int
    points: int
    at: np.ndarray[Any, Any]
    forecasts: Values
    seasonal: Values
    season: int
    errors: Mapping[str, Errors]
    quantiles: Values
    crps: Values
    coverage: Values
    interval: float
    series: np.ndarray[Any, Any]

    def __repr__(self) -> str:
        """Return a table by steps ahead: root mean square errors, and the share of values in the widest interval."""
        columns = {name: one.rmse for name, one in self.errors.items()} | {"coverage": self.coverage}
        places = list(np.ndindex(self.model.shape))
        lines = [("step", *columns)]
        for h, *targets in places if len(places) <= ROWS else [*places[: ROWS - 1], places[-1]]:
            name = f"{h + 1}" + "".join(f", target {c}" for c in targets)
            lines.append((name, *(f"{values[(h, *targets)]:.4g}" for values in columns.values())))
        table = "\n".join("  ".join(f"{cell:>14}" for cell in line) for line in lines)
        return f"Score: root mean square errors of {len(self.at)} forecasts\n{table}"

    def item(self) -> float:
        """Return one number of which more is better, minus the mean of `model`.

        scikit-learn asks for it, so that searches of parameters and cross-validation can compare forecasters.
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

    at: np.ndarray[Any, Any]
    mean: Values
    quantiles: Values
    truth: Values


def score(
    several: Sequence[TimeSeries], forecasts: Sequence[Forecasts], levels: Sequence[float], season: int, flat: bool
) -> Score:
    """Return the score of forecasts of one series or several; with `flat` there is one target without an axis."""
    truth = _joined([one.truth for one in forecasts])
    H, order = truth.shape[1], min(AR_ORDER, *(int(one.at[0]) // 3 for one in forecasts))
    methods: dict[str, list[Values]] = {"model": [one.mean for one in forecasts]}
    methods |= {"persistence": [], "autoregression": [], "seasonal": []}
    naive = []  # errors that the mean absolute scaled error is measured by
    for series, one in zip(several, forecasts, strict=True):
        methods["persistence"].append(baselines.persistence(series.known, H, one.at))
        methods["autoregression"].append(baselines.autoregression(series.known, series.values, order, H, one.at))
        methods["seasonal"].append(baselines.seasonal(series.known, season or 1, H, one.at))
        before, lag = series.values[: one.at[0]], min(season or 1, int(one.at[0]) - 1)
        naive.append(np.broadcast_to(mean(np.abs(before[lag:] - before[:-lag])), (len(one.at), before.shape[1])))
    base = _joined(naive)[:, None]
    errors = {name: _errors(_joined(parts), truth, base) for name, parts in methods.items()}
    quantiles = _joined([one.quantiles for one in forecasts])
    crps, coverage = _probabilistic(quantiles, truth, levels)

    def shaped(values: Values) -> Values:  # by steps ahead and targets, (..., C), or those of the one target
        return values[..., 0] if flat else values

    errors = {name: Errors(*map(shaped, one)) for name, one in errors.items()}
    return Score(
        model=errors["model"].rmse,
        persistence=errors["persistence"].rmse,
        autoregression=errors["autoregression"].rmse,
        order=order,
        points=int(np.count_nonzero(~np.isnan(truth[:, 0]))),
        at=np.concatenate([one.at + series.begin for series, one in zip(several, forecasts, strict=True)]),
        forecasts=shaped(_joined(methods["model"])),
        seasonal=errors["seasonal"].rmse,
        season=season,
        errors=errors,
        quantiles=quantiles[:, :, 0] if flat else quantiles,
        crps=shaped(crps),
        coverage=shaped(coverage),
        interval=levels[-1] - levels[0] if len(levels) > 1 else np.nan,
        series=np.repeat(np.arange(len(forecasts)), [len(one.at) for one in forecasts]),
    )


def _joined(parts: Sequence[Any]) -> Any:
    """Return arrays behind each other; one alone, which may be large, is not copied."""
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _errors(forecasts: Values, truth: Values, base: Values) -> Errors:
    e = np.abs(forecasts - truth)
    sizes = np.abs(forecasts) + np.abs(truth)
    relative = np.where(sizes == 0, 0.0, 200 * e / np.where(sizes == 0, 1.0, sizes))
    scaled = e / np.where(base > 0, base, np.nan)
    return Errors(np.sqrt(mean(e**2)), mean(e), mean(scaled), mean(relative))


def _probabilistic(quantiles: Values, truth: Values, levels: Sequence[float]) -> tuple[Values, Values]:
    """Return the CRPS and the coverage of the widest interval, (H, C) each; NaN without quantiles.

    The CRPS is twice the integral of the pinball loss over all quantiles (Gneiting & Ranjan 2011), here by the
    trapezoidal rule; the loss of the quantiles 0 and 1 is 0.
    """
    crps, nothing = np.zeros(truth.shape[1:]), np.full(truth.shape[1:], np.nan)
    if not levels:
        return nothing, nothing
    ends = [0.0, *levels, 1.0]
    for k, level in enumerate(levels):
        below = truth - quantiles[..., k]
        crps += (ends[k + 2] - ends[k]) * mean(np.maximum(level * below, (level - 1) * below))
    inside = (truth >= quantiles[..., 0]) & (truth <= quantiles[..., -1])
    return crps, mean(np.where(np.isnan(truth), np.nan, inside))
