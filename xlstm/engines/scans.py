"""The passes of the reference engine over a cell whose recurrence is linear: blocks of many steps,
each one scan.
"""

from __future__ import annotations

from typing import Any

from xlstm.arrays.namespace import Array, Namespace, device_of, reshape
from xlstm.cells.linear_scan import doubles, scan, scan_bwd
from xlstm.engines.cell_step import Step
from xlstm.engines.tape import Gradients, Segment, swapped

# Products of x of about so many numbers make a block, whose arrays stay in a CPU's cache.
BLOCK = 1 << 16


def block_of(step: Step, segment: Segment) -> int:
    """Return how many steps make a block: all of them on a GPU."""
    if doubles(step.xp):
        return segment.k
    numbers: int = step.G * step.H * segment.n
    return max(1, BLOCK // max(1, numbers))


def forward(
    step: Step, segment: Segment, zx: Array, h: Array, y: Array, keep: str
) -> tuple[Array, Any]:
    """Run all steps of a segment.

    Parameters
    ----------
    step : Step
    segment : Segment
    zx : array (G, H, k, n)
        The products of x.
    h : array (H, n)
        The state before the first step.
    y : array (N, H)
        It takes h of every step.
    keep : {"nothing", "states", "all"}

    Returns
    -------
    h : array (H, n)
        The state after the last step.
    saved : NamedTuple or None
        As in `SegmentTape`.
    """
    xp = step.xp
    k = segment.k
    block = block_of(step, segment)
    saved: Any = None
    for start in range(0, k, block):
        stop = min(k, start + block)
        z = _ordered(xp, xp.permute_dims(zx[:, :, start:stop, :], (0, 2, 1, 3)))
        a, b, own = step.cell.coefficients(xp, z, **step.own)
        hs = scan(xp, a, b, h)  # (k, H, n)
        y[_rows(segment, start, stop), :] = reshape(xp.permute_dims(hs, (0, 2, 1)), (-1, step.H))
        if keep == "all":
            values = swapped(xp, step.cell.kept(own, a, hs))
            if saved is None:
                device = device_of(hs)
                saved = values._make(
                    None if v is None else xp.empty((k, *v.shape[1:]), dtype=v.dtype, device=device)
                    for v in values
                )
            for room, v in zip(saved[:-1], values[:-1], strict=True):
                if v is not None:
                    room[start:stop, ...] = v
            before = saved.scan_h0
            before[start, ...] = h
            before[start + 1 : stop, ...] = hs[:-1, ...]
        h = hs[-1, ...]
    return h, saved


def backward(
    step: Step,
    segment: Segment,
    steps: tuple[int, int],
    saved: Any,
    dy: Array | None,
    dend: Array,
    gradients: Gradients,
) -> Array:
    """Differentiate the steps from one to another, of which the cell saved `saved`, and `dend` is
    the gradient of the last h; return that of h before the first.
    """
    xp = step.xp
    start, stop = steps
    a = saved.scan_a
    dh = xp.zeros_like(a)
    if dy is not None:
        dh = _ordered(xp, xp.permute_dims(segment.steps(dy, start, stop), (0, 2, 1)))
    dh, dh0 = scan_bwd(xp, a, dh, dend)
    # (1) h = a h0 + b
    dz = step.cell.coefficients_bwd(xp, saved, dh * saved.scan_h0, dh, **step.own)
    rows = _rows(segment, start, stop)
    dz = xp.permute_dims(dz, (0, 2, 1, 3))  # (G, H, k, n), or with more rows than gates
    gradients.put("zx", rows, reshape(dz, (-1, rows.stop - rows.start)))
    return dh0


def _rows(segment: Segment, start: int, stop: int) -> slice:
    return slice(segment.at + start * segment.n, segment.at + stop * segment.n)


def _ordered(xp: Namespace, a: Array) -> Array:
    """Return an array whose numbers lie in the order of its axes: a step is together then."""
    flat = reshape(a, (-1,))
    return reshape(flat, a.shape)
