"""The mLSTM block: projected up before the cell (Beck et al. 2024, section 2.4 and appendix A.4)."""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Params
from xlstm.cells.activations import silu, silu_bwd
from xlstm.layers.blocks import Block, GatesOfHeads, masked, widened
from xlstm.layers.conv import CausalConv
from xlstm.layers.linear import HeadwiseLinear, Linear
from xlstm.layers.memory import Memory
from xlstm.layers.norm import LayerNorm, MultiHeadNorm
from xlstm.layers.part import Values, total
from xlstm.layers.sequence import Span, State

OPTIONS: dict[str, checks.Kind] = {
    "proj_factor": checks.above_0,
    "qkv_block_size": checks.size,
    "bias": checks.flag,
    "eps": checks.non_negative,
    "chunk_size": checks.optional(checks.size),
}


@dataclass(frozen=True)
class mLSTMBlock(Block):  # noqa: N801
    """Projects up, convolves, remembers in matrices, and projects down; y = x + that.

    x -> LayerNorm -> up -> (a, z); c = silu(conv(a)); q, k of c and v of a, by blocks; i~, f~ of [q, k, v];
    h = mLSTM(q, k, v, i~, f~); y = x + down((norm(h) + skip c) silu(z)). The state is ((x,), (C, n, m)), of the
    convolution and of the memories.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads.
    conv_kernel_size : int
        Steps that the convolution sees.
    proj_factor : float
        The inner width F is this times D, rounded up to a multiple of 64.
    qkv_block_size : int
        Width of the blocks that q, k and v are projected in.
    bias : bool
        Whether the projections up, down, and to q, k and v have biases.
    eps : float
        Added to the denominator of h; the published package has 1e-6.
    chunk_size : int, optional
        Steps that are computed together, by default by the width of heads; it changes the speed, and results by
        rounding only.
    dropout : float
        Rate of dropout of what is added to x.
    num_blocks, index : int
        How many blocks there are in the stack, for initial weights, and which this is.
    """

    _: KW_ONLY
    proj_factor: float = 2.0
    qkv_block_size: int = 4
    bias: bool = False
    eps: float = 0.0
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "mLSTMBlock"
        checks.fields(self, **OPTIONS, conv_kernel_size=checks.size)
        checks.heads(where, self.num_heads, inner=self.inner)
        if self.inner % self.qkv_block_size:
            raise ValueError(
                f"{where}: qkv_block_size is {self.qkv_block_size}, expected a divisor of the inner width, {self.inner}"
            )

    @property
    def inner(self) -> int:
        """The inner width F."""
        return widened("mLSTMBlock", "proj_factor", self.proj_factor, self.size)

    @functools.cached_property
    def memory(self) -> Memory:
        """The heads."""
        K = self.inner // self.num_heads
        return Memory(self.num_heads, K, K, eps=self.eps, chunk=self.chunk_size)

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """What has parameters, in the order of use."""
        D, F, N, std = self.size, self.inner, self.num_heads, self._small
        heads = HeadwiseLinear(F, F // self.qkv_block_size, bias=self.bias, std=std)
        return {
            "norm": LayerNorm(D, residual=True),
            "up": Linear(D, 2 * F, bias=self.bias, std=std),
            "conv": CausalConv(F, self.conv_kernel_size),
            "q": heads,
            "k": heads,
            "v": heads,
            "gates": GatesOfHeads(3 * F, N),
            "outnorm": MultiHeadNorm(F, num_heads=N, residual=True),
            "down": Linear(F, D, bias=self.bias, std=2 / (self.num_blocks * math.sqrt(D))),
        }

    @property
    def _own(self) -> dict[str, checks.Dims]:
        return {"skip": {"F": self.inner}}

    def _draw_own(self, rng: np.random.Generator) -> Values:
        return {"skip": np.ones(self.inner)}

    def states(self, B: int | None) -> State:
        """Of the convolution and of the memories."""
        return self.parts["conv"].states(B), self.memory.states(B)

    def run(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        """x (T, B, D) -> y (T, B, D)."""
        xp, rng, keep = span.xp, span.rng, span.keep
        u, norm = self.through(xp, "norm", p, x)  # (1)
        az, up = self.through(xp, "up", p, u)  # (2)
        a, z = az[..., : self.inner], az[..., self.inner :]
        cc, conv_state, conv = self.parts["conv"].run(self.below("conv", p), a, state[0], span)  # (3)
        c = silu(xp, cc)  # (4)
        q, _ = self.through(xp, "q", p, c)  # (5)
        k, _ = self.through(xp, "k", p, c)
        v, _ = self.through(xp, "v", p, a)
        gates, at_gates = self.through(xp, "gates", p, xp.concat((q, k, v), axis=-1))  # (6)
        i, f = gates[..., : self.num_heads], gates[..., self.num_heads :]
        h, memory_state, memory = self.memory.run(q, k, v, i, f, state[1], span)  # (7)
        n, outnorm = self.through(xp, "outnorm", p, h)  # (8)
        s = n + p["skip"] * c  # (9)
        g = silu(xp, z)
        y, down = self.through(xp, "down", p, s * g)  # (10)
        y, mask = self._dropped(xp, rng, y, self.dropout)
        end = (conv_state, memory_state)
        if not keep:
            return x + y, end, None
        return x + y, end, SavedM(norm, up, a, z, conv, cc, c, at_gates, memory, outnorm, s, g, down, mask)

    def run_bwd(
        self, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """dy (T, B, D) -> gradients, dx (T, B, D) and that of the initial state."""
        xp = span.xp
        grads: Params = {}
        conv_end, memory_end = (None, None) if dstate is None else dstate
        c, g = saved.c, saved.g
        dsg = self.through_bwd(xp, "down", p, saved.down, masked(dy, saved.mask), grads)  # (10)
        dz = silu_bwd(xp, dsg * saved.s, saved.z, g)
        dn = dsg * g  # (9)
        grads["skip"] = total(xp, dn * c)
        dc = dn * p["skip"]
        dh = self.through_bwd(xp, "outnorm", p, saved.outnorm, dn, grads)  # (8)
        (dq, dk, dv, di, df), memory_start = self.memory.run_bwd(saved.memory, dh, memory_end, span)  # (7)
        dqkv = self.through_bwd(xp, "gates", p, saved.at_gates, xp.concat((di, df), axis=-1), grads)  # (6)
        F = self.inner
        dq += dqkv[..., :F]
        dk += dqkv[..., F : 2 * F]
        dv += dqkv[..., 2 * F :]
        dc += self.through_bwd(xp, "q", p, c, dq, grads)  # (5)
        dc += self.through_bwd(xp, "k", p, c, dk, grads)
        da = self.through_bwd(xp, "v", p, saved.a, dv, grads)
        found, more, conv_start = self.parts["conv"].run_bwd(  # (3) (4)
            self.below("conv", p), saved.conv, silu_bwd(xp, dc, saved.cc, c), conv_end, span
        )
        self.collect("conv", found, grads)
        du = self.through_bwd(xp, "up", p, saved.up, xp.concat((da + more, dz), axis=-1), grads)  # (2)
        dx = dy + self.through_bwd(xp, "norm", p, saved.norm, du, grads)  # (1)
        return grads, dx, (conv_start, memory_start)


class SavedM(NamedTuple):
    """What an mLSTM block keeps."""

    norm: Any
    up: Any
    a: Array
    z: Array
    conv: Any
    cc: Array
    c: Array
    at_gates: Any
    memory: Any
    outnorm: Any
    s: Array
    g: Array
    down: Any
    mask: Array | None
