"""Windows over one or several series, made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.batches import Batch
from xlstm.data.host import Host, finite, numbers
from xlstm.data.preparation import carry_forward


@dataclass(frozen=True)
class SeriesWindows:
    """Stretches of `window` rows of one or several series, with the `horizon` rows after each as its target.

    No stretch goes over the border between two series, and a series that is too short for one has none. The rows are in
    memory once, however much the stretches overlap.

    A missing value (NaN) is bridged by the last one before it in x, and does not count as a target. Rows that come
    before the first value of some column are left out.

    Parameters
    ----------
    series : array (N, C), or list of arrays (N_i, C)
        An array (N,) has C = 1; a table of pandas, Polars or PyArrow will do for an array.
    window : int
        Steps T of x.
    horizon : int
        Steps of the target.
    targets : list of int, optional
        Columns to predict; by default all of them.
    batch_size : int
    stride : int
        Rows from the beginning of a stretch to that of the next.
    flat : bool
        Targets of all steps lie in one axis, (B, horizon * targets), as a model with one output axis predicts them.

    Attributes
    ----------
    starts : array (M,)
        The first row of each stretch, counted over all series.

    Raises
    ------
    TypeError, ValueError
        Series differ in their number of columns, numbers are infinite, a column has no values, or all series are too
        short.

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

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("window", "horizon", "batch_size", "stride"), checks.size)
        checks.fields(self, **sizes, flat=checks.flag)
        several = isinstance(self.series, list | tuple)
        given = self.series if several else [self.series]
        names = [f"series[{k}]" for k in range(len(given))] if several else ["series"]
        series = [_rows(name, one) for name, one in zip(names, given, strict=True)]
        columns = {one.shape[1] for one in series}
        if len(columns) != 1 or 0 in columns:
            raise ValueError(f"SeriesWindows: series have {sorted(columns)} columns, expected one number of them")
        (C,) = columns
        if self.targets is not None:
            column = checks.whole(0, C - 1)
            listed = checks.several("SeriesWindows", "targets", self.targets, "a list of columns", checks.LARGEST)
            found = [column("SeriesWindows", f"targets[{k}]", one) for k, one in enumerate(listed)]
            object.__setattr__(self, "targets", found)
        starts, border, longest = [], 0, 0
        for name, one in zip(names, series, strict=True):
            first = _first(name, one)
            end = len(one) - self.window - self.horizon + 1
            starts.append(border + np.arange(first, end, self.stride))
            border, longest = border + len(one), max(longest, len(one) - first)
        object.__setattr__(self, "starts", np.concatenate(starts))
        if len(self.starts) == 0:
            need = f"a window of {self.window} and a horizon of {self.horizon} need {self.window + self.horizon} rows"
            raise ValueError(f"SeriesWindows: {need}, the longest series has {longest}")
        chosen = slice(None) if self.targets is None else self.targets
        observed = [~np.isnan(one[:, chosen]) for one in series]
        complete = all(map(np.all, observed))
        object.__setattr__(self, "_observed", None if complete else np.concatenate(observed))
        object.__setattr__(self, "_rows", np.concatenate([carry_forward(one) for one in series]))
        object.__setattr__(self, "series", series)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.starts) // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch, shuffled by `rng` or in order without it.

        x is (T, B, C), and target and mask are (B, horizon, targets), or (B, horizon * targets) with `flat`. The mask
        is None where no target of any stretch is missing.
        """
        order = self.starts if rng is None else rng.permutation(self.starts)
        columns = np.arange(self._rows.shape[1]) if self.targets is None else self.targets
        past, ahead = np.arange(self.window), self.window + np.arange(self.horizon)
        for begin in range(0, len(order), self.batch_size):
            starts = order[begin : begin + self.batch_size]
            rows = starts[:, None] + ahead
            target = self._rows[rows[:, :, None], columns]
            mask = None if self._observed is None else self._observed[rows]
            if self.flat:
                target = target.reshape(len(rows), -1)
                mask = None if mask is None else mask.reshape(len(rows), -1)
            yield Batch(self._rows[past[:, None] + starts], target, mask, True)


def _rows(name: str, given: Any) -> Host:
    """Return a series as floating-point numbers (N, C), NaN where there are gaps."""
    rows = numbers("SeriesWindows", name, given)
    if rows.ndim not in (1, 2) or len(rows) == 0:
        raise ValueError(f"SeriesWindows: {name} has shape {rows.shape}, expected (N, C) or (N,)")
    rows = rows if rows.dtype.kind == "f" else rows.astype(np.float64)
    finite("SeriesWindows", name, rows, counts=~np.isnan(rows))
    return rows if rows.ndim == 2 else rows[:, None]


def _first(name: str, rows: Host) -> int:
    """Return the first row at which every column has or had a value."""
    there = ~np.isnan(rows)
    for column in np.flatnonzero(~np.any(there, axis=0)):
        raise ValueError(f"SeriesWindows: {name} has no values in column {column}")
    return int(np.max(np.argmax(there, axis=0)))
