"""Series and what training needs of them: gaps, splits by time, scaling, windows and streams.

All of this is NumPy on the host; the training loop moves one batch at a time to the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks

Values = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Batch(NamedTuple):
    """What one training step sees, time first. `fresh`: start from a zero state, not from the last one.

    `lengths` (B,) are those of the sequences, where they differ; `mask` says which targets count, of those that
    do not lie past an end.
    """

    x: Values  # (T, B, D)
    target: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any] | None
    fresh: bool
    lengths: np.ndarray[Any, Any] | None = None


def carry_forward(values: Values) -> Values:
    """Each gap (NaN) filled with the last value before it, so nothing of the future leaks in.

    Gaps at the beginning have no value before them and stay.
    """
    _numbers("carry_forward", "values", values, "(N,)")
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
        """Mean and standard deviation of the values that are there; give it the training part only.

        With `center=False` the mean is taken as 0, and `std` is the root mean square.

        Raises
        ------
        ValueError
            There are no values, or nothing to scale: all are the same (or 0 without centring).
        """
        _numbers("Scaler", "values", values)
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
    _numbers("windows", "values", values, "(N,)")
    window, horizon = checks.size("windows", "window", window), checks.size("windows", "horizon", horizon)
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
    target : array (N, ...), or (N, T, ...) with `every_step`
        What is to be predicted after the last step, or after every step.
    mask : bool array, optional
        Shape of the target, or its leading axes: what counts in the loss.
    batch_size : int
    every_step : bool
        Targets and mask have a time axis, which batches put first, as that of x.
    """

    x: Values = field(repr=False)
    target: np.ndarray[Any, Any] = field(repr=False)
    mask: np.ndarray[Any, Any] | None = field(default=None, repr=False)
    batch_size: int = 64
    every_step: bool = False

    def __post_init__(self) -> None:
        checks.fields(self, batch_size=checks.size, every_step=checks.flag)
        _arrays("Windows", x=self.x, target=self.target)
        if self.mask is not None and not (isinstance(self.mask, np.ndarray) and self.mask.dtype == bool):
            raise TypeError(f"Windows: mask is {checks.shown(self.mask)}, expected a NumPy array of bool")
        leading = "(N, T, ...) with every_step" if self.every_step else "(N, ...)"
        axes = 2 if self.every_step else 1
        if self.x.ndim != 3 or 0 in self.x.shape[:2] or self.x.shape[:axes] != self.target.shape[:axes]:
            raise ValueError(
                f"Windows: x has shape {self.x.shape} and target {self.target.shape}, expected (N, T, D) and {leading}"
            )
        if self.mask is not None and (self.mask.ndim < axes or self.mask.shape != self.target.shape[: self.mask.ndim]):
            raise ValueError(
                f"Windows: mask has shape {self.mask.shape}, expected leading axes of the target, {self.target.shape}"
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.x) // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """One epoch, shuffled by `rng` or in order without it."""
        order = np.arange(len(self.x)) if rng is None else rng.permutation(len(self.x))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            x, target = self.x[rows], self.target[rows]
            mask = None if self.mask is None else self.mask[rows]
            if self.every_step:
                target, mask = _time_first(target), None if mask is None else _time_first(mask)
            yield Batch(_time_first(x), target, mask, True)


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

    x: Values = field(repr=False)
    target: np.ndarray[Any, Any] = field(repr=False)
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        checks.fields(self, batch_size=checks.size, length=checks.size)
        _arrays("Streams", x=self.x, target=self.target)
        if self.x.ndim != 2 or self.target.ndim == 0 or len(self.x) != len(self.target):
            raise ValueError(
                f"Streams: x has shape {self.x.shape} and target {self.target.shape}, expected (N, D) and (N, ...)"
            )
        if len(self.x) < self.batch_size * self.length:
            raise ValueError(
                f"Streams: {self.batch_size} streams (batch_size) of {self.length} steps (length) need "
                f"{self.batch_size * self.length} rows, got {len(self.x)}"
            )

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


def _time_first(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))


def _numbers(where: str, name: str, array: Any, expected: str = "") -> None:
    """Raise unless this is a NumPy array of real numbers, of one axis if `expected` says so."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{where}: {name} is a {type(array).__name__}, expected a NumPy array")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{where}: {name} has dtype {str(array.dtype)[: checks.SHOWN]}, expected real numbers")
    if expected and array.ndim != 1:
        raise ValueError(f"{where}: {name} has shape {array.shape}, expected {expected}")


def _arrays(where: str, **arrays: np.ndarray[Any, Any]) -> None:
    """NumPy arrays of finite numbers."""
    for name, array in arrays.items():
        _numbers(where, name, array)
        finite(where, name, array)


def finite(
    where: str,
    name: str,
    array: np.ndarray[Any, Any],
    dtype: str = "float64",
    counts: np.ndarray[Any, Any] | None = None,
) -> None:
    """Raise ValueError unless the numbers of an array are finite, in a dtype that they are to be given too.

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
