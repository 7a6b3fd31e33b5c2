"""Passes of a layer that run each sequence of a batch by itself, so that its results do not depend
on the others.

A sequence runs as a batch of one, without the steps past its end, on copies that lie in memory as
those of any batch do. So every product has the same shape, and every sum the same order, whatever
the batch is. Where a sequence has resets, this is so for each of its parts.
"""

from __future__ import annotations

from typing import Any

from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.layers.in_parts import Kept, State, in_parts, in_parts_bwd
from xlstm.layers.module import Saved
from xlstm.recurrence.packing import Packing, Span


def run(layer: Any, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Kept]:
    """Run `layer.run` over each sequence of x (T, B, ...), as that does over all of them."""

    def of_sequence(x: Array, state: State, own: Span) -> tuple[Array, State, Saved]:
        y, end, kept = layer.run(p, x, state, own)
        return y, end, Saved(layer, tuple(y.shape), kept, own)

    return in_parts(span, layer.states, of_sequence, [x], state, layer.last)


def run_bwd(
    layer: Any, p: Params, kept: Kept, dy: Array | None, dstate: State | None, span: Span
) -> tuple[Params, Any, State]:
    """Run `layer.run_bwd` over each sequence."""

    def of_sequence(saved: Saved, dy: Any, dstate: Any, own: Span) -> Any:
        return layer.run_bwd(p, saved.kept, dy, dstate, own)

    return in_parts_bwd(span, layer.states, of_sequence, kept, dy, dstate)


def run_step(layer: Any, xp: Namespace, p: Params, x: Array, state: State) -> tuple[Array, State]:
    """Run `layer.run_step` for each sequence of x (B, ...)."""

    def of_sequence(x: Array, state: State, own: Span) -> tuple[Array, State, None]:
        y, end = layer.run_step(xp, p, x[0, ...], state)
        return y, end, None

    span = Span(xp, Packing.of("step", None, 1, x.shape[0]), alone=True)
    y, end, _ = in_parts(span, layer.states, of_sequence, [x[None, ...]], state, last=True)
    return y, end
