"""Which rows of a packed batch belong to which step, for the whole batch and for parts of it.

A packed batch is a matrix of rows, all of the first step, then all of the second, a step having as many
rows as there are sequences that long, the longest first. Steps of equal width make a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm.arrays.backend import Array, Namespace

Runs = Sequence[tuple[int, int]]  # (steps, width) of each run, widths falling


class Run(NamedTuple):
    """Steps of equal width, as a part of the batch sees them: neighbouring sequences, the same at all steps."""

    k: int  # steps
    n: int  # sequences of the part
    first: int  # the first of them
    at: int  # first row of the first step, of all sequences
    width: int  # rows of a step, of all sequences

    @property
    def columns(self) -> slice:
        """The part's sequences."""
        return slice(self.first, self.first + self.n)

    def rows(self, t: int) -> slice:
        """The part's rows of step t."""
        start = self.at + t * self.width + self.first
        return slice(start, start + self.n)

    def steps(self, xp: Namespace, rows: Array, start: int, stop: int) -> Array:
        """The part's rows of steps `start` to `stop` of (N, ...), seen as (steps, n, ...)."""
        region = rows[self.at + start * self.width : self.at + stop * self.width, ...]
        return reshape(xp, region, (stop - start, self.width, *rows.shape[1:]))[:, self.columns, ...]


def split(runs: Runs, parts: int) -> list[list[Run]]:
    """The runs of each of `parts` parts of the batch, of about equal work; fewer where there is too little."""
    B = runs[0][1] if runs else 0
    if len(runs) < 2 or parts == 1:
        cuts = [B * part // parts for part in range(parts + 1)]
    else:
        steps = np.zeros(B, dtype=np.int64)  # of each sequence
        for k, n in runs:
            steps[:n] += k
        work = np.cumsum(steps)
        ends = (int(np.searchsorted(work, work[-1] * part / parts)) + 1 for part in range(1, parts))
        cuts = [0, *(min(end, B) for end in ends), B]
    found: list[list[Run]] = []
    for first, last in itertools.pairwise(sorted(set(cuts))):
        part, at = [], 0
        for k, width in runs:
            if width > first:
                part.append(Run(k, min(width, last) - first, first, at, width))
            at += k * width
        found.append(part)
    return found


def reshape(xp: Namespace, array: Array, shape: tuple[int, ...]) -> Array:
    """The method, where the library has one: it costs a quarter of the function, once a step."""
    return array.reshape(shape) if hasattr(array, "reshape") else xp.reshape(array, shape)
