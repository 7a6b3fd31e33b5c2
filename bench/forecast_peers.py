"""Other ways to forecast a series, each fitted once to its beginning and then asked at later origins.

statsforecast brings the seasonal naive forecast, exponential smoothing (ETS) and ARIMA of automatically chosen orders,
and Theta; scikit-learn the ridge regression on lags.
"""

from __future__ import annotations

import time
import warnings
from typing import Any, NamedTuple

import numpy as np

from bench.forecast_series import Series
from xlstm.estimators import Forecaster


class Forecasts(NamedTuple):
    """Forecasts from all origins of a series, (origins, horizon) each: means and the bounds of 80 % intervals."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seconds: float  # that the fit took


def ours(series: Series, **settings: Any) -> Forecasts:
    """Forecast with `Forecaster` and its defaults."""
    start = time.perf_counter()
    forecaster = Forecaster(horizon=series.horizon, backend="numpy", **settings).fit(series.values[: series.cut])
    seconds = time.perf_counter() - start
    past = [series.values[:at] for at in series.origins]
    mean = np.stack(forecaster.predict(past))
    quantiles = np.stack(forecaster.predict_quantiles(past))
    return Forecasts(mean, quantiles[..., 0], quantiles[..., -1], seconds)


def statistical(model: Any, series: Series) -> Forecasts:
    """Forecast with a model of statsforecast, whose parameters stay those of the fit."""
    start = time.perf_counter()
    model.fit(series.values[: series.cut])
    seconds = time.perf_counter() - start
    found = [model.forward(y=series.values[:at], h=series.horizon, level=[80]) for at in series.origins]
    return Forecasts(*(np.stack([one[key] for one in found]) for key in ("mean", "lo-80", "hi-80")), seconds)


def ridge(series: Series) -> Forecasts:
    """Forecast all steps by ridge regression on lags: two seasons of them, and 24 at least where the series allows it.

    Intervals are the 10 % and the 90 % quantile of what the regression leaves of the values that it is fitted to.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    start = time.perf_counter()
    known, h = series.values[: series.cut], series.horizon
    lags = min(max(2 * series.season, 24), max(2, (series.cut - h) // 3))
    windows = np.lib.stride_tricks.sliding_window_view(known, lags + h)
    x, y = windows[:, :lags], windows[:, lags:]
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))).fit(x, y)
    low, high = np.quantile(y - model.predict(x), (0.1, 0.9), axis=0)
    seconds = time.perf_counter() - start
    mean = model.predict(np.stack([series.values[at - lags : at] for at in series.origins]))
    return Forecasts(mean, mean + low, mean + high, seconds)


def forecast(method: str, series: Series) -> Forecasts:
    """Fit a method by its name and forecast from all origins; warnings of peers are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method in OWN:
            return OWN[method](series)
        from statsforecast import models

        name = {"seasonal naive": "SeasonalNaive", "ETS": "AutoETS", "ARIMA": "AutoARIMA", "Theta": "AutoTheta"}[method]
        # ETS has at most 24 states of a season, and ARIMA would take minutes for more.
        season = series.season if method not in ("ETS", "ARIMA") or series.season <= 24 else 1
        return statistical(getattr(models, name)(season_length=season), series)


OWN = {"xlstm": ours, "ridge": ridge}
PEERS = ("seasonal naive", "ETS", "ARIMA", "Theta", "ridge")
