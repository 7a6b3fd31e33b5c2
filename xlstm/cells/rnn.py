"""The plain recurrent cell of Elman 1990: h = act(Wx x + Wh h0 + b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xlstm.arrays.backend import Array, Namespace
from xlstm.cells.activations import clamp, clamp_bwd
from xlstm.cells.options import Options


@dataclass(frozen=True)
class Cell(Options):
    """One gate, its activation the new state. Layout and slopes are as in `cells/lstm.py`."""

    activations: tuple[str, ...] = ("tanh",)
    clip: float | None = None

    GATES = ("h",)
    STATES = ("h",)
    SPLIT = False
    INNER = False

    def gates(self, xp: Namespace, z: Array) -> tuple[Array, tuple[Array, ...]]:
        """One step from pre-activations z (1, H, B): h (H, B) and what backward needs."""
        h = self._pairs[0].fwd(xp, z[0, ...] if self.clip is None else clamp(xp, z[0, ...], self.clip))  # (1)
        return h, (h,) if self.clip is None and not self._pairs[0].from_input else (h, z)

    def slopes(self, xp: Namespace, saved: Sequence[Array]) -> tuple[Array, ...]:
        """Coefficient: dz = a dh."""
        h, *pre = saved
        (x,) = self._rows(xp, pre[0] if pre else None, 0)
        a = self._pairs[0].bwd(xp, xp.ones_like(h), x, h)[None, ...]  # (1)
        return (a if self.clip is None else clamp_bwd(xp, a, pre[0], self.clip),)

    def gates_bwd(self, xp: Namespace, dh: Array, slopes: Sequence[Array]) -> tuple[Array]:
        """Gradient dz (1, H, B) from dh (H, B)."""
        return (slopes[0] * dh,)

    def activated(self, xp: Namespace, saved: Sequence[Array]) -> Array:
        """The gate value (1, ...)."""
        return saved[0][None, ...]
