"""Passes over parts of sequences, each grid of parts as a batch of its own.

Layers whose steps lie in a grid (T, B, ...) run sequences with resets in this way. Recurrent layers
do not need it, as their packing has a column for each part. Every layer also runs each sequence
alone in this way for batch invariance: then every product has one shape, and every sum one order,
whatever the batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xlstm.arrays.concat import concat, filled
from xlstm.arrays.gather import add_rows, gather
from xlstm.arrays.namespace import Array, Namespace, Params, reshape
from xlstm.arrays.rows import per_sequence
from xlstm.layers.announcements import announced
from xlstm.recurrence.grids import Grid, Grids, grids_of
from xlstm.recurrence.packing import Span
from xlstm.tracing.array_functions import listed

State = tuple[Any, ...]


class Kept(NamedTuple):
    """The values that the parts keep, by grids; `sequences` if each runs alone in its own grid."""

    grids: Grids
    sequences: list[Any]
    last: bool


def in_parts(
    span: Span,
    leaves: State,
    run: Callable[..., tuple[Array, State, Any]],
    arrays: Sequence[Array],
    state: State,
    last: bool = False,
) -> tuple[Array, State, Kept]:
    """Run `run(*arrays, state, span)` over the parts of sequences.

    It returns y, the final state and the values that `run` keeps.

    Parameters
    ----------
    span : Span
        The span of the sequences, which are cut or run alone.
    leaves : tuple
        The `Leaf` of every array of the state, nested like the state.
    run : function
        It returns y (T, B, ...), the final state and the values that it keeps.
    arrays : sequence of array (T, B, ...)
    state : tuple
        The initial state.
    last : bool
        Whether y is (B, ...), only of the last step.
    """
    xp = span.xp
    grids = grids_of(span, arrays[0])
    places = grids.places
    ys = []
    ends = []
    by_grid = []
    for grid in grids.grids:
        start = _columns(xp, [state], leaves, places.initial[grid.columns], rest=True)
        y, end, saved = run(*_cut(xp, arrays, grid), start, _span(span, grid))
        ys.append(y)
        ends.append(end)
        by_grid.append(saved)
    y = _taken(xp, ys, 0, places.final) if last else _joined(span, ys, grids)
    return y, _columns(xp, ends, leaves, places.final), Kept(grids, by_grid, last)


def in_parts_bwd(
    span: Span,
    leaves: State,
    run_bwd: Callable[..., Any],
    kept: Kept,
    dy: Array | None,
    dstate: State | None,
) -> tuple[Params, Any, State]:
    """Differentiate `in_parts`: run its backward pass over the parts of sequences.

    It returns the gradients with respect to the parameters, the array or arrays, and the initial
    state. `run_bwd(kept, dy, dstate, span)` returns these for one grid. A dy or dstate of None is
    zero.
    """
    xp = span.xp
    grids = kept.grids
    places = grids.places
    by_grid = []
    for grid, saved in zip(grids.grids, kept.sequences, strict=True):
        own = _span(span, grid)
        final = places.final_bwd[grid.columns]
        dend = None if dstate is None else _columns(xp, [dstate], leaves, final)
        if dy is None:
            d = None
        elif kept.last:
            d = _taken(xp, [dy], 0, final)
        else:
            (cut,) = _cut(xp, [dy], grid)
            d = own.mask(cut)
        apart = per_sequence.get()
        before = per_sequence.set(None if apart is None else grid.packing.B)
        try:
            with announced(None):  # final only once those of all grids are added
                by_grid.append(run_bwd(saved, d, dend, own))
        finally:
            per_sequence.reset(before)
    every_grads, darrays, starts = zip(*by_grid, strict=True)
    grads = {
        name: _added(span, [own[name] for own in every_grads], grids) for name in every_grads[0]
    }
    dxs = tuple(
        None if parts[0] is None else _joined(span, parts, grids)
        for parts in zip(*map(listed, darrays), strict=True)
    )
    dx = dxs if type(darrays[0]) is tuple else dxs[0]
    return grads, dx, _columns(xp, starts, leaves, places.initial_bwd)


def _span(span: Span, grid: Grid) -> Span:
    return Span(span.xp, grid.packing, span.rng, span.keep)


def _cut(xp: Namespace, arrays: Sequence[Array], grid: Grid) -> list[Array]:
    """Return arrays (T, B, ...) in a grid's layout; past a part's end, its last step repeats."""
    rows = [reshape(a, (-1, *a.shape[2:])) for a in arrays]
    packing = grid.packing
    cut = gather(xp, rows, [grid.rows] * len(rows))
    return [reshape(a, (packing.T, packing.B, *a.shape[1:])) for a in cut]


def _joined(span: Span, parts: Sequence[Array], grids: Grids) -> Array:
    """Return the arrays of all grids as one (T, B, ...), zero where there is no step."""
    xp = span.xp
    rows = concat(xp, [reshape(a, (-1, *a.shape[2:])) for a in parts], 0)
    (joined,) = gather(xp, [rows], [grids.back], zeros=range(int(not span.full)))
    return reshape(joined, (span.T, span.B, *joined.shape[1:]))


def _added(span: Span, grads: Sequence[Array], grids: Grids) -> Array:
    """Return the sum of the gradients of all grids, or of each sequence with `per_sequence`."""
    if per_sequence.get() is None:
        return sum(grads[1:], grads[0])
    xp = span.xp
    shape = grads[0].shape[1:]
    rows = concat(xp, [reshape(g, (g.shape[0], -1)) for g in grads], 0)
    return reshape(add_rows(xp, grids.places.sequence, rows, span.B), (span.B, *shape))


def _columns(
    xp: Namespace, states: Sequence[State], leaves: State, places: Array, rest: bool = False
) -> State:
    """Return a state with the columns of several states, side by side, at `places`.

    The place after the last column stands for zero, or with `rest` for the state before the first
    step.
    """
    return tuple(
        _columns(xp, parts, leaf, places, rest)
        if type(leaf) is tuple
        else _taken(xp, parts, len(leaf.before), places, leaf.rest if rest else 0.0)
        for leaf, *parts in zip(leaves, *states, strict=True)
    )


def _taken(
    xp: Namespace, arrays: Sequence[Array], axis: int, places: Array, none: float = 0.0
) -> Array:
    """Return the entries at places along an axis of arrays side by side; past the end, `none`."""
    beside = concat(xp, [*arrays, filled(xp, arrays[0], none, 1, axis)], axis)
    return xp.take(beside, places, axis=axis)
