"""Series and what training needs of them: gaps, splits by time, scaling, windows and streams.

All of this is NumPy on the host; the training loop moves one batch at a time to the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Values = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Batch(NamedTuple):
    """What one training step sees, time first. `fresh`: start from a zero state, not from the last one."""

    x: Values  # (T, B, D)
    target: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any] | None
    fresh: bool


def carry_forward(values: Values) -> Values:
    """Each gap (NaN) filled with the last value before it, so nothing of the future leaks in.

    Gaps at the beginning have no value before them and stay.
    """
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[last]


class Split(NamedTuple):
    """Parts of a series in time order, as slices."""

    train: slice
    validation: slice
    test: slice


def split(length: int, validation: float = 0.2, test: float = 0.2) -> Split:
    """Cut a series by time: the last share is `test`, the one before it `validation`, shares of the whole.

    Raises
    ------
    ValueError
        The shares are not sensible or leave a part empty.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"split: validation {validation} and test {test} must be above 0 and sum to less than 1")
    last = length - round(length * test)
    first = last - round(length * validation)
    if not 0 < first < last < length:
        raise ValueError(f"split: {length} rows are too few for three parts")
    return Split(slice(0, first), slice(first, last), slice(last, length))


@dataclass(frozen=True)
class Scaler:
    """Affine scaling to units of one, (value - mean) / std."""

    mean: float
    std: float

    @classmethod
    def fit(cls, values: Values, center: bool = True) -> Scaler:
        """Mean and standard deviation of the values that are there; give it the training part only.

        With `center=False` the mean is taken as 0, and `std` is the root mean square.

        Raises
        ------
        ValueError
            There are no values, or nothing to scale: all are the same (or 0 without centring).
        """
        there = values[~np.isnan(values)]
        if there.size == 0:
            raise ValueError("Scaler: the training part has no values")
        mean = float(np.mean(there)) if center else 0.0
        std = float(np.sqrt(np.mean((there - mean) ** 2)))
        if not std > 1e-12 * float(np.max(np.abs(there))):
            raise ValueError(f"Scaler: the training part is constant at {there[0]:g}")
        return cls(mean, std)

    def apply(self, values: Values) -> Values:
        """To units of one."""
        return (values - self.mean) / self.std

    def invert(self, values: Values) -> Values:
        """Back to the series' own units."""
        return values * self.std + self.mean


def windows(values: Values, window: int, horizon: int = 1) -> tuple[Values, Values]:
    """Every stretch of `window` values and the `horizon` values after it: (N, window), (N, horizon).

    Row k has targets values[window + k : window + k + horizon]. The arrays are views.

    Raises
    ------
    ValueError
        The series is shorter than window + horizon.
    """
    if window < 1 or horizon < 1:
        raise ValueError(f"windows: window {window} and horizon {horizon} must be 1 or more")
    if len(values) < window + horizon:
        raise ValueError(
            f"windows: a window of {window} and a horizon of {horizon} need {window + horizon} rows, "
            f"the series has {len(values)}"
        )
    both = np.lib.stride_tricks.sliding_window_view(values, window + horizon)
    return both[:, :window], both[:, window:]


@dataclass(frozen=True)
class Windows:
    """Independent examples in shuffled batches, each from a zero state.

    Parameters
    ----------
    x : array (N, T, D)
    target : array (N, ...)
    mask : bool array, optional
        Shape of the target, or its leading axes: what counts in the loss.
    batch_size : int
    """

    x: Values
    target: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any] | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.x.ndim != 3 or len(self.x) != len(self.target) or len(self.x) == 0:
            raise ValueError(
                f"Windows: x has shape {self.x.shape} and target {self.target.shape}, expected (N, T, D) and (N, ...)"
            )
        if self.batch_size < 1:
            raise ValueError(f"Windows: batch_size is {self.batch_size}, expected 1 or more")
        _finite("Windows", x=self.x, target=self.target)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.x) // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """One epoch, shuffled by `rng` or in order without it."""
        order = np.arange(len(self.x)) if rng is None else rng.permutation(len(self.x))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            mask = None if self.mask is None else self.mask[rows]
            yield Batch(np.ascontiguousarray(np.swapaxes(self.x[rows], 0, 1)), self.target[rows], mask, True)


@dataclass(frozen=True)
class Streams:
    """One long sequence read as `batch_size` parallel streams, for truncated backpropagation through time.

    The sequence is cut into equal contiguous streams, the rows of every batch; successive batches
    continue each other, so the state is carried from one to the next. Rows left over at the end
    are not used.

    Parameters
    ----------
    x : array (N, D)
    target : array (N, ...)
        What is to be predicted after each row.
    batch_size : int
        Streams side by side, B.
    length : int
        Steps in a batch, T.
    """

    x: Values
    target: np.ndarray[Any, Any]
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or len(self.x) != len(self.target):
            raise ValueError(
                f"Streams: x has shape {self.x.shape} and target {self.target.shape}, expected (N, D) and (N, ...)"
            )
        if self.batch_size < 1 or self.length < 1:
            raise ValueError(f"Streams: batch_size {self.batch_size} and length {self.length} must be 1 or more")
        if len(self.x) < self.batch_size * self.length:
            raise ValueError(
                f"Streams: {self.batch_size} streams of {self.length} steps need "
                f"{self.batch_size * self.length} rows, got {len(self.x)}"
            )
        _finite("Streams", x=self.x, target=self.target)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.x) // self.batch_size // self.length

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """One epoch, always in order: `rng` is not used."""
        x, target = self._columns(self.x), self._columns(self.target)
        for k in range(len(self)):
            steps = slice(k * self.length, (k + 1) * self.length)
            yield Batch(x[steps], target[steps], None, fresh=k == 0)

    def _columns(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Rows (N, ...) as streams side by side, (N/B, B, ...)."""
        each = len(rows) // self.batch_size
        return np.swapaxes(rows[: each * self.batch_size].reshape(self.batch_size, each, *rows.shape[1:]), 0, 1)


def _finite(where: str, **arrays: np.ndarray[Any, Any]) -> None:
    for name, array in arrays.items():
        bad = ~np.isfinite(array)
        if np.any(bad):
            at = tuple(int(k) for k in np.argwhere(bad)[0])
            raise ValueError(f"{where}: {name}{list(at)} is {array[at]}, expected finite numbers")
