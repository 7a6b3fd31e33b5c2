"""The plain recurrent cell of Elman 1990: h = act(Wx x + Wh h0 + b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells import cell


class Saved(NamedTuple):
    """The values that the backward pass needs."""

    h: Array
    z: Array | None  # pre-activation, if an option needs it


class Local(NamedTuple):
    """The local derivative of one step."""

    a: Array  # derivative of h with respect to its pre-activation (1, H, B)


@dataclass(frozen=True)
class Cell(cell.Summed):
    """A cell with one gate, whose activation is the new state."""

    activations: tuple[str, ...] = ("tanh",)
    clip: float | None = None

    GATES = ("h",)

    def gates(self, xp: Namespace, zx: Array, zh: Array, h0: Array) -> tuple[Array, Saved]:
        """Run one step: return h (H, B), from zx and zh (1, H, B)."""
        z = zx[0, ...] + zh[0, ...]  # (1) pre-activation
        h = self._activate(xp, 0, z)  # (1)
        return h, Saved(h, self._kept(z))

    def derivatives(self, xp: Namespace, saved: Saved) -> Local:
        """Return the local derivative: dz = a dh."""
        h, z = saved
        return Local(self._activate_bwd(xp, 0, xp.ones_like(h), z, h)[None, ...])  # (1)

    def gates_bwd(self, xp: Namespace, local: Local, dh: Array) -> tuple[Array, Array, None]:
        """Return dz (1, H, B), the gradient with respect to both zx and zh."""
        dz = local.a * dh  # (1)
        return dz, dz, None

    def activated(self, xp: Namespace, saved: Saved) -> Array:
        """Return the gate value (1, ...)."""
        return saved.h[None, ...]
