"""Passes that run each sequence of a batch by itself, so that its results do not depend on the
others.

A sequence runs as a batch of one, without the steps past its end, from copies that lie in memory as
those of any batch do. So every product has the same shape, and every sum the same order, whatever
the batch is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from xlstm.arrays import rows
from xlstm.arrays.concat import concat, filled, stack
from xlstm.arrays.namespace import Array, Namespace, Params, reshape
from xlstm.arrays.trees import leaves_by_path, mapped
from xlstm.layers.module import Saved
from xlstm.recurrence.packing import Packing, Span


class Apart(NamedTuple):
    """The values that each sequence kept."""

    sequences: list[Saved]


def run(layer: Any, p: Params, x: Array, state: Any, span: Span) -> tuple[Array, Any, Apart]:
    """Run `layer.run` over each sequence of x (T, B, ...), as that does over all."""
    xp = span.xp
    ys = []
    ends = []
    sequences = []
    for b, alone in enumerate(_spans(span)):
        start = _cut_state(layer, xp, state, b)
        y, end, kept = layer.run(p, _cut(xp, x, b, 1, alone.T), start, alone)
        ys.append(y)
        ends.append(end)
        if span.keep:
            sequences.append(Saved(layer, tuple(y.shape), kept, alone))
    return _join_output(layer, xp, ys, span.T), _join_states(layer, xp, ends), Apart(sequences)


def run_bwd(
    layer: Any, xp: Namespace, p: Params, kept: Apart, dy: Array | None, dstate: Any, T: int
) -> tuple[Params, Any, Any]:
    """Run `layer.run_bwd` over each sequence; gradients of parameters follow `per_sequence`."""
    grads: list[Params] = []
    dxs = []
    starts = []
    apart = rows.per_sequence.get() is not None
    before = rows.per_sequence.set(None)
    try:
        for b, saved in enumerate(kept.sequences):
            alone = saved.span
            axis = _output_axis(layer)
            d = None if dy is None else _cut(xp, dy, b, axis, alone.T)
            end = None if dstate is None else _cut_state(layer, xp, dstate, b)
            dw, dx, start = layer.run_bwd(p, saved.kept, d, end, alone)
            if grads and not apart:
                grads = [{name: g + dw[name] for name, g in grads[0].items()}]
            else:
                grads.append(dw)
            dxs.append(dx)
            starts.append(start)
    finally:
        rows.per_sequence.reset(before)
    whole = {name: stack(xp, [g[name] for g in grads]) for name in p} if apart else grads[0]
    dx = None if dxs[0] is None else _join_steps(xp, dxs, T)
    return whole, dx, _join_states(layer, xp, starts)


def run_step(layer: Any, xp: Namespace, p: Params, x: Array, state: Any) -> tuple[Array, Any]:
    """Run `layer.run_step` for each sequence of x (B, ...)."""
    pairs = [
        layer.run_step(xp, p, _cut(xp, x, b, 0), _cut_state(layer, xp, state, b))
        for b in range(x.shape[0])
    ]
    ys, ends = zip(*pairs, strict=True)
    return concat(xp, ys, 0), _join_states(layer, xp, ends)


def _spans(span: Span) -> Iterator[Span]:
    """Yield the span of each sequence, which ends where it does; one without steps has one that
    does not count.
    """
    for n in span.lengths.tolist():
        packing = Packing.of("lengths", None if n else [0], max(n, 1), 1)
        yield dataclasses.replace(span, packing=packing)


def _cut(xp: Namespace, a: Array, b: int, axis: int, steps: int | None = None) -> Array:
    """Return a copy of sequence b along an axis, of the first steps where that is the second one.

    It lies in memory in order: a view of steps that are far apart would be multiplied in another
    way than one of steps that follow each other.
    """
    part = a[(*[slice(steps)] * axis, slice(b, b + 1), ...)]
    return reshape(xp.asarray(reshape(part, (-1,)), copy=True), tuple(part.shape))


def _cut_state(layer: Any, xp: Namespace, state: Any, b: int) -> Any:
    axes = leaves_by_path(layer.batch_axes)
    return mapped(state, lambda path, a: _cut(xp, a, b, axes[path]))


def _join_states(layer: Any, xp: Namespace, states: Sequence[Any]) -> Any:
    by_path = [leaves_by_path(state) for state in states]
    return mapped(
        layer.batch_axes, lambda path, axis: concat(xp, [leaves[path] for leaves in by_path], axis)
    )


def _output_axis(layer: Any) -> int:
    """Return the axis of sequences of y, which has one of steps before it unless it is that of the
    last step alone.
    """
    return 1 if "T" in layer.output_dims(1, 1) else 0


def _join_output(layer: Any, xp: Namespace, ys: Sequence[Array], T: int) -> Array:
    return _join_steps(xp, ys, T) if _output_axis(layer) else concat(xp, ys, 0)


def _join_steps(xp: Namespace, parts: Sequence[Array], T: int) -> Array:
    """Return arrays (steps, 1, ...) as (T, B, ...), zero past the end of each."""
    whole = []
    for a in parts:
        left = T - a.shape[0]
        whole.append(concat(xp, (a, filled(xp, a, 0.0, left, 0)), 0) if left else a)
    return concat(xp, whole, 1)
