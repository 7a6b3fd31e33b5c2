"""Long series with a long period, forecast at a lower rate: the `resample="frequency"` of TiRex-1."""

from __future__ import annotations

import math

import numpy as np

from xlstm.data.host import Values

HORIZON, LENGTH = 100, 2000  # shorter horizons and shorter series are left as they are
STEPS = 64  # steps of a period to come near to
LONGEST = 1000  # steps of the longest period that is looked for
PEAK = 0.1  # least height of a peak, as a share of the highest
OCTAVE = (1.5, 2.5)  # a frequency that is so many times another one is taken for its overtone
# In single precision, as the published package has them: they decide how numbers of steps are rounded.
FACTORS = (np.float32(1) / np.arange(1, 13, dtype=np.float32)).astype(np.float64)


def factor(row: Values, horizon: int) -> float:
    """Return the rate to forecast a series (N,) at, from 1/12 to 1 of its own."""
    N = len(row)
    if horizon < HORIZON or N < LENGTH:
        return 1.0
    height = _spectrum(row)
    inner = height[1:-2]
    at = 1 + np.flatnonzero((inner > height[:-3]) & (inner > height[2:-1]) & (inner > PEAK))
    period = N / at
    if len(at) == 0 or np.any(period < STEPS):
        return 1.0
    at = at[period <= LONGEST]
    if len(at) == 0:
        return 1.0
    best = at[np.argsort(-height[at], kind="stable")[:2]]
    chosen = best[0]
    if len(best) == 2 and OCTAVE[0] <= np.max(best) / np.min(best) <= OCTAVE[1]:
        chosen = np.min(best)
    return float(FACTORS[np.argmin(np.abs(FACTORS - round(STEPS * float(chosen) / N, 4)))])


def downsampled(row: Values, factor: float) -> Values:
    """Return a series (N,) at a lower rate, each value the mean of those around it that are there."""
    if factor == 1:
        return row
    N = len(row)
    centre = np.linspace(0, N - 1, math.ceil(N * factor))
    first = np.maximum(np.ceil(centre - 1 / (2 * factor)), 0).astype(np.int64)
    end = np.minimum(np.floor(centre + 1 / (2 * factor)), N - 1).astype(np.int64) + 1
    found = np.full(len(centre), np.nan)
    for k, (start, stop) in enumerate(zip(first, end, strict=True)):
        part = row[start:stop]
        there = part[~np.isnan(part)]
        if len(there):
            found[k] = np.mean(there)
    return found


def steps(horizon: int, factor: float) -> int:
    """Return how many steps of the lower rate a horizon has."""
    return math.ceil(horizon * factor)


def upsampled(forecast: Values, factor: float, horizon: int) -> Values:
    """Return a forecast (n, Q) of the lower rate at that of the series, (horizon, Q), linearly between its steps."""
    if factor == 1:
        return forecast
    n = len(forecast)
    at = np.linspace(0, n - 1, math.ceil(n / factor))[:horizon]
    return np.stack([np.interp(at, np.arange(n), column) for column in forecast.T], axis=1)


def _spectrum(row: Values) -> Values:
    """Return the amplitude of each frequency k / N as a share of the largest; 0 below that of the longest period."""
    N = len(row)
    at, there = np.arange(N), np.flatnonzero(~np.isnan(row))
    if len(there) == 0:
        return np.zeros(N // 2 + 1)
    filled = np.interp(at, there, row[there])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * at / N)
    height = np.abs(np.fft.rfft((filled - np.mean(filled)) * window))
    height[1 : N // 2 + N % 2] *= 2  # bins that stand for two frequencies
    largest = float(np.max(height))
    height[np.arange(len(height)) < N / LONGEST] = 0
    return height / largest if largest > 0 else height
