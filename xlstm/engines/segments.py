"""Packed batches: which rows belong to which step.

A packed batch is a matrix of rows (N, ...): all of the first step, then all of the second. A step has as many rows as
there are sequences that long, the longest first. Consecutive steps of equal width are a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm.arrays import constants
from xlstm.arrays.concat import concat
from xlstm.arrays.namespace import Array, Namespace, device_of

Widths = Sequence[tuple[int, int]]  # (steps, width) of each segment, widths falling


class Segment(NamedTuple):
    """Consecutive steps that equally many sequences have."""

    k: int  # steps
    n: int  # sequences
    at: int  # first row of the first step

    def rows(self, t: int) -> slice:
        """Return the rows of step t."""
        start = self.at + t * self.n
        return slice(start, start + self.n)

    def steps(self, rows: Array, start: int, stop: int) -> Array:
        """Return a view (steps, n, ...) of the rows (N, ...) of steps `start` to `stop`."""
        region = rows[self.at + start * self.n : self.at + stop * self.n, ...]
        return reshape(region, (stop - start, self.n, *rows.shape[1:]))


def segments(widths: Widths) -> list[Segment]:
    """Return the segments of a batch that have any sequence."""
    found, at = [], 0
    for k, n in widths:
        if n:
            found.append(Segment(k, n, at))
            at += k * n
    return found


def starts_of(widths: Widths) -> Array:
    """Return the first row of every step, and the number of rows, (steps + 1,)."""
    if len(widths) == 1:
        return np.arange(widths[0][0] + 1, dtype=np.int64) * widths[0][1]
    starts = np.zeros(sum(k for k, _ in widths) + 1, np.int64)
    np.cumsum(np.repeat([n for _, n in widths], [k for k, _ in widths]), out=starts[1:])
    return starts


def before(xp: Namespace, hs: Array, widths: Widths) -> Array:
    """Return h before every step, (N, P), from h of the sequences of the first step and then that after every step."""
    N = sum(k * n for k, n in widths)
    if len(widths) == 1:
        return hs[:N, ...]
    starts = starts_of(widths)
    n, starts = np.diff(starts), starts[:-1]
    # The rows of step t begin in hs where those of step t - 1 do in y.
    back = starts - np.concatenate(([0], starts[:-1] + widths[0][1]))
    return xp.take(hs, constants.copied(xp, np.arange(N) - np.repeat(back, n), device_of(hs)), axis=0)


def beside(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return columns (H, ...) side by side; where only one array has any, it is returned as it is."""
    some = [a for a in arrays if a.shape[1]] or arrays[:1]
    return some[0] if len(some) == 1 else concat(xp, some, 1)


def with_idle(xp: Namespace, ended: Sequence[Array], state: Sequence[Array], first: int) -> list[Array]:
    """Return the states after a pass of the `first` sequences that have steps, and behind them those of the others."""
    if state[0].shape[1] == first:
        return list(ended)
    return [beside(xp, (end, s[:, first:])) for end, s in zip(ended, state, strict=True)]


def reshape(array: Array, shape: tuple[int, ...]) -> Array:
    """Reshape by the method, where the library has one: it takes a quarter of the time, and runs once a step."""
    if hasattr(array, "reshape"):
        return array.reshape(shape)
    return array.__array_namespace__().reshape(array, shape)
