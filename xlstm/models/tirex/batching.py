"""Rows of many series as batches: those that begin with missing values start late, from a state that is computed once.

Tokens without any value lead every series to the same states. So the network need not see them again: a batch starts
from the state after as many of them as all of its rows begin with.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

Numbers = np.ndarray[Any, Any]
STEP = 8  # a step of a batch takes as long as so many rows more of it; a rough number is enough


class Batch(NamedTuple):
    """Entries to run together, by their numbers, and the tokens that are left out at their beginning."""

    entries: Numbers
    lead: int


def batches(leads: Numbers, sizes: Numbers, tokens: int, batch_size: int) -> list[Batch]:
    """Return entries in batches that take the least time.

    Parameters
    ----------
    leads : whole numbers (N,)
        Tokens without a value at the beginning of each entry.
    sizes : whole numbers (N,)
        Rows of each entry.
    tokens : int
        Tokens of every row.
    batch_size : int
        Most rows of a batch, unless a single entry has more.
    """
    found = []
    kinds = np.unique(leads)
    rows = np.array([int(np.sum(sizes[leads == kind])) for kind in kinds])
    edges = [*_cuts(kinds, rows, tokens), len(kinds)]
    for first, end in itertools.pairwise(edges):
        some = np.flatnonzero((leads >= kinds[first]) & (leads <= kinds[end - 1]))
        room = batch_size
        part: list[int] = []
        for entry in some[np.argsort(leads[some], kind="stable")]:
            if part and sizes[entry] > room:
                found.append(Batch(np.array(part), int(leads[part[0]])))
                room, part = batch_size, []
            part.append(entry)
            room -= sizes[entry]
        found.append(Batch(np.array(part), int(leads[part[0]])))
    return found


def _cuts(kinds: Numbers, rows: Numbers, tokens: int) -> list[int]:
    """Return where groups of rows begin, which are sorted by their leading tokens.

    A group takes the time of its steps after those that its first rows begin with, and the last group that of the state
    it starts from. The fastest division of the first n kinds follows from those of fewer.
    """
    above = np.concatenate(([0], np.cumsum(rows)))
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, len(kinds) + 1):
        options = []
        for first in range(end):
            steps = tokens - kinds[first]
            time = best[first][0] + steps * (STEP + above[end] - above[first])
            if end == len(kinds):
                time += kinds[first] * (STEP + 1)
            options.append((float(time), [*best[first][1], first]))
        best.append(min(options))
    return best[-1][1]
