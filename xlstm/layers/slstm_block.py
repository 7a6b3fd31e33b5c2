"""The sLSTM block: projected up after the cell (Beck et al. 2024, section 2.4 and appendix A.4)."""

from __future__ import annotations

import functools
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Params
from xlstm.cells import slstm
from xlstm.cells.activations import FEED_FORWARD, silu, silu_bwd
from xlstm.engines.step import Masks
from xlstm.layers import initializers
from xlstm.layers.blocks import Block, masked, widened
from xlstm.layers.conv import CausalConv
from xlstm.layers.feedforward import GatedFeedForward
from xlstm.layers.linear import HeadwiseLinear
from xlstm.layers.norm import LayerNorm, MultiHeadNorm
from xlstm.layers.part import Values
from xlstm.layers.sequence import Leaf, Sequence, Span, State
from xlstm.recurrence.backward import run_bwd
from xlstm.recurrence.forward import run

OPTIONS: dict[str, checks.Kind] = {
    "ffn_proj_factor": checks.non_negative,
    "ffn_activation": checks.choice(FEED_FORWARD),
    "recurrent_init": checks.choice(("zeros", "uniform")),
    "ffn_dropout": checks.optional(checks.rate),
}


@dataclass(frozen=True)
class sLSTMBlock(Block):  # noqa: N801
    """Convolves, goes through an sLSTM and through a feed-forward layer; each adds to x.

    u = LayerNorm(x); c = silu(conv(u)); i~, f~ of c and z~, o~ of u, by heads; x' = x + norm(sLSTM(i~, f~, z~, o~));
    y = x' + feedforward(LayerNorm(x')). The state is ((x,), (h, c, n, m)), of the convolution and of the sLSTM, each
    of the latter (B, D).

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads.
    conv_kernel_size : int
        Steps that the convolution sees; with 0 there is none, and i~ and f~ are those of u.
    ffn_proj_factor : float
        The width of the feed-forward layer is this times D, rounded up to a multiple of 64; with 0 there is none.
    ffn_activation : str
        Of `GatedFeedForward`.
    recurrent_init : {"zeros", "uniform"}
        Initial recurrent weights: 0 as in the published package, or U(-1/sqrt(D), 1/sqrt(D)).
    dropout : float
        Rate of dropout of the sLSTM's h.
    ffn_dropout : float, optional
        Rate of dropout of what the feed-forward layer adds, by default `dropout`.
    num_blocks, index : int
        How many blocks there are in the stack, and which this is, for initial forget biases.
    """

    _: KW_ONLY
    ffn_proj_factor: float = 1.3
    ffn_activation: str = "gelu"
    recurrent_init: str = "zeros"
    ffn_dropout: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.heads("sLSTMBlock", self.num_heads, size=self.size)
        checks.fields(self, **OPTIONS)
        self._wide  # noqa: B018 (it is checked)

    @property
    def _wide(self) -> int:
        """Width of the feed-forward layer."""
        return widened("sLSTMBlock", "ffn_proj_factor", self.ffn_proj_factor, self.size)

    @property
    def _ffn_rate(self) -> float:
        return self.dropout if self.ffn_dropout is None else self.ffn_dropout

    @property
    def random(self) -> bool:
        """Whether `forward` draws masks while training, and so needs a seed."""
        return self.dropout > 0 or self._ffn_rate > 0

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """What has parameters, in the order of use."""
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

    def states(self, B: int | None) -> State:
        """Of the convolution, if there is one, and of the sLSTM."""
        conv = self.parts["conv"].states(B) if self.conv_kernel_size else ()
        return conv, self.parts["cell"].states(B)

    def run(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        """x (T, B, D) -> y (T, B, D)."""
        xp, rng, keep = span.xp, span.rng, span.keep
        u, norm = self.through(xp, "norm", p, x)  # (1)
        conv_state, conv, cc, c = (), None, None, u
        if self.conv_kernel_size:
            cc, conv_state, conv = self.parts["conv"].run(self.below("conv", p), u, state[0], span)  # (2)
            c = silu(xp, cc)
        gates = xp.concat([self.through(xp, g, p, c if g in "if" else u)[0] for g in "ifzo"], axis=-1)  # (3)
        h, end, cell = self.parts["cell"].run(self.below("cell", p), gates, state[1], span)  # (4)
        h, mask = self._dropped(xp, rng, h, self.dropout)
        n, outnorm = self.through(xp, "outnorm", p, h)  # (5)
        y = x + n
        ffn_norm = ffn = ffn_mask = None
        if self.ffn_proj_factor:
            v, ffn_norm = self.through(xp, "ffn_norm", p, y)  # (6)
            w, ffn = self.through(xp, "ffn", p, v)  # (7)
            w, ffn_mask = self._dropped(xp, rng, w, self._ffn_rate)
            y = y + w
        state = (conv_state, end)
        if not keep:
            return y, state, None
        return y, state, SavedS(norm, u, conv, cc, c, cell, mask, outnorm, ffn_norm, ffn, ffn_mask)

    def run_bwd(
        self, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """dy (T, B, D) -> gradients, dx (T, B, D) and that of the initial state."""
        xp = span.xp
        grads: Params = {}
        conv_end, cell_end = (None, None) if dstate is None else dstate
        if self.ffn_proj_factor:
            dv = self.through_bwd(xp, "ffn", p, saved.ffn, masked(dy, saved.ffn_mask), grads)  # (7)
            dy = dy + self.through_bwd(xp, "ffn_norm", p, saved.ffn_norm, dv, grads)  # (6)
        dh = masked(self.through_bwd(xp, "outnorm", p, saved.outnorm, dy, grads), saved.mask)  # (5)
        found, dgates, cell_start = self.parts["cell"].run_bwd(
            self.below("cell", p), saved.cell, dh, cell_end, span
        )  # (4)
        self.collect("cell", found, grads)
        D = self.size
        di, df, dz, do = (dgates[..., j * D : (j + 1) * D] for j in range(4))
        dc = self.through_bwd(xp, "i", p, saved.c, di, grads)  # (3)
        dc += self.through_bwd(xp, "f", p, saved.c, df, grads)
        du = self.through_bwd(xp, "z", p, saved.u, dz, grads)
        du += self.through_bwd(xp, "o", p, saved.u, do, grads)
        conv_start: State = ()
        if self.conv_kernel_size:
            found, dc, conv_start = self.parts["conv"].run_bwd(  # (2)
                self.below("conv", p), saved.conv, silu_bwd(xp, dc, saved.cc, saved.c), conv_end, span
            )
            self.collect("conv", found, grads)
        dx = dy + self.through_bwd(xp, "norm", p, saved.norm, du + dc, grads)  # (1)
        return grads, dx, (conv_start, cell_start)


class SavedS(NamedTuple):
    """What an sLSTM block keeps."""

    norm: Any
    u: Array
    conv: Any
    cc: Array | None
    c: Array
    cell: Any
    mask: Array | None
    outnorm: Any
    ffn_norm: Any
    ffn: Any
    ffn_mask: Array | None


@dataclass(frozen=True)
class Recurrence(Sequence):
    """The sLSTM from its pre-activations, i f z o, (T, B, 4D): parameters are `Wh` (4, N, K, K) and `b` (4D,)."""

    size: int
    num_heads: int
    recurrent_init: str
    depth: float

    CELL = slstm.Cell()

    @property
    def input_size(self) -> int:
        """Width of x."""
        return 4 * self.size

    @property
    def _own(self) -> dict[str, checks.Dims]:
        K = self.size // self.num_heads
        return {"Wh": {"4": 4, "N": self.num_heads, "K": K, "K ": K}, "b": {"4D": 4 * self.size}}

    def _draw_own(self, rng: np.random.Generator) -> Values:
        N, K = self.num_heads, self.size // self.num_heads
        bound = 0.0 if self.recurrent_init == "zeros" else self.size**-0.5
        b = initializers.slstm_bias(N, K, initializers.powerlaw(K, self.depth))
        return {"Wh": rng.uniform(-bound, bound, (4, N, K, K)), "b": b}

    def states(self, B: int | None) -> State:
        """h, c, n and m."""
        dims = {"B": B, "D": self.size}
        return tuple(Leaf(name, dims, rest) for name, rest in zip(self.CELL.STATES, self.CELL.REST, strict=True))

    def run(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        """x (T, B, 4D) -> h (T, B, D)."""
        xp, keep = span.xp, span.keep
        packing = span.packing
        start = [packing.sort(xp, s.T) for s in state]
        kept = "all" if keep else "nothing"
        h, end, tape = run(xp, self.CELL, p, packing.pack(xp, x), packing.widths, start, Masks(), kept)
        end = tuple(xp.asarray(packing.unsort(xp, s).T, copy=True) for s in end)
        return packing.unpack(xp, h), end, tape

    def run_bwd(
        self, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """dh (T, B, D) -> gradients, dx (T, B, 4D) and that of the initial state."""
        xp = span.xp
        packing = span.packing
        if dstate is None:
            ends = [xp.zeros_like(dy[0, ...]).T] * len(self.CELL.STATES)
        else:
            ends = [packing.sort(xp, d.T) for d in dstate]
        grads, dx, start = run_bwd(saved, packing.pack(xp, dy), ends)
        return grads, packing.unpack(xp, dx), tuple(packing.unsort(xp, d).T for d in start)
