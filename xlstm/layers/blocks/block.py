"""The residual blocks of xLSTM: their options, and feed-forward layers: gated ones, y = (act(x G^T) * (x U^T)) D^T
(Dauphin et al. 2017; Shazeer 2020), and residual ones, y = act(x H^T) O^T + x R^T (Das et al. 2023)."""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.concat import concat
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.cells.activations import FEED_FORWARD
from xlstm.layers import initializers
from xlstm.layers.linear import Linear
from xlstm.layers.module import Module, SameWidth, Weight, dropout, dropped
from xlstm.layers.sequence import Derivatives, SequenceLayer, State
from xlstm.recurrence.packing import Span

MULTIPLE = 64  # inner widths are multiples of this


@dataclass(frozen=True)
class Block(SameWidth, SequenceLayer):
    """The base of the blocks of a stack; a block knows how many there are, and which of them it is."""

    size: int
    num_heads: int = 4
    _: KW_ONLY
    conv_kernel_size: int = 4
    dropout: float = 0.0
    num_blocks: int = 1
    index: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.index >= self.num_blocks:
            where = type(self).__name__
            raise ValueError(f"{where}: index is {self.index}, expected less than num_blocks, {self.num_blocks}")

    @functools.cached_property
    def random(self) -> bool:
        return self.dropout > 0

    @property
    def _small(self) -> float:
        """Standard deviation of initial weights (Nguyen & Salazar 2019)."""
        return math.sqrt(2 / (5 * self.size))

    @staticmethod
    def _drop(rng: np.random.Generator | None, y: Array, rate: float) -> tuple[Array, Array | None]:
        """Return y through a mask of dropout, and the mask, which is None where none is drawn."""
        mask = dropout(rng, rate, tuple(y.shape), y)
        return (y if mask is None else y * mask), mask


class MixerBlock(Block):
    """The base of blocks that mix time, and then have a feed-forward layer: x' = x + mix(norm(x)); y = x' +
    ffn(ffn_norm(x')).

    A subclass gives `mix` and `mix_bwd`, and the parts `norm`, `ffn_norm` and `ffn`; the last two may be missing.
    """

    @property
    def ffn_rate(self) -> float:
        """Rate of dropout of what the feed-forward layer adds."""
        return 0.0

    def mix(self, p: Params, u: Array, state: State, span: Span, kept: dict[str, Any]) -> tuple[Array, State]:
        """Return what is added to x, from its norm u, and the final state; `mix_bwd` needs what goes to `kept`."""
        raise NotImplementedError

    def mix_bwd(self, p: Params, kept: Any, dy: Array, dstate: Any, span: Span, grads: Params) -> tuple[Array, State]:
        """Return the gradients of u and of the initial state; those of parameters are added to `grads`."""
        raise NotImplementedError

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        kept: dict[str, Any] = {}
        x, end = self.over_time(p, x, state, span, kept)
        if not span.keep:
            kept.clear()
        return self.at_each_step(p, x, span, kept), end, kept

    def scan_bwd(self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span) -> Derivatives:
        grads: Params = {}
        dy = self.at_each_step_bwd(p, kept, dy, span, grads)
        du, start = self.mix_bwd(p, kept, dy, dstate, span, grads)  # (2)
        return grads, dy + self.through_bwd(span.xp, "norm", p, kept, du, grads), start  # (1)

    def over_time(self, p: Params, x: Array, state: State, span: Span, kept: dict[str, Any]) -> tuple[Array, State]:
        """Return x with what mixes time added, and the final state."""
        u = self.through(span.xp, "norm", p, x, kept)  # (1)
        m, end = self.mix(p, u, state, span, kept)  # (2)
        return x + m, end

    def at_each_step(self, p: Params, x: Array, span: Span, kept: dict[str, Any]) -> Array:
        """Return x with the feed-forward layer added, which looks at each step by itself."""
        xp = span.xp
        kept["ffn_mask"] = None
        if "ffn" not in self.parts:
            return x
        w = self.through(xp, "ffn", p, self.through(xp, "ffn_norm", p, x, kept), kept)  # (3)
        w, kept["ffn_mask"] = self._drop(span.rng, w, self.ffn_rate)  # (4)
        return x + w

    def at_each_step_bwd(self, p: Params, kept: Any, dy: Array, span: Span, grads: Params) -> Array:
        """Return the gradient of x from that of `at_each_step`."""
        xp = span.xp
        if "ffn" not in self.parts:
            return dy
        dw = self.through_bwd(xp, "ffn", p, kept, dropped(dy, kept["ffn_mask"]), grads)  # (4) (3)
        return dy + self.through_bwd(xp, "ffn_norm", p, kept, dw, grads)


class GatesOfHeads(Linear):
    """The pre-activations of the input and the forget gates of N heads, by `W` (2N, I) and `b` (2N,) in this order.

    At first W is 0, and b is drawn by `initializers.mlstm_bias`.
    """

    def __init__(self, input_size: int, num_heads: int) -> None:
        super().__init__(input_size, 2 * num_heads)

    @property
    def weights(self) -> dict[str, Weight]:
        found = super().weights
        b: Weight = found["b"][0], lambda rng, shape: initializers.mlstm_bias(rng, shape[0] // 2)
        return {"W": (found["W"][0], initializers.constant(0.0)), "b": b}


def widened(where: str, name: str, factor: float, size: int) -> int:
    """Return an inner width, `factor` times `size` rounded up to a multiple of 64; `name` is that of the factor.

    Raises
    ------
    ValueError
        The width is larger than any size may be.
    """
    if factor * size > checks.LARGEST:
        raise ValueError(f"{where}: {name} is {factor}, expected at most {checks.LARGEST / size:g} for size {size}")
    return max(MULTIPLE, round_up(factor * size, MULTIPLE))  # for a tiny factor the product rounds to 0


def round_up(size: float, multiple: int) -> int:
    """Return the least multiple of `multiple` that is at least `size`."""
    return multiple * math.ceil(size / multiple)


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
