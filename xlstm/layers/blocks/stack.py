"""The blocks and the stack of the xLSTM paper (Beck et al. 2024, section 2.4 and appendix A.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from xlstm.arrays import checks, foreach
from xlstm.arrays.cached import cached_property
from xlstm.arrays.concat import concat
from xlstm.arrays.fuse import fuse, listed
from xlstm.arrays.namespace import Array, Namespace, Params, room
from xlstm.arrays.rows import summed
from xlstm.arrays.sliding import computes_again
from xlstm.cells import slstm
from xlstm.cells.activations import silu, silu_bwd
from xlstm.engines import engine
from xlstm.engines.cell_step import Masks, Step
from xlstm.layers import initializers
from xlstm.layers.blocks.block import Backbone, Block, GatedFeedForward, GatesOfHeads, widened
from xlstm.layers.conv import CausalConv
from xlstm.layers.gated import LayerTape
from xlstm.layers.linear import HeadwiseLinear, Linear
from xlstm.layers.matrix_memory import MatrixMemory
from xlstm.layers.module import Backward, Forward, Parts, Weights
from xlstm.layers.norm import LayerNorm, MultiHeadNorm
from xlstm.layers.sequence import (
    Derivatives,
    Leaf,
    Scanned,
    SequenceLayer,
    State,
    WithState,
    complete,
)
from xlstm.recurrence.backward import run_bwd
from xlstm.recurrence.packing import Span


@dataclass(frozen=True)
class mLSTMBlock(Block):  # noqa: N801
    """A residual block with a projection up, a convolution, an mLSTM and a projection down.

    The block computes::

        (a, z) = up(LayerNorm(x))
        c = silu(conv(a))
        h = mLSTM(q, k, v, i~, f~)
        y = x + down((norm(h) + skip c) silu(z))

    q and k are linear maps of c, and v of a, by blocks. i~ and f~ are linear maps of [q, k, v]. The
    state is ((x,), (C, n, m)): the state of the convolution, then the state of the memories.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads.
    conv_kernel_size : int
        Number of steps that the convolution sees, its own included.
    proj_factor : float
        The inner width F is `proj_factor` times D, rounded up to a multiple of 64.
    qkv_block_size : int
        Width of the blocks of the block-diagonal maps to q, k and v.
    bias : bool
        Whether the projections up, down, and to q, k and v have biases.
    eps : float
        Number added to the denominator of h; the published package has 1e-6.
    chunk_size : int, optional
        Number of steps computed together; the default follows the width of heads. It changes the
        speed, and results only by rounding.
    dropout : float
        Rate of dropout of the term added to x.
    num_blocks, index : int
        The number of blocks in the stack, and the place of this block in it. The number sets
        initial weights.
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
        checks.heads("mLSTMBlock", self.qkv_block_size, "qkv_block_size", inner=self.inner)

    @property
    def inner(self) -> int:
        """The inner width F."""
        return widened("mLSTMBlock", "proj_factor", self.proj_factor, self.size)

    @cached_property
    def memory(self) -> MatrixMemory:
        """The memories of all heads."""
        K = self.inner // self.num_heads
        return MatrixMemory(self.num_heads, K, K, eps=self.eps, chunk=self.chunk_size)

    @cached_property
    def parts(self) -> Parts:
        D = self.size
        F = self.inner
        N = self.num_heads
        std = self._small
        heads = HeadwiseLinear(F, F // self.qkv_block_size, bias=self.bias, std=std)
        return {
            "norm": LayerNorm(D, residual=True),
            "up": Linear(D, 2 * F, bias=self.bias, std=std),
            "conv": CausalConv(F, self.conv_kernel_size, silu=True),
            **dict.fromkeys("qkv", heads),
            "gates": GatesOfHeads(3 * F, N),
            "outnorm": MultiHeadNorm(F, num_heads=N, residual=True),
            "down": Linear(F, D, bias=self.bias, std=2 / (self.num_blocks * math.sqrt(D))),
        }

    @property
    def weights(self) -> Weights:
        return {"skip": ({"F": self.inner}, initializers.constant(1.0))}

    @cached_property
    def states(self) -> State:
        """The leaves of the state: of the convolution, then of the memories."""
        return self.parts["conv"].states, self.memory.states

    def mix(self, run: Forward, u: Array, state: State) -> WithState:
        xp = run.xp
        F = self.inner
        N = self.num_heads
        az = run("up", u)  # (2)
        a, z = az[..., :F], az[..., F:]
        c, conv_end = run("conv", a, state[0])  # (3) (4)
        qkv = run.beside("qkv", (c, c, a))
        q, k, v = (qkv[..., j * F : (j + 1) * F] for j in range(3))  # (5)
        gates = run("gates", qkv)  # (6)
        # (7)
        h, end, memory = self.memory.run(
            q, k, v, gates[..., :N], gates[..., N:], state[1], run.span
        )
        n = run("outnorm", h)
        keep = not computes_again(xp)
        *again, sg = listed(fuse(xp, _skipped, n, run.p["skip"], c, z, keep=keep))  # (8) (9)
        run.keep(z=z, c=c, memory=memory, sg=again or [n])
        return run.dropped("mask", run("down", sg), self.dropout), (conv_end, end)  # (10) (11)

    def mix_bwd(self, run: Backward, dy: Array, dstate: Any) -> WithState:
        xp = run.xp
        F = self.inner
        values = run.kept
        skip = run.p["skip"]
        conv_end, end = (None, None) if dstate is None else dstate
        dsg = run("down", run.dropped("mask", dy))  # (11) (10)
        daz = room(xp, dy, (*dy.shape[:-1], 2 * F))
        arrays = (dsg, values["z"], skip, values["c"], *values["sg"])
        # (9) (8)
        _, ds, dc, run.grads["skip"] = summed(xp, _skipped_bwd, *arrays, out=[daz[..., F:]])
        dh = run("outnorm", ds)
        (dq, dk, dv, di, df), start = self.memory.run_bwd(
            values["memory"], dh, end, run.span
        )  # (7)
        dqkv = run("gates", concat(xp, (di, df), -1))  # (6)
        dys = [(d, dqkv[..., j * F : (j + 1) * F]) for j, d in enumerate((dq, dk, dv))]
        dc, da = run.beside("qkv", dys, (0, 0, 1), (dc, None))  # (5)
        _, conv_start = run("conv", dc, conv_end, add=[da], out=[daz[..., :F]])  # (4) (3)
        return run("up", daz), (conv_start, start)  # (2)


def _skipped(xp: Namespace, n: Array, skip: Array, c: Array, z: Array, keep: bool = True) -> Any:
    s = n + skip * c
    g = silu(xp, z)  # (8) (9)
    return (s, g, s * g) if keep else s * g


def _skipped_bwd(
    xp: Namespace, dsg: Array, z: Array, skip: Array, c: Array, *kept: Array
) -> tuple[Array, Array, Array, Array]:
    """Return the gradients with respect to z, n, c and the skip weights.

    The last one is row by row. `kept` holds s and g, or else n.
    """
    s, g = kept if len(kept) > 1 else _skipped(xp, kept[0], skip, c, z)[:2]
    ds = dsg * g
    return silu_bwd(xp, dsg * s, z, g), ds, ds * skip, ds * c  # (9) (8)


@dataclass(frozen=True)
class sLSTMBlock(Block):  # noqa: N801
    """A residual block with a convolution and an sLSTM, then a residual feed-forward layer.

    The block computes::

        u = LayerNorm(x)
        c = silu(conv(u))
        x' = x + norm(sLSTM(i~, f~, z~, o~))
        y = x' + feedforward(LayerNorm(x'))

    i~ and f~ are linear maps of c, and z~ and o~ of u, by heads. The state is ((x,), (h, c, n, m)):
    the state of the convolution, then the state of the sLSTM, in which each array is (B, D).

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads.
    conv_kernel_size : int
        Number of steps that the convolution sees, its own included. With 0 there is no convolution,
        and i~ and f~ are linear maps of u.
    ffn_proj_factor : float
        The width of the feed-forward layer is `ffn_proj_factor` times D, rounded up to a multiple
        of 64. With 0 there is no such layer.
    ffn_activation : str
        Activation of the `GatedFeedForward`.
    recurrent_init : {"zeros", "uniform"}
        Initial recurrent weights: 0 as in the published package, or U(-1/sqrt(D), 1/sqrt(D)).
    dropout : float
        Rate of dropout of the sLSTM's h.
    ffn_dropout : float, optional
        Rate of dropout of the feed-forward layer's output, by default `dropout`.
    num_blocks, index : int
        The number of blocks in the stack, and the place of this block in it. Both set initial
        forget biases, and the number also sets initial weights.
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

    @cached_property
    def parts(self) -> Parts:
        D = self.size
        N = self.num_heads
        heads = HeadwiseLinear(D, N, std=self._small)
        parts: Parts = {"norm": LayerNorm(D, residual=True)}
        if self.conv_kernel_size:
            parts["conv"] = CausalConv(D, self.conv_kernel_size, silu=True)
        parts |= dict.fromkeys("ifzo", heads)
        parts["cell"] = Recurrence(
            D, N, self.recurrent_init, self.index / max(1, self.num_blocks - 1)
        )
        parts["outnorm"] = MultiHeadNorm(D, num_heads=N, residual=True)
        if self.ffn_proj_factor:
            parts["ffn_norm"] = LayerNorm(D, residual=True)
            parts["ffn"] = GatedFeedForward(
                D, self._wide, activation=self.ffn_activation, num_blocks=self.num_blocks
            )
        return parts

    @cached_property
    def states(self) -> State:
        """The leaves of the state: of the convolution, then of the sLSTM."""
        return self.parts["conv"].states if self.conv_kernel_size else (), self.parts["cell"].states

    def mix(self, run: Forward, u: Array, state: State) -> WithState:
        c = u
        conv_end = ()
        if self.conv_kernel_size:
            c, conv_end = run("conv", u, state[0])  # (1) (2)
        gates = run.beside("ifzo", (c, c, u, u))  # (3)
        h, end = run("cell", gates, state[1])  # (4)
        return run("outnorm", run.dropped("mask", h, self.dropout)), (conv_end, end)  # (5) (6)

    def mix_bwd(self, run: Backward, dy: Array, dstate: Any) -> WithState:
        D = self.size
        conv_end, cell_end = (None, None) if dstate is None else dstate
        dh = run.dropped("mask", run("outnorm", dy))  # (6) (5)
        dgates, cell_start = run("cell", dh, cell_end)  # (4)
        dys = [(dgates[..., j * D : (j + 1) * D],) for j in range(4)]
        dc, du = run.beside("ifzo", dys, (0, 0, 1, 1), (None, None))  # (3)
        if not self.conv_kernel_size:
            return du + dc, ((), cell_start)
        du, conv_start = run("conv", dc, conv_end, add=[du])  # (2) (1)
        return du, (conv_start, cell_start)


@dataclass(frozen=True)
class Recurrence(SequenceLayer):
    """The recurrence of an sLSTM, whose x (T, B, 4D) holds the pre-activations of i f z o.

    Parameters are `Wh` (4, N, K, K) and `b` (4D,). With `rounded`, x, `Wh` and all states are
    rounded to bfloat16; the arrays must be float32.
    """

    size: int
    num_heads: int
    recurrent_init: str
    depth: float
    _: KW_ONLY
    forget_limit: float | None = None
    rounded: bool = False

    @cached_property
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
    def weights(self) -> Weights:
        N = self.num_heads
        K = self.size // self.num_heads
        Wh = {"4": 4, "N": N, "K": K, "K ": K}
        bound = 0.0 if self.recurrent_init == "zeros" else self.size**-0.5
        b = initializers.slstm_bias(N, K, initializers.powerlaw(K, self.depth))
        return {
            "Wh": (Wh, initializers.uniform(bound)),
            "b": ({"4D": 4 * self.size}, lambda rng, shape: b),
        }

    @cached_property
    def states(self) -> State:
        pairs = zip(self.cell.STATES, self.cell.REST, strict=True)
        return tuple(Leaf(name, {}, {"D": self.size}, rest) for name, rest in pairs)

    @cached_property
    def _engines(self) -> dict[Any, Any]:
        """The engines chosen before, which `engine.choose` fills in."""
        return {}

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        xp = span.xp
        packing = span.packing
        if self.rounded:
            if x.dtype != xp.float32:
                raise TypeError(f"rounding: arrays are {x.dtype}, expected float32")
            x = slstm.to_bfloat16(xp, x)
            p = {**p, "Wh": slstm.to_bfloat16(xp, p["Wh"])}
        start = packing.sort(xp, [s.T for s in state], self.cell.REST)
        keep = "all" if span.keep else "nothing"
        step = Step(xp, self.cell, p, Masks())
        runner = engine.choose(step, packing.widths, self._engines)
        h, packed_end, tape = runner.forward(step, packing.pack(xp, x), start, packing.widths, keep)
        y, (end,) = packing.restore(xp, h, [packed_end])
        ends = tuple([s.T for s in end])
        if tape is None or not span.keep:
            return y, ends, None
        # The tape refers to these too.
        return y, tuple(foreach.copies(xp, ends)), LayerTape(packing, False, tape)

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        xp = span.xp
        packing = span.packing
        if dstate is None:
            dstate = complete("backward", xp, "dstate", None, self.states, span.B, p, zero=True)
        ends = packing.sort(xp, [d.T for d in dstate])
        grads, dx, start = run_bwd(kept.tape, packing.pack(xp, dy), ends, packing)
        dx, (start,) = packing.restore(xp, dx, [start], backward=True)
        return grads, dx, tuple([d.T for d in start])


@dataclass(frozen=True)
class xLSTMStack(Backbone):  # noqa: N801
    """A stack of mLSTM and sLSTM blocks in any order (Beck et al. 2024), then a LayerNorm.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_blocks : int
        Number of blocks.
    slstm_at : sequence of int
        The places of sLSTM blocks, counted from 0. All other blocks are mLSTM blocks.
    num_heads : int
        Number of heads of every block.
    conv_kernel_size, proj_factor, qkv_block_size, bias, eps, chunk_size
        Options of `mLSTMBlock`.
    slstm_num_heads, slstm_conv_kernel_size, ffn_proj_factor, ffn_activation, recurrent_init, \
ffn_dropout
        Options of `sLSTMBlock`; by default the first two are as in the mLSTM blocks.
    dropout : float
        Rate of dropout of every block.
    post_norm : bool
        Whether there is a norm after the last block.
    """

    size: int
    num_blocks: int
    slstm_at: Sequence[int] = ()
    num_heads: int = 4
    _: KW_ONLY
    conv_kernel_size: int = 4
    proj_factor: float = 2.0
    qkv_block_size: int = 4
    bias: bool = False
    eps: float = 0.0
    chunk_size: int | None = None
    slstm_num_heads: int | None = None
    slstm_conv_kernel_size: int | None = None
    ffn_proj_factor: float = 1.3
    ffn_activation: str = "gelu"
    recurrent_init: str = "zeros"
    dropout: float = 0.0
    ffn_dropout: float | None = None
    post_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.num_blocks
        inside = checks.whole(0, n - 1)
        numbers = {
            *checks.several("xLSTMStack", "slstm_at", self.slstm_at, "numbers of blocks", inside, n)
        }
        object.__setattr__(self, "slstm_at", tuple(sorted(numbers)))
        if numbers and self.slstm_num_heads is not None:
            checks.heads("xLSTMStack", self.slstm_num_heads, "slstm_num_heads", size=self.size)
        for is_slstm in {bool(numbers), len(numbers) == self.num_blocks}:
            self._block(0, is_slstm)  # checks its options

    @cached_property
    def blocks(self) -> list[Any]:
        return [self._block(k, k in self.slstm_at) for k in range(self.num_blocks)]

    def _block(self, k: int, is_slstm: bool) -> Any:
        """Return block k."""
        if not is_slstm:
            return self._made(mLSTMBlock, index=k)
        own = {
            "num_heads": self.slstm_num_heads,
            "conv_kernel_size": self.slstm_conv_kernel_size,
        }
        own = {name: value for name, value in own.items() if value is not None}
        return self._made(sLSTMBlock, index=k, **own)

    @property
    def norm(self) -> Any:
        return LayerNorm(self.size, residual=True) if self.post_norm else None
