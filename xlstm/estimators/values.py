"""The values of a series as an estimator takes them, and errors that name a value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values
from xlstm.estimators.settings import Scalers

LARGEST = 1e150  # largest value of a series, so that squares of differences are finite


class SeriesError(ValueError):
    """A value of a series that cannot be used, at position `row`."""

    def __init__(self, row: int, value: float, problem: str) -> None:
        super().__init__(row, value, problem)
        self.row = row

    def __str__(self) -> str:
        row, value, problem = self.args
        return f"Forecaster: values[{row}] is {value:g}, {problem}"


def series(values: Any) -> Values:
    """Return a series as float64 (N,), with NaN for gaps; raise unless it is one."""
    expected = "real numbers (N,)"
    array = checks.host("Forecaster", "values", values, expected)
    try:
        if array.dtype.kind not in "fiubO":
            raise TypeError
        array = array.astype(np.float64)  # None, a gap, becomes NaN
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"Forecaster: values is {checks.shown(values)}, expected {expected}") from None
    if array.ndim != 1:
        raise ValueError(f"Forecaster: the series has shape {array.shape}, expected (N,)")
    if array.size and np.isnan(array[0]):
        raise ValueError("Forecaster: the series begins with a gap, expected a value")
    beyond = np.flatnonzero(np.abs(array) > LARGEST)
    if beyond.size:
        row = int(beyond[0])
        raise SeriesError(row, array[row], f"expected numbers from {-LARGEST:g} to {LARGEST:g}")
    return array


def check_reach(known: Values, scalers: Scalers, dtype: str) -> None:
    """Raise SeriesError for a value so far from the others that its square, once scaled, overflows the dtype."""
    if known.size == 0:
        return
    with np.errstate(over="ignore"):
        far = np.abs(known - np.median(known)) / min(scalers.past.std, scalers.future.std)
    row = int(np.argmax(far))
    if far[row] > math.sqrt(float(np.finfo(dtype).max)) / 4:
        times = f"{far[row]:.2g} times the usual change of the series"
        raise SeriesError(row, known[row], f"{times}, more than {dtype} has room for")
