"""The blocks of TiRex-1 and TiRex-2; in TiRex-2, rows of a batch that belong together see each
other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.fuse import fuse
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, Params, device_of, finfo
from xlstm.arrays.rows import no_gradient
from xlstm.cells.activations import FEED_FORWARD, softmax, softmax_bwd
from xlstm.cells.normalization import MEAN_SQUARE, normalize, normalize_bwd
from xlstm.data.host import Host
from xlstm.layers.blocks.block import Block, GatedFeedForward
from xlstm.layers.blocks.large import LargeBlock
from xlstm.layers.blocks.stack import sLSTMBlock
from xlstm.layers.linear import Linear
from xlstm.layers.module import Backward, Forward, Parts, SameWidth
from xlstm.layers.norm import MultiHeadNorm, RMSNorm
from xlstm.layers.sequence import Derivatives, Scanned, SequenceLayer, State, WithState, complete
from xlstm.recurrence.packing import Packing, Span

NORM_EPS = 1e-6  # of every norm in a block


class Groups(NamedTuple):
    """The rows of a batch that see each other, and the rows whose future is known."""

    rows: Host  # (R,) rows with others in their group; groups of equal size lie together
    sizes: tuple[Host, ...]  # for each size n, (G, n, n): which rows of its group each row sees
    known: Host  # (K,) rows whose future is known

    @classmethod
    def of(cls, where: str, B: int, groups: Any, targets: Any, known: Any) -> Groups:
        """Return the groups of B rows, from their numbers and marks; a covariate never sees a
        target.

        Raises
        ------
        ValueError, TypeError
            An array does not have B whole numbers, or B booleans.
        """
        number = _by_row(where, "groups", groups, np.arange(B), "iu")
        target = _by_row(where, "targets", targets, np.ones(B, bool), "b")
        _, group, count = np.unique(number, return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        rows = []
        sizes = []
        for n in np.unique(count[count > 1]):
            some = order[(count == n)[group[order]]].reshape(-1, n)
            rows.append(some.ravel())
            sizes.append(target[some][:, :, None] | ~target[some][:, None, :])
        places = np.concatenate((*rows, np.zeros(0, np.int64)))
        seen_later = _by_row(where, "known", known, np.zeros(B, bool), "b")
        return cls(places, tuple(sizes), np.flatnonzero(seen_later))


def _by_row(where: str, name: str, values: Any, default: Host, kinds: str) -> Host:
    if values is None:
        return default
    expected = f"{'truth values' if kinds == 'b' else 'whole numbers'} (B,) = {default.shape}"
    host = checks.host(where, name, values, expected)
    if host.shape != default.shape:
        raise ValueError(f"{where}: {name} has shape {host.shape}, expected {expected}")
    if host.dtype.kind not in kinds:
        raise TypeError(f"{where}: {name} has dtype {host.dtype}, expected {expected}")
    return host


def take(xp: Namespace, x: Array, rows: Host) -> Array:
    """Return some rows (T, R, ...) of x (T, B, ...)."""
    return xp.take(x, xp.asarray(rows, device=device_of(x)), axis=1)


def put(xp: Namespace, x: Array, some: Array, rows: Host) -> Array:
    """Return x (T, B, ...) with these rows replaced by `some` (T, R, ...)."""
    places = np.arange(x.shape[1])
    places[rows] = x.shape[1] + np.arange(len(rows))
    return take(xp, xp.concat((x, some), axis=1), places)


def attention(xp: Namespace, q: Array, k: Array, v: Array, seen: Array) -> tuple[Array, Any]:
    """Return softmax(q k^T / sqrt(K)) v (Vaswani et al. 2017, eq. 1), and the values that
    `attention_bwd` needs.

    Queries q, keys k and values v are (..., n, K). `seen` (..., n, n) is true if the query of the
    row sees the key of the column. Each query sees at least one key.
    """
    s = matmul(xp, q, xp.matrix_transpose(k)) / math.sqrt(q.shape[-1])  # (1)
    a = softmax(xp, xp.where(seen, s, xp.full_like(s, -math.inf)))  # (2)
    return matmul(xp, a, v), (q, k, v, a)  # (3)


def attention_bwd(xp: Namespace, dy: Array, saved: Any) -> tuple[Array, Array, Array]:
    """Return the gradients with respect to q, k and v."""
    q, k, v, a = saved
    dv = matmul(xp, xp.matrix_transpose(a), dy)  # (3)
    da = matmul(xp, dy, xp.matrix_transpose(v))
    # (2) (1), zero where nothing is seen, as a is
    ds = softmax_bwd(xp, da, None, a) / math.sqrt(q.shape[-1])
    return matmul(xp, ds, k), matmul(xp, xp.matrix_transpose(ds), q), dv  # (1)


@dataclass(frozen=True)
class VariateMixer(SameWidth, SequenceLayer):
    """Attention between the rows of a group, then a feed-forward layer, each with an RMSNorm before
    it and a residual connection.

    Each token is mixed separately, so there is no state. Rows that are alone in their group pass
    unchanged; without groups, all rows do.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads. Parameters are `q.W`, `k.W`, `v.W` and `o.W` (D, D), `up.W` (4D, D),
        `down.W` (D, 4D), and the gains `norm.w` and `ffn_norm.w` (D,).
    activation : str
        Activation of the feed-forward layer.
    qk_norm : bool
        Whether to divide queries and keys by the root of their mean square (Henry et al. 2020).
    """

    size: int
    num_heads: int = 4
    _: KW_ONLY
    activation: str = "silu"
    qk_norm: bool = True

    HEADED = ("size",)

    @cached_property
    def parts(self) -> Parts:
        D = self.size
        std = math.sqrt(2 / (5 * self.size))
        norm = RMSNorm(D, eps=NORM_EPS)
        maps = dict.fromkeys("qkvo", Linear(D, D, bias=False, std=std))
        up = Linear(D, 4 * D, bias=False, std=std)
        down = Linear(4 * D, D, bias=False, std=std / 2)
        return {"norm": norm, **maps, "ffn_norm": norm, "up": up, "down": down}

    @property
    def states(self) -> State:
        return ()

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        xp = span.xp
        groups = span.groups
        if groups is None or not len(groups.rows):
            return x, (), None
        run = Forward(self, xp, p, span)
        a = take(xp, x, groups.rows)  # (1)
        u = run("norm", a)  # (2)
        q, k, v = (self._heads(xp, run(name, u)) for name in "qkv")  # (3)
        if self.qk_norm:
            eps = float(finfo(xp, x.dtype).eps)
            (q, qr), (k, kr) = (normalize(xp, h, -1, MEAN_SQUARE, eps) for h in (q, k))  # (4)
            run.keep(qk=(q, qr, k, kr))
        heads = []
        sets = []
        for some, seen in self._sets(xp, groups, x):
            parts = [self._by_set(xp, b[:, some, ...], seen) for b in (q, k, v)]
            h, saved = attention(xp, parts[0], parts[1], parts[2], seen)  # (5)
            heads.append(self._by_row(xp, h))
            sets.append(saved)
        a = a + run("o", xp.concat(heads, axis=1))  # (6)
        z = run("up", run("ffn_norm", a))  # (7)
        s = fuse(xp, FEED_FORWARD[self.activation].fwd, z)  # (8)
        a = a + run("down", s)  # (9)
        run.keep(sets=sets, z=z, s=s)
        return put(xp, x, a, groups.rows), (), run.kept  # (10)

    def scan_bwd(
        self, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        xp = span.xp
        groups = span.groups
        if saved is None:
            return {name: no_gradient(xp, a) for name, a in p.items()}, dy, ()
        run = Backward(self, xp, p, saved, span)
        da = take(xp, dy, groups.rows)  # (10)
        ds = run("down", da)  # (9)
        dz = fuse(xp, FEED_FORWARD[self.activation].bwd, ds, saved["z"], saved["s"])  # (8)
        da = run("ffn_norm", run("up", dz), add=da)  # (7)
        dh = self._heads(xp, run("o", da))  # (6)
        sets = []
        for (some, seen), heads in zip(self._sets(xp, groups, dy), saved["sets"], strict=True):
            parts = attention_bwd(xp, self._by_set(xp, dh[:, some, ...], seen), heads)  # (5)
            sets.append([self._by_row(xp, d) for d in parts])
        dq, dk, dv = (xp.concat(d, axis=1) for d in zip(*sets, strict=True))
        if self.qk_norm:
            q, qr, k, kr = saved["qk"]
            dq, dk = (  # (4)
                xp.reshape(normalize_bwd(xp, self._heads(xp, d), n, r, -1, MEAN_SQUARE), d.shape)
                for d, n, r in ((dq, q, qr), (dk, k, kr))
            )
        du = run("q", dq) + run("k", dk) + run("v", dv)  # (3)
        da = run("norm", du, add=da)  # (2)
        return run.grads, put(xp, dy, da, groups.rows), ()  # (1)

    def _heads(self, xp: Namespace, a: Array) -> Array:
        """Return (T, R, D) as (T, R, N, K)."""
        return xp.reshape(a, (*a.shape[:2], self.num_heads, self.size // self.num_heads))

    def _sets(self, xp: Namespace, groups: Groups, like: Array) -> Iterator[tuple[slice, Array]]:
        """Yield for each size of groups the slice of their rows, and which row sees which, (G, 1,
        n, n).
        """
        start = 0
        for seen in groups.sizes:
            G, n, _ = seen.shape
            yield slice(start, start + G * n), xp.asarray(seen[:, None], device=device_of(like))
            start += G * n

    def _by_set(self, xp: Namespace, a: Array, seen: Array) -> Array:
        """Return rows (T, G n, N, K) as (T, G, N, n, K)."""
        T, _, N, K = a.shape
        return xp.permute_dims(
            xp.reshape(a, (T, seen.shape[0], seen.shape[-1], N, K)), (0, 1, 3, 2, 4)
        )

    def _by_row(self, xp: Namespace, a: Array) -> Array:
        """Return (T, G, N, n, K) as rows (T, G n, D)."""
        T, G, N, n, K = a.shape
        return xp.reshape(xp.permute_dims(a, (0, 1, 3, 2, 4)), (T, G * n, N * K))


@dataclass(frozen=True)
class TiRexBlock(sLSTMBlock):
    """An sLSTM without a convolution, then a feed-forward layer (SwiGLU), each with an RMSNorm
    before it and a residual connection.

    Parameters
    ----------
    ffn_size : int
        Width of the feed-forward layer.
    head_eps : float
        Number that the norm of the heads adds to their variance.
    head_residual : bool
        Whether the gain of that norm is 1 + w.
    forget_limit : float, optional
        Bound of the forget gate's pre-activation.
    rounded : bool
        Whether the sLSTM rounds as the published package does, to bfloat16.
    """

    conv_kernel_size: int = 0
    _: KW_ONLY
    ffn_size: int
    head_eps: float
    head_residual: bool
    forget_limit: float | None = None
    rounded: bool = False

    @cached_property
    def parts(self) -> Parts:
        D = self.size
        N = self.num_heads
        norm = RMSNorm(D, eps=NORM_EPS)
        parts = super().parts
        limits = {"forget_limit": self.forget_limit, "rounded": self.rounded}
        return {
            **parts,
            "norm": norm,
            "cell": dataclasses.replace(parts["cell"], **limits),
            "outnorm": MultiHeadNorm(
                D, num_heads=N, eps=self.head_eps, residual=self.head_residual
            ),
            "ffn_norm": norm,
            "ffn": GatedFeedForward(
                D, self.ffn_size, activation="silu", num_blocks=self.num_blocks
            ),
        }


@dataclass(frozen=True, kw_only=True)
class Multivariate(Block if TYPE_CHECKING else object):  # type: ignore[misc]
    """A mixin for the blocks of TiRex-2, which mix time in both directions and related rows.

    Rows whose future is known are mixed in both directions of time. Rows that belong together are
    mixed by a `VariateMixer` after the feed-forward layer.

    The same layer runs in the reverse direction, from the initial state, and `combination.W` (D,
    2D) joins both.
    """

    variate_heads: int
    activation: str
    qk_norm: bool

    @cached_property
    def parts(self) -> Parts:
        D = self.size
        mixer = VariateMixer(
            D, self.variate_heads, activation=self.activation, qk_norm=self.qk_norm
        )
        both = Linear(2 * D, D, bias=False, std=self._small)
        return {**super().parts, "combination": both, "mixer": mixer}

    def at_each_step(self, run: Forward, x: Array) -> Array:
        return run("mixer", super().at_each_step(run, x), ())[0]

    def at_each_step_bwd(self, run: Backward, dy: Array) -> Array:
        return super().at_each_step_bwd(run, run("mixer", dy, None)[0])

    def mix(self, run: Forward, u: Array, state: State) -> WithState:
        y, end = super().mix(run, u, state)
        xp = run.xp
        groups = run.span.groups
        if groups is None or not len(groups.known):
            return y, end
        rows = groups.known
        back = Forward(self, xp, run.p, self._reverse(run.span))
        rest = complete("", xp, "state", None, self.states, back.span.B, run.p)
        r, _ = super().mix(back, xp.flip(take(xp, u, rows), axis=0), rest)  # (1)
        run.keep(reverse=back.kept)
        both = xp.concat((take(xp, y, rows), xp.flip(r, axis=0)), axis=-1)  # (2)
        return put(xp, y, run("combination", both), rows), end  # (3)

    def mix_bwd(self, run: Backward, dy: Array, dstate: Any) -> WithState:
        xp = run.xp
        if "reverse" not in run.kept:
            run.grads["combination.W"] = no_gradient(xp, run.p["combination.W"])
            return super().mix_bwd(run, dy, dstate)  # type: ignore[no-any-return]
        rows = run.span.groups.known
        dboth = run("combination", take(xp, dy, rows))  # (3)
        dy = put(xp, dy, dboth[..., : self.size], rows)  # (2)
        du, start = super().mix_bwd(run, dy, dstate)
        back = Backward(self, xp, run.p, run.kept["reverse"], self._reverse(run.span))
        dr, _ = super().mix_bwd(back, xp.flip(dboth[..., self.size :], axis=0), None)  # (2) (1)
        run.grads |= {name: run.grads[name] + g for name, g in back.grads.items()}
        return put(xp, du, take(xp, du, rows) + xp.flip(dr, axis=0), rows), start  # (1)

    def _reverse(self, span: Span) -> Span:
        """Return the span of the rows whose future is known."""
        return Span(span.xp, Packing.of("", None, span.T, len(span.groups.known)), keep=span.keep)


@dataclass(frozen=True)
class sLSTMVariates(Multivariate, TiRexBlock):  # noqa: N801
    """The block of TiRex-2 with an sLSTM."""


@dataclass(frozen=True)
class mLSTMVariates(Multivariate, LargeBlock):  # noqa: N801
    """The block of TiRex-2 with an mLSTM, as in the xLSTM 7B architecture."""
