"""Grids: the parts of sequences that are reset, as batches of their own, for layers that take steps
in a grid (T, B, ...); or each part alone, as a batch of one.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.cuda.constants import Home, from_host, home, kept
from xlstm.arrays.namespace import Array, Namespace, device_of
from xlstm.recurrence.packing import Packing, Span, packing_of
from xlstm.recurrence.parts import Parts

SHORT = 16  # parts of so many steps share a grid with shorter ones


class Grid(NamedTuple):
    """Parts of sequences, none twice as long as another, as a batch (T, n, ...) of their own."""

    packing: Packing
    rows: Any  # the row of the batch (T*B, ...) of each row (T*n,); past the end of a part its last
    # states, from the batch and back; see `Parts`
    sequence: Any
    initial: Any
    final_bwd: Any


class Grids(NamedTuple):
    """All parts of the sequences of a batch, and the way back from their grids, beside another."""

    grids: tuple[Grid, ...]
    back: Any  # the row among those of all grids of each row of the batch, their number for none
    # states of the batch among those of all grids
    final: Any
    initial_bwd: Any


def grids_of(span: Span, like: Array) -> Grids:
    """Return the grids of the parts of sequences, on the device of an array."""
    return _recent.grids(span.xp, span.packing, span.alone, home(device_of(like)))


def _grids(xp: Namespace, packing: Packing, alone: bool, home: Home) -> Grids:
    """Return the grids of the parts of a packing on a device."""
    B = packing.B
    parts = packing.parts or Parts.of(packing.ends)
    initial = parts.initial(B)
    final_bwd = parts.final_bwd(B)
    back = np.full(packing.T * B, -1)
    numbers = []
    grids = []
    N = 0
    grid_of = np.frexp(np.maximum(parts.length, SHORT) - 0.5)[1]  # by the next power of two
    if alone:
        grid_of = np.arange(len(parts.length))
    for number in np.unique(grid_of):
        within = np.flatnonzero(grid_of == number)
        lengths = parts.length[within]
        T = max(1, int(np.max(lengths)))
        step = np.arange(T)[:, None]
        own = np.minimum(step, np.maximum(lengths - 1, 0))
        rows = (parts.start[within] + own) * B + parts.sequence[within]
        inside = step < lengths
        back[rows[inside]] = N + np.flatnonzero(inside)
        N += rows.size
        numbers.append(within)
        places = rows.ravel(), parts.sequence[within], initial[within], final_bwd[within]
        there = (from_host(xp, place, home) for place in places)
        grids.append(Grid(packing_of(lengths.tobytes(), b"", T, len(within)), *there))
    place = np.append(np.argsort(np.concatenate(numbers)), len(parts.length))
    back[back < 0] = N
    ways = back, place[parts.final()], place[parts.initial_bwd()]
    return Grids(tuple(grids), *(from_host(xp, places, home) for places in ways))


class _Recent(threading.local):
    """The caches of a thread for its last batches."""

    def __init__(self) -> None:
        self.grids = kept(4)(_grids)


_recent = _Recent()
