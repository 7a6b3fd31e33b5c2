"""The mLSTM layer, and the matrix memories of its heads over a batch of sequences."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.cached import cached_property
from xlstm.arrays.concat import concat, stack
from xlstm.arrays.fuse import fuse
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import (
    Array,
    Namespace,
    Params,
    add_over,
    dtype_name,
    reshape,
    squares_below,
)
from xlstm.arrays.rows import column_sums, row_products
from xlstm.cells import mlstm
from xlstm.cells.activations import clamp, clamp_bwd, sigmoid, sigmoid_bwd
from xlstm.cells.normalization import fourth_root
from xlstm.engines.memories import MemoryPass, run_memory
from xlstm.layers.in_parts import in_parts, in_parts_bwd
from xlstm.layers.initializers import Shape, mlstm_bias, uniform
from xlstm.layers.module import Weights, dropout, dropped, rows
from xlstm.layers.sequence import Derivatives, Leaf, Scanned, SequenceLayer, State
from xlstm.recurrence.packing import Span


class MatrixMemory(NamedTuple):
    """The matrix memories of N heads, whose keys are K wide and whose values are V wide."""

    N: int
    K: int
    V: int
    eps: float = 0.0
    forget: str = "sigmoid"
    chunk: int | None = None
    rest: float = -float("inf")  # m before the first step

    @property
    def steps(self) -> int:
        """Steps L of a chunk; by default they follow K.

        The work within chunks is to the work between chunks as L is to K.
        """
        return self.chunk or min(mlstm.CHUNK, max(16, self.K))

    @property
    def states(self) -> State:
        """The leaves C, n and m of all heads."""
        N = {"N": self.N}
        K = {"K": self.K}
        V = {"V": self.V}
        C = Leaf("C", {}, N | K | V, wide=True)
        n = Leaf("n", {}, N | K, wide=True)
        return C, n, Leaf("m", {}, N, rest=self.rest, wide=True)

    def run(
        self, q: Array, k: Array, v: Array, i: Array, f: Array, state: State, span: Span
    ) -> Scanned:
        """Return h (T, B, N V), the final state, and the values that `run_bwd` needs.

        Queries q and keys k are (T, B, N K), values v (T, B, N V), and pre-activations of the gates
        i and f (T, B, N).
        """
        if span.cut:
            return in_parts(span, self.states, self.run, (q, k, v, i, f), state)
        xp = span.xp
        keep = span.keep
        if span.T == 1 and not keep and span.full:
            B = span.B
            q, k, v = (reshape(a, (B, self.N, a.shape[-1] // self.N)) for a in (q, k, v))
            inputs = q, k, v, i[0, ...], f[0, ...], *state
            h, *end = mlstm.step(xp, *inputs, eps=self.eps, forget=self.forget)
            return reshape(h, (1, B, self.N * self.V)), tuple(end), None
        # Past the end of a sequence a step writes nothing and forgets nothing.
        i = span.mask(i, -float("inf"))
        f = span.mask(f, float("inf") if self.forget == "sigmoid" else 0.0)
        step = MemoryPass(xp, self.N, self.steps, self.forget, self.eps)
        h, end, tape = run_memory(step, (q, k, v, i, f), state, keep)
        return h, tuple(end), tape

    def run_bwd(
        self, saved: Any, dh: Array, dstate: State | None, span: Span
    ) -> tuple[tuple[Array, ...], State]:
        """Return the gradients with respect to q, k, v, i, f and the initial state.

        `dh` and `dstate` are the upstream gradients of h and the final state.
        """
        if span.cut:
            return in_parts_bwd(
                span, self.states, lambda *own: ({}, *self.run_bwd(*own)), saved, dh, dstate
            )[1:]
        (dq, dk, dv, di, df), start = saved.engine.backward(saved, dh, dstate)
        return (dq, dk, dv, span.mask(di), span.mask(df)), tuple(start)


@dataclass(frozen=True)
class mLSTM(SequenceLayer):  # noqa: N801
    """LSTM with a matrix memory (Beck et al. 2024, xLSTM, section 2.3): y = sigmoid(o~) * h~.

    Layer k has the parameters `{k}.Wx` (2 N K + 2 H + 2 N, D) and `{k}.b`, with the rows of q, k,
    v, o, i and f in turn. `saved["0"].q` is the q of the first layer, and likewise for k, v, i, f,
    o and h.

    The state is (C, n, m), of shapes (L, B, N, K, H / N), (L, B, N, K) and (L, B, N). C and n are
    stored divided by exp(m), and m is -inf before the first step. If the parameters are float16 or
    bfloat16, the state is float32.

    The input of each layer is limited to [-r, r], so that products of q, k and v are finite. r is
    the fourth root of the largest number of the dtype: 4e9 in float32, 1e77 in float64. In float16
    the input is not limited. Where q is near 0, the gradient through a layer still grows by up to
    r^2, so that of inputs near r can overflow through two layers or more. A norm between the
    layers, as in the blocks, prevents that.

    Parameters
    ----------
    input_size : int
        Width D of the input.
    hidden_size : int
        Width H of all values, and of y.
    num_layers : int
        Number L of stacked layers.
    num_heads : int
        Number N of heads, each with a memory of its own.
    qk_size : int, optional
        Width N K of all queries together, and of all keys; by default H.
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...).
    bias : bool
        Whether there are biases `{k}.b`.
    dropout : float
        Rate of dropout between layers.
    forget_gate : {"sigmoid", "exponential"}
        f = sigmoid(f~), or exp(f~).
    eps : float
        Number added to the denominator of h~.
    chunk_size : int, optional
        Number of steps computed together by matrix products; the default follows the width of
        heads. It changes the speed, and results only by rounding.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> mlstm = xlstm.mLSTM(3, 8, num_heads=2)
    >>> y, (C, n, m), saved = mlstm.forward(mlstm.init(backend="numpy"), np.ones((12, 5, 3), dtype="float32"))
    >>> y.shape, C.shape, n.shape, m.shape
    ((12, 5, 8), (1, 5, 2, 4, 4), (1, 5, 2, 4), (1, 5, 2))
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    _: KW_ONLY
    num_heads: int = 1
    qk_size: int | None = None
    batch_first: bool = False
    bias: bool = True
    dropout: float = 0.0
    forget_gate: str = "sigmoid"
    eps: float = 0.0
    chunk_size: int | None = None

    HEADED = ("hidden_size", "qk_size")
    _output_symbol = "H"

    def __post_init__(self) -> None:
        if self.qk_size is None:
            object.__setattr__(self, "qk_size", self.hidden_size)
        super().__post_init__()
        if self.dropout and self.num_layers == 1:
            raise ValueError(
                f"mLSTM: dropout is {self.dropout} but acts between layers, and num_layers is 1"
            )

    @property
    def output_size(self) -> int:
        """Width of y."""
        return self.hidden_size

    @cached_property
    def memory(self) -> MatrixMemory:
        """The memories of a layer."""
        N = self.num_heads
        qk_size: Any = self.qk_size
        sizes = (N, qk_size // N, self.hidden_size // N)
        return MatrixMemory(*sizes, eps=self.eps, forget=self.forget_gate, chunk=self.chunk_size)

    @cached_property
    def _splits(self) -> dict[str, slice]:
        """The rows of Wx from which q, k, v, o, i and f come."""
        N, K, V = self.memory[:3]
        sizes = (N * K, N * K, N * V, N * V, N, N)
        pairs = zip(np.cumsum(sizes), sizes, strict=True)
        parts = (slice(end - size, end) for end, size in pairs)
        return dict(zip("qkvoif", parts, strict=True))

    @property
    def weights(self) -> Weights:
        N = self.num_heads
        H = self.hidden_size
        height = {"2NK + 2H + 2N": 2 * self.memory.K * N + 2 * H + 2 * N}
        weights: Weights = {}
        for k in range(self.num_layers):
            weights[f"{k}.Wx"] = {**height, "D": H if k else self.input_size}, self._draw
            if self.bias:
                weights[f"{k}.b"] = height, self._draw
        return weights

    def _draw(self, rng: np.random.Generator, shape: Shape) -> Any:
        """Draw U(-1/sqrt(H), 1/sqrt(H)), except for the gates i and f.

        Their weights are 0, and their biases come from `mlstm_bias`.
        """
        values = uniform(self.hidden_size**-0.5)(rng, shape)
        values[self._splits["i"].start :] = (
            mlstm_bias(rng, self.num_heads) if len(shape) == 1 else 0.0
        )
        return values

    @cached_property
    def states(self) -> State:
        """The leaves C, n and m of all layers."""
        return tuple(leaf._replace(before={"L": self.num_layers}) for leaf in self.memory.states)

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        xp = span.xp
        saved = {}
        ends = []
        for k in range(self.num_layers):
            mask = dropout(span.rng, self.dropout if k else 0.0, x)
            x, beyond = _limited(xp, dropped(x, mask))
            z = matmul(xp, x, p[f"{k}.Wx"].T)
            if self.bias:
                z = add_over(xp, z, p[f"{k}.b"])
            q, key, v, o, i, f = (z[..., part] for part in self._splits.values())
            h, end, memory = self.memory.run(q, key, v, i, f, tuple(s[k, ...] for s in state), span)
            s, y = fuse(xp, gated, o, h)
            if span.keep:
                saved[str(k)] = LayerValues(x, beyond, mask, q, key, v, i, f, s, h, memory)
            x = y
            ends.append(end)
        return x, tuple(stack(xp, states) for states in zip(*ends, strict=True)), saved

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        xp = span.xp
        grads: Params = {}
        starts = []
        for k in range(self.num_layers - 1, -1, -1):
            values = kept[str(k)]
            end = None if dstate is None else tuple(d[k, ...] for d in dstate)
            do, dh = fuse(xp, gated_bwd, dy, values.o, values.h)
            (dq, dk, dv, di, df), start = self.memory.run_bwd(values.memory, dh, end, span)
            dz = concat(xp, (dq, dk, dv, do, di, df), -1)
            grads[f"{k}.Wx"] = row_products(xp, rows(dz), rows(values.x))
            if self.bias:
                grads[f"{k}.b"] = column_sums(xp, dz)
            dy = matmul(xp, dz, p[f"{k}.Wx"])
            if values.beyond is not None:
                dy = fuse(xp, clamp_bwd, dy, values.beyond, limit=fourth_root(xp, dy.dtype))
            dy = dropped(dy, values.mask)
            starts.append(start)
        return grads, dy, tuple(stack(xp, d[::-1]) for d in zip(*starts, strict=True))


class LayerValues(NamedTuple):
    """The values that one layer keeps, time first."""

    x: Array  # as multiplied by Wx
    beyond: Array | None  # x before it was limited, or None if it was not
    mask: Array | None
    q: Array
    k: Array
    v: Array
    i: Array  # before the exponential
    f: Array  # before the sigmoid or the exponential
    o: Array
    h: Array  # before the output gate
    memory: Any


def _limited(xp: Namespace, x: Array) -> tuple[Array, Array | None]:
    """Return x limited to [-r, r], and x before that, or None if it needs no limit."""
    if dtype_name(x.dtype) == "float16":  # in which r would be 16
        return x, None
    r = fourth_root(xp, x.dtype)
    if squares_below(xp, x, r * r):
        return x, None
    return fuse(xp, clamp, x, limit=r), x


def gated(xp: Namespace, o: Array, h: Array) -> tuple[Array, Array]:
    """Return the output gate from its pre-activation o, and the gate times h."""
    s = sigmoid(xp, o)
    return s, s * h


def gated_bwd(xp: Namespace, dy: Array, s: Array, h: Array) -> tuple[Array, Array]:
    """Return the gradients with respect to the pre-activation and h."""
    return sigmoid_bwd(xp, dy * h, None, s), dy * s
