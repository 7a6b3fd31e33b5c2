"""The residual blocks of TiRex-1 and TiRex-2."""

from __future__ import annotations

import functools
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from xlstm.arrays.namespace import Array, Params
from xlstm.layers.blocks.block import MixerBlock
from xlstm.layers.blocks.feedforward import GatedFeedForward
from xlstm.layers.blocks.large import LargeBlock
from xlstm.layers.blocks.slstm import Recurrence, sLSTMBlock
from xlstm.layers.linear import HeadwiseLinear, Linear
from xlstm.layers.norm import MultiHeadNorm, RMSNorm
from xlstm.layers.state import Span, State, complete
from xlstm.models.tirex.variates import NORM_EPS, VariateMixer, put, take
from xlstm.recurrence.packing import Packing


@dataclass(frozen=True)
class TiRexBlock(sLSTMBlock):
    """An sLSTM without a convolution, and a feed-forward layer (SwiGLU), each after an RMSNorm and added to x.

    Parameters
    ----------
    ffn_size : int
        Width of the feed-forward layer.
    head_eps : float
        Number that the norm of heads adds to their variance.
    head_residual : bool
        Whether the gain of that norm is 1 + w.
    forget_limit : float, optional
        Bound of the pre-activation of the forget gate.
    rounded : bool
        Whether the sLSTM rounds to bfloat16.
    """

    conv_kernel_size: int = 0
    _: KW_ONLY
    ffn_size: int
    head_eps: float
    head_residual: bool
    forget_limit: float | None = None
    rounded: bool = False

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        D, N = self.size, self.num_heads
        norm = RMSNorm(D, eps=NORM_EPS)
        depth = self.index / max(1, self.num_blocks - 1)
        cell = Recurrence(D, N, self.recurrent_init, depth, forget_limit=self.forget_limit, rounded=self.rounded)
        return {
            "norm": norm,
            **dict.fromkeys("ifzo", HeadwiseLinear(D, N, std=self._small)),
            "cell": cell,
            "outnorm": MultiHeadNorm(D, num_heads=N, eps=self.head_eps, residual=self.head_residual),
            "ffn_norm": norm,
            "ffn": GatedFeedForward(D, self.ffn_size, activation="silu", num_blocks=self.num_blocks),
        }


class Multivariate(MixerBlock if TYPE_CHECKING else object):  # type: ignore[misc]
    """A mixin for the blocks of TiRex-2: rows whose future is known are mixed in both directions of time, and rows that
    belong together by a `VariateMixer` after the feed-forward layer.

    In the reverse direction the same layer runs, from rest, and `combination.W` (D, 2D) joins both.
    """

    if TYPE_CHECKING:
        variate_heads: int
        activation: str
        qk_norm: bool

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        D = self.size
        mixer = VariateMixer(D, self.variate_heads, activation=self.activation, qk_norm=self.qk_norm)
        both = Linear(2 * D, D, bias=False, std=self._small)
        return {**super().parts, "combination": both, "mixer": mixer}

    def at_each_step(self, p: Params, x: Array, span: Span, kept: dict[str, Any]) -> Array:
        x = super().at_each_step(p, x, span, kept)
        return self.along("mixer", p, x, (), span, kept)[0]

    def at_each_step_bwd(self, p: Params, kept: Any, dy: Array, span: Span, grads: Params) -> Array:
        dy, _ = self.along_bwd("mixer", p, kept, dy, None, span, grads)
        return super().at_each_step_bwd(p, kept, dy, span, grads)

    def mix(self, p: Params, u: Array, state: State, span: Span, kept: dict[str, Any]) -> tuple[Array, State]:
        y, end = super().mix(p, u, state, span, kept)
        if span.groups is None or not len(span.groups.known):
            return y, end
        xp, known = span.xp, span.groups.known
        back, kept["reverse"] = self._reverse(span), {}
        rest = complete("", xp, "state", None, self.states, back.B, p)
        r, _ = super().mix(p, xp.flip(take(xp, u, known), axis=0), rest, back, kept["reverse"])  # (1)
        both = xp.concat((take(xp, y, known), xp.flip(r, axis=0)), axis=-1)  # (2)
        return put(xp, y, self.through(xp, "combination", p, both, kept), known), end  # (3)

    def mix_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span, grads: Params
    ) -> tuple[Array, State]:
        xp = span.xp
        if "reverse" not in kept:
            grads["combination.W"] = xp.zeros_like(p["combination.W"])
            du, start = super().mix_bwd(p, kept, dy, dstate, span, grads)
            return du, start
        known = span.groups.known
        dboth = self.through_bwd(xp, "combination", p, kept, take(xp, dy, known), grads)  # (3)
        dy = put(xp, dy, dboth[..., : self.size], known)  # (2)
        du, start = super().mix_bwd(p, kept, dy, dstate, span, grads)
        again: Params = {}
        dr = xp.flip(dboth[..., self.size :], axis=0)  # (2)
        dr, _ = super().mix_bwd(p, kept["reverse"], dr, None, self._reverse(span), again)  # (1)
        for name, g in again.items():
            grads[name] = grads[name] + g
        return put(xp, du, take(xp, du, known) + xp.flip(dr, axis=0), known), start  # (1)

    def _reverse(self, span: Span) -> Span:
        """Return the span of the rows whose future is known."""
        return Span(span.xp, Packing.of("", None, span.T, len(span.groups.known)), keep=span.keep)


@dataclass(frozen=True)
class sLSTMVariates(Multivariate, TiRexBlock):  # noqa: N801
    """The block of TiRex-2 with an sLSTM."""

    _: KW_ONLY
    variate_heads: int
    activation: str
    qk_norm: bool


@dataclass(frozen=True)
class mLSTMVariates(Multivariate, LargeBlock):  # noqa: N801
    """The block of TiRex-2 with an mLSTM, that of the xLSTM 7B architecture."""

    _: KW_ONLY
    variate_heads: int
    activation: str
    qk_norm: bool
