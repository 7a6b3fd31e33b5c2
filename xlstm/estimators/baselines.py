"""Forecasts that a model is compared with: the last value, the last season, and a linear autoregression."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays import blas
from xlstm.data.host import Values

BLOCK = 1 << 11  # rows of a least-squares problem that are in memory at once
Positions = np.ndarray[Any, Any]  # where each forecast begins, (N,)


def persistence(known: Values, horizon: int, at: Positions) -> Values:
    """Repeat the last value before each position: (N, horizon)."""
    return np.repeat(known[at - 1, None], horizon, axis=1)


def seasonal(known: Values, season: int, horizon: int, at: Positions) -> Values:
    """Repeat the values of the last season before each position: (N, horizon)."""
    ahead = np.arange(horizon)
    return known[np.maximum(at[:, None] - season + ahead % season, 0)]


# The systems are small: threads of BLAS would mostly wait for each other, long where the cores have other work.
@blas.one_thread()
def autoregression(known: Values, values: Values, order: int, horizon: int, at: Positions) -> Values:
    """Forecast (N, horizon) from the `order` values before each position and a constant, by least squares.

    Each step ahead has coefficients of its own, from `numpy.linalg.lstsq` on all that comes before the first position,
    in the triangular form that QR decompositions of blocks of rows bring it to. `known` are the values without gaps; a
    gap (NaN) in `values` is no target.
    """
    x = np.lib.stride_tricks.sliding_window_view(known, order)
    forecast = np.empty((len(at), horizon))
    for h in range(horizon):
        target = values[order + h : at[0]]
        there, R = np.flatnonzero(~np.isnan(target)), np.empty((0, order + 2))
        for k in range(0, len(there), BLOCK):
            rows = there[k : k + BLOCK]
            block = np.column_stack((x[rows], np.ones(len(rows)), target[rows]))
            R = np.asarray(np.linalg.qr(np.concatenate((R, block)), mode="r"))
        small = np.finfo(R.dtype).eps * max(len(there), order + 1)
        coefficients, *_ = np.linalg.lstsq(R[:, :-1], R[:, -1], rcond=small)
        forecast[:, h] = x[at - order] @ coefficients[:-1] + coefficients[-1]
    return forecast
