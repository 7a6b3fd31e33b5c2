"""Batches for training: independent windows, or long streams cut in time. All of it is NumPy on the host.

Sequences of different lengths are put together in `sequences.py`, and packed in `recurrence/packing.py`, once a
layer runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Host, finite, mask, numbers
from xlstm.recurrence.packing import checked_lengths

BATCHES = checks.having(
    "batches", "__len__", expected="Windows, Sequences, Streams, or something else that yields batches"
)


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
    options : dict of str to array, optional
        Further arguments of the model's `forward`, on the host, such as `groups` of a TiRex-2.
    """

    x: Any
    target: Any
    mask: Any | None
    fresh: bool
    lengths: Any | None = None
    options: Mapping[str, Any] | None = None


class Batches(Protocol):
    """Data for training: `Windows`, `Sequences`, `Streams`, or anything else that yields batches."""

    def __len__(self) -> int: ...
    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield the batches of one epoch, in an order that `rng` may decide."""


@dataclass(frozen=True)
class Windows:
    """Independent examples in shuffled batches, each from the initial state.

    Arrays may be of any library, or lists; they are kept on the host.

    Parameters
    ----------
    x : array (N, T, D), or whole numbers (N, T) for a model of tokens
    target : array (N, ...), or (N, T, ...) with `every_step`
        The truth after the last step, or after every step.
    mask : array of bool, or of weights from 0 up, optional
        Targets that count in the loss, or how much they do: the target's shape, or its leading axes.
    batch_size : int
    every_step : bool
        Targets and mask have a time axis.
    lengths : whole numbers (N,), optional
        Lengths of the sequences, where some end before step T. Numbers in `x` past an end do not matter, and with
        `every_step` targets past an end do not count. `Sequences` does the same with less padding.

    Raises
    ------
    TypeError, ValueError
        Shapes do not go together, or numbers are not finite.
    """

    x: Host = field(repr=False)
    target: Host = field(repr=False)
    mask: Host | None = field(default=None, repr=False)
    batch_size: int = 64
    every_step: bool = False
    lengths: Host | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checks.fields(
            self,
            x=numbers,
            target=numbers,
            mask=checks.optional(mask),
            batch_size=checks.size,
            every_step=checks.flag,
        )
        axes = 2 if self.every_step else 1
        if not _is_input(self.x, 3) or 0 in self.x.shape[:2] or self.x.shape[:axes] != self.target.shape[:axes]:
            leading = "(N, T, ...) with every_step" if self.every_step else "(N, ...)"
            raise ValueError(
                f"Windows: x has shape {self.x.shape} and target {self.target.shape}, "
                f"expected (N, T, D) and {leading}; x may also be tokens, whole numbers (N, T)"
            )
        check_mask("Windows", self.mask, self.target, axes)
        there = None
        if self.lengths is not None:
            N, T = self.x.shape[:2]
            lengths = checked_lengths("Windows", self.lengths, T, N)
            object.__setattr__(self, "lengths", lengths)
            there = np.arange(T) < lengths[:, None]
        finite("Windows", "x", self.x, counts=there)
        finite("Windows", "target", self.target)

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
            lengths = None if self.lengths is None else self.lengths[rows]
            yield Batch(_time_first(self.x[rows]), target, mask, True, lengths)


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

    Raises
    ------
    TypeError, ValueError
        Shapes do not go together, numbers are not finite, or there are too few rows.
    """

    x: Host = field(repr=False)
    target: Host = field(repr=False)
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        checks.fields(self, x=numbers, target=numbers, batch_size=checks.size, length=checks.size)
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
        finite("Streams", "x", self.x)
        finite("Streams", "target", self.target)

    @classmethod
    def of_tokens(cls, tokens: Any, batch_size: int, length: int) -> Streams:
        """Return the streams of a text, in which the target of each token is the next one.

        Parameters
        ----------
        tokens : whole numbers (N,), or bytes
            The text as tokens, one token a byte where it is given as bytes. An array in a file (`numpy.memmap`) stays
            there.
        batch_size, length : int
            As for `Streams`.

        Returns
        -------
        Streams
            It has N - 1 rows.

        Raises
        ------
        TypeError, ValueError
            These are no tokens, or too few.

        Examples
        --------
        >>> (batch,) = Streams.of_tokens(b"hello", batch_size=2, length=2).batches()
        >>> bytes(batch.x[:, 0]), bytes(batch.target[:, 0])
        (b'he', b'el')
        """
        if isinstance(tokens, str):
            raise TypeError("Streams: tokens is a text, expected whole numbers; text.encode() has one token a byte")
        found = np.frombuffer(tokens, np.uint8) if isinstance(tokens, bytes) else numbers("Streams", "tokens", tokens)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise ValueError(
                f"Streams: tokens has dtype {found.dtype} and shape {found.shape}, expected whole numbers (N,)"
            )
        return cls(found[:-1], found[1:], batch_size, length)

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


def check_mask(where: str, mask: Host | None, target: Host, axes: int) -> None:
    """Raise ValueError unless a mask has leading axes of the target, at least the first `axes` of them."""
    if mask is not None and (mask.ndim < axes or mask.shape != target.shape[: mask.ndim]):
        raise ValueError(f"{where}: mask has shape {mask.shape}, expected leading axes of the target, {target.shape}")


def _is_input(x: Host, ndim: int) -> bool:
    """Return whether x has `ndim` axes, or one fewer as it holds tokens."""
    return x.ndim == ndim or (x.ndim == ndim - 1 and x.dtype.kind in "iu")


def _time_first(array: Host) -> Host:
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))
