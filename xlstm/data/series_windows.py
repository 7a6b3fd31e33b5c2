"""Series prepared for training: fill gaps, split by time, and cut windows out of one or several
series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data.batches import Batch, ByRows, Shuffler, orders
from xlstm.data.host import Host, Values, finite, numbers


def carry_forward(values: Values) -> Values:
    """Fill each gap (NaN) with the last value before it, so that no future value leaks in.

    Gaps at the beginning have no value before them and stay NaN.

    Parameters
    ----------
    values : array (N,) or (N, C)

    Returns
    -------
    array (N,) or (N, C)

    Examples
    --------
    >>> import numpy as np
    >>> carry_forward(np.array([1.0, np.nan, 3.0]))
    array([1., 1., 3.])
    """
    values = numbers("carry_forward", "values", values)
    if values.ndim not in (1, 2):
        raise ValueError(f"carry_forward: values has shape {values.shape}, expected (N,) or (N, C)")
    rows = np.arange(len(values)).reshape(-1, *(1,) * (values.ndim - 1))
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, rows), axis=0)
    return np.take_along_axis(values, last, axis=0)


def first_row(where: str, values: Values) -> int:
    """Return the first row of values (N, C) by which every column has had a value.

    It raises ValueError if a column has none.
    """
    there = ~np.isnan(values)
    for column in np.flatnonzero(~np.any(there, axis=0)):
        raise ValueError(f"{where} has no value in column {column}, expected some")
    return int(np.max(np.argmax(there, axis=0)))


class Split(NamedTuple):
    """The training, validation and test parts of a series as slices, in time order.

    Attributes
    ----------
    train, validation, test : slice
        Rows of the series.
    """

    train: slice
    validation: slice
    test: slice


def split(length: int, validation: float = 0.2, test: float = 0.2) -> Split:
    """Split a series by time into training, validation and test parts, in this order.

    Parameters
    ----------
    length : int
        Number of rows of the series.
    validation, test : float
        Shares of the whole series.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        The shares are out of range, or leave a part empty.

    Examples
    --------
    >>> split(100)
    Split(train=slice(0, 60, None), validation=slice(60, 80, None), test=slice(80, 100, None))
    """
    length = checks.count("split", "length", length)
    validation = checks.any_number("split", "validation", validation)
    test = checks.any_number("split", "test", test)
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(
            f"split: validation {validation} and test {test} must be above 0 and sum to less than 1"
        )
    last = length - round(length * test)
    first = last - round(length * validation)
    if not 0 < first < last < length:
        raise ValueError(
            f"split: {length} rows (length) are too few for three parts, with validation"
            f" {validation:g} and test {test:g}"
        )
    return Split(slice(0, first), slice(first, last), slice(last, length))


@dataclass(frozen=True)
class SeriesWindows(ByRows):
    """Windows of one or several series: `window` rows as x, and the next `horizon` rows as target.

    No window crosses the border between two series, and a series that is too short has no window.
    The rows are in memory only once, however much the windows overlap.

    In x, a missing value (NaN) is replaced by the last value before it. As a target, it does not
    count. Rows at the beginning are left out until every column has had a value.

    Parameters
    ----------
    series : array (N, C), or list of arrays (N_i, C)
        The series. An array (N,) has C = 1. A table of pandas, Polars or PyArrow counts as an
        array.
    window : int
        Steps T of x.
    horizon : int
        Steps of the target.
    targets : list of int, optional
        Indices of the columns to predict; by default all.
    batch_size : int
    stride : int
        Rows between the beginnings of two successive windows.
    flat : bool
        Whether targets have one axis for all steps and columns, (B, horizon * targets), for a model
        with one output axis.

    Attributes
    ----------
    starts : array (M,)
        The first row of each window, counted over all series.

    Raises
    ------
    TypeError, ValueError
        Series differ in their number of columns, numbers are infinite, a column has no values, or
        all series are too short.

    Examples
    --------
    >>> import numpy as np
    >>> data = SeriesWindows([np.arange(20.0), np.arange(9.0)], window=6, horizon=2)
    >>> (batch,) = data.batches()
    >>> batch.x.shape, batch.target.shape
    ((6, 15, 1), (15, 2, 1))
    """

    series: Any = field(repr=False)
    window: int
    horizon: int = 1
    targets: Sequence[int] | None = None
    batch_size: int = 64
    stride: int = 1
    flat: bool = False
    starts: Host = field(init=False, repr=False, compare=False)
    _rows: Host = field(init=False, repr=False, compare=False)
    _observed: Host | None = field(init=False, repr=False, compare=False)
    _columns: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("window", "horizon", "batch_size", "stride"), checks.size)
        checks.fields(self, **sizes, flat=checks.flag)
        several = isinstance(self.series, list | tuple)
        names = [f"series[{k}]" for k in range(len(self.series))] if several else ["series"]
        series = [*map(_rows, names, self.series if several else [self.series])]
        widths = {rows.shape[1] for rows in series}
        if len(widths) != 1 or 0 in widths:
            raise ValueError(
                f"SeriesWindows: series have {sorted(widths)} columns, expected one number of them"
            )
        columns: Any = np.arange(widths.pop())
        targets = self.targets
        if targets is not None:
            column = checks.whole(0, len(columns) - 1)
            columns = targets = checks.several(
                "SeriesWindows", "targets", targets, "a list of columns", column
            )
        need = self.window + self.horizon
        starts = []
        border = longest = 0
        for name, rows in zip(names, series, strict=True):
            first = first_row(f"SeriesWindows: {name}", rows)
            starts.append(border + np.arange(first, len(rows) - need + 1, self.stride))
            longest = max(longest, len(rows) - first)
            border += len(rows)
        if longest < need:
            raise ValueError(
                f"SeriesWindows: a window of {self.window} and a horizon of {self.horizon} need"
                f" {need} rows, the longest series has {longest}"
            )
        observed = ~np.isnan(np.concatenate(series))[:, columns]
        vars(self).update(
            series=series,
            targets=targets,
            starts=np.concatenate(starts),
            _rows=np.concatenate([*map(carry_forward, series)]),
            _observed=None if np.all(observed) else observed,
            _columns=columns,
        )

    def orders(self, rng: Shuffler) -> list[Host]:
        return orders(len(self.starts), self.batch_size, rng)

    def batch(self, rows: Host, own: slice) -> Batch:
        """Return the columns `own` of the batch of the windows `rows`.

        x is (T, B, C). Target and mask are (B, horizon, targets), or (B, horizon * targets) with
        `flat`. The mask is None if no target of any window is missing.
        """
        x = self._rows[np.arange(self.window)[:, None] + self.starts[rows[own]]]
        target = self._rows[self._ahead(rows[own])[..., None], self._columns]
        mask = None if self._observed is None else self._observed[self._ahead(rows)]
        if self.flat:
            target = target.reshape(len(target), math.prod(target.shape[1:]))
            mask = None if mask is None else mask.reshape(len(mask), -1)
        return Batch(x, target, mask, True)

    def _ahead(self, rows: Host) -> Host:
        """Return the indices of the rows to predict, (B, horizon)."""
        return np.asarray(self.starts[rows][:, None] + self.window + np.arange(self.horizon))


def _rows(name: str, series: Any) -> Host:
    """Return a series as floating-point numbers (N, C), with NaN for gaps."""
    rows = numbers("SeriesWindows", name, series)
    if rows.ndim not in (1, 2) or len(rows) == 0:
        raise ValueError(f"SeriesWindows: {name} has shape {rows.shape}, expected (N, C) or (N,)")
    rows = rows if rows.dtype.kind == "f" else rows.astype(np.float64)
    finite("SeriesWindows", name, rows, counts=~np.isnan(rows))
    return rows if rows.ndim == 2 else rows[:, None]
