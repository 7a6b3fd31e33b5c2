"""The options around a cell: recurrent dropout, normalisation of the product of h, projection of h, and zoneout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xlstm.arrays.matmul import product
from xlstm.arrays.namespace import Array, Params
from xlstm.cells.normalization import layer_norm, layer_norm_bwd
from xlstm.engines.segments import Segment, reshape
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients


class Options:
    """The steps of one segment with their options; `ArrayApi` has the steps without any."""

    def __init__(self, step: Step, segment: Segment) -> None:
        self.step, self.segment, self.xp = step, segment, step.xp
        self.gh = step.w["gh"][:, None] if "gh" in step.w else None
        self.drop = step.masks.drop
        self.own: Params = step.own
        if self.drop is not None:
            self.drop = self.drop[:, : segment.n]
            if "drop" in step.cell.OWN:
                self.own = {**step.own, "drop": self.drop}

    def forward(
        self, t: int, W: Array, zx: Array, state: Sequence[Array]
    ) -> tuple[list[Array], Any, tuple[Array, ...], tuple[Array, ...]]:
        """Return the state after step t, what the cell saved, the product of h normalised, and h before projection."""
        step, xp = self.step, self.xp
        h = state[0] if self.drop is None else state[0] * self.drop
        normal: tuple[Array, ...] = ()
        if self.gh is None:
            zh = step.recur(W, h)
        else:
            zh, normal = layer_norm(xp, reshape(product(xp, W, h), (step.R, h.shape[1])), self.gh, 0)
            zh = reshape(zh if step.bh is None else zh + step.bh[:, None], (step.R // step.H, step.H, h.shape[1]))
        h, *carry, saved = step.cell.gates(xp, zx, zh, *state, **self.own)
        out: tuple[Array, ...] = ()
        if step.Whr is not None:
            out, h = (h,), product(xp, step.Whr, h)
        new = [h, *carry]
        if step.zoneout:
            new = [b if s is None else s * a + (1 - s) * b for a, b, s in zip(state, new, self._shares(t), strict=True)]
        return new, saved, normal, out

    def backward(
        self, t: int, WT: Array, local: Any, dstate: Sequence[Array], normal: Sequence[Array], found: Gradients
    ) -> list[Array]:
        """Return the gradient of the state before step t from that of the state after it; the rest goes to `found`."""
        step, xp, rows = self.step, self.xp, self.segment.rows(t)
        direct: list[Array | None] = [None] * len(dstate)  # what zoneout lets through to the old state
        if step.zoneout:
            direct = [None if s is None else s * d for d, s in zip(dstate, self._shares(t), strict=True)]
            dstate = [d if kept is None else d - kept for d, kept in zip(dstate, direct, strict=True)]
        dh, *dcarry = dstate
        if step.Whr is not None:
            found.put("out", rows, dh)
            dh = product(xp, step.Whr.T, dh)
        dzx, dzh, dh0, *dcarry = step.cell.gates_bwd(xp, local, dh, *dcarry, **self.own)
        da = found.put_products(rows, dzx, dzh)
        if self.gh is not None:
            da = found.put("a", rows, layer_norm_bwd(xp, da, self.gh, normal[0], normal[1], 0))
        dh = step.recur_bwd(WT, da)
        if self.drop is not None:
            dh = dh * self.drop
        if dh0 is not None:
            dh = dh + dh0
        return [d if kept is None else d + kept for d, kept in zip((dh, *dcarry), direct, strict=True)]

    def _shares(self, t: int) -> list[Any]:
        rows = self.segment.rows(t)
        return [s if s is None or isinstance(s, float) else s[rows, :].T for s in self.step.masks.zoneout]
