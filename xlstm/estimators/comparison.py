"""Compare several forecasters on one series, by forecasts from the same rolling origins."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data import host
from xlstm.data.host import Values
from xlstm.data.panels import Panel, Roles
from xlstm.data.series import Series
from xlstm.data.series_windows import split
from xlstm.data.time_series import Covariates, TimeSeries
from xlstm.estimators import baselines, evaluation, fitting
from xlstm.estimators.base import CHECKS, SeriesEstimator
from xlstm.estimators.forecaster import Forecaster
from xlstm.estimators.series_scaling import Origins

ORIGINS = 30  # forecasts of each model, at most
LEVELS = 0.1, 0.9  # quantiles that bound an interval of 80 %
STATISTICAL = {
    "seasonal naive": "SeasonalNaive",
    "ETS": "AutoETS",
    "ARIMA": "AutoARIMA",
    "Theta": "AutoTheta",
}
LONGEST_SEASON = {"ETS": 24, "ARIMA": 24}  # the limit of ETS; ARIMA would take minutes
RETURNED = "mean", "lo-80", "hi-80"  # results of `forward` of a statsforecast model
LINEAR = "linear"
BUILT_IN = (LINEAR, *STATISTICAL)
HEADS = ("model", "RMSE", "MAE", "MASE", "80 % covers", "width", "seconds")

# seconds of the fit, means (M, H), and the bounds of 80 % intervals
Forecast = tuple[float, Values, Values, Values]


class ModelScore(NamedTuple):
    """Errors of the forecasts of one model, in the units of the series.

    Attributes
    ----------
    rmse, mae : float
        Root mean square error and mean absolute error over all forecasts and steps.
    mase : float
        Mean absolute scaled error: the mean absolute error, divided by `Comparison.scale` (Hyndman
        & Koehler 2006).
    coverage, width : float
        The share of values within the 80 % interval, from 0 to 1, and the mean width of the
        interval. NaN if the model has no quantiles 0.1 and 0.9.
    seconds : float
        Time of the fit, in seconds.
    forecasts : array (M, H)
        The mean forecasts.
    """

    rmse: float
    mae: float
    mase: float
    coverage: float
    width: float
    seconds: float
    forecasts: Values


@dataclass(frozen=True, repr=False)
class Comparison:
    """Scores of several models on the same forecasts; it prints as a table, the smallest RMSE
    first.

    Attributes
    ----------
    scores : dict of str to ModelScore
        The score of each model by its name.
    season : int
        Steps of the season; 1 for none.
    scale : float
        The mean absolute error of the naive forecast one step ahead, over the rows that models are
        fitted to. It repeats the last season, or the last value if there is no season.
    at : array (M,)
        Positions of the first value of each forecast, counted from the first value of the series.
    truth : array (M, H)
        The observed values for each forecast.
    """

    scores: dict[str, ModelScore]
    season: int
    scale: float
    at: Origins
    truth: Values

    def __repr__(self) -> str:
        lines = [
            "Comparison: {} forecasts of {} steps, season of {}".format(
                *self.truth.shape, self.season
            )
        ]
        rows = [HEADS]
        for name, score in sorted(self.scores.items(), key=lambda pair: pair[1].rmse):
            rmse, mae, mase, width = (
                f"{number:.4g}" for number in (score.rmse, score.mae, score.mase, score.width)
            )
            covered = f"{100 * score.coverage:.0f} %"
            rows.append((name, rmse, mae, mase, covered, width, f"{score.seconds:.1f}"))
        longest = max(len(row[0]) for row in rows)
        lines += [
            f"{row[0]:<{longest}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows
        ]
        return "\n".join(lines)

    @property
    def errors(self) -> dict[str, Values]:
        """Root mean square errors (H,) of each model by steps ahead, for
        `plots.forecast_errors`.
        """
        return {
            name: np.sqrt(baselines.mean((score.forecasts - self.truth) ** 2))
            for name, score in self.scores.items()
        }


def compare(
    series: Any,
    models: Mapping[str, Any] | Sequence[str],
    horizon: int,
    *,
    dates: Any = None,
    season: Any = "auto",
) -> Comparison:
    """Compare several forecasters on a series.

    Each model is fitted once, to the first 80 % of the series. It then forecasts from up to 30
    later rows without another fit. A forecast from a row sees all values before that row.

    Parameters
    ----------
    series : array (N,), Series, or table of one column beside its dates
        NaN marks a gap. Models of other libraries see it filled with the value before it.
    models : dict of str to model, or list of str
        Models by name, or a list of names of built-in models. A model is one of these:

        - a `Forecaster` or a `ZeroShotForecaster`, of which a copy with this horizon is fitted;
        - a model with `fit(y)` and `forward(y, h, level=[80])`, as most models of statsforecast
          have;
        - "linear", a built-in `Forecaster` with the candidate "linear" alone;
        - "seasonal naive", "ETS", "ARIMA" or "Theta", built-in models of statsforecast with
          automatic choice.
    horizon : int
        Steps ahead of each forecast.
    dates : array (N,), optional
        Rising dates of the rows of an array, for the forecasters of this library.
    season : int, tuple of two int, or "auto"
        Steps of the season, for built-in models and for the mean absolute scaled error; 0 for none.
        If you give two seasons, "linear" takes both, and for all else the shorter one counts. With
        "auto", the season is found in the first 80 %. ETS and ARIMA are fitted without a season if
        it has more than 24 steps.

    Returns
    -------
    Comparison

    Raises
    ------
    ImportError
        A name stands for a model of statsforecast, and statsforecast is not installed.
    ValueError, TypeError
        A model is unknown or is not a model. The series has several targets, is several series, or
        is too short. A model raised an error, which has a note with the model's name.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.estimators import Forecaster, compare
    >>> values = np.sin(np.arange(300) / 5) + 0.1 * np.random.default_rng(0).normal(size=300)
    >>> ours = Forecaster(epochs=5, hidden_size=8, window=24, backend="numpy")
    >>> found = compare(values, {"LSTM": ours, "line": "linear"}, horizon=6)
    >>> sorted(found.scores), found.truth.shape
    (['LSTM', 'line'], (30, 6))
    """
    horizon = checks.size("compare", "horizon", horizon)
    given = CHECKS["season"]("compare", "season", season)
    target = _one_series(series, dates)
    N = len(target.values)
    cut = split(N).test.start
    if N - cut < horizon:
        raise ValueError(
            f"compare: the last fifth of the series has {N - cut} rows, expected at least"
            f" horizon={horizon}; take a shorter horizon"
        )
    at = np.unique(np.linspace(cut, N - horizon, ORIGINS).round().astype(int))
    season = min(fitting.seasons_of([target], [cut], given), default=1)
    truth = baselines.targets(target, at, horizon, N)[..., 0]
    if np.all(np.isnan(truth)):
        raise ValueError(
            "compare: the last fifth of the series has no values, expected some to compare"
            " forecasts with"
        )
    scales = evaluation.naive_errors(target.values[:cut], season)
    if not isinstance(models, Mapping):
        expected = f"names of {checks.few(BUILT_IN)}, or a dict of name to model"
        models = {
            name: name
            for name in checks.several("compare", "models", models, expected, checks.text)
        }
    if not models:
        raise ValueError("compare: models is empty, expected one or more")
    new = {str(name): _model(name, model, horizon, season, given) for name, model in models.items()}
    scores = {}
    for name, model in new.items():
        forecast = _of_estimator if isinstance(model, SeriesEstimator) else _of_model
        try:
            scores[name] = _score(forecast(model, target, at, horizon), truth, scales)
        except Exception as error:
            error.add_note(f"in the model {name!r}")
            raise
    return Comparison(scores, season, float(scales[0, 0]), at, truth)


def _one_series(series: Any, dates: Any) -> TimeSeries:
    """Return a series of one target, with the calendar of its dates, if it has dates."""
    if isinstance(series, Series):
        series, dates = series.values, series.calendar
    panel = Panel.of("compare", series, Covariates(dates=dates), Roles().checked("compare"))
    read = panel.read("compare")
    if len(read) != 1 or read[0].values.shape[1] != 1:
        raise ValueError(
            f"compare: series is {len(read)} of {read[0].values.shape[1]} targets, expected 1 of 1"
            " target"
        )
    return read[0]


def _model(name: str, model: Any, horizon: int, season: int, given: Any) -> Any:
    """Return a model that is not fitted yet; raise if `model` is none.

    The linear autoregression takes the seasons as `given`, other models one season.
    """
    if isinstance(model, SeriesEstimator):
        return type(model)(**model.get_params() | {"horizon": horizon})
    if isinstance(model, str) and model in STATISTICAL:
        try:
            from statsforecast import models
        except ImportError as error:
            raise ImportError(
                f"compare: the model {model!r} needs the package statsforecast; pip install"
                " statsforecast"
            ) from error
        fits = season <= LONGEST_SEASON.get(model, season)
        return getattr(models, STATISTICAL[model])(season_length=season if fits else 1)
    if isinstance(model, str) and model == LINEAR:
        return Forecaster(horizon=horizon, backend="numpy", candidates=[LINEAR], season=given)
    if hasattr(model, "fit") and hasattr(model, "forward"):
        return copy.deepcopy(model)
    raise ValueError(
        f"compare: the model {checks.shown(name)} is {checks.shown(model)}, expected one of"
        f" {checks.few(BUILT_IN)}, a forecaster of xlstm, or a model with fit and forward"
    )


def _of_estimator(model: Any, series: TimeSeries, at: Origins, horizon: int) -> Forecast:
    """Fit an estimator of this library, and return its forecasts."""
    values = [series.values[:end, 0] for end in at]
    dates = None
    if series.calendar is not None:
        steps = series.calendar.dates[series.begin :]
        dates = [steps[:end] for end in at]
    begin = time.perf_counter()
    model.fit(values[:1], dates=dates and dates[:1])
    seconds = time.perf_counter() - begin
    mean = np.stack(model.predict(values, dates=dates))
    levels = model.model_.quantiles if model.quantiles is None else model.quantiles
    places = [k for level in LEVELS for k, other in enumerate(levels) if math.isclose(level, other)]
    low = high = np.full_like(mean, np.nan)
    if len(places) == 2:
        quantiles = np.stack(model.predict_quantiles(values, dates=dates))
        low, high = np.moveaxis(quantiles[..., places], -1, 0)
    return seconds, mean, low, high


def _of_model(model: Any, series: TimeSeries, at: Origins, horizon: int) -> Forecast:
    """Fit a model of statsforecast once, and return its forecasts with the parameters of that
    fit.
    """
    begin = time.perf_counter()
    model.fit(series.known[: at[0], 0])
    seconds = time.perf_counter() - begin
    results = [model.forward(y=series.known[:end, 0], h=horizon, level=[80]) for end in at]
    mean, low, high = (
        np.stack([_row(result, key, horizon) for result in results]) for key in RETURNED
    )
    return seconds, mean, low, high


def _row(result: Any, key: str, horizon: int) -> Values:
    """Return one array (H,) from the results of a model's `forward`; raise if it is missing."""
    returned = result if isinstance(result, Mapping) else {}
    if key not in returned:
        names = checks.few(map(str, returned)) or checks.shown(result)
        raise TypeError(
            f"compare: forward returned {names}, expected a dict with {', '.join(RETURNED)}"
        )
    row = host.numbers("compare", f"forward's {key}", returned[key])
    checks.shape("compare", f"forward's {key}", row, {"H": horizon})
    return row


def _score(forecast: Forecast, truth: Values, scales: Values) -> ModelScore:
    seconds, mean, low, high = forecast
    bounds = np.stack((low, high), axis=-1).reshape(-1, 2)
    errors = evaluation.errors_of(mean.ravel(), truth.ravel(), scales)
    levels = () if np.isnan(low).any() else LEVELS
    _, covered = evaluation.probabilistic(bounds, truth.ravel(), levels)
    rmse, mae, mase, covers, width = map(float, (*errors[:3], covered, np.mean(high - low)))
    return ModelScore(rmse, mae, mase, covers, width, seconds, mean)
