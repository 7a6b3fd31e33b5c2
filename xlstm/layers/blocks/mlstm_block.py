"""The mLSTM block: projected up before the cell (Beck et al. 2024, section 2.4 and appendix A.4)."""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from xlstm.arrays import checks
from xlstm.arrays.concat import concat
from xlstm.arrays.fuse import fuse, summed
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.cells.activations import silu, silu_bwd
from xlstm.layers.blocks.block import Block, GatesOfHeads, widened
from xlstm.layers.conv import CausalConv
from xlstm.layers.initializers import constant
from xlstm.layers.linear import HeadwiseLinear, Linear
from xlstm.layers.matrix_memory import Memory
from xlstm.layers.module import Weight, dropped
from xlstm.layers.norm import LayerNorm, MultiHeadNorm
from xlstm.layers.sequence import Derivatives, State
from xlstm.recurrence.packing import Span


@dataclass(frozen=True)
class mLSTMBlock(Block):  # noqa: N801
    """A block that projects up, convolves, remembers in matrices, projects down, and adds the result to x.

    (a, z) = up(LayerNorm(x)); c = silu(conv(a)); q and k are maps of c and v of a, by blocks; i~ and f~ are maps of
    [q, k, v]; h = mLSTM(q, k, v, i~, f~); y = x + down((norm(h) + skip c) silu(z)). The state is ((x,), (C, n, m)):
    that of the convolution, then that of the memories.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads.
    conv_kernel_size : int
        Number of steps that the convolution sees.
    proj_factor : float
        The inner width F is this times D, rounded up to a multiple of 64.
    qkv_block_size : int
        Width of the blocks that q, k and v are projected in.
    bias : bool
        Whether the projections up, down, and to q, k and v have biases.
    eps : float
        Number that is added to the denominator of h; the published package has 1e-6.
    chunk_size : int, optional
        Number of steps that are computed together; the default follows the width of heads. It changes the speed, and
        results only by rounding.
    dropout : float
        Rate of dropout of what is added to x.
    num_blocks, index : int
        The number of blocks in the stack, on which initial weights depend, and the place of this one.
    """

    _: KW_ONLY
    proj_factor: float = 2.0
    qkv_block_size: int = 4
    bias: bool = False
    eps: float = 0.0
    chunk_size: int | None = None

    CHECKS: ClassVar = {"conv_kernel_size": checks.size}
    HEADED = ("inner",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner % self.qkv_block_size:
            expected = f"expected a divisor of the inner width, {self.inner}"
            raise ValueError(f"mLSTMBlock: qkv_block_size is {self.qkv_block_size}, {expected}")

    @property
    def inner(self) -> int:
        """The inner width F."""
        return widened("mLSTMBlock", "proj_factor", self.proj_factor, self.size)

    @functools.cached_property
    def memory(self) -> Memory:
        """The memories of all heads."""
        K = self.inner // self.num_heads
        return Memory(self.num_heads, K, K, eps=self.eps, chunk=self.chunk_size)

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
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
    def weights(self) -> dict[str, Weight]:
        return {"skip": ({"F": self.inner}, constant(1.0))}

    @functools.cached_property
    def states(self) -> State:
        return self.parts["conv"].states, self.memory.states

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        xp, F, N = span.xp, self.inner, self.num_heads
        kept: dict[str, Any] = {}
        u = self.through(xp, "norm", p, x, kept)  # (1)
        az = self.through(xp, "up", p, u, kept)  # (2)
        a, z = az[..., :F], az[..., F:]
        cc, conv_end = self.along("conv", p, a, state[0], span, kept)  # (3)
        c = fuse(xp, silu, cc)  # (4)
        q, k, v = (self.through(xp, name, p, c if name in "qk" else a, kept) for name in "qkv")  # (5)
        gates = self.through(xp, "gates", p, concat(xp, (q, k, v), -1), kept)  # (6)
        h, end, memory = self.memory.run(q, k, v, gates[..., :N], gates[..., N:], state[1], span)  # (7)
        n = self.through(xp, "outnorm", p, h, kept)
        s, g, sg = fuse(xp, _gated, n, p["skip"], c, z)  # (8) (9)
        y = self.through(xp, "down", p, sg, kept)  # (10)
        y, mask = self._drop(span.rng, y, self.dropout)  # (11)
        kept |= {"z": z, "cc": cc, "c": c, "memory": memory, "s": s, "g": g, "mask": mask}
        return x + y, (conv_end, end), kept

    def scan_bwd(self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span) -> Derivatives:
        xp, F = span.xp, self.inner
        grads: Params = {}
        conv_end, end = (None, None) if dstate is None else dstate
        c, g = kept["c"], kept["g"]
        dsg = self.through_bwd(xp, "down", p, kept, dropped(dy, kept["mask"]), grads)  # (11) (10)
        dz, ds, dc, grads["skip"] = summed(xp, _gated_bwd, dsg, kept["s"], kept["z"], g, p["skip"], c)  # (9) (8)
        dh = self.through_bwd(xp, "outnorm", p, kept, ds, grads)
        (dq, dk, dv, di, df), start = self.memory.run_bwd(kept["memory"], dh, end, span)  # (7)
        dqkv = self.through_bwd(xp, "gates", p, kept, concat(xp, (di, df), -1), grads)  # (6)
        dc += self.through_bwd(xp, "q", p, kept, dq + dqkv[..., :F], grads)  # (5)
        dc += self.through_bwd(xp, "k", p, kept, dk + dqkv[..., F : 2 * F], grads)
        da = self.through_bwd(xp, "v", p, kept, dv + dqkv[..., 2 * F :], grads)
        dcc = fuse(xp, silu_bwd, dc, kept["cc"], c)  # (4)
        more, conv_start = self.along_bwd("conv", p, kept, dcc, conv_end, span, grads)  # (3)
        du = self.through_bwd(xp, "up", p, kept, concat(xp, (da + more, dz), -1), grads)  # (2)
        return grads, dy + self.through_bwd(xp, "norm", p, kept, du, grads), (conv_start, start)  # (1)


def _gated(xp: Namespace, n: Array, skip: Array, c: Array, z: Array) -> tuple[Array, Array, Array]:
    s, g = n + skip * c, silu(xp, z)  # (8) (9)
    return s, g, s * g


def _gated_bwd(
    xp: Namespace, dsg: Array, s: Array, z: Array, g: Array, skip: Array, c: Array
) -> tuple[Array, Array, Array, Array]:
    """Return the gradients of z, n, c and the skip weights, the last row by row."""
    ds = dsg * g
    return silu_bwd(xp, dsg * s, z, g), ds, ds * skip, ds * c  # (9) (8)
