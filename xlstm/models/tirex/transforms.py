"""Transforms around a TiRex: windows, scaling and tokens of series, and quantiles in their units.

Everything is float64 on the host, whatever the network's dtype, so that a large level costs no
digits. NaN is a missing value.
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
    """Return the last `width` values of a row (N,) followed by `ahead` missing ones.

    Values before the beginning of the row are missing.
    """
    seen = row[max(0, len(row) + ahead - width) :]
    after = min(ahead, width)
    window = np.full(width, np.nan)
    window[width - after - len(seen) : width - after] = seen
    return window


def leading(row: Values, patch_size: int, most: int) -> int:
    """Return how many patches at the beginning of a row (N,) have no value, at most `most`."""
    present = np.flatnonzero(~np.isnan(row))
    return min(int(present[0]) // patch_size, most) if len(present) else most


def tokens(scaled: Values, patch_size: int) -> Values:
    """Return the tokens (R, T, 2P) of scaled rows (R, T P).

    A token holds the values of a patch, with 0 for missing ones, then a mark for each value: 1 if
    it is present, else 0.
    """
    patches = scaled.reshape(len(scaled), -1, patch_size)
    present = ~np.isnan(patches)
    return np.concatenate((np.where(present, patches, 0.0), present), axis=2)


# Scale.

LARGEST = 20.0  # scaled values are clipped to this before the hyperbolic sine
FLAT = 1e-5  # TiRex-1's scale of a constant row is its level plus this


class RowUnits(NamedTuple):
    """The location and scale of rows, (R, 1), and whether each row stays unscaled, bool (R, 1)."""

    loc: Values
    scale: Values
    binary: Mask

    def of(self, rows: Mask) -> RowUnits:
        """Return the units of some rows."""
        return RowUnits(self.loc[rows], self.scale[rows], self.binary[rows])


@dataclass(frozen=True)
class Scaler:
    """A scaler of rows: (x - mean) / standard deviation; TiRex-2 then damps large values.

    Parameters
    ----------
    arcsinh : bool
        Take the inverse hyperbolic sine of scaled values.
    binary : bool
        Leave rows unscaled if all values are 0 or 1.
    eps : float, optional
        The smallest scale. None is the rule of TiRex-1: a constant row has the scale of its level.
    """

    arcsinh: bool = False
    binary: bool = False
    eps: float | None = None

    def units(self, rows: Values) -> RowUnits:
        """Return the units of rows (R, N); a row without any value has mean 0 and scale 1.

        Values are taken relative to the first one, so that a constant row has its exact mean and a
        deviation of exactly 0.
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
        """Return the network's forecasts (R, ...) in the units of the series."""
        loc, scale, binary = (array.reshape(-1, *(1,) * (y.ndim - 1)) for array in units)
        if self.arcsinh:
            y = np.where(binary, y, np.sinh(np.clip(y, -LARGEST, LARGEST)))
        return y * scale + loc


# Trends and calibration of TiRex-2. Its constants come from the published package's code, not from
# a configuration.

FEWEST = 4  # the fewest values of a trend
STILL = 1e-12  # a standard deviation that counts as zero
# smallest rise over the row in standard deviations, and smallest share that the line explains
RISE = 1.5
SHARE = 0.87
SPREAD = math.sqrt(0.90)
GROWTH = 0.52 - 0.5  # intervals are SPREAD wide at step 1, and grow as step**GROWTH
SUMMED_SPREAD = math.sqrt(1.68)
SUMMED_GROWTH = 0.51 - 0.5  # both for sums of differences
NEAR = 1e-6  # levels of quantiles that differ by less are equal


def has_trend(row: Values) -> bool:
    """Return whether a straight line explains most of a row (N,) and rises or falls far enough over
    it.
    """
    at = np.flatnonzero(~np.isnan(row))
    if len(at) < FEWEST or np.std(row[at], ddof=1) < STILL:
        return False
    r = abs(np.corrcoef(at, row[at])[0, 1])
    return bool(r / np.std(at, ddof=1) * len(row) >= RISE and r**2 >= SHARE)


def calibrated(q: Values) -> Values:
    """Return quantiles (..., H, Q) with distances from the median that grow with the step."""
    middle, off, steps = _parts(q)
    return np.asarray(middle + SPREAD * steps**GROWTH * off)


