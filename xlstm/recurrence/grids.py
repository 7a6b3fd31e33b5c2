"""Grids: the parts of reset sequences as batches of their own.

They serve layers whose steps lie in a grid (T, B, ...). For batch invariance each part is a batch
of one.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.constants import Home, from_host, home, kept
from xlstm.arrays.namespace import Array, Namespace, device_of
from xlstm.recurrence.packing import Packing, Span, packing_of
from xlstm.recurrence.parts import Parts, Places

SHORT = 16  # parts up to this length share one grid


class Grid(NamedTuple):
    """Parts of sequences, with lengths within a factor of two, as a batch (T, n, ...)."""

    packing: Packing
    columns: slice  # its parts among those of all grids
    rows: Any  # the batch's row (T*B, ...) for each row (T*n,); past a part's end, its last row


class Grids(NamedTuple):
    """All parts of a batch's sequences, and the way back from their grids, side by side."""

    grids: tuple[Grid, ...]
    back: Any  # the row in all grids for each row of the batch; their number if there is none
    places: Places  # places of states, with all grids side by side


def grids_of(span: Span, like: Array) -> Grids:
    """Return the grids of the parts of sequences, on the device of an array."""
    return _recent.grids(span.xp, span.packing, span.alone, home(device_of(like)))


def _grids(xp: Namespace, packing: Packing, alone: bool, home: Home) -> Grids:
    """Return the grids of the parts of a packing on a device."""
    B = packing.B
    parts = packing.parts or Parts.of(packing.ends)
    order = grid_of = np.arange(len(parts.length))
    if not alone:
        order = np.argsort(-parts.length, kind="stable")
        grid_of = np.frexp(np.maximum(parts.length[order], SHORT) - 0.5)[1]  # next power of two
    back = np.full(packing.T * B, -1)
    grids = []
    N = 0
    stops = np.append(np.flatnonzero(np.diff(grid_of)) + 1, len(order))
    for start, stop in itertools.pairwise([0, *stops.tolist()]):
        columns = slice(start, stop)
        part = order[columns]
        lengths = parts.length[part]
        T = max(1, int(np.max(lengths)))
        step = np.arange(T)[:, None]
        within = np.minimum(step, np.maximum(lengths - 1, 0))
        rows = (parts.start[part] + within) * B + parts.sequence[part]
        inside = step < lengths
        back[rows[inside]] = N + np.flatnonzero(inside)
        N += rows.size
        own = packing_of(lengths.tobytes(), b"", T, stop - start)
        grids.append(Grid(own, columns, from_host(xp, rows.ravel(), home)))
    back[back < 0] = N
    places = (from_host(xp, place, home) for place in parts.places(order, B))
    return Grids(tuple(grids), from_host(xp, back, home), Places(*places))


class _Recent(threading.local):
    """The caches of a thread for its last batches."""

    def __init__(self) -> None:
        self.grids = kept(4)(_grids)


_recent = _Recent()
