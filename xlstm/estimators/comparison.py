"""Several forecasters of one series, compared on forecasts from the same rolling origins."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import panels
from xlstm.data.host import Values
from xlstm.data.panels import Covariates, Roles, TimeSeries
from xlstm.data.series import Series
from xlstm.data.series_windows import split
from xlstm.estimators import baselines, evaluation
from xlstm.estimators.base import CHECKS, SeriesEstimator
from xlstm.estimators.series_scaling import Origins

ORIGINS = 30  # forecasts of each model, at most
LEVELS = 0.1, 0.9  # quantiles that bound an interval of 80 %
STATISTICAL = {"seasonal naive": "SeasonalNaive", "ETS": "AutoETS", "ARIMA": "AutoARIMA", "Theta": "AutoTheta"}
LINEAR = "linear"
BUILT_IN = (LINEAR, *STATISTICAL)
LONGEST_SEASON = {"ETS": 24, "ARIMA": 24}  # ETS has no more states, and ARIMA would take minutes
PENALTIES = np.logspace(-3, 3, 13)
HEADS = ("model", "RMSE", "MAE", "MASE", "80 % covers", "width", "seconds")


@dataclass(frozen=True)
class ModelScore:
    """How good the forecasts of one model are, in the units of the series.

    Attributes
    ----------
    rmse, mae : float
        Root mean square error and mean absolute error over all forecasts and steps.
    mase : float
        The mean absolute error, divided by that of repeating the last season, or the last value without one, one step
        ahead where the models are fitted (Hyndman & Koehler 2006).
    coverage, width : float
        The share of values within the 80 % interval, and its mean width; NaN where the model has no quantiles 0.1 and
        0.9.
    seconds : float
        The time of the fit.
    forecasts, low, high : array (M, H)
        Forecasts, and the bounds of their intervals.
    """

    rmse: float
    mae: float
    mase: float
    coverage: float
    width: float
    seconds: float
    forecasts: Values = field(repr=False)
    low: Values = field(repr=False)
    high: Values = field(repr=False)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Scores of several models on the same forecasts; it prints as a table, the least RMSE first.

    Attributes
    ----------
    scores : dict of str to ModelScore
    season : int
        Steps of the season; 1 for none.
    scale : float
        The error that `ModelScore.mase` is measured by.
    at : array (M,)
        Positions of the first value of each forecast, among the rows from the first value on.
    truth : array (M, H)
        The values that are forecast.
    """

    scores: dict[str, ModelScore]
    season: int
    scale: float
    at: Origins
    truth: Values

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [HEADS]
        for name, one in sorted(self.scores.items(), key=lambda pair: pair[1].rmse):
            numbers = (f"{number:.4g}" for number in (one.rmse, one.mae, one.mase))
            rows.append((name, *numbers, f"{100 * one.coverage:.0f} %", f"{one.width:.4g}", f"{one.seconds:.1f}"))
        longest = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{longest}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
        count, steps = self.truth.shape
        return "\n".join((f"Comparison: {count} forecasts of {steps} steps, season of {self.season}", *lines))

    @property
    def errors(self) -> dict[str, Values]:
        """Root mean square errors (H,) of each model by steps ahead, as `plots.forecast_errors` draws them."""
        return {name: np.sqrt(baselines.mean((one.forecasts - self.truth) ** 2)) for name, one in self.scores.items()}


