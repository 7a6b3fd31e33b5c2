"""Batches for training: independent windows, or long streams cut in time. All of it is NumPy on the host.

Sequences of different lengths are sorted and packed in `recurrence/packing.py`, once a layer runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks

Host = np.ndarray[Any, Any]
Values = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Batch(NamedTuple):
    """The examples of one training step, time first.

    Attributes
    ----------
    x : array (T, B, D), or whole numbers (T, B) for a model of tokens
    target : array (T, B, ...), or (B, ...) for a model that predicts once
    mask : bool array, array of weights, or None
        Which targets count, or how much they do; those past the end of a sequence never do. Its shape is the leading
        axes of `target`.
    fresh : bool
        Start from the initial state, not from the last one.
    lengths : whole numbers (B,), optional
        Lengths of the sequences, where they differ.
    """

    x: Any
    target: Any
    mask: Any | None
    fresh: bool
    lengths: Any | None = None


@dataclass(frozen=True)
class Windows:
    """Independent examples in shuffled batches, each from the initial state.

    Parameters
    ----------
    x : array (N, T, D), or whole numbers (N, T) for a model of tokens
    target : array (N, ...), or (N, T, ...) with `every_step`
        The truth after the last step, or after every step.
    mask : bool array, optional
        Targets that count in the loss: the target's shape, or its leading axes.
    batch_size : int
    every_step : bool
        Targets and mask have a time axis.
    """

    x: Host = field(repr=False)
    target: Host = field(repr=False)
    mask: Host | None = field(default=None, repr=False)
    batch_size: int = 64
    every_step: bool = False

    def __post_init__(self) -> None:
        checks.fields(self, batch_size=checks.size, every_step=checks.flag)
        _check_arrays("Windows", self.x, self.target)
        if self.mask is not None and not (isinstance(self.mask, np.ndarray) and self.mask.dtype == bool):
            raise TypeError(f"Windows: mask is {checks.shown(self.mask)}, expected a NumPy array of bool")
        axes = 2 if self.every_step else 1
        if not _is_input(self.x, 3) or 0 in self.x.shape[:2] or self.x.shape[:axes] != self.target.shape[:axes]:
            leading = "(N, T, ...) with every_step" if self.every_step else "(N, ...)"
            raise ValueError(
                f"Windows: x has shape {self.x.shape} and target {self.target.shape}, "
                f"expected (N, T, D) and {leading}; x may also be tokens, whole numbers (N, T)"
            )
        if self.mask is not None and (self.mask.ndim < axes or self.mask.shape != self.target.shape[: self.mask.ndim]):
            raise ValueError(
                f"Windows: mask has shape {self.mask.shape}, expected leading axes of the target, {self.target.shape}"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.x) // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch, shuffled by `rng` or in order without it."""
        order = np.arange(len(self.x)) if rng is None else rng.permutation(len(self.x))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            target, mask = self.target[rows], None if self.mask is None else self.mask[rows]
            if self.every_step:
                target, mask = _time_first(target), None if mask is None else _time_first(mask)
            yield Batch(_time_first(self.x[rows]), target, mask, True)


@dataclass(frozen=True)
class Streams:
    """One long sequence read as parallel streams, for truncated backpropagation through time.

    The sequence is cut into `batch_size` equal contiguous streams, which lie side by side in every batch; successive
    batches continue each other, so the state is carried from one to the next. Rows left over at the end are not used.

    Parameters
    ----------
    x : array (N, D), or whole numbers (N,) for a model of tokens
    target : array (N, ...)
        The truth after each row.
    batch_size : int
        Number B of streams.
    length : int
        Steps T in a batch.
    """

    x: Host = field(repr=False)
    target: Host = field(repr=False)
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        checks.fields(self, batch_size=checks.size, length=checks.size)
        _check_arrays("Streams", self.x, self.target)
        if not _is_input(self.x, 2) or self.target.ndim == 0 or len(self.x) != len(self.target):
            raise ValueError(
                f"Streams: x has shape {self.x.shape} and target {self.target.shape}, expected (N, D) and (N, ...); "
                "x may also be tokens, whole numbers (N,)"
            )
        need = self.batch_size * self.length
        if len(self.x) < need:
            raise ValueError(
                f"Streams: {self.batch_size} streams (batch_size) of {self.length} steps (length) need {need} rows, "
                f"got {len(self.x)}"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.x) // self.batch_size // self.length

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch, always in order: `rng` is not used."""
        x, target = self._streams(self.x), self._streams(self.target)
        for start in range(0, len(self) * self.length, self.length):
            steps = slice(start, start + self.length)
            yield Batch(x[steps], target[steps], None, fresh=start == 0)

    def _streams(self, rows: Host) -> Host:
        """Return rows (N, ...) as streams side by side, (N/B, B, ...)."""
        each = len(rows) // self.batch_size
        return np.swapaxes(rows[: each * self.batch_size].reshape(self.batch_size, each, *rows.shape[1:]), 0, 1)


def check_numbers(where: str, name: str, array: Any, ndim: int | None = None) -> None:
    """Raise unless `array` is a NumPy array of real numbers, with one axis if `ndim` is 1."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
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


def _check_arrays(where: str, x: Any, target: Any) -> None:
    for name, array in (("x", x), ("target", target)):
        check_numbers(where, name, array)
        finite(where, name, array)


def _is_input(x: Host, ndim: int) -> bool:
    """Return whether x has `ndim` axes, or one fewer as it holds tokens."""
    return x.ndim == ndim or (x.ndim == ndim - 1 and x.dtype.kind in "iu")


def _time_first(array: Host) -> Host:
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))
