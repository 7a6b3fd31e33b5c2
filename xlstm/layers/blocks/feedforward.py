"""Feed-forward layers: gated ones, y = (act(x G^T) * (x U^T)) D^T (Dauphin et al. 2017; Shazeer 2020), and residual
ones, y = act(x H^T) O^T + x R^T (Das et al. 2023)."""

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


@dataclass(frozen=True)
class ResidualFeedForward(Module):
    """A feed-forward layer beside a linear one: y = output(act(hidden(x))) + residual(x), all three with biases.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        Widths I, U and O. Parameters are `hidden.W` (U, I), `output.W` (O, U), `residual.W` (O, I), and as many `b`.
    activation : {"gelu", "silu", "relu", "square_relu", "sigmoid", "selu"}
    """

    input_size: int
    hidden_size: int
    output_size: int
    _: KW_ONLY
    activation: str = "relu"

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        I, U, O = self.input_size, self.hidden_size, self.output_size  # noqa: E741
        return {"hidden": Linear(I, U), "output": Linear(U, O), "residual": Linear(I, O)}

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        kept: dict[str, Any] = {}
        z = self.through(xp, "hidden", p, x, kept)  # (1)
        a = fuse(xp, FEED_FORWARD[self.activation].fwd, z)  # (2)
        y = self.through(xp, "output", p, a, kept)  # (3)
        y += self.through(xp, "residual", p, x, kept)  # (4)
        return y, {**kept, "z": z, "a": a}

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Array]:
        grads: Params = {}
        dx = self.through_bwd(xp, "residual", p, kept, dy, grads)  # (4)
        da = self.through_bwd(xp, "output", p, kept, dy, grads)  # (3)
        dz = fuse(xp, FEED_FORWARD[self.activation].bwd, da, kept["z"], kept["a"])  # (2)
        dx += self.through_bwd(xp, "hidden", p, kept, dz, grads)  # (1)
        return grads, dx


def _gated(xp: Namespace, gate: Array, value: Array, activation: str) -> tuple[Array, Array]:
    a = FEED_FORWARD[activation].fwd(xp, gate)
    return a, a * value


def _gated_bwd(xp: Namespace, du: Array, gate: Array, value: Array, a: Array, activation: str) -> tuple[Array, Array]:
    """Return the gradients of the gate and of the value."""
    return FEED_FORWARD[activation].bwd(xp, du * value, gate, a), du * a
