"""Gated feed-forward layers, y = (act(x G^T) * (x U^T)) D^T (Dauphin et al. 2017; Shazeer 2020)."""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from xlstm.arrays.concat import concat
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.cells.activations import FEED_FORWARD
from xlstm.layers.linear import Linear
from xlstm.layers.module import Module, SameWidth


@dataclass(frozen=True)
class GatedFeedForward(SameWidth, Module):
    """A gated feed-forward layer: GEGLU with "gelu", SwiGLU with "silu".

    Two products of x are multiplied, which overflows where both are beyond the square root of the dtype's largest
    number.

    Parameters
    ----------
    size : int
        Width D of x and y.
    hidden_size : int
        Width U in between. Parameters are `up.W` (2U, D), rows of the gate first, and `down.W` (D, U).
    activation : {"gelu", "silu", "relu", "square_relu", "sigmoid", "selu"}
        Activation of the gate.
    bias : bool
        Whether there are `up.b` and `down.b`.
    num_blocks : int
        Initial weights of `down` are N(0, 4 / (num_blocks^2 D)), those of `up` N(0, 2 / (5 D)).
    """

    size: int
    hidden_size: int
    _: KW_ONLY
    activation: str = "gelu"
    bias: bool = False
    num_blocks: int = 1

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        D, U = self.size, self.hidden_size
        narrow = 2 / (self.num_blocks * math.sqrt(D))
        return {
            "up": Linear(D, 2 * U, bias=self.bias, std=math.sqrt(2 / (5 * D))),
            "down": Linear(U, D, bias=self.bias, std=narrow),
        }

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        kept: dict[str, Any] = {}
        z = self.through(xp, "up", p, x, kept)  # (1)
        gate, value = z[..., : self.hidden_size], z[..., self.hidden_size :]
        a, u = fuse(xp, _gated, gate, value, activation=self.activation)  # (2)
        y = self.through(xp, "down", p, u, kept)  # (3)
        return y, {**kept, "gate": gate, "value": value, "a": a}

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Array]:
        grads: Params = {}
        du = self.through_bwd(xp, "down", p, kept, dy, grads)  # (3)
        one = (kept[name] for name in ("gate", "value", "a"))
        dz = concat(xp, fuse(xp, _gated_bwd, du, *one, activation=self.activation), -1)  # (2)
        return grads, self.through_bwd(xp, "up", p, kept, dz, grads)  # (1)


def _gated(xp: Namespace, gate: Array, value: Array, activation: str) -> tuple[Array, Array]:
    a = FEED_FORWARD[activation].fwd(xp, gate)
    return a, a * value


def _gated_bwd(xp: Namespace, du: Array, gate: Array, value: Array, a: Array, activation: str) -> tuple[Array, Array]:
    """Return the gradients of the gate and of the value."""
    return FEED_FORWARD[activation].bwd(xp, du * value, gate, a), du * a
