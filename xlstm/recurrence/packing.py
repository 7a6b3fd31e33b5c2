"""Packing: a batch of sequences of different lengths, without the steps past their ends.

The sequences are sorted, the longest first. The packed batch is a matrix with a row for each step of each sequence: the
rows of the first step come first, one for each sequence, then those of the second step, one for each sequence that has
it, and so on. Successive steps that equally many sequences have are a segment.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array, Namespace, device_of
from xlstm.engines.segments import Widths, reshape

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Packing:
    """The way in which a batch is packed. Where all sequences are equally long, packing changes only the shape.

    Attributes
    ----------
    T : int
        Number of steps of the batch before packing.
    B : int
        Number of sequences.
    steps : int
        Length of the longest sequence, at most T.
    widths : sequence of (steps, width)
        The segments: how many steps each has, and how many sequences have these steps.
    order : array (B,) or None
        Numbers of the sequences, the longest first; None where all are equally long.
    lengths : array (B,) or None
        Length of each sequence in the order of the batch; None where all are equally long.
    """

    T: int
    B: int
    steps: int
    widths: Widths
    order: Indices | None = None
    lengths: Indices | None = None

    @classmethod
    def of(cls, where: str, lengths: Any, T: int, B: int) -> Packing:
        """Return the packing of B sequences in T steps with these `lengths` (B,); None means that all are T.

        Raises
        ------
        TypeError, ValueError
            The lengths are not whole numbers from 0 to T, one for each sequence.
        """
        if lengths is None:
            return _even(T, B)
        found = checked_lengths(where, lengths, T, B)
        steps = int(found.max(initial=0))
        if steps and np.all(found == steps):
            return cls(T, B, steps, ((steps, B),))
        order = np.argsort(-found, kind="stable")
        widths = np.count_nonzero(found[:, None] > np.arange(steps), axis=0)  # (steps,)
        segments = [(len(list(same)), int(n)) for n, same in itertools.groupby(widths)]
        return cls(T, B, steps, segments, order, found)

    def pack(self, xp: Namespace, array: Array) -> Array:
        """Pack (T, B, F) into (N, F)."""
        if self.order is None:
            return reshape(array[: self.steps, ...], (self.steps * self.B, array.shape[2]))
        rows = reshape(array, (self.T * self.B, array.shape[2]))
        return xp.take(rows, self._like(xp, self._places[0], array), axis=0)

    def unpack(self, xp: Namespace, rows: Array) -> Array:
        """Unpack (N, ...) into (T, B, ...), zero past the end of a sequence."""
        shape, N = (self.T, self.B, *rows.shape[1:]), rows.shape[0]
        if self.steps == self.T and self.order is None:
            return reshape(rows, shape)
        spare = 1 if self.order is not None else (self.T - self.steps) * self.B
        nothing = xp.zeros((spare, *rows.shape[1:]), dtype=rows.dtype, device=device_of(rows))
        if self.order is None:
            return reshape(xp.concat((rows, nothing)), shape)
        back = np.full(self.T * self.B, N)
        back[self._places[0]] = np.arange(N)
        return reshape(xp.take(xp.concat((rows, nothing)), self._like(xp, back, rows), axis=0), shape)

    def mirror(self, xp: Namespace, rows: Array) -> Array:
        """Return rows (N, ...) with the steps of each sequence in reverse order."""
        if self.order is None:
            steps = reshape(rows, (self.steps, self.B, *rows.shape[1:]))
            return reshape(xp.flip(steps, axis=0), rows.shape)
        return xp.take(rows, self._like(xp, self._places[1], rows), axis=0)

    def sort(self, xp: Namespace, states: Sequence[Array]) -> Sequence[Array]:
        """Return states (F, B) with their columns in the packed order."""
        return states if self.order is None else self._take(xp, states, self.order)

    def unsort(self, xp: Namespace, states: Sequence[Array]) -> Sequence[Array]:
        """Return states with their columns in the order of the batch."""
        return states if self.order is None else self._take(xp, states, np.argsort(self.order))

    def _take(self, xp: Namespace, states: Sequence[Array], order: Indices) -> list[Array]:
        return [xp.take(s, self._like(xp, order, s), axis=1) for s in states]

    @functools.cached_property
    def _places(self) -> tuple[Indices, Indices]:
        """For each packed row, its place among the rows (T*B,) of the batch, and the packed row that mirrors it."""
        assert self.order is not None
        assert self.lengths is not None
        widths = [n for k, n in self.widths for _ in range(k)]
        starts = np.cumsum([0, *widths])[:-1]  # the first row of each step
        step = np.repeat(np.arange(len(widths)), widths)  # the step of each packed row
        column = np.arange(len(step)) - starts[step]
        mirrored = self.lengths[self.order[column]] - 1 - step
        return step * self.B + self.order[column], starts[mirrored] + column

    @staticmethod
    def _like(xp: Namespace, indices: Indices, array: Array) -> Array:
        return xp.asarray(indices, device=device_of(array))


def checked_lengths(where: str, lengths: Any, T: int, B: int) -> Indices:
    """Return lengths (B,) on the host; raise TypeError or ValueError unless they are whole numbers from 0 to T."""
    if not hasattr(lengths, "shape") or isinstance(lengths, type):
        lengths = checks.host(where, "lengths", lengths, f"shape (B,) = ({B},)")
    found = to_numpy(lengths)
    if found.shape != (B,):
        raise ValueError(f"{where}: lengths has shape {found.shape}, expected (B,) = ({B},)")
    if found.dtype.kind not in "iu" and found.size:
        raise TypeError(f"{where}: lengths has dtype {found.dtype}, expected whole numbers")
    bad = np.flatnonzero((found < 0) | (found > T))
    if bad.size:
        raise ValueError(f"{where}: lengths[{bad[0]}] is {found[bad[0]]}, expected 0 to T = {T}")
    return found.astype(np.int64)


@functools.lru_cache
def _even(T: int, B: int) -> Packing:
    """Return the packing of B sequences of T steps each."""
    return Packing(T, B, T, ((T, B),))
