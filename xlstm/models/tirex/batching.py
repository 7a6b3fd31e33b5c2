"""Rows of many series as batches: those that begin with missing values start late, from a state that is computed once.

Tokens without any value lead every series to the same states. So the network need not see them again: a batch starts
from the state after as many of them as all of its rows begin with.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

Numbers = np.ndarray[Any, Any]
# A call takes the time of its steps of rows, and of so many more: measured at the published sizes, 44 and 63.
CALL = 50


class Batch(NamedTuple):
    """Entries to run together, by their numbers, and the tokens that are left out at their beginning."""

    entries: Numbers
    lead: int


def batches(leads: Numbers, sizes: Numbers, tokens: int, batch_size: int, kept: bool = False) -> list[Batch]:
    """Return entries in batches that take the least time, those that start late last.

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
    kept : bool
        Whether states are kept for later calls, so that it pays to compute them for a few rows, too.
    """
    kinds = np.unique([0, *leads])
    rows = np.array([int(np.sum(sizes[leads == kind])) for kind in kinds])
    found = []
    for first, end in itertools.pairwise([*_cuts(kinds, rows, tokens, batch_size, kept), len(kinds)]):
        some = np.flatnonzero((leads >= kinds[first]) & (leads < [*kinds, tokens][end]))
        parts = _parts(some[np.argsort(leads[some], kind="stable")], sizes, batch_size)
        found += [Batch(part, int(kinds[first])) for part in parts]
    return found


def _parts(entries: Numbers, sizes: Numbers, batch_size: int) -> list[Numbers]:
    """Return entries in parts of at most `batch_size` rows, but of one entry or more."""
    parts: list[list[int]] = []
    room = 0
    for entry in entries:
        if not parts or sizes[entry] > room:
            parts.append([])
            room = batch_size
        parts[-1].append(entry)
        room -= sizes[entry]
    return [np.array(part) for part in parts]


def _cuts(kinds: Numbers, rows: Numbers, tokens: int, batch_size: int, kept: bool) -> list[int]:
    """Return where groups of rows begin, which are sorted by their leading tokens.

    A group takes some calls, of the steps after those that its first rows begin with, and before them one that goes on
    to its state from that of the group before. The fastest division of the first kinds follows from those of fewer.
    """
    above = np.concatenate(([0], np.cumsum(rows)))
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, len(kinds) + 1):
        options = []
        for first in range(end):
            count = above[end] - above[first]
            time = best[first][0] + CALL * -(-count // batch_size) + (tokens - kinds[first]) * count
            if kinds[first] and not kept:
                time += CALL + (kinds[first] if end == len(kinds) else 0)
            options.append((float(time), [*best[first][1], first]))
        best.append(min(options))
    return best[-1][1]
