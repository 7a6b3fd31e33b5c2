"""Packed batches: which rows belong to which step, for the whole batch and for parts of it.

A packed batch is a matrix of rows (N, ...): all of the first step, then all of the second. A step has as many rows as
there are sequences that long, the longest first. Consecutive steps of equal width are a segment.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm.arrays import constants
from xlstm.arrays.concat import concat
from xlstm.arrays.namespace import Array, Namespace, device_of

Widths = Sequence[tuple[int, int]]  # (steps, width) of each segment, widths falling


class Segment(NamedTuple):
    """Steps of equal width, and a range of neighbouring sequences at all of them."""

    k: int  # steps
    n: int  # sequences of the range
    first: int  # the first of them
    at: int  # first row of the first step, of all sequences
    width: int  # rows of a step, of all sequences

    def rows(self, t: int) -> slice:
        """Return the rows of step t."""
        start = self.at + t * self.width + self.first
        return slice(start, start + self.n)

    def steps(self, rows: Array, start: int, stop: int) -> Array:
        """Return a view (steps, n, ...) of the rows (N, ...) of steps `start` to `stop`."""
        region = rows[self.at + start * self.width : self.at + stop * self.width, ...]
        steps = reshape(region, (stop - start, self.width, *rows.shape[1:]))
        return steps if self.n == self.width else steps[:, self.first : self.first + self.n, ...]


def split(widths: Widths, parts: int) -> list[list[Segment]]:
    """Divide the batch into at most `parts` ranges of sequences of about equal work, and list the segments of each."""
    B = widths[0][1] if widths else 0
    if parts == 1 and len(widths) == 1 and B:
        return [[Segment(widths[0][0], B, 0, 0, B)]]
    if parts == 1 or len(widths) < 2:
        cuts = [B * part // parts for part in range(parts + 1)]
    else:
        steps = np.zeros(B, dtype=np.int64)  # of each sequence
        for k, n in widths:
            steps[:n] += k
        work = np.cumsum(steps)
        ends = (int(np.searchsorted(work, work[-1] * part / parts)) + 1 for part in range(1, parts))
        cuts = [0, *(min(end, B) for end in ends), B]
    found: list[list[Segment]] = []
    for first, last in itertools.pairwise(sorted(set(cuts))):
        part, at = [], 0
        for k, width in widths:
            if width > first:
                part.append(Segment(k, min(width, last) - first, first, at, width))
            at += k * width
        found.append(part)
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


def joined(xp: Namespace, parts: Sequence[Sequence[Array]], all_of: Sequence[Array], first: int) -> list[Array]:
    """Return the states of the parts side by side, and after them those of the sequences without any step."""
    if len(parts) == 1 and all_of[0].shape[1] == first:
        return list(parts[0])
    return [beside(xp, s) for s in zip(*parts, [s[:, first:] for s in all_of], strict=True)]


def reshape(array: Array, shape: tuple[int, ...]) -> Array:
    """Reshape by the method, where the library has one: it takes a quarter of the time, and runs once a step."""
    if hasattr(array, "reshape"):
        return array.reshape(shape)
    return array.__array_namespace__().reshape(array, shape)
