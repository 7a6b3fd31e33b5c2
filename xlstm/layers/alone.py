"""Batch-invariant passes of a layer, which run each sequence of a batch by itself.

A sequence runs as a batch of one, without the steps past its end, on copies in a fixed memory
layout. So every product has the same shape, and every sum the same order, whatever the batch is. If
a sequence has resets, each of its parts runs in this way.
"""

from __future__ import annotations

from typing import Any

from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.layers.in_parts import Kept, State, in_parts, in_parts_bwd
from xlstm.layers.module import Saved
from xlstm.recurrence.packing import Packing, Span


def run(layer: Any, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Kept]:
    """Run `layer.run` over each sequence of x (T, B, ...) by itself."""

    def of_sequence(x: Array, state: State, own: Span) -> tuple[Array, State, Saved]:
        y, end, kept = layer.run(p, x, state, own)
        return y, end, Saved(layer, tuple(y.shape), kept, own)

    return in_parts(span, layer.states, of_sequence, [x], state, layer.last)


def run_bwd(
    layer: Any, p: Params, kept: Kept, dy: Array | None, dstate: State | None, span: Span
) -> tuple[Params, Any, State]:
    """Run `layer.run_bwd` over each sequence by itself."""

    def of_sequence(saved: Saved, dy: Any, dstate: Any, own: Span) -> Any:
        return layer.run_bwd(p, saved.kept, dy, dstate, own)

    return in_parts_bwd(span, layer.states, of_sequence, kept, dy, dstate)


def run_step(layer: Any, xp: Namespace, p: Params, x: Array, state: State) -> tuple[Array, State]:
    """Run `layer.run_step` for each sequence of x (B, ...) by itself."""

    def of_sequence(x: Array, state: State, own: Span) -> tuple[Array, State, None]:
        y, end = layer.run_step(xp, p, x[0, ...], state)
        return y, end, None

    span = Span(xp, Packing.of("step", None, 1, x.shape[0]), alone=True)
    y, end, _ = in_parts(span, layer.states, of_sequence, [x[None, ...]], state, last=True)
    return y, end