class RidgeOnLags:
    """Ridge regression of all steps ahead on lags, with the interface of a model of statsforecast.

    There are two seasons of lags, and 24 at least where the series has room. The penalty has the least leave-one-out
    error, by the leverages of the rows (Golub, Heath & Wahba 1979), and the quantiles of these errors give intervals.
    """

    def __init__(self, horizon: int, season: int) -> None:
        self.horizon, self.season = horizon, season

    def fit(self, y: Values) -> RidgeOnLags:
        """Fit to values (N,) without gaps."""
        self.lags = min(max(2 * self.season, 24), max(2, (len(y) - self.horizon) // 3))
        windows = np.lib.stride_tricks.sliding_window_view(y, self.lags + self.horizon)
        x, target = windows[:, : self.lags], windows[:, self.lags :]
        self.center, self.unit, self.mean = np.mean(x, axis=0), np.std(x, axis=0), np.mean(target, axis=0)
        self.unit[self.unit == 0] = 1.0
        U, s, Vt = np.linalg.svd((x - self.center) / self.unit, full_matrices=False)
        right, least = U.T @ (target - self.mean), math.inf
        for penalty in PENALTIES:
            shrunk = s**2 / (s**2 + penalty)
            left = target - self.mean - U @ (shrunk[:, None] * right)
            left /= (1 - 1 / len(x) - U**2 @ shrunk)[:, None]  # errors of each row where it is left out
            if np.mean(left**2) < least:
                least = float(np.mean(left**2))
                self.weights = Vt.T @ ((s / (s**2 + penalty))[:, None] * right)
                self.bounds = np.quantile(left, LEVELS, axis=0)
        return self

    def forward(self, y: Values, h: int, level: Sequence[int]) -> dict[str, Values]:
        """Return the forecast after values, and the bounds of its 80 % interval."""
        mean = self.mean + (y[-self.lags :] - self.center) / self.unit @ self.weights
        return {"mean": mean, "lo-80": mean + self.bounds[0], "hi-80": mean + self.bounds[1]}


def compare(
    series: Any,
    models: Mapping[str, Any] | Sequence[str],
    horizon: int,
    *,
    dates: Any = None,
    season: int | str = "auto",
) -> Comparison:
    """Compare several forecasters on a series.

    Each is fitted once to the first 80 % of it, and forecasts from up to 30 later rows, without another fit. A forecast
    from a row sees all values before it.

    Parameters
    ----------
    series : array (N,), Series, or table of one column beside its dates
        A gap is NaN. Models that are not of this library see it bridged by the value before it.
    models : dict of str to model, or list of str
        By its name each a `Forecaster` or `ZeroShotForecaster`, of which a copy with this horizon is fitted; a model of
        statsforecast, or another one that has `fit(y)` and `forward(y, h, level=[80])`; or the name of a built-in one:
        "linear" is a ridge regression on lags, and "seasonal naive", "ETS", "ARIMA" and "Theta" are those of
        statsforecast with automatic choice. A list has names of built-in ones.
    horizon : int
        Steps ahead.
    dates : array (N,), optional
        Rising dates of an array, which forecasters of this library look at.
    season : int or "auto"
        Steps of a season, for built-in models and for the mean absolute scaled error; 0 for none. With "auto" it is
        found where the models are fitted. ETS and ARIMA are fitted without a season of more than 24 steps.

    Returns
    -------
    Comparison

    Raises
    ------
    ImportError
        The package statsforecast is not installed, and a name stands for one of its models.
    ValueError, TypeError
        A model is unknown or none, or the series is not one of one target, or too short; or what a model raises, with a
        note that names it.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.estimators import Forecaster, compare
    >>> values = np.sin(np.arange(300) / 5) + 0.1 * np.random.default_rng(0).normal(size=300)
    >>> ours = Forecaster(epochs=5, hidden_size=8, window=24, backend="numpy")
    >>> found = compare(values, {"LSTM": ours, "ridge": "linear"}, horizon=6)
    >>> sorted(found.scores), found.truth.shape
    (['LSTM', 'ridge'], (30, 6))
    """
    horizon, season = checks.size("compare", "horizon", horizon), CHECKS["season"]("compare", "season", season)
    one = _one_series(series, dates)
    known, N = one.known[:, 0], len(one.values)
    cut = split(N).test.start
    starts = np.arange(cut, N - horizon + 1)
    if len(starts) == 0:
        rows = f"the last fifth of the series has {N - cut} rows"
        raise ValueError(f"compare: {rows}, expected at least horizon={horizon}; take a shorter horizon")
    at = starts[np.unique(np.linspace(0, len(starts) - 1, ORIGINS).round().astype(int))]
    truth = baselines.targets(one, at, horizon, N)[..., 0]
    lag = (baselines.season(known[:cut]) if isinstance(season, str) else season) or 1
    scale = float(evaluation.naive_error(one.values[:cut], lag)[0])
    scores = {}
    for name, model in _models(models, horizon, lag).items():
        try:
            if isinstance(model, SeriesEstimator):
                scores[name] = _score(_of_estimator(model, one, cut, at), truth, scale)
            else:
                scores[name] = _score(_of_model(model, known, cut, at, horizon), truth, scale)
        except Exception as error:
            error.add_note(f"in the model {name!r}")
            raise
    return Comparison(scores, lag, scale, at, truth)


def _one_series(series: Any, dates: Any) -> TimeSeries:
    """Return a series of one target, with the calendar of its dates, if it has some."""
    if isinstance(series, Series):
        series, dates = series.values, series.calendar
    given = panels.given("compare", series, Covariates(dates=dates), Roles().checked("compare"))
    read = panels.read_series("compare", given.values, given.covariates, 0, False)
    if len(read) != 1 or read[0].values.shape[1] != 1:
        raise ValueError(f"compare: series is {len(read)} of {read[0].values.shape[1]} targets, expected 1 of 1 target")
    return read[0]


def _models(models: Any, horizon: int, season: int) -> dict[str, Any]:
    """Return unfitted models by name; raise unless each is one."""
    if not isinstance(models, Mapping):
        expected = f"names of {checks.few(BUILT_IN)}, or a dict of name to model"
        models = {name: name for name in checks.several("compare", "models", models, expected, checks.LARGEST)}
    made: dict[str, Any] = {}
    for name, model in models.items():
        if isinstance(model, SeriesEstimator):
            made[name] = type(model)(**{**model.get_params(), "horizon": horizon})
            made[name].checked()
        elif hasattr(model, "fit") and hasattr(model, "forward"):
            made[name] = copy.deepcopy(model)
        elif isinstance(model, str) and model in BUILT_IN:
            made[name] = RidgeOnLags(horizon, season) if model == LINEAR else _statistical(model, season)
        else:
            expected = f"one of {checks.few(BUILT_IN)}, a forecaster of xlstm, or a model of statsforecast"
            raise ValueError(f"compare: the model {checks.shown(name)} is {checks.shown(model)}, expected {expected}")
    return made


def _statistical(name: str, season: int) -> Any:
    """Return a model of statsforecast."""
    try:
        from statsforecast import models
    except ImportError as error:
        raise ImportError(f"compare: {name!r} needs the package statsforecast; pip install statsforecast") from error
    return getattr(models, STATISTICAL[name])(season_length=season if season <= LONGEST_SEASON.get(name, season) else 1)


def _of_estimator(model: Any, series: TimeSeries, cut: int, at: Origins) -> tuple[float, Values, Values, Values]:
    """Return the seconds that a fit of an estimator took, means (M, H) and the bounds of 80 % intervals."""

    def beside(ends: Any) -> dict[str, Any]:
        dates = None if series.calendar is None else series.calendar.dates[series.begin :]
        return {} if dates is None else {"dates": [dates[:end] for end in ends]}

    begin = time.perf_counter()
    model.fit([series.values[:cut, 0]], **beside([cut]))
    seconds = time.perf_counter() - begin
    past, ahead = [series.values[:end, 0] for end in at], beside(at)
    mean = np.stack(model.predict(past, **ahead))
    levels = [*(model.model_.quantiles if model.quantiles is None else model.quantiles)]
    places = [k for level in LEVELS for k, other in enumerate(levels) if math.isclose(level, other)]
    if len(places) < 2:
        return seconds, mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    low, high = np.moveaxis(np.stack(model.predict_quantiles(past, **ahead))[..., places], -1, 0)
    return seconds, mean, low, high


def _of_model(model: Any, known: Values, cut: int, at: Origins, horizon: int) -> tuple[float, Values, Values, Values]:
    """Return the same of a model of statsforecast, whose parameters stay those of the fit."""
    begin = time.perf_counter()
    model.fit(known[:cut])
    seconds = time.perf_counter() - begin
    found = [model.forward(y=known[:end], h=horizon, level=[80]) for end in at]
    mean, low, high = (np.stack([np.asarray(one[key]) for one in found]) for key in ("mean", "lo-80", "hi-80"))
    return seconds, mean, low, high


def _score(made: tuple[float, Values, Values, Values], truth: Values, scale: float) -> ModelScore:
    seconds, mean, low, high = made
    there, error = ~np.isnan(truth), np.abs(mean - truth)
    mae = float(np.mean(error[there]))
    inside = np.where(np.isnan(low), np.nan, (low <= truth) & (truth <= high))
    return ModelScore(
        rmse=float(np.sqrt(np.mean(error[there] ** 2))),
        mae=mae,
        mase=mae / scale,
        coverage=float(np.mean(inside[there])),
        width=float(np.mean(high - low)),
        seconds=seconds,
        forecasts=mean,
        low=low,
        high=high,
    )
