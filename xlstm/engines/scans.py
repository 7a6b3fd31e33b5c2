"""Passes of the reference engine over a cell with a linear recurrence, by one scan per block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from xlstm.arrays.namespace import Array, Namespace, reshape
from xlstm.cells.linear_scan import doubles, scan, scan_bwd
from xlstm.engines.cell_step import Step
from xlstm.engines.tape import Gradients, Segment, SegmentTape, swapped

# About this many numbers of products with x make a block, whose arrays stay in a CPU's cache.
BLOCK = 1 << 16


def blocks(step: Step, segments: Sequence[Segment]) -> Iterator[Segment]:
    """Yield segments in blocks of fewer steps; on a GPU unchanged."""
    for k, n, at in segments:
        size = k if doubles(step.xp) else max(1, BLOCK // max(1, step.G * step.H * n))
        for start in range(0, k, size):
            yield Segment(min(size, k - start), n, at + start * n)


def forward(step: Step, segment: Segment, zx: Array, h0: Array, y: Array) -> tuple[Array, Any]:
    """Run all steps of a block.

    Parameters
    ----------
    step : Step
    segment : Segment
    zx : array (G, H, k, n)
        The products with x.
    h0 : array (H, n)
        The state before the first step.
    y : array (N, H)
        h of every step is written to it.

    Returns
    -------
    h : array (H, n)
        The state after the last step.
    saved : NamedTuple
        As in `SegmentTape`.
    """
    xp = step.xp
    z = _ordered(xp, xp.permute_dims(zx, (0, 2, 1, 3)))
    saved = step.cell.coefficients(xp, z, **step.own)
    if saved.a.shape != saved.b.shape:
        raise ValueError(
            f"{type(step.cell).__name__}: coefficients has a of shape {saved.a.shape} and b of"
            f" {saved.b.shape}, expected one shape; a + xp.zeros_like(b) has it"
        )
    h = scan(xp, saved.a, saved.b, h0)  # (k + 1, H, n)
    y[_rows(segment), :] = reshape(xp.permute_dims(h[1:, ...], (0, 2, 1)), (-1, step.H))
    return h[-1, ...], swapped(xp, saved._replace(b=None, h0=h[:-1, ...]))


def backward(
    step: Step, tape: SegmentTape, dy: Array | None, dend: Array, gradients: Gradients
) -> Array:
    """Compute the gradients of the steps of a block; return that of h before the first step from
    `dend`, that of the last h.
    """
    xp = step.xp
    segment = tape.segment
    saved = swapped(xp, tape.saved)
    dh = xp.zeros_like(saved.a)
    if dy is not None:
        dh = _ordered(xp, xp.permute_dims(segment.steps(dy, 0, segment.k), (0, 2, 1)))
    dh, dh0 = scan_bwd(xp, saved.a, dh, dend)
    # (1) h = a h0 + b
    dz = step.cell.coefficients_bwd(xp, saved, dh * saved.h0, dh, **step.own)
    dz = xp.permute_dims(dz, (0, 2, 1, 3))  # (G, H, k, n), or with more rows than gates
    gradients.put("zx", _rows(segment), reshape(dz, (-1, segment.k * segment.n)))
    return dh0


def _rows(segment: Segment) -> slice:
    return slice(segment.at, segment.at + segment.k * segment.n)


def _ordered(xp: Namespace, a: Array) -> Array:
    """Return an array whose numbers lie in the order of its axes, so that each step is
    contiguous.
    """
    flat = reshape(a, (-1,))
    return reshape(flat, a.shape)
