"""Scalers of windows: each row is measured in units of its own, and forecasts are brought back.

They compute in float64 whatever the dtype of the network is, so that a large level costs no digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.data.host import Values

Mask = np.ndarray[Any, np.dtype[np.bool_]]
LARGEST = 20.0  # the largest scaled value whose hyperbolic sine is taken
FLAT = 1e-5  # TiRex-1 adds it to the level of a constant row, for its scale


class Units(NamedTuple):
    """Location and scale of rows.

    Attributes
    ----------
    loc, scale : array (R, 1)
    binary : bool array (R, 1)
        Rows that are left as they are.
    """

    loc: Values
    scale: Values
    binary: Mask

    def of(self, rows: Mask) -> Units:
        """Return the units of some rows."""
        return Units(self.loc[rows], self.scale[rows], self.binary[rows])


@dataclass(frozen=True)
class StandardScaler:
    """The scaler of TiRex-1: (x - mean) / standard deviation."""

    def units(self, rows: Values) -> Units:
        """Return the units of rows (R, N) with NaN for missing values."""
        loc, scale = _moments(rows)
        return Units(loc, np.where(scale == 0, np.abs(loc) + FLAT, scale), np.zeros(loc.shape, dtype=bool))

    def scaled(self, rows: Values, units: Units) -> Values:
        """Return rows (R, N) in their units."""
        return (rows - units.loc) / units.scale

    def restored(self, y: Values, units: Units) -> Values:
        """Return forecasts (R, ...) of the network in the units of the series."""
        loc, scale, _ = _beside(units, y)
        return y * scale + loc


@dataclass(frozen=True)
class RobustScaler:
    """The scaler of TiRex-2: a standard scaler, after which large values are damped.

    Parameters
    ----------
    arcsinh : bool
        Take the inverse hyperbolic sine of scaled values.
    binary : bool
        Leave rows as they are that have no other values than 0 and 1.
    eps : float
        The least scale.
    """

    arcsinh: bool
    binary: bool
    eps: float

    def units(self, rows: Values) -> Units:
        """Return the units of rows (R, N) with NaN for missing values."""
        loc, scale = _moments(rows)
        scale = np.maximum(scale, self.eps)
        plain = np.zeros(loc.shape, dtype=bool)
        if self.binary:
            plain = np.all(np.isnan(rows) | (rows == 0) | (rows == 1), axis=1, keepdims=True)
        return Units(np.where(plain, 0.0, loc), np.where(plain, 1.0, scale), plain)

    def scaled(self, rows: Values, units: Units) -> Values:
        """Return rows (R, N) in their units."""
        s = (rows - units.loc) / units.scale
        return np.where(units.binary, s, np.arcsinh(s)) if self.arcsinh else s

    def restored(self, y: Values, units: Units) -> Values:
        """Return forecasts (R, ...) of the network in the units of the series."""
        loc, scale, binary = _beside(units, y)
        if self.arcsinh:
            y = np.where(binary, y, np.sinh(np.clip(y, -LARGEST, LARGEST)))
        return y * scale + loc


def _moments(rows: Values) -> tuple[Values, Values]:
    """Return the mean and the standard deviation of the values that are there, (R, 1) each; 0 and 1 without any.

    Values are taken relative to the first one, so that rounding leaves a constant row its exact mean and no deviation.
    """
    there = ~np.isnan(rows)
    count = np.count_nonzero(there, axis=1, keepdims=True)
    first = np.take_along_axis(rows, np.argmax(there, axis=1)[:, None], axis=1)
    first = np.where(count > 0, first, 0.0)
    number = np.maximum(count, 1)
    change = np.where(there, rows - first, 0.0)
    mean = np.sum(change, axis=1, keepdims=True) / number
    squares = np.where(there, change - mean, 0.0) ** 2
    scale = np.sqrt(np.sum(squares, axis=1, keepdims=True) / number)
    return first + mean, np.where(count > 0, scale, 1.0)


def _beside(units: Units, y: Values) -> tuple[Values, Values, Mask]:
    """Return units with as many axes as forecasts have."""
    shape = (len(y), *(1,) * (y.ndim - 1))
    return units.loc.reshape(shape), units.scale.reshape(shape), units.binary.reshape(shape)
