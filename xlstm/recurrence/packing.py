"""Batches of sequences of different lengths, packed: what lies past the end of a sequence takes no part.

The packed batch has the sequences in order of falling length and is a matrix of rows, all of the first
step, then all of the second, each with as many rows as there are sequences that long.
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
    """How T steps of B sequences are packed. Without `lengths` packing changes nothing but the shape.

    Attributes
    ----------
    widths : sequence of (steps, width)
        The segments: steps of equal width.
    steps : int
        Length of the longest sequence.
    order : array (B,) or None
        Sequence numbers in order of falling length, where they differ.
    """

    T: int
    B: int
    steps: int
    widths: Widths
    order: Indices | None = None
    lengths: Indices | None = None

    @classmethod
    def of(cls, where: str, lengths: Any, T: int, B: int) -> Packing:
        """Return the packing for `lengths` (B,) of sequences in T steps, or None where all are T.

        Raises
        ------
        TypeError, ValueError
            The lengths are not whole numbers from 0 to T, one for each sequence.
        """
        if lengths is None:
            return cls(T, B, T, [(T, B)])
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
        found = found.astype(np.int64)
        steps = int(found.max(initial=0))
        if steps and np.all(found == steps):
            return cls(T, B, steps, [(steps, B)])
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
        """Where each packed row comes from in (T*B,), and which packed row mirrors it."""
        assert self.order is not None
        assert self.lengths is not None
        widths = [n for k, n in self.widths for _ in range(k)]
        starts = np.cumsum([0, *widths])[:-1]  # of each step
        step = np.repeat(np.arange(len(widths)), widths)  # of each packed row
        column = np.arange(len(step)) - starts[step]
        mirrored = self.lengths[self.order[column]] - 1 - step
        return step * self.B + self.order[column], starts[mirrored] + column

    @staticmethod
    def _like(xp: Namespace, indices: Indices, array: Array) -> Array:
        return xp.asarray(indices, device=device_of(array))
