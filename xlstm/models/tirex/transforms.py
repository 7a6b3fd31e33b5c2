"""The numbers around a TiRex: windows of series, their scale and their tokens, and quantiles
brought back from them.

All of it is float64 on the host whatever the dtype of the network is, so that a large level costs
no digits. NaN is a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values

Mask = np.ndarray[Any, np.dtype[np.bool_]]

# Windows and tokens.


def last(row: Values, width: int, ahead: int = 0) -> Values:
    """Return the last `width` values of a row (N,) that `ahead` missing ones follow; before its
    beginning all miss.
    """
    seen = row[max(0, len(row) + ahead - width) :]
    after = min(ahead, width)
    window = np.full(width, np.nan)
    window[width - after - len(seen) : width - after] = seen
    return window


def leading(row: Values, patch_size: int, most: int) -> int:
    """Return how many patches without a value a row (N,) begins with, but no more than `most`."""
    present = np.flatnonzero(~np.isnan(row))
    return min(int(present[0]) // patch_size, most) if len(present) else most


def tokens(scaled: Values, patch_size: int) -> Values:
    """Return the tokens (R, T, 2P) of scaled rows (R, T P).

    They are the values of each patch with 0 for missing ones, then 1 for each value that is present
    and 0 for others.
    """
    patches = scaled.reshape(len(scaled), -1, patch_size)
    present = ~np.isnan(patches)
    return np.concatenate((np.where(present, patches, 0.0), present), axis=2)


# Scale.

LARGEST = 20.0  # the largest scaled value whose hyperbolic sine is taken
FLAT = 1e-5  # TiRex-1 adds it to the level of a constant row, for its scale


class RowUnits(NamedTuple):
    """Location and scale of rows, (R, 1), and which rows are left as they are, bool (R, 1)."""

    loc: Values
    scale: Values
    binary: Mask

    def of(self, rows: Mask) -> RowUnits:
        """Return the units of some rows."""
        return RowUnits(self.loc[rows], self.scale[rows], self.binary[rows])


@dataclass(frozen=True)
class Scaler:
    """(x - mean) / standard deviation, after which TiRex-2 damps large values.

    Parameters
    ----------
    arcsinh : bool
        Take the inverse hyperbolic sine of scaled values.
    binary : bool
        Leave rows as they are that have no other values than 0 and 1.
    eps : float, optional
        The least scale. None is the rule of TiRex-1: a constant row has the scale of its level.
    """

    arcsinh: bool = False
    binary: bool = False
    eps: float | None = None

    def units(self, rows: Values) -> RowUnits:
        """Return the units of rows (R, N); those without any value have mean 0 and scale 1.

        Values are taken relative to the first one, so that rounding leaves a constant row its exact
        mean and no deviation.
        """
        present = ~np.isnan(rows)
        count = np.count_nonzero(present, axis=1, keepdims=True)
        first = np.take_along_axis(rows, np.argmax(present, axis=1)[:, None], axis=1)
        first = np.nan_to_num(first)
        number = np.maximum(count, 1)
        change = np.where(present, rows - first, 0.0)
        mean = np.sum(change, axis=1, keepdims=True) / number
        squares = np.where(present, change - mean, 0.0) ** 2
        scale = np.where(count > 0, np.sqrt(np.sum(squares, axis=1, keepdims=True) / number), 1.0)
        loc = first + mean
        binary = np.zeros(count.shape, dtype=bool)
        if self.binary:
            binary = np.all(~present | (rows == 0) | (rows == 1), axis=1, keepdims=True)
        if self.eps is None:
            scale = np.where(scale == 0, np.abs(loc) + FLAT, scale)
        scale = np.maximum(scale, self.eps or 0.0)
        return RowUnits(np.where(binary, 0.0, loc), np.where(binary, 1.0, scale), binary)

    def scaled(self, rows: Values, units: RowUnits) -> Values:
        """Return rows (R, N) in their units."""
        s = (rows - units.loc) / units.scale
        return np.where(units.binary, s, np.arcsinh(s)) if self.arcsinh else s

    def restored(self, y: Values, units: RowUnits) -> Values:
        """Return forecasts (R, ...) of the network in the units of the series."""
        loc, scale, binary = (array.reshape(-1, *(1,) * (y.ndim - 1)) for array in units)
        if self.arcsinh:
            y = np.where(binary, y, np.sinh(np.clip(y, -LARGEST, LARGEST)))
        return y * scale + loc


# Trends, and the calibration of TiRex-2. Its constants are in the published package's code, not in
# a configuration.

FEWEST = 4  # values that make a trend
STILL = 1e-12  # a standard deviation that counts as none
# least rise over the row in standard deviations, and least share that the line explains
RISE = 1.5
SHARE = 0.87
SPREAD = math.sqrt(0.90)
GROWTH = 0.52 - 0.5  # width of intervals at the first step, and how it grows with the steps
SUMMED_SPREAD = math.sqrt(1.68)
SUMMED_GROWTH = 0.51 - 0.5  # the same for sums of changes
NEAR = 1e-6  # two levels of quantiles that differ by less are the same


def has_trend(row: Values) -> bool:
    """Return whether a straight line explains most of a row (N,), and rises or falls far enough
    over it.
    """
    at = np.flatnonzero(~np.isnan(row))
    if len(at) < FEWEST or np.std(row[at], ddof=1) < STILL:
        return False
    r = abs(np.corrcoef(at, row[at])[0, 1])
    return bool(r / np.std(at, ddof=1) * len(row) >= RISE and r**2 >= SHARE)


def calibrated(q: Values) -> Values:
    """Return quantiles (..., H, Q) whose distance from the median grows with the step."""
    middle, off, steps = _parts(q)
    return np.asarray(middle + SPREAD * steps**GROWTH * off)


def changes(rows: Values) -> Values:
    """Return the changes of rows (R, N), of which the first is 0, even where it is missing."""
    return np.concatenate((np.zeros((len(rows), 1)), np.diff(rows)), axis=1)


def summed(q: Values, rows: Values) -> Values:
    """Return quantiles (R, H, Q) of rows (R, N) from those of their changes; they go on from the
    last value, or 0.
    """
    middle, off, steps = _parts(q)
    latest = [row[~np.isnan(row)][-1:].sum() for row in rows]
    level = np.reshape(latest, (-1, 1, 1)) + np.cumsum(middle, axis=-2)
    side = np.sign(np.sum(off, axis=-2, keepdims=True))
    width = np.sqrt(np.cumsum(off**2, axis=-2)) * steps**SUMMED_GROWTH
    return np.asarray(level + SUMMED_SPREAD * side * width)


def _parts(q: Values) -> tuple[Values, Values, Values]:
    """Return the middle quantile (..., H, 1), the distance of each from it, and the number of each
    step (H, 1).
    """
    middle = q[..., q.shape[-1] // 2 :][..., :1]
    return middle, q - middle, np.arange(1.0, q.shape[-2] + 1)[:, None]


# Levels of quantiles.

MOST = 10_000  # levels at most


def opposite(levels: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return the place of quantile 1 - q for each quantile q, (Q,); raise ValueError where one is
    missing.
    """
    distance = np.abs(np.add.outer(levels, levels) - 1)  # (Q, Q)
    for level, least in zip(levels, np.min(distance, axis=1), strict=True):
        if least > NEAR:
            raise ValueError(
                f"TiRex2: sign_flip needs quantile {1 - level:g} beside {level:g}, the model"
                " has not"
            )
    return np.asarray(np.argmin(distance, axis=1))