def changes(rows: Values) -> Values:
    """Return the differences of rows (R, N); the first is 0, even if it is missing."""
    return np.concatenate((np.zeros((len(rows), 1)), np.diff(rows)), axis=1)


def summed(q: Values, rows: Values) -> Values:
    """Return quantiles (R, H, Q) of rows (R, N) from quantiles of their differences.

    They continue from the last value, or from 0.
    """
    middle, off, steps = _parts(q)
    latest = [row[~np.isnan(row)][-1:].sum() for row in rows]
    level = np.reshape(latest, (-1, 1, 1)) + np.cumsum(middle, axis=-2)
    side = np.sign(np.sum(off, axis=-2, keepdims=True))
    width = np.sqrt(np.cumsum(off**2, axis=-2)) * steps**SUMMED_GROWTH
    return np.asarray(level + SUMMED_SPREAD * side * width)


def _parts(q: Values) -> tuple[Values, Values, Values]:
    """Return the middle quantile (..., H, 1), distances from it, and step numbers (H, 1)."""
    middle = q[..., q.shape[-1] // 2 :][..., :1]
    return middle, q - middle, np.arange(1.0, q.shape[-2] + 1)[:, None]


# Levels of quantiles.

MOST = 10_000  # the most levels


def opposite(levels: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return the index of quantile 1 - q for each quantile q, (Q,); raise ValueError if one is
    missing.
    """
    distance = np.abs(np.add.outer(levels, levels) - 1)  # (Q, Q)
    for level, least in zip(levels, np.min(distance, axis=1), strict=True):
        if least > NEAR:
            raise ValueError(
                f"TiRex2: sign_flip needs quantile {1 - level:g} beside {level:g}, which the"
                " model lacks"
            )
    return np.asarray(np.argmin(distance, axis=1))


def levels_of(where: str, levels: Any, trained: Sequence[float]) -> tuple[float, ...]:
    """Return the checked levels of quantiles, by default those that a model was trained for.

    Raises
    ------
    TypeError, ValueError
        Levels are not numbers, a level lies outside of the trained range, or a level occurs twice.
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
    """Return quantiles (..., W) at `levels`, interpolated linearly from trained ones (..., Q)."""
    if tuple(levels) == tuple(trained):
        return q
    # (Q, W)
    weights = np.array([np.interp(levels, trained, unit) for unit in np.eye(len(trained))])
    return np.asarray(q @ weights)


# `resample="frequency"` of TiRex-1: forecast long series with a long period at a lower rate.

HORIZON = 100
LENGTH = 2000  # shorter horizons and series are left as they are
STEPS = 64  # the target number of steps in a period
LONGEST = 1000  # steps of the longest period
PEAK = 0.1  # smallest height of a peak, relative to the highest
OCTAVE = (1.5, 2.5)  # a frequency at this ratio to another counts as its overtone
# These are in single precision, as in the published package, since they decide how numbers of steps
# are rounded.
FACTORS = (np.float32(1) / np.arange(1, 13, dtype=np.float32)).astype(np.float64)


def rate_of(row: Values, horizon: int) -> float:
    """Return the rate at which to forecast a series (N,), from 1/12 to 1 of its own rate."""
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
    """Return a series (N,) at a lower rate; each value is a mean of present values around it."""
    if rate == 1:
        return row
    N = len(row)
    centre = np.linspace(0, N - 1, math.ceil(N * rate))
    first = np.maximum(np.ceil(centre - 1 / (2 * rate)), 0).astype(np.int64)
    end = np.minimum(np.floor(centre + 1 / (2 * rate)), N - 1).astype(np.int64) + 1
    parts = [row[start:stop] for start, stop in zip(first, end, strict=True)]
    return np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts])


def upsampled(forecast: Values, rate: float, horizon: int) -> Values:
    """Return a forecast (n, Q) at the lower rate as (horizon, Q) at the series' rate, interpolated
    linearly.
    """
    if rate == 1:
        return forecast
    n = len(forecast)
    at = np.linspace(0, n - 1, math.ceil(n / rate))[:horizon]
    return np.stack([np.interp(at, np.arange(n), column) for column in forecast.T], axis=1)


def _spectrum(row: Values) -> Values:
    """Return the amplitude of each frequency k / N relative to the largest; 0 below the longest
    period's frequency.
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
