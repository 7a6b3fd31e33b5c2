"""Forecasts that a model is compared with: the last value, the last season, and a linear autoregression."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.data.host import Values

Positions = np.ndarray[Any, Any]  # where each forecast begins, (N,)


def persistence(known: Values, horizon: int, at: Positions) -> Values:
    """Repeat the last value before each position: (N, horizon)."""
    return np.repeat(known[at - 1, None], horizon, axis=1)


def seasonal(known: Values, season: int, horizon: int, at: Positions) -> Values:
    """Repeat the values of the last season before each position: (N, horizon)."""
    ahead = np.arange(horizon)
    return known[np.maximum(at[:, None] - season + ahead % season, 0)]


def autoregression(known: Values, values: Values, order: int, horizon: int, at: Positions) -> Values:
    """Forecast (N, horizon) from the `order` values before each position and a constant, by least squares.

    Each step ahead has coefficients of its own, from `numpy.linalg.lstsq` on all that comes before the first position.
    `known` are the values without gaps; a gap (NaN) in `values` is no target.
    """
    x = np.lib.stride_tricks.sliding_window_view(known, order)
    design = np.concatenate((x, np.ones((len(x), 1))), axis=1)
    forecast = np.empty((len(at), horizon))
    for h in range(horizon):
        target = values[order + h : at[0]]
        there = ~np.isnan(target)
        coefficients, *_ = np.linalg.lstsq(design[: len(target)][there], target[there], rcond=None)
        forecast[:, h] = design[at - order] @ coefficients
    return forecast
