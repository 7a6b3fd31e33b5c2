"""Numbers of any kind as NumPy arrays on the host, and what they have to be."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreign import is_foreign
from xlstm.data import frames

Host = np.ndarray[Any, Any]
Values = np.ndarray[Any, np.dtype[np.floating[Any]]]


def numbers(where: str, name: str, given: Any) -> Host:
    """Return real numbers on the host.

    A NumPy array stays as it is. Lists, tables, and arrays that CuPy or another library with DLPack or
    `__cuda_array_interface__` holds are copied.
    """
    found = _array(where, name, given, "an array of real numbers")
    check_numbers(where, name, found)
    return found


def mask(where: str, name: str, given: Any) -> Host:
    """Return a mask on the host: bool, or weights from 0 up, of the same kinds of arrays as `numbers`."""
    expected = "an array of bool, or of weights from 0 up"
    found = _array(where, name, given, expected)
    if found.dtype.kind not in "bf":
        raise TypeError(f"{where}: {name} is {checks.shown(given)}, expected {expected}")
    finite(where, name, found)
    if found.dtype.kind == "f" and np.any(found < 0):
        raise ValueError(f"{where}: {name} has a weight of {found.min():g}, expected {expected}")
    return found


def _array(where: str, name: str, given: Any, expected: str) -> Host:
    if isinstance(given, np.ndarray):
        return given
    if frames.has_columns(given):
        return frames.table_of(f"{where}: {name}", given).values
    if frames.is_table(given):  # one column, which has its own dtype
        return to_numpy(given) if frames.is_on_gpu(given) else np.asarray(given)
    if isinstance(given, list | tuple | range):
        return checks.host(where, name, given, expected)
    if isinstance(given, type) or not (hasattr(given, "__dlpack__") or is_foreign(given)):
        raise TypeError(f"{where}: {name} is {checks.shown(given)}, expected {expected}")
    return to_numpy(given)


def check_numbers(where: str, name: str, array: Any, ndim: int | None = None) -> None:
    """Raise unless `array` is a NumPy array of real numbers, with one axis if `ndim` is 1."""
    checks.unmasked(where, name, array)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{where}: {name} is a {type(array).__name__}, expected a NumPy array")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{where}: {name} has dtype {str(array.dtype)[: checks.SHOWN]}, expected real numbers")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{where}: {name} has shape {array.shape}, expected (N,)")


def finite(where: str, name: str, array: Host, dtype: str = "float64", counts: Host | None = None) -> None:
    """Raise ValueError unless the numbers of an array are finite, in the dtype that they are to be given too.

    `counts` is boolean and covers the leading axes: which of them matter. Whole numbers are always fine.
    """
    if array.dtype.kind != "f" or array.size == 0:
        return
    most = float(np.finfo("float32" if dtype == "bfloat16" else dtype).max)
    if -most <= float(array.min()) and float(array.max()) <= most:
        return
    bad = ~(np.abs(array) <= most)
    if counts is not None:
        bad &= counts.reshape(counts.shape + (1,) * (array.ndim - counts.ndim))
    if np.any(bad):
        at = tuple(int(k) for k in np.argwhere(bad)[0])
        value = array[at]
        expected = f"more than {dtype} has room for" if np.isfinite(value) else "expected finite numbers"
        raise ValueError(f"{where}: {name}{list(at)} is {value:g}, {expected}")