def levels_of(where: str, levels: Any, trained: Sequence[float]) -> tuple[float, ...]:
    """Return levels of quantiles, by default those that a model was trained for.

    Raises
    ------
    TypeError, ValueError
        They are no numbers, one lies outside of the trained ones, or one is there twice.
    """
    if levels is None:
        return tuple(trained)
    numbers = checks.several(
        where, "quantiles", levels, "a list of numbers between 0 and 1", checks.any_number, MOST
    )
    for k, level in enumerate(numbers):
        if not trained[0] <= level <= trained[-1]:
            expected = f"{trained[0]:g} to {trained[-1]:g}, as the model was trained"
            raise ValueError(f"{where}: quantiles[{k}] is {level:g}, expected {expected}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{where}: quantiles is {checks.shown(levels)}, expected each level once")
    return tuple(numbers)


def between(q: Values, trained: Sequence[float], levels: Sequence[float]) -> Values:
    """Return quantiles (..., W) of some levels from those of trained ones (..., Q), linearly
    between two.
    """
    if tuple(levels) == tuple(trained):
        return q
    # (Q, W)
    weights = np.array([np.interp(levels, trained, unit) for unit in np.eye(len(trained))])
    return np.asarray(q @ weights)


# Long series with a long period at a lower rate: the `resample="frequency"` of TiRex-1.

