"""Parts of the sequences of a batch that run as batches of their own.

Layers whose steps lie in a grid (T, B, ...) so run sequences with resets; recurrent layers need
none of this, as their packing has a column for each part. Every layer so runs each sequence alone,
where its results are not to depend on the others: then every product has one shape, and every sum
one order, whatever the batch is.
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
    """The values that the parts keep, by grids; `sequences` where each is alone in its own."""

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
    """Return y, the final state and what `run(*arrays, state, span)` keeps, run over the parts of
    sequences.

    Parameters
    ----------
    span : Span
        That of the sequences, which are cut or run alone.
    leaves : tuple
        The `Leaf` of every array of the state, nested as the state is.
    run : function
        It returns y (T, B, ...), the final state and what it keeps.
    arrays : sequence of array (T, B, ...)
    state : tuple
        The initial state.
    last : bool
        Whether y is (B, ...), that of the last step.
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
    """Return gradients of the parameters, of the array or the arrays, and of the initial state:
    `in_parts` backward.

    `run_bwd(kept, dy, dstate, span)` returns these of one grid. A dy or dstate of None is zero.
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
            with announced(None):  # gradients of all grids are added
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
    """Return arrays (T, B, ...) as the grid has them, with the last step of a part past its end."""
    rows = [reshape(a, (-1, *a.shape[2:])) for a in arrays]
    packing = grid.packing
    cut = gather(xp, rows, [grid.rows] * len(rows))
    return [reshape(a, (packing.T, packing.B, *a.shape[1:])) for a in cut]


def _joined(span: Span, parts: Sequence[Array], grids: Grids) -> Array:
    """Return arrays of all grids as one (T, B, ...), zero where there is no step."""
    xp = span.xp
    rows = concat(xp, [reshape(a, (-1, *a.shape[2:])) for a in parts], 0)
    (joined,) = gather(xp, [rows], [grids.back], zeros=range(int(not span.full)))
    return reshape(joined, (span.T, span.B, *joined.shape[1:]))


def _added(span: Span, grads: Sequence[Array], grids: Grids) -> Array:
    """Return the sum of the gradients of all grids; that of each sequence with `per_sequence`."""
    if per_sequence.get() is None:
        return sum(grads[1:], grads[0])
    xp = span.xp
    shape = grads[0].shape[1:]
    rows = concat(xp, [reshape(g, (g.shape[0], -1)) for g in grads], 0)
    return reshape(add_rows(xp, grids.places.sequence, rows, span.B), (span.B, *shape))


def _columns(
    xp: Namespace, states: Sequence[State], leaves: State, places: Array, rest: bool = False
) -> State:
    """Return a state with those sequences of several states, one after the other, that are at
    `places`; the place after the last of them stands for zero, or for the state at `rest`.
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
    """Return what is at places along an axis of arrays side by side, and of `none` after them."""
    beside = concat(xp, [*arrays, filled(xp, arrays[0], none, 1, axis)], axis)
    return xp.take(beside, places, axis=axis)
