"""The gates of a run once more: from the states before every step they need no loop."""

from __future__ import annotations

from xlstm.arrays.backend import Array
from xlstm.engines.runs import reshape
from xlstm.recurrence.loop import Loop, project, swap
from xlstm.recurrence.parts import Part


def again(loop: Loop, x: Array, y: Array, part: Part, k: int) -> list[Array]:
    """What run k of a part keeps, of which it kept the carried states; x (N, D) and y (N, H) are those of the batch."""
    xp, run, carry = loop.xp, part.runs[k], part.kept[k]
    columns, shape = run.k * run.n, (-1, loop.H, run.k, run.n)
    inputs, _ = project(loop, reshape(xp, run.steps(xp, x, 0, run.k), (columns, x.shape[1])))
    before = xp.concat((part.starts[k].T[None, ...], run.steps(xp, y, 0, run.k - 1)))  # (k, n, H)
    through = loop.through(loop.Wh, reshape(xp, before, (columns, loop.P)).T)
    zx, zh = (xp.permute_dims(reshape(xp, z, shape), (0, 2, 1, 3)) for z in (inputs, through))  # (G, k, H, n)
    if loop.bh is not None:
        zh = zh + reshape(xp, loop.bh, (-1, 1, loop.H, 1))
    if loop.cell.SPLIT:
        *_, saved = loop.cell.gates(xp, zx, zh, xp.permute_dims(before, (0, 2, 1)), *carry)
    else:
        *_, saved = loop.cell.gates(xp, zx + zh, *carry, **loop.own)
    return [*carry, *(swap(xp, a) for a in saved)]