HORIZON = 100
LENGTH = 2000  # shorter horizons and shorter series are left as they are
STEPS = 64  # steps of a period to come near to
LONGEST = 1000  # steps of the longest period that is looked for
PEAK = 0.1  # least height of a peak, as a share of the highest
OCTAVE = (1.5, 2.5)  # a frequency that is so many times another one is taken for its overtone
# In single precision, as the published package has them: they decide how numbers of steps are
# rounded.
FACTORS = (np.float32(1) / np.arange(1, 13, dtype=np.float32)).astype(np.float64)


def rate_of(row: Values, horizon: int) -> float:
    """Return the rate to forecast a series (N,) at, from 1/12 to 1 of its own."""
    N = len(row)
    if horizon < HORIZON or N < LENGTH:
        return 1.0
    height = _spectrum(row)
    inner = height[1:-2]
    at = 1 + np.flatnonzero((inner > height[:-3]) & (inner > height[2:-1]) & (inner > PEAK))
    if np.any(N / at < STEPS) or not np.any(N / at <= LONGEST):
        return 1.0
    at = at[N / at <= LONGEST]
    best = at[np.argsort(-height[at], kind="stable")[:2]]
    overtone = len(best) == 2 and OCTAVE[0] <= np.max(best) / np.min(best) <= OCTAVE[1]
    peak = np.min(best) if overtone else best[0]
    return float(FACTORS[np.argmin(np.abs(FACTORS - round(STEPS * float(peak) / N, 4)))])


def downsampled(row: Values, rate: float) -> Values:
    """Return a series (N,) at a lower rate, each value the mean of those around it that are
    present.
    """
    if rate == 1:
        return row
    N = len(row)
    centre = np.linspace(0, N - 1, math.ceil(N * rate))
    first = np.maximum(np.ceil(centre - 1 / (2 * rate)), 0).astype(np.int64)
    end = np.minimum(np.floor(centre + 1 / (2 * rate)), N - 1).astype(np.int64) + 1
    parts = [row[start:stop] for start, stop in zip(first, end, strict=True)]
    return np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts])


def upsampled(forecast: Values, rate: float, horizon: int) -> Values:
    """Return a forecast (n, Q) of the lower rate at that of the series, (horizon, Q), linearly
    between its steps.
    """
    if rate == 1:
        return forecast
    n = len(forecast)
    at = np.linspace(0, n - 1, math.ceil(n / rate))[:horizon]
    return np.stack([np.interp(at, np.arange(n), column) for column in forecast.T], axis=1)


def _spectrum(row: Values) -> Values:
    """Return the amplitude of each frequency k / N as a share of the largest; 0 below that of the
    longest period.
    """
    N = len(row)
    at = np.arange(N)
    present = np.flatnonzero(~np.isnan(row))
    if len(present) == 0:
        return np.zeros(N // 2 + 1)
    filled = np.interp(at, present, row[present])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * at / N)
    height = np.abs(np.fft.rfft((filled - np.mean(filled)) * window))
    height[1 : N // 2 + N % 2] *= 2  # bins that stand for two frequencies
    largest = float(np.max(height))
    height[np.arange(len(height)) < N / LONGEST] = 0
    return height / largest if largest > 0 else height
