"""Baselines: the last value, the last season, and an autoregression."""

from __future__ import annotations

import numpy as np

from xlstm.arrays import cores
from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators.series_scaling import FAR, Origins

BLOCK = 1 << 11  # rows of a least-squares problem that are in memory at once
CHUNK = 4096  # windows that are looked at at once


def mean(values: Values) -> Values:
    """Return the mean over the first axis, of the values that are there; NaN where there are
    none.
    """
    there = ~np.isnan(values)
    total = np.sum(np.where(there, values, 0.0), axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(total / np.count_nonzero(there, axis=0))


def seasonal(values: Values, season: int, horizon: int, at: Origins) -> Values:
    """Repeat the values of the last season before each position, (N, horizon, C); with a season of
    1 it is the last value.
    """
    ahead = np.arange(horizon)
    return values[np.maximum(at[:, None] - season + ahead % season, 0)]


# The systems are small: threads of BLAS would mostly wait for each other, long where the cores have
# other work.
@cores.one_thread()
def autoregression(
    bridged: Values, values: Values, order: int, horizon: int, at: Origins
) -> Values:
    """Forecast (N, horizon, C) from the `order` values before each position and a constant, by
    least squares.

    Each column and each step ahead has coefficients of its own, from `numpy.linalg.lstsq` on all
    that comes before the first position, in the triangular form that QR decompositions of blocks of
    rows bring it to. `bridged` are the values without gaps; a gap (NaN) in `values` is no target.
    """
    forecast = np.empty((len(at), horizon, bridged.shape[1]))
    for h, c in np.ndindex(forecast.shape[1:]):
        x = np.lib.stride_tricks.sliding_window_view(bridged[:, c], order)
        target = values[order + h : at[0], c]
        there = np.flatnonzero(~np.isnan(target))
        R = np.empty((0, order + 2))
        for k in range(0, len(there), BLOCK):
            rows = there[k : k + BLOCK]
            block = np.column_stack((x[rows], np.ones(len(rows)), target[rows]))
            R = np.asarray(np.linalg.qr(np.concatenate((R, block)), mode="r"))
        small = np.finfo(R.dtype).eps * max(len(there), order + 1)
        coefficients, *_ = np.linalg.lstsq(R[:, :-1], R[:, -1], rcond=small)
        forecast[:, h, c] = x[at - order] @ coefficients[:-1] + coefficients[-1]
    return forecast


def targets(series: TimeSeries, origins: Origins, horizon: int, stop: int) -> Values:
    """Return the values (M, H, C) after each origin; NaN from row `stop` on, and where one is
    missing.
    """
    truth = np.full((len(origins), horizon, series.values.shape[1]), np.nan)
    for h in range(horizon):
        there = origins + h < min(stop, len(series.values))
        truth[there, h] = series.values[origins[there] + h]
    return truth


def changes(series: TimeSeries, origins: Origins, horizon: int, stop: int, units: Values) -> Values:
    """Return by how much `targets` differ from the last value before each origin, in units, within
    sane limits.
    """
    differences = targets(series, origins, horizon, stop)
    differences -= series.known[origins - 1, None]
    differences /= units
    return np.clip(differences, -FAR, FAR, out=differences)
