"""The residual blocks of xLSTM (Beck et al. 2024, section 2.4 and appendix A.4)."""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm import bptt, checks, initializers, recurrence
from xlstm.activations import silu, silu_bwd
from xlstm.backend import Array, Namespace, Params
from xlstm.cells import slstm
from xlstm.layers.conv import CausalConv
from xlstm.layers.feedforward import GatedFeedForward
from xlstm.layers.linear import HeadwiseLinear, Linear
from xlstm.layers.memory import Memory
from xlstm.layers.norm import LayerNorm, MultiHeadNorm
from xlstm.layers.part import Values, round_up, total
from xlstm.layers.sequence import Leaf, Sequence, Span, State
from xlstm.layers.stack import dropout
from xlstm.loop import Noise

MULTIPLE = 64  # of which inner widths are


@dataclass(frozen=True)
class Block(Sequence):
    """Options of all blocks of a stack; a block knows how many there are, and which of them it is."""

    size: int
    num_heads: int = 4
    _: KW_ONLY
    conv_kernel_size: int = 4
    dropout: float = 0.0
    num_blocks: int = 1
    index: int = 0

    def __post_init__(self) -> None:
        where = type(self).__name__
        checks.positive(where, size=self.size, num_blocks=self.num_blocks)
        checks.number(where, 0, 1, dropout=self.dropout)

    @property
    def input_size(self) -> int:
        """Width of x, and of y."""
        return self.size

    @property
    def random(self) -> bool:
        """Whether `forward` draws masks while training, and so needs a seed."""
        return self.dropout > 0

    @property
    def _small(self) -> float:
        """Deviation of initial weights (Nguyen & Salazar 2019)."""
        return math.sqrt(2 / (5 * self.size))

    def _dropped(self, xp: Namespace, rng: np.random.Generator | None, y: Array) -> tuple[Array, Array | None]:
        mask = dropout(rng, self.dropout, tuple(y.shape), y)
        return (y, None) if mask is None else (y * mask, mask)


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
        checks.number(where, 0, float("inf"), strict=True, proj_factor=self.proj_factor)
        checks.number(where, 0, float("inf"), eps=self.eps)
        checks.positive(
            where, chunk_size=1 if self.chunk_size is None else self.chunk_size, conv_kernel_size=self.conv_kernel_size
        )
        checks.positive(where, qkv_block_size=self.qkv_block_size)
        checks.heads(where, self.num_heads, inner=self.inner)
        if self.inner % self.qkv_block_size:
            raise ValueError(
                f"{where}: qkv_block_size is {self.qkv_block_size}, expected a divisor of the inner width, {self.inner}"
            )

    @property
    def inner(self) -> int:
        """The inner width F."""
        return round_up(self.proj_factor * self.size, MULTIPLE)

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

    def run(
        self,
        xp: Namespace,
        p: Params,
        x: Array,
        state: State,
        span: Span,
        rng: np.random.Generator | None,
        keep: bool,
    ) -> tuple[Array, State, Any]:
        """x (T, B, D) -> y (T, B, D)."""
        u, norm = self.through(xp, "norm", p, x)  # (1)
        az, up = self.through(xp, "up", p, u)  # (2)
        a, z = az[..., : self.inner], az[..., self.inner :]
        cc, conv_state, conv = self.parts["conv"].run(xp, self.below("conv", p), a, state[0], span, None, keep)  # (3)
        c = silu(xp, cc)  # (4)
        q, _ = self.through(xp, "q", p, c)  # (5)
        k, _ = self.through(xp, "k", p, c)
        v, _ = self.through(xp, "v", p, a)
        gates, at_gates = self.through(xp, "gates", p, xp.concat((q, k, v), axis=-1))  # (6)
        i, f = gates[..., : self.num_heads], gates[..., self.num_heads :]
        h, memory_state, memory = self.memory.run(xp, q, k, v, i, f, state[1], span, keep)  # (7)
        n, outnorm = self.through(xp, "outnorm", p, h)  # (8)
        s = n + p["skip"] * c  # (9)
        g = silu(xp, z)
        y, down = self.through(xp, "down", p, s * g)  # (10)
        y, mask = self._dropped(xp, rng, y)
        end = (conv_state, memory_state)
        if not keep:
            return x + y, end, None
        return x + y, end, SavedM(norm, up, a, z, conv, cc, c, at_gates, memory, outnorm, s, g, down, mask)

    def run_bwd(
        self, xp: Namespace, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """dy (T, B, D) -> gradients, dx (T, B, D) and that of the initial state."""
        grads: Params = {}
        conv_end, memory_end = (None, None) if dstate is None else dstate
        c, g = saved.c, saved.g
        dsg = self.through_bwd(xp, "down", p, saved.down, _masked(dy, saved.mask), grads)  # (10)
        dz = silu_bwd(xp, dsg * saved.s, saved.z, g)
        dn = dsg * g  # (9)
        grads["skip"] = total(xp, dn * c)
        dc = dn * p["skip"]
        dh = self.through_bwd(xp, "outnorm", p, saved.outnorm, dn, grads)  # (8)
        (dq, dk, dv, di, df), memory_start = self.memory.run_bwd(xp, saved.memory, dh, memory_end, span)  # (7)
        dqkv = self.through_bwd(xp, "gates", p, saved.at_gates, xp.concat((di, df), axis=-1), grads)  # (6)
        F = self.inner
        dq += dqkv[..., :F]
        dk += dqkv[..., F : 2 * F]
        dv += dqkv[..., 2 * F :]
        dc += self.through_bwd(xp, "q", p, c, dq, grads)  # (5)
        dc += self.through_bwd(xp, "k", p, c, dk, grads)
        da = self.through_bwd(xp, "v", p, saved.a, dv, grads)
        found, more, conv_start = self.parts["conv"].run_bwd(  # (3) (4)
            xp, self.below("conv", p), saved.conv, silu_bwd(xp, dc, saved.cc, c), conv_end, span
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


class GatesOfHeads(Linear):
    """Pre-activations of the input and the forget gate of N heads, rows of `W` (2N, I) and `b` (2N,) in this order.

    At first W is 0, input biases are N(0, 0.1^2), and forget biases go from 3 to 6 over the heads.
    """

    def __init__(self, input_size: int, num_heads: int) -> None:
        super().__init__(input_size, 2 * num_heads)

    def _draw_own(self, rng: np.random.Generator) -> Values:
        N = self.output_size // 2
        b = np.concatenate((rng.normal(0.0, 0.1, N), np.linspace(3.0, 6.0, N)))
        return {"W": np.zeros((2 * N, self.input_size)), "b": b}


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
        Rate of dropout of the sLSTM's h, and of what the feed-forward layer adds.
    num_blocks, index : int
        How many blocks there are in the stack, and which this is, for initial forget biases.
    """

    _: KW_ONLY
    ffn_proj_factor: float = 1.3
    ffn_activation: str = "gelu"
    recurrent_init: str = "zeros"

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "sLSTMBlock"
        checks.heads(where, self.num_heads, size=self.size)
        checks.number(where, 0, float("inf"), ffn_proj_factor=self.ffn_proj_factor)
        checks.one_of(where, ("zeros", "uniform"), recurrent_init=self.recurrent_init)
        if self.conv_kernel_size:
            checks.positive(where, conv_kernel_size=self.conv_kernel_size)

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
            U = round_up(self.ffn_proj_factor * D, MULTIPLE)
            found["ffn_norm"] = LayerNorm(D, residual=True)
            found["ffn"] = GatedFeedForward(D, U, activation=self.ffn_activation, num_blocks=self.num_blocks)
        return found

    def states(self, B: int | None) -> State:
        """Of the convolution, if there is one, and of the sLSTM."""
        conv = self.parts["conv"].states(B) if self.conv_kernel_size else ()
        return conv, self.parts["cell"].states(B)

    def run(
        self,
        xp: Namespace,
        p: Params,
        x: Array,
        state: State,
        span: Span,
        rng: np.random.Generator | None,
        keep: bool,
    ) -> tuple[Array, State, Any]:
        """x (T, B, D) -> y (T, B, D)."""
        u, norm = self.through(xp, "norm", p, x)  # (1)
        conv_state, conv, cc, c = (), None, None, u
        if self.conv_kernel_size:
            cc, conv_state, conv = self.parts["conv"].run(  # (2)
                xp, self.below("conv", p), u, state[0], span, None, keep
            )
            c = silu(xp, cc)
        gates = xp.concat([self.through(xp, g, p, c if g in "if" else u)[0] for g in "ifzo"], axis=-1)  # (3)
        h, end, cell = self.parts["cell"].run(xp, self.below("cell", p), gates, state[1], span, None, keep)  # (4)
        h, mask = self._dropped(xp, rng, h)
        n, outnorm = self.through(xp, "outnorm", p, h)  # (5)
        y = x + n
        ffn_norm = ffn = ffn_mask = None
        if self.ffn_proj_factor:
            v, ffn_norm = self.through(xp, "ffn_norm", p, y)  # (6)
            w, ffn = self.through(xp, "ffn", p, v)  # (7)
            w, ffn_mask = self._dropped(xp, rng, w)
            y = y + w
        state = (conv_state, end)
        if not keep:
            return y, state, None
        return y, state, SavedS(norm, u, conv, cc, c, cell, mask, outnorm, ffn_norm, ffn, ffn_mask)

    def run_bwd(
        self, xp: Namespace, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """dy (T, B, D) -> gradients, dx (T, B, D) and that of the initial state."""
        grads: Params = {}
        conv_end, cell_end = (None, None) if dstate is None else dstate
        if self.ffn_proj_factor:
            dv = self.through_bwd(xp, "ffn", p, saved.ffn, _masked(dy, saved.ffn_mask), grads)  # (7)
            dy = dy + self.through_bwd(xp, "ffn_norm", p, saved.ffn_norm, dv, grads)  # (6)
        dh = _masked(self.through_bwd(xp, "outnorm", p, saved.outnorm, dy, grads), saved.mask)  # (5)
        found, dgates, cell_start = self.parts["cell"].run_bwd(
            xp, self.below("cell", p), saved.cell, dh, cell_end, span
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
                xp, self.below("conv", p), saved.conv, silu_bwd(xp, dc, saved.cc, saved.c), conv_end, span
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

    CELL = slstm.PLAIN

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
        b = np.zeros((4, N, K))
        b[1] = initializers.powerlaw(K, self.depth)
        return {"Wh": rng.uniform(-bound, bound, (4, N, K, K)), "b": b.ravel()}

    def states(self, B: int | None) -> State:
        """h, c, n and m."""
        dims = {"B": B, "D": self.size}
        return tuple(Leaf(name, dims, -math.inf if name == "m" else 0.0) for name in self.CELL.STATES)

    def run(
        self,
        xp: Namespace,
        p: Params,
        x: Array,
        state: State,
        span: Span,
        rng: np.random.Generator | None,
        keep: bool,
    ) -> tuple[Array, State, Any]:
        """x (T, B, 4D) -> h (T, B, D)."""
        packing = span.packing
        start = [packing.sort(xp, s.T) for s in state]
        noise = Noise(None, (None,) * len(start))
        loop = recurrence.Forward(xp, self.CELL, p, packing.pack(xp, x), packing.runs, start, noise, keep)
        ((h, end, saved),) = recurrence.run([loop])
        end = tuple(xp.asarray(packing.unsort(xp, s).T, copy=True) for s in end)
        return packing.unpack(xp, h), end, saved

    def run_bwd(
        self, xp: Namespace, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """dh (T, B, D) -> gradients, dx (T, B, 4D) and that of the initial state."""
        packing = span.packing
        if dstate is None:
            ends = [xp.zeros_like(dy[0, ...]).T] * len(self.CELL.STATES)
        else:
            ends = [packing.sort(xp, d.T) for d in dstate]
        ((grads, dx, start),) = bptt.run([bptt.Backward(saved, packing.pack(xp, dy), ends)])
        return grads, packing.unpack(xp, dx), tuple(packing.unsort(xp, d).T for d in start)


def _masked(d: Array, mask: Array | None) -> Array:
    return d if mask is None else d * mask
