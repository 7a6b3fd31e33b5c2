"""Forecasts that a model is compared with: the last value, and a linear autoregression."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.data.host import Values
from xlstm.data.preparation import windows

Positions = np.ndarray[Any, Any]  # where each forecast begins, (N,)


def persistence(known: Values, horizon: int, at: Positions) -> Values:
    """Repeat the last value before each position: (N, horizon)."""
    return np.repeat(known[at - 1, None], horizon, axis=1)


def autoregression(known: Values, values: Values, order: int, horizon: int, at: Positions) -> Values:
    """Forecast (N, horizon) from the `order` values before each position and a constant, by least squares.

    Each step ahead has coefficients of its own, from `numpy.linalg.lstsq` on all that comes before the first position.
    `known` are the values without gaps; a gap (NaN) in `values` is no target.
    """
    x, _ = windows(known, order, horizon)
    _, target = windows(values, order, horizon)
    design = np.concatenate((x, np.ones((len(x), 1))), axis=1)
    forecast = np.empty((len(at), horizon))
    past = slice(0, int(at[0]) - order - horizon + 1)
    for h in range(horizon):
        there = ~np.isnan(target[past, h])
        coefficients, *_ = np.linalg.lstsq(design[past][there], target[past][there, h], rcond=None)
        forecast[:, h] = design[at - order] @ coefficients
    return forecast


def rmse(forecast: Values, truth: Values) -> Values:
    """Return the root mean square error by steps ahead, over the values that are there."""
    return np.asarray(np.sqrt(np.nanmean((forecast - truth) ** 2, axis=0)))
