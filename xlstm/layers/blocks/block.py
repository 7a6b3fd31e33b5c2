"""The options and helpers that all residual blocks of xLSTM share."""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Params
from xlstm.layers import initializers
from xlstm.layers.linear import Linear
from xlstm.layers.masks import dropout
from xlstm.layers.module import SameWidth, Weight, dropped
from xlstm.layers.sequence import SequenceLayer
from xlstm.layers.state import Span, State

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

    def mix_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span, grads: Params
    ) -> tuple[Array, State]:
        """Return the gradients of u and of the initial state; those of parameters are added to `grads`."""
        raise NotImplementedError

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        kept: dict[str, Any] = {}
        x, end = self.over_time(p, x, state, span, kept)
        if not span.keep:
            kept.clear()
        return self.at_each_step(p, x, span, kept), end, kept

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
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
