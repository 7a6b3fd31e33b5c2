"""Grids: the parts of sequences that are reset, as batches of their own, for layers that take steps
in a grid (T, B, ...); or each part alone, as a batch of one.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.cuda.constants import Home, from_host, home, kept
from xlstm.arrays.namespace import Array, Namespace, device_of
from xlstm.recurrence.packing import Packing, Span, packing_of
from xlstm.recurrence.parts import Parts, Places

SHORT = 16  # parts of so many steps share a grid with shorter ones


class Grid(NamedTuple):
    """Parts of sequences, none twice as long as another, as a batch (T, n, ...) of their own."""

    packing: Packing
    columns: slice  # its parts among those of all grids
    rows: Any  # the row of the batch (T*B, ...) of each row (T*n,); past the end of a part its last


class Grids(NamedTuple):
    """All parts of the sequences of a batch, and the way back from their grids, beside another."""

    grids: tuple[Grid, ...]
    back: Any  # the row among those of all grids of each row of the batch, their number for none
    places: Places  # of states, those of all grids beside another


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
