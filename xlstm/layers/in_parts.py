"""Sequences with resets in layers whose steps lie in a grid (T, B, ...): their parts run as batches
of their own.

Recurrent layers need none of this, as their packing has a column for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xlstm.arrays.concat import concat, filled
from xlstm.arrays.gather import add_rows, gather
from xlstm.arrays.namespace import Array, Namespace, Params, reshape
from xlstm.arrays.rows import per_sequence
from xlstm.layers.sequence import Leaf, Scanned, State
from xlstm.recurrence.grids import Grid, Grids, grids_of
from xlstm.recurrence.packing import Span
from xlstm.tracing.array_functions import listed


def in_parts(
    span: Span, leaves: State, run: Callable[..., Scanned], arrays: Sequence[Array], state: State
) -> Scanned:
    """Return y, the final state and what `run(*arrays, state, span)` keeps, as a list, run over the
    parts of sequences.

    Parameters
    ----------
    span : Span
        That of the sequences, which are cut.
    leaves : tuple
        The `Leaf` of every array of the state, nested as the state is.
    run : function
        It returns y (T, B, ...), the final state and what it keeps.
    arrays : sequence of array (T, B, ...)
    state : tuple
        The initial state.
    """
    xp = span.xp
    grids = grids_of(span, arrays[0])
    ys = []
    ends = []
    kept = []
    for grid in grids.grids:
        start = _columns(xp, [state], leaves, grid.initial, rest=True)
        y, end, saved = run(*_cut(xp, arrays, grid), start, _span(span, grid))
        ys.append(y)
        ends.append(end)
        kept.append(saved)
    return _joined(span, ys, grids), _columns(xp, ends, leaves, grids.final), kept


def in_parts_bwd(
    span: Span,
    leaves: State,
    run_bwd: Callable[..., Any],
    kept: Sequence[Any],
    dy: Array,
    dstate: State | None,
) -> tuple[Params, tuple[Array, ...], State]:
    """Return gradients of the parameters, of arrays and of the initial state: `in_parts` backward.

    `run_bwd(kept, dy, dstate, span)` returns gradients of parameters, those of the arrays, which
    may be one, and that of the initial state.
    """
    xp = span.xp
    grids = grids_of(span, dy)
    by_grid = []
    for grid, saved in zip(grids.grids, kept, strict=True):
        dend = None if dstate is None else _columns(xp, [dstate], leaves, grid.final_bwd)
        (dgrid,) = _cut(xp, [dy], grid)
        own = _span(span, grid)
        apart = per_sequence.get()
        before = per_sequence.set(None if apart is None else grid.packing.B)
        try:
            by_grid.append(run_bwd(saved, own.mask(dgrid), dend, own))
        finally:
            per_sequence.reset(before)
    every_grads, darrays, starts = zip(*by_grid, strict=True)
    grads = {
        name: _added(span, [own[name] for own in every_grads], grids) for name in every_grads[0]
    }
    by_array = zip(*map(listed, darrays), strict=True)
    dxs = tuple(span.mask(_joined(span, parts, grids)) for parts in by_array)
    return grads, dxs, _columns(xp, starts, leaves, grids.initial_bwd)


def _span(span: Span, grid: Grid) -> Span:
    return Span(span.xp, grid.packing, span.rng, span.keep)


def _cut(xp: Namespace, arrays: Sequence[Array], grid: Grid) -> list[Array]:
    """Return arrays (T, B, ...) as the grid has them, with the last step of a part past its end."""
    rows = [reshape(a, (-1, *a.shape[2:])) for a in arrays]
    packing = grid.packing
    cut = gather(xp, rows, [grid.rows] * len(rows))
    return [reshape(a, (packing.T, packing.B, *a.shape[1:])) for a in cut]


def _joined(span: Span, parts: Sequence[Array], grids: Grids) -> Array:
    """Return arrays of all grids as one (T, B, ...), with any where there is no step."""
    xp = span.xp
    rows = concat(xp, [reshape(a, (-1, *a.shape[2:])) for a in parts], 0)
    (joined,) = gather(xp, [rows], [grids.back])
    return reshape(joined, (span.T, span.B, *joined.shape[1:]))


def _added(span: Span, grads: Sequence[Array], grids: Grids) -> Array:
    """Return the sum of the gradients of all grids; that of each sequence with `per_sequence`."""
    if per_sequence.get() is None:
        return sum(grads[1:], grads[0])
    xp = span.xp
    shape = grads[0].shape[1:]
    rows = concat(xp, [reshape(g, (g.shape[0], -1)) for g in grads], 0)
    sequences = concat(xp, [grid.sequence for grid in grids.grids], 0)
    return reshape(add_rows(xp, sequences, rows, span.B), (span.B, *shape))


def _columns(
    xp: Namespace, states: Sequence[State], leaves: State, places: Array, rest: bool = False
) -> State:
    """Return a state with those sequences of several states, one after the other, that are at
    `places`; the place after the last of them stands for zero, or for the state at `rest`.
    """
    columns: list[Any] = []
    for leaf, *parts in zip(leaves, *states, strict=True):
        if not isinstance(leaf, Leaf):
            columns.append(_columns(xp, parts, leaf, places, rest))
            continue
        axis = len(leaf.before)
        none = filled(xp, parts[0], leaf.rest if rest else 0.0, 1, axis)
        columns.append(xp.take(concat(xp, [*parts, none], axis), places, axis=axis))
    return tuple(columns)
