"""The sLSTM block: projected up after the cell (Beck et al. 2024, section 2.4 and appendix A.4)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from xlstm.arrays import foreach
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Params
from xlstm.cells import slstm
from xlstm.cells.activations import silu, silu_bwd
from xlstm.engines import engine
from xlstm.engines.cell_step import Masks, Step
from xlstm.layers import initializers
from xlstm.layers.blocks.block import GatedFeedForward, MixerBlock, widened
from xlstm.layers.conv import CausalConv
from xlstm.layers.gated import Pass
from xlstm.layers.linear import HeadwiseLinear
from xlstm.layers.module import Weight, dropped
from xlstm.layers.norm import LayerNorm, MultiHeadNorm
from xlstm.layers.sequence import Derivatives, Leaf, SequenceLayer, State
from xlstm.recurrence.backward import run_bwd
from xlstm.recurrence.packing import Span


@dataclass(frozen=True)
class sLSTMBlock(MixerBlock):  # noqa: N801
    """A convolution and an sLSTM, then a feed-forward layer; the result of either is added to x.

    u = LayerNorm(x); c = silu(conv(u)); i~ and f~ are maps of c, z~ and o~ of u, by heads; x' = x + norm(sLSTM(i~, f~,
    z~, o~)); y = x' + feedforward(LayerNorm(x')). The state is ((x,), (h, c, n, m)): that of the convolution, then that
    of the sLSTM, in which each array is (B, D).

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads.
    conv_kernel_size : int
        Number of steps that the convolution sees; with 0 there is none, and i~ and f~ are maps of u.
    ffn_proj_factor : float
        The width of the feed-forward layer is this times D, rounded up to a multiple of 64; with 0 there is none.
    ffn_activation : str
        Activation of the `GatedFeedForward`.
    recurrent_init : {"zeros", "uniform"}
        Initial recurrent weights: 0 as in the published package, or U(-1/sqrt(D), 1/sqrt(D)).
    dropout : float
        Rate of dropout of the sLSTM's h.
    ffn_dropout : float, optional
        Rate of dropout of what the feed-forward layer adds, by default `dropout`.
    num_blocks, index : int
        The number of blocks in the stack and the place of this one, on which initial forget biases depend.
    """

    _: KW_ONLY
    ffn_proj_factor: float = 1.3
    ffn_activation: str = "gelu"
    recurrent_init: str = "zeros"
    ffn_dropout: float | None = None

    HEADED = ("size",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._wide  # noqa: B018 (this checks it)

    @property
    def _wide(self) -> int:
        """Width of the feed-forward layer."""
        return widened("sLSTMBlock", "ffn_proj_factor", self.ffn_proj_factor, self.size)

    @property
    def ffn_rate(self) -> float:
        return self.dropout if self.ffn_dropout is None else self.ffn_dropout

    @functools.cached_property
    def random(self) -> bool:
        return self.dropout > 0 or self.ffn_rate > 0

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        D, N = self.size, self.num_heads
        heads = HeadwiseLinear(D, N, std=self._small)
        found: dict[str, Any] = {"norm": LayerNorm(D, residual=True)}
        if self.conv_kernel_size:
            found["conv"] = CausalConv(D, self.conv_kernel_size)
        found |= dict.fromkeys("ifzo", heads)
        found["cell"] = Recurrence(D, N, self.recurrent_init, self.index / max(1, self.num_blocks - 1))
        found["outnorm"] = MultiHeadNorm(D, num_heads=N, residual=True)
        if self.ffn_proj_factor:
            found["ffn_norm"] = LayerNorm(D, residual=True)
            found["ffn"] = GatedFeedForward(D, self._wide, activation=self.ffn_activation, num_blocks=self.num_blocks)
        return found

    @functools.cached_property
    def states(self) -> State:
        return self.parts["conv"].states if self.conv_kernel_size else (), self.parts["cell"].states

    def mix(self, p: Params, u: Array, state: State, span: Span, kept: dict[str, Any]) -> tuple[Array, State]:
        xp = span.xp
        c = u
        conv_end: State = ()
        if self.conv_kernel_size:
            kept["cc"], conv_end = self.along("conv", p, u, state[0], span, kept)  # (1)
            kept["c"] = c = fuse(xp, silu, kept["cc"])  # (2)
        maps = [(self.below(g, p), c if g in "if" else u) for g in "ifzo"]
        gates, found = self.parts["i"].beside(xp, maps)  # (3)
        kept |= zip("ifzo", found, strict=True)
        h, end = self.along("cell", p, gates, state[1], span, kept)  # (4)
        h, kept["mask"] = self._drop(span.rng, h, self.dropout)  # (5)
        return self.through(xp, "outnorm", p, h, kept), (conv_end, end)  # (6)

    def mix_bwd(self, p: Params, kept: Any, dy: Array, dstate: Any, span: Span, grads: Params) -> tuple[Array, State]:
        xp, D = span.xp, self.size
        conv_end, cell_end = (None, None) if dstate is None else dstate
        dh = dropped(self.through_bwd(xp, "outnorm", p, kept, dy, grads), kept["mask"])  # (6) (5)
        dgates, cell_start = self.along_bwd("cell", p, kept, dh, cell_end, span, grads)  # (4)
        di, df, dz, do = (
            self.through_bwd(xp, g, p, kept, dgates[..., j * D : (j + 1) * D], grads) for j, g in enumerate("ifzo")
        )  # (3)
        dc, du, conv_start = di + df, dz + do, ()
        if self.conv_kernel_size:
            dcc = fuse(xp, silu_bwd, dc, kept["cc"], kept["c"])  # (2)
            dc, conv_start = self.along_bwd("conv", p, kept, dcc, conv_end, span, grads)  # (1)
        return du + dc, (conv_start, cell_start)


@dataclass(frozen=True)
class Recurrence(SequenceLayer):
    """The sLSTM from the products of x, i f z o, (T, B, 4D); parameters are `Wh` (4, N, K, K) and `b` (4D,).

    With `rounded` the products, `Wh` and all states are rounded to bfloat16, which takes float32.
    """

    size: int
    num_heads: int
    recurrent_init: str
    depth: float
    _: KW_ONLY
    forget_limit: float | None = None
    rounded: bool = False

    @functools.cached_property
    def cell(self) -> slstm.Cell:
        """The cell."""
        return (slstm.Rounded if self.rounded else slstm.Cell)(forget_limit=self.forget_limit)

    @property
    def input_size(self) -> int:
        return 4 * self.size

    @property
    def output_size(self) -> int:
        return self.size

    @property
    def weights(self) -> dict[str, Weight]:
        N, K = self.num_heads, self.size // self.num_heads
        Wh = {"4": 4, "N": N, "K": K, "K ": K}
        bound = 0.0 if self.recurrent_init == "zeros" else self.size**-0.5
        b = initializers.slstm_bias(N, K, initializers.powerlaw(K, self.depth))
        return {"Wh": (Wh, initializers.uniform(bound)), "b": ({"4D": 4 * self.size}, lambda rng, shape: b)}

    @functools.cached_property
    def states(self) -> State:
        pairs = zip(self.cell.STATES, self.cell.REST, strict=True)
        return tuple(Leaf(name, {}, {"D": self.size}, rest) for name, rest in pairs)

    @functools.cached_property
    def _engines(self) -> dict[Any, Any]:
        """The engines chosen before, which `engine.choose` fills in."""
        return {}

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        xp, packing = span.xp, span.packing
        if self.rounded:
            if x.dtype != xp.float32:
                raise TypeError(f"rounding: arrays are {x.dtype}, expected float32, which is rounded to bfloat16")
            x, p = slstm.to_bfloat16(xp, x), {**p, "Wh": slstm.to_bfloat16(xp, p["Wh"])}
        start = packing.sort(xp, [s.T for s in state])
        kept = "all" if span.keep else "nothing"
        step = Step(xp, self.cell, p, Masks())
        chosen = engine.choose(step, packing.widths, self._engines)
        h, packed_end, tape = chosen.forward(step, packing.pack(xp, x), start, packing.widths, kept)
        y, (end,) = packing.restore(xp, h, [packed_end])
        return y, tuple(foreach.copies(xp, [s.T for s in end])), Pass(packing, False, tape) if span.keep else None

    def scan_bwd(self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span) -> Derivatives:
        xp, packing = span.xp, span.packing
        if dstate is None:
            ends: Sequence[Array] = [xp.zeros_like(dy[0, ...]).T] * len(self.cell.STATES)
        else:
            ends = packing.sort(xp, [d.T for d in dstate])
        grads, dx, start = run_bwd(kept.tape, packing.pack(xp, dy), ends)
        dx, (start,) = packing.restore(xp, dx, [start])
        return grads, dx, tuple([d.T for d in start])
