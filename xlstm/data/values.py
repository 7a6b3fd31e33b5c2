"""The values of a series as an estimator takes them, and errors that name a value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values

LARGEST = 1e150  # largest value of a series, so that squares of differences are finite


class SeriesError(ValueError):
    """A value of a series that cannot be used, at position `row`; `where` is what the user called."""

    def __init__(self, where: str, row: int, value: float, problem: str) -> None:
        super().__init__(where, row, value, problem)
        self.row = row

    def __str__(self) -> str:
        where, row, value, problem = self.args
        return f"{where}: values[{row}] is {value:g}, {problem}"


def numbers(where: str, name: str, given: Any, expected: str = "real numbers (N,) or (N, C)") -> Values:
    """Return an argument as float64 (N, C), with NaN for gaps; raise unless it is one."""
    array = checks.host(where, name, given, expected)
    try:
        if array.dtype.kind not in "fiubO":
            raise TypeError
        array = array.astype(np.float64)  # None, a gap, becomes NaN
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{where}: {name} is {checks.shown(given)}, expected {expected}") from None
    if array.ndim not in (1, 2) or 0 in array.shape[1:]:
        what = "the series" if name == "values" else name
        raise ValueError(f"{where}: {what} has shape {array.shape}, expected (N,) or (N, C)")
    return array[:, None] if array.ndim == 1 else array


def series(where: str, given: Any) -> Values:
    """Return a series as float64 (N, C), with NaN for gaps; raise unless it is one."""
    array = numbers(where, "values", given)
    if len(array) == 0:
        raise ValueError(f"{where}: the series is empty, expected values (N,) or (N, C)")
    for c, column in enumerate(array.T):
        column_of = f" in column {c}" if array.shape[1] > 1 else ""
        beyond = np.flatnonzero(np.abs(column) > LARGEST)
        if beyond.size:
            row = int(beyond[0])
            raise SeriesError(where, row, column[row], f"expected numbers from {-LARGEST:g} to {LARGEST:g}{column_of}")
    return array


def check_reach(where: str, known: Values, units: Values, dtype: str, begin: int = 0) -> None:
    """Raise SeriesError for a value so far from the others that its square, once scaled, overflows the dtype.

    Parameters
    ----------
    where : str
        The caller, for errors.
    known : array (N, C)
    units : array (C,)
        The usual change of each column.
    dtype : str
    begin : int
        Rows of the series that come before those of `known`.
    """
    for c, (column, unit) in enumerate(zip(known.T, units, strict=True)):
        if column.size == 0:
            continue
        with np.errstate(over="ignore"):
            far = np.abs(column - np.median(column)) / unit
        row = int(np.argmax(far))
        if far[row] > math.sqrt(float(np.finfo(dtype).max)) / 4:
            times = f"{far[row]:.2g} times the usual change of the series"
            column_of = f" in column {c}" if known.shape[1] > 1 else ""
            raise SeriesError(where, begin + row, column[row], f"{times}, more than {dtype} has room for{column_of}")
