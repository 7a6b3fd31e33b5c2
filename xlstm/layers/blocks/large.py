"""The architecture of the xLSTM 7B paper: blocks and stack."""

from __future__ import annotations

import itertools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.concat import concat
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, add_over
from xlstm.cells.activations import soft_cap, soft_cap_bwd
from xlstm.layers.blocks.block import (
    MULTIPLE,
    Backbone,
    Block,
    GatedFeedForward,
    GatesOfHeads,
    round_up,
)
from xlstm.layers.linear import Linear
from xlstm.layers.matrix_memory import MatrixMemory, gated, gated_bwd
from xlstm.layers.module import Backward, Forward, Parts
from xlstm.layers.norm import MultiHeadNorm, RMSNorm
from xlstm.layers.sequence import State, WithState


@dataclass(frozen=True)
class LargeBlock(Block):
    """An mLSTM and a feed-forward layer, each added to x; `xLSTMLarge` describes the options.

    The block computes::

        u = RMSNorm(x)
        x' = x + down(sigmoid(o~) norm(mLSTM(q, k, v, cap(i~), cap(f~))))
        y = x' + feedforward(RMSNorm(x'))

    q, k, v, o~, i~ and f~ are linear maps of u. The state is (C, n, m).
    """

    _: KW_ONLY
    qk_size: int
    v_size: int
    ffn_size: int
    gate_cap: float | None
    bias: bool
    norm_eps: float
    eps: float
    chunk_size: int | None
    rest: float = -math.inf  # m before the first step

    @cached_property
    def memory(self) -> MatrixMemory:
        """The memories of all heads."""
        N = self.num_heads
        return MatrixMemory(
            N,
            self.qk_size // N,
            self.v_size // N,
            eps=self.eps,
            chunk=self.chunk_size,
            rest=self.rest,
        )

    @cached_property
    def parts(self) -> Parts:
        D = self.size
        N = self.num_heads
        bias = self.bias
        norm = RMSNorm(D, eps=self.norm_eps, bias=bias)
        return {
            "norm": norm,
            "qkvo": Linear(D, 2 * self.qk_size + 2 * self.v_size, bias=bias, std=self._small),
            "gates": GatesOfHeads(D, N),
            "outnorm": MultiHeadNorm(self.v_size, num_heads=N, eps=self.norm_eps, bias=bias),
            "down": Linear(self.v_size, D, bias=bias, std=2 / (self.num_blocks * math.sqrt(D))),
            "ffn_norm": norm,
            "ffn": GatedFeedForward(
                D, self.ffn_size, activation="silu", bias=bias, num_blocks=self.num_blocks
            ),
        }

    @cached_property
    def states(self) -> State:
        return self.memory.states

    def mix(self, run: Forward, u: Array, state: State) -> WithState:
        xp = run.xp
        N = self.num_heads
        K = self.qk_size
        V = self.v_size
        qkvo = run("qkvo", u)
        gates = run("gates", u)  # (1) (2)
        ends = (0, K, 2 * K, 2 * K + V, 2 * (K + V))
        q, k, v, o = (qkvo[..., start:end] for start, end in itertools.pairwise(ends))
        if self.gate_cap is not None:
            gates = fuse(xp, soft_cap, gates, cap=self.gate_cap)  # (3)
        # (4)
        h, end, memory = self.memory.run(q, k, v, gates[..., :N], gates[..., N:], state, run.span)
        n = run("outnorm", h)  # (5)
        s, sn = fuse(xp, gated, o, n)  # (6)
        run.keep(capped=gates, memory=memory, n=n, s=s)
        return run("down", sn), end  # (7)

    def mix_bwd(self, run: Backward, dy: Array, dstate: Any) -> WithState:
        xp = run.xp
        values = run.kept
        dsn = run("down", dy)  # (7)
        do, dn = fuse(xp, gated_bwd, dsn, values["s"], values["n"])  # (6)
        dh = run("outnorm", dn)  # (5)
        # (4)
        (dq, dk, dv, di, df), start = self.memory.run_bwd(values["memory"], dh, dstate, run.span)
        dgates = concat(xp, (di, df), -1)
        if self.gate_cap is not None:
            capped = values["capped"]  # in the place of its argument, too, which is unused
            dgates = fuse(xp, soft_cap_bwd, dgates, capped, capped, cap=self.gate_cap)  # (3)
        du = run("gates", dgates)  # (2)
        du = add_over(xp, du, run("qkvo", concat(xp, (dq, dk, dv, do), -1)))  # (1)
        return du, start


@dataclass(frozen=True)
class xLSTMLarge(Backbone):  # noqa: N801
    """A stack of mLSTM blocks with feed-forward layers, then an RMSNorm, as in xLSTM-7B.

    Beck et al. 2025 (xLSTM 7B) describe the architecture.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_blocks : int
        Number of blocks.
    num_heads : int
        Number of heads of every block.
    qk_size, v_size : int, optional
        Widths of all queries and keys, and of all values; by default D / 2 and D.
    ffn_size : int, optional
        Width of the feed-forward layers, by default 2.6667 D rounded up to a multiple of 64.
    gate_cap : float or None
        Soft bound of the pre-activations x of gates: they become cap tanh(x / cap). None for no
        bound.
    bias : bool
        Whether projections and norms have biases.
    norm_eps : float
        Number added to a mean square or a variance in every norm.
    eps : float
        Number added to the denominator of h; the published package has 1e-6.
    chunk_size : int, optional
        Number of steps computed together; the default follows the width of heads. It changes the
        speed, and results only by rounding.
    post_norm : bool
        Whether there is a norm after the last block.
    post_norm_bias : bool, optional
        Whether that norm has a bias, by default as `bias`. In transformers it never has one.
    """

    size: int
    num_blocks: int
    num_heads: int = 8
    _: KW_ONLY
    qk_size: int | None = None
    v_size: int | None = None
    ffn_size: int | None = None
    gate_cap: float | None = 15.0
    bias: bool = False
    norm_eps: float = 1e-6
    eps: float = 0.0
    chunk_size: int | None = None
    post_norm: bool = True
    post_norm_bias: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        D = self.size
        defaults = {
            "qk_size": D // 2,
            "v_size": D,
            "ffn_size": round_up(math.floor(2.6667 * D), MULTIPLE),
        }
        for name, size in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, checks.size("xLSTMLarge", name, size))
        sizes: Any = {"qk_size": self.qk_size, "v_size": self.v_size}
        checks.heads("xLSTMLarge", self.num_heads, **sizes)

    @cached_property
    def blocks(self) -> list[Any]:
        return [self._made(LargeBlock, index=k) for k in range(self.num_blocks)]

    @property
    def norm(self) -> Any:
        if not self.post_norm:
            return None
        bias = self.bias if self.post_norm_bias is None else self.post_norm_bias
        return RMSNorm(self.size, eps=self.norm_eps, bias=bias)
