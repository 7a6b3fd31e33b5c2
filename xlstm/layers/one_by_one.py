"""Passes that run each sequence of a batch by itself, so that its results do not depend on the
others.

A sequence runs as a batch of one, without the steps past its end, on copies that lie in memory as
those of any batch do. So every product has the same shape, and every sum the same order, whatever
the batch is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from xlstm.arrays import rows
from xlstm.arrays.concat import concat, filled, stack
from xlstm.arrays.namespace import Array, Namespace, Params, device_of
from xlstm.arrays.trees import leaves_by_path, mapped
from xlstm.layers.module import Saved
from xlstm.recurrence.packing import Packing, Span


class Apart(NamedTuple):
    """The values that each sequence kept."""

    sequences: list[Saved]


def run(layer: Any, p: Params, x: Array, state: Any, span: Span) -> tuple[Array, Any, Apart]:
    """Run `layer.run` over each sequence of x (T, B, ...), as that does over all of them."""
    lengths = iter(span.lengths.tolist())
    sequences = []

    def run_one(x: Array, state: Any) -> tuple[Array, Any]:
        n = next(lengths)
        # one without steps has a step that does not count
        packing = Packing.of("lengths", None if n else [0], max(1, n), 1)
        alone = dataclasses.replace(span, packing=packing)
        y, end, kept = layer.run(p, x[: alone.T, ...], state, alone)
        sequences.append(Saved(layer, tuple(y.shape), kept, alone))
        return y, end

    y, end = each(layer, span.xp, span.B, run_one, (x, state), 1, _output_axis(layer), span.T)
    return y, end, Apart(sequences)


def run_bwd(
    layer: Any, p: Params, kept: Apart, dy: Array | None, dstate: Any, span: Span
) -> tuple[Params, Any, Any]:
    """Run `layer.run_bwd` over each sequence; gradients of parameters follow `per_sequence`."""
    xp = span.xp
    sequences = iter(kept.sequences)
    grads: list[Params] = []
    apart = rows.per_sequence.get() is not None
    axis = _output_axis(layer)

    def run_one(dy: Array | None, dstate: Any) -> tuple[Any, Any]:
        saved = next(sequences)
        alone = saved.span
        if dy is not None and axis:
            dy = dy[: alone.T, ...]
        dw, dx, start = layer.run_bwd(p, saved.kept, dy, dstate, alone)
        if grads and not apart:
            sums = grads.pop()
            dw = {name: sums[name] + d for name, d in dw.items()}
        grads.append(dw)
        return dx, start

    before = rows.per_sequence.set(None)
    try:
        dx, start = each(layer, xp, span.B, run_one, (dy, dstate), axis, 1, span.T)
    finally:
        rows.per_sequence.reset(before)
    whole = {name: stack(xp, [g[name] for g in grads]) for name in p} if apart else grads[0]
    return whole, dx, start


def _output_axis(layer: Any) -> int:
    """Return the axis of sequences of y, the first one where there is no axis of steps."""
    return int("T" in layer.output_dims(1, 1))


def each(
    layer: Any,
    xp: Namespace,
    B: int,
    call: Callable[..., Any],
    arrays: tuple[Any, Any],
    axis: int,
    axis_after: int,
    T: int = 1,
) -> Any:
    """Return the results of `call(x, state)` for each of B sequences, all together.

    Parameters
    ----------
    layer : SequenceLayer
    xp : namespace
    B : int
    call : function
        It takes x and the state of one sequence, and returns what `axis_after` says and a state.
    arrays : (array, tuple)
        x and the state of all sequences.
    axis, axis_after : int
        The axis of sequences of x, and that of the first result.
    T : int
        Steps of the first result, where steps come first: it is zero past its own end.
    """
    axes = leaves_by_path((axis, layer.batch_axes))

    def sequence(b: int) -> Any:
        # `take` makes an array that lies in order. A view of steps that are far apart would be
        # multiplied in another way than one of steps that follow each other.
        return mapped(
            arrays,
            lambda path, a: xp.take(a, xp.arange(b, b + 1, device=device_of(a)), axis=axes[path]),
        )

    parts = [call(*sequence(b)) for b in range(B)]
    leaves = [leaves_by_path(part) for part in parts]

    def joined(path: str, _: Array) -> Array:
        each = [by_path[path] for by_path in leaves]
        if path != "0":
            return concat(xp, each, axes[path])
        if axis_after:
            each = [concat(xp, (a, filled(xp, a, 0.0, T - a.shape[0], 0)), 0) for a in each]
        return concat(xp, each, axis_after)

    return mapped(parts[0], joined)
