"""A series made ready for training: gaps filled, parts by time, scaling, and windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values, check_numbers


def carry_forward(values: Values) -> Values:
    """Fill each gap (NaN) with the last value before it, so that nothing of the future leaks in.

    Gaps at the beginning have no value before them and stay.

    Parameters
    ----------
    values : array (N,) or (N, C)

    Returns
    -------
    array (N,) or (N, C)
    """
    check_numbers("carry_forward", "values", values)
    if values.ndim not in (1, 2):
        raise ValueError(f"carry_forward: values has shape {values.shape}, expected (N,) or (N, C)")
    rows = np.arange(len(values)).reshape(-1, *(1,) * (values.ndim - 1))
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, rows), axis=0)
    return np.take_along_axis(values, last, axis=0)


class Split(NamedTuple):
    """Parts of a series in time order, as slices."""

    train: slice
    validation: slice
    test: slice


def split(length: int, validation: float = 0.2, test: float = 0.2) -> Split:
    """Cut a series by time: the last share is `test`, the one before it `validation`.

    Parameters
    ----------
    length : int
        Rows of the series.
    validation, test : float
        Shares of the whole.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        The shares are not sensible or leave a part empty.
    """
    length = checks.count("split", "length", length)
    validation = checks.any_number("split", "validation", validation)
    test = checks.any_number("split", "test", test)
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"split: validation {validation} and test {test} must be above 0 and sum to less than 1")
    last = length - round(length * test)
    first = last - round(length * validation)
    if not 0 < first < last < length:
        shares = f"validation {validation:g} and test {test:g}"
        raise ValueError(f"split: {length} rows (length) are too few for three parts, with {shares}")
    return Split(slice(0, first), slice(first, last), slice(last, length))


@dataclass(frozen=True)
class Scaler:
    """Affine scaling to units of one, (value - mean) / std."""

    mean: float
    std: float

    @classmethod
    def fit(cls, values: Values, center: bool = True) -> Scaler:
        """Return the scaler of the values that are there; give it the training part only.

        Parameters
        ----------
        values : array
            NaN is a gap.
        center : bool
            With False the mean is taken as 0, and `std` is the root mean square.

        Returns
        -------
        Scaler

        Raises
        ------
        ValueError
            There are no values, or nothing to scale: all are the same (or 0 without centring).
        """
        check_numbers("Scaler", "values", values)
        center = checks.flag("Scaler", "center", center)
        there = values[~np.isnan(values)]
        if there.size == 0:
            raise ValueError("Scaler: the training part has no values")
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite mean or std is refused
            mean = float(np.mean(there)) if center else 0.0
            std = float(np.sqrt(np.mean((there - mean) ** 2)))
        if not std > 1e-12 * float(np.max(np.abs(there))):
            raise ValueError(f"Scaler: the training part is constant at {there[0]:g}")
        return cls(mean, std)

    def __post_init__(self) -> None:
        checks.fields(self, mean=checks.any_number, std=checks.any_number)
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"Scaler: mean {self.mean} and std {self.std} must be finite, and std above 0")

    def apply(self, values: Values) -> Values:
        """Return values in units of one."""
        return (values - self.mean) / self.std

    def invert(self, values: Values) -> Values:
        """Return values in the series' own units."""
        return values * self.std + self.mean


def windows(values: Values, window: int, horizon: int = 1) -> tuple[Values, Values]:
    """Return every stretch of `window` values and the `horizon` values after it.

    Row k has the targets values[window + k : window + k + horizon]. The arrays are views.

    Parameters
    ----------
    values : array (N,)
    window, horizon : int

    Returns
    -------
    x : array (M, window)
    target : array (M, horizon)

    Raises
    ------
    ValueError
        The series is shorter than window + horizon.
    """
    check_numbers("windows", "values", values, 1)
    window, horizon = checks.size("windows", "window", window), checks.size("windows", "horizon", horizon)
    if len(values) < window + horizon:
        raise ValueError(
            f"windows: a window of {window} and a horizon of {horizon} need {window + horizon} rows, "
            f"the series has {len(values)}"
        )
    both = np.lib.stride_tricks.sliding_window_view(values, window + horizon)
    return both[:, :window], both[:, window:]
