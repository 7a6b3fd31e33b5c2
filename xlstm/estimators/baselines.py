"""Baselines: the last value, the last season and an autoregression."""

from __future__ import annotations

import numpy as np

from xlstm.arrays import cores
from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators.series_scaling import FAR, Origins

BLOCK = 1 << 11  # rows of a least-squares problem in memory at a time
CHUNK = 4096  # windows in memory at a time


def mean(values: Values) -> Values:
    """Return the mean over the first axis of all values but NaN; NaN if there are none."""
    there = ~np.isnan(values)
    total = np.sum(np.where(there, values, 0.0), axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0
        average: Values = total / np.count_nonzero(there, axis=0)
    return average


def seasonal(values: Values, season: int, horizon: int, at: Origins) -> Values:
    """Repeat the values of the last season before each position, (N, horizon, C); a season of 1 is
    the last value.
    """
    ahead = np.arange(horizon)
    return values[np.maximum(at[:, None] - season + ahead % season, 0)]


# The systems are small: threads of BLAS would mostly wait for each other, for long on busy cores.
@cores.one_thread()
def autoregression(
    bridged: Values, values: Values, order: int, horizon: int, at: Origins
) -> Values:
    """Forecast (N, horizon, C) from the `order` values before each position and a constant, by
    least squares.

    Each column and each step ahead has its own coefficients. They are fitted with
    `numpy.linalg.lstsq` to all rows before the first position, which QR decompositions of blocks of
    rows reduce to a triangular system. `bridged` has the values with gaps filled. A gap (NaN) in
    `values` is never a target.
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
    """Return the values (M, H, C) after each origin; NaN from row `stop` on, and for missing
    values.
    """
    rows = origins[:, None] + np.arange(horizon)
    stop = min(stop, len(series.values))
    at = np.minimum(rows, stop - 1)
    there = (rows < stop)[..., None] & ~np.isnan(series.values[at])
    return series.known[at] + np.where(there, 0.0, np.nan)


def changes(series: TimeSeries, origins: Origins, horizon: int, stop: int, units: Values) -> Values:
    """Return `targets` minus the last value before each origin, in units, within sane limits."""
    differences = targets(series, origins, horizon, stop)
    differences -= series.known[origins - 1, None]
    differences /= units
    return np.clip(differences, -FAR, FAR, out=differences)
