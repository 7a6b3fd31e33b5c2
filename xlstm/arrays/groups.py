"""The interface between training and other processes that train the same model.

MPI, NCCL and a test double implement it. The processes of a group are its ranks. Each has its own
columns of every batch, and all hold the same weights.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array

GROUP = checks.having(
    "rank", "size", "sum", "tell", "share", expected="a group, as distributed.group() returns it"
)


class OtherRankError(RuntimeError):
    """Another rank failed, so this rank stops, too; the message names that rank and its error."""


def odd_ranks(values: Sequence[Any]) -> tuple[Any, list[int]]:
    """Return the value that most ranks have, and the ranks that have another value.

    `values` has one value for each rank.
    """
    common = max(values, key=values.count)
    return common, [rank for rank, value in enumerate(values) if value != common]


def checksum(arrays: Iterable[Array | None], number: int = 0) -> int:
    """Return a checksum of arrays, by which ranks compare them, continued from `number`."""
    for a in arrays:
        if a is not None:
            number = zlib.crc32(
                np.ascontiguousarray(to_numpy(a)).reshape(-1).view(np.uint8).data, number
            )
    return number


class Group(Protocol):
    """The processes that train together.

    All ranks must call all methods in the same order, except `abort`.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        The number of processes.
    local_rank : int
        The number of this process among those on its machine, from 0.
    machines : int
        The number of machines that the processes run on.
    """

    rank: int
    size: int
    local_rank: int
    machines: int

    def sum(self, a: Array) -> None:
        """Replace an array by the sum over all ranks, in place, with the same bits on each.

        The array is of NumPy or CuPy. An array of CuPy is changed in the current stream, also
        during a capture.
        """

    def tell(self, what: Any) -> list[Any]:
        """Send a small object to all ranks, and return the objects of all, in the order of ranks.

        The objects are pickled.
        """

    def share(self, arrays: Sequence[Array]) -> None:
        """Replace arrays by the arrays of rank 0, in place.

        They must have the same shapes and dtypes on all ranks.
        """

    def sum_part(self, a: Array, out: Array) -> None:
        """Write this rank's part of the sum over all ranks of `a` (size * n,) to `out` (n,)."""

    def gather_parts(self, part: Array, out: Array) -> None:
        """Write the parts (n,) of all ranks, side by side, to `out` (size * n,)."""

    def exchange(self, a: Array, out: Array) -> None:
        """Send the k-th part of `a` (size * n,) to rank k, for every k.

        The parts that the ranks send to this one go, side by side, to `out` (size * n,).
        """

    def collect(self, part: Array, out: Array | None) -> None:
        """Write the parts (n,) of all ranks, side by side, to `out` (size * n,) of rank 0.

        On the other ranks `out` is None.
        """

    def later(self, function: Callable[..., None], *arrays: Array) -> Callable[[], None]:
        """Start `sum`, `sum_part` or `exchange` beside the caller, and return a wait function.

        All ranks must wait for the operations they started before they do anything else together.
        """

    def abort(self, message: str) -> None:
        """End the job now, on all ranks; any rank may call this at any time."""

    def close(self) -> None:
        """Announce that this rank no longer needs the others.

        A process that ends without this call ends the job.
        """


class Alone:
    """The group of a single process."""

    rank = 0
    size = 1
    local_rank = 0
    machines = 1

    def sum(self, a: Array) -> None:
        """Leave the array as it is."""

    def tell(self, what: Any) -> list[Any]:
        """Return the object in a list."""
        return [what]

    def share(self, arrays: Sequence[Array]) -> None:
        """Leave the arrays as they are."""

    def sum_part(self, a: Array, out: Array) -> None:
        """Copy the array."""
        out[...] = a

    def gather_parts(self, part: Array, out: Array) -> None:
        """Copy the array."""
        out[...] = part

    def exchange(self, a: Array, out: Array) -> None:
        """Copy the array."""
        out[...] = a

    def collect(self, part: Array, out: Array | None) -> None:
        """Copy the array."""
        self.gather_parts(part, out)

    def later(self, function: Callable[..., None], *arrays: Array) -> Callable[[], None]:
        """Run the function at once."""
        function(*arrays)
        return lambda: None

    def abort(self, message: str) -> None:
        """End the process with a message and status 1."""
        raise SystemExit(message)

    def close(self) -> None:
        """Do nothing: there is nobody to tell."""


def collected(group: Group, own: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return the arrays of all ranks as one (ranks, ...) on rank 0, and None on the others.

    All have the same shape.
    """
    every = None
    if group.rank == 0:
        every = np.empty((group.size, *own.shape), own.dtype)
    group.collect(own.reshape(-1), None if every is None else every.reshape(-1))
    return every


def columns(B: int, group: Group) -> slice:
    """Return this rank's columns of a batch of B sequences.

    The ranks' numbers of columns differ by one at most.
    """
    return slice(B * group.rank // group.size, B * (group.rank + 1) // group.size)


class Part(NamedTuple):
    """The part of a batch that a rank has.

    Attributes
    ----------
    total : float
        The number of targets that count in the whole batch, or the sum of their weights.
    B : int
        Number of sequences in the whole batch.
    own : slice
        The columns of this rank.
    lengths : array (B,), or None
        The lengths of all sequences, if they differ.
    checksum : int
        A checksum of the order and the numbers of the whole batch, the same on all ranks.
    """

    total: float
    B: int
    own: slice
    lengths: np.ndarray[Any, Any] | None = None
    checksum: int = 0

    @property
    def key(self) -> tuple[int, int, int, bytes | None]:
        """Everything that decides the places of its numbers in the whole batch."""
        lengths = None if self.lengths is None else np.asarray(self.lengths, np.int64).tobytes()
        return self.B, self.own.start, self.own.stop, lengths

    def count(self, shape: tuple[int, ...]) -> int:
        """Return how many numbers the whole batch has, from the shape of this part.

        The shape is (T, b, ...), or (N, D) for packed rows.
        """
        if len(shape) == 2 and self.lengths is not None:
            return int(np.sum(self.lengths)) * shape[1]
        return math.prod(shape) // int(self.own.stop - self.own.start) * self.B


@functools.lru_cache(maxsize=16)
def rows(key: tuple[int, int, int, bytes | None], steps: int, packed: bool) -> np.ndarray[Any, Any]:
    """Return the places of a part's rows among the rows of the whole batch.

    Parameters
    ----------
    key
        The key of a `Part`.
    steps : int
        The length of the first axis: of an array (T, b, ...), whose rows are (T * b), or of packed
        rows (N, D).
    packed : bool
        Whether the rows are packed, as in `recurrence/packing.py`.
    """
    B, start, stop, lengths_bytes = key
    if packed and lengths_bytes is not None:
        lengths = np.frombuffer(lengths_bytes, np.int64)
        order = np.argsort(-lengths, kind="stable")
        # The places of this rank's sequences, the longest first.
        places = np.flatnonzero((order >= start) & (order < stop))
        step = np.arange(max(lengths))[:, None]
        # the first row of each step
        firsts = np.cumsum([0, *np.count_nonzero(lengths > step, axis=1)])[:-1, None]
        packed_rows: np.ndarray[Any, Any] = (firsts + places)[lengths[order][places] > step]
        return packed_rows
    T = steps // (stop - start) if packed else steps
    return (np.arange(T)[:, None] * B + np.arange(start, stop)).reshape(-1)
