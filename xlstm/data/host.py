"""Numbers of any kind as NumPy arrays on the host, and checks of their kind and range."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays import checks, compiled
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreign import is_foreign

Host = np.ndarray[Any, Any]
Values = np.ndarray[Any, np.dtype[np.floating[Any]]]
SERIES = "real numbers (N,) or (N, C)"
LARGEST = 1e150  # largest value of a series: squares of differences stay finite


def numbers(where: str, name: str, value: Any) -> Host:
    """Return real numbers on the host.

    A NumPy array is returned unchanged. Lists, tables, and arrays of CuPy or of another library
    with DLPack or `__cuda_array_interface__` are copied.
    """
    array = _array(where, name, value, "an array of real numbers")
    checks.unmasked(where, name, array)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{where}: {name} has dtype {str(array.dtype)[: checks.SHOWN]}, expected real numbers"
        )
    return array


def weights(where: str, name: str, value: Any) -> Host:
    """Return a mask on the host: bool, or weights from 0 up; arrays as for `numbers`."""
    expected = "an array of bool, or of weights from 0 up"
    array = _array(where, name, value, expected)
    if array.dtype.kind not in "bf":
        raise TypeError(f"{where}: {name} is {checks.shown(value)}, expected {expected}")
    finite(where, name, array)
    if array.dtype.kind == "f" and np.any(array < 0):
        raise ValueError(f"{where}: {name} has a weight of {array.min():g}, expected {expected}")
    return array


def _array(where: str, name: str, value: Any, expected: str) -> Host:
    if isinstance(value, np.ndarray):
        return value
    frames = compiled.module("tables")
    if frames.has_columns(value):
        values: Host = frames.table_of(f"{where}: {name}", value).values
        return values
    if frames.is_table(value):  # a single column, which has its own dtype
        return to_numpy(value) if frames.is_on_gpu(value) else np.asarray(value)
    if isinstance(value, list | tuple | range):
        return checks.host(where, name, value, expected)
    if isinstance(value, type) or not (hasattr(value, "__dlpack__") or is_foreign(value)):
        raise TypeError(f"{where}: {name} is {checks.shown(value)}, expected {expected}")
    return to_numpy(value)


def finite(
    where: str, name: str, array: Host, dtype: str = "float64", counts: Host | None = None
) -> None:
    """Raise ValueError unless the numbers of an array are finite, also after conversion to `dtype`.

    The booleans `counts` cover the leading axes and select the numbers to check. Whole numbers are
    always finite.
    """
    if array.dtype.kind != "f" or array.size == 0:
        return
    most = float(np.finfo("float32" if dtype == "bfloat16" else dtype).max)
    if -most <= float(array.min()) and float(array.max()) <= most:
        return
    bad = ~(np.abs(array) <= most)
    if counts is not None:
        bad &= counts.reshape(counts.shape + (1,) * (array.ndim - counts.ndim))
    for at in np.argwhere(bad)[:1].tolist():
        value = array[*at]
        is_large = np.isfinite(value)
        problem = f"more than {dtype} has room for" if is_large else "expected finite numbers"
        raise ValueError(f"{where}: {name}{at} is {value:g}, {problem}")


class SeriesError(ValueError):
    """An error: a value of a series, at position `row`, cannot be used; `where` names the user's
    call.
    """

    def __init__(self, where: str, row: int, value: float, problem: str) -> None:
        super().__init__(where, row, value, problem)
        self.row = row
        self.value = value

    def __str__(self) -> str:
        where, row, value, problem = self.args
        return f"{where}: values[{row}] is {value:g}, {problem}"


def floats(where: str, name: str, value: Any, expected: str) -> Values:
    """Return an argument as float64 on the host, with NaN for None; raise TypeError unless it is
    numbers.
    """
    array = checks.host(where, name, value, expected)
    try:
        if compiled.module("tables").has_text(array):
            value = array.tolist()
        elif array.dtype.kind in "fiubO":
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"{where}: {name} is {checks.shown(value)}, expected {expected}")


def columns(where: str, name: str, value: Any, expected: str = SERIES) -> Values:
    """Return an argument as float64 (N, C), with NaN for gaps; raise an error if that is
    impossible.
    """
    array = floats(where, name, value, expected)
    if array.ndim not in (1, 2) or 0 in array.shape[1:]:
        named = "the series" if name == "values" else name
        raise ValueError(f"{where}: {named} has shape {array.shape}, expected (N,) or (N, C)")
    return array[:, None] if array.ndim == 1 else array


def series(where: str, value: Any) -> Values:
    """Return a series as float64 (N, C), with NaN for gaps; raise an error for anything else."""
    array = columns(where, "values", value)
    if len(array) == 0:
        raise ValueError(f"{where}: the series is empty, expected values (N,) or (N, C)")
    for row, c in np.argwhere(np.abs(array) > LARGEST):
        problem = f"expected numbers from {-LARGEST:g} to {LARGEST:g} in column {c}"
        raise SeriesError(where, int(row), array[row, c], problem)
    return array
