"""Series as users give them to a forecast, as rows of float64, and forecasts in the same layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreign import is_foreign
from xlstm.data import frames
from xlstm.data.host import LARGEST, Values

FORMS = {1: "(L,), (B, L), or a list of (L,)", 2: "(L,), (B, L), (B, V, L), or a list of (L,) or (V, L)"}


class Given(NamedTuple):
    """Series of one call, and how they were given.

    Attributes
    ----------
    rows : list of array (V, L)
        float64, with NaN for missing values.
    axes : list of int
        How many axes each series came with, 1 or 2.
    single : bool
        Whether there was one series and no list of them.
    """

    rows: list[Values]
    axes: list[int]
    single: bool

    def like(self, found: Sequence[Values]) -> Any:
        """Return forecasts (V, ...) of each series in the layout of the series: an array, or a list where they differ.

        The axes are those of the series with those of the forecast in the place of the last one.
        """
        shaped = [one[0] if axes == 1 else one for one, axes in zip(found, self.axes, strict=True)]
        if self.single:
            return shaped[0]
        return np.stack(shaped) if len({one.shape for one in shaped}) == 1 else shaped


def read(where: str, given: Any, most: int) -> Given:
    """Return one series, or several.

    Parameters
    ----------
    where : str
        The caller, for errors.
    given : array, or list of numbers or of arrays
    most : int
        Axes of one series at most: 1, or 2 where a series may have several targets.

    Raises
    ------
    TypeError, ValueError
        It is no such thing, a series has no values, or a value is beyond 1e150.
    """
    if isinstance(given, np.ndarray) and given.dtype == object and given.ndim == 1:
        given = list(given)
    listed = isinstance(given, list | tuple)
    if listed and len(given) and not any(_axes(one) for one in given):
        listed = False
    if not listed:
        array = _array(where, "series", given, FORMS[most])
        if array.ndim == 1:
            return Given([_values(where, "series", array, 1)], [1], True)
        given = list(array) if 2 <= array.ndim <= most + 1 else None
        if given is None:
            raise ValueError(f"{where}: series has shape {array.shape}, expected {FORMS[most]}")
    if len(given) == 0:
        raise ValueError(f"{where}: series is empty, expected {FORMS[most]}")
    arrays = [_array(where, f"series[{k}]", one, FORMS[most]) for k, one in enumerate(given)]
    rows = [_values(where, f"series[{k}]", one, most) for k, one in enumerate(arrays)]
    return Given(rows, [one.ndim for one in arrays], False)


def beside(where: str, name: str, given: Any, series: Given) -> list[Values]:
    """Return the covariates of each series, (K, N) each; K is 0 where it has none.

    Parameters
    ----------
    where, name : str
        The caller and the argument, for errors.
    given : array (N,) or (K, N) for one series, or a list with one of them or None for each of several; or None
    series : Given
    """
    count = len(series.rows)
    if given is None:
        each: list[Any] = [None] * count
    elif series.single:
        each = [given]
    else:
        if not isinstance(given, list | tuple) and not (hasattr(given, "shape") and len(given.shape) > 1):
            raise TypeError(f"{where}: {name} is {checks.shown(given)}, expected one entry for each of {count} series")
        each = list(given)
        if len(each) != count:
            raise ValueError(f"{where}: {name} has {len(each)} entries, expected one for each of {count} series")
    found = []
    for k, (one, row) in enumerate(zip(each, series.rows, strict=True)):
        entry = name if series.single else f"{name}[{k}]"
        array = np.empty((0, row.shape[1])) if one is None else _array(where, entry, one, "(N,) or (K, N)")
        found.append(array if one is None else _values(where, entry, array, 2))
    return found


def _axes(one: Any) -> int:
    """Return the number of axes of an entry of a list, or 1 where it is another list."""
    listed = isinstance(one, list | tuple | range) or hasattr(one, "__array__")
    return len(one.shape) if hasattr(one, "shape") else int(listed)


def _array(where: str, name: str, given: Any, expected: str) -> np.ndarray[Any, Any]:
    """Return numbers of any kind as float64 on the host, NaN for what is missing or masked."""
    if frames.has_columns(given):
        advice = "series may be one table, with series_id for several of them"
        raise TypeError(f"{where}: {name} is a table, expected {expected}; {advice}")
    if checks.is_masked(given):
        given = np.where(np.ma.getmaskarray(given), np.nan, np.ma.getdata(given))
    held = given if isinstance(given, np.ndarray) else None
    if held is None and (hasattr(given, "__dlpack__") or is_foreign(given)):
        held = to_numpy(given)
    array = checks.host(where, name, given if held is None else held, expected)
    try:
        if array.dtype.kind not in "fiubO" or not array.ndim:
            raise TypeError
        return array.astype(np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        if frames.is_table(given):  # a column with missing values of its library's own kind
            return frames.table_of(f"{where}: {name}", given).values[:, 0]
        raise TypeError(f"{where}: {name} is {checks.shown(given)}, expected numbers {expected}") from None


def _values(where: str, name: str, array: Values, most: int) -> Values:
    """Return a series as (V, L), with NaN for infinity."""
    if array.ndim > most or 0 in array.shape:
        expected = "(L,)" if most == 1 else "(L,) or (V, L)"
        raise ValueError(f"{where}: {name} has shape {array.shape}, expected {expected}, of one value or more")
    rows = np.where(np.isinf(array), np.nan, array).reshape(-1, array.shape[-1])
    beyond = np.abs(rows) > LARGEST
    if np.any(beyond):
        row, at = (int(n) for n in np.argwhere(beyond)[0])
        place = f"[{at}]" if array.ndim == 1 else f"[{row}, {at}]"
        raise ValueError(
            f"{where}: {name}{place} is {rows[row, at]:g}, expected numbers from {-LARGEST:g} to {LARGEST:g}"
        )
    return rows
