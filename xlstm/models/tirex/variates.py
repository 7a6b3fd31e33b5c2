"""The variate mixer of TiRex-2: rows of a batch that belong together see each other, token by token."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, Params, device_of, finfo
from xlstm.cells.activations import FEED_FORWARD
from xlstm.cells.normalization import normalize_root, normalize_root_bwd
from xlstm.layers.attention import attention, attention_bwd
from xlstm.layers.linear import Linear
from xlstm.layers.module import SameWidth
from xlstm.layers.norm import RMSNorm
from xlstm.layers.sequence import SequenceLayer
from xlstm.layers.state import Span, State

Host = np.ndarray[Any, Any]
NORM_EPS = 1e-6  # of every norm in a block


class Groups(NamedTuple):
    """The rows of a batch that see each other, and those whose future is known."""

    rows: Host  # (R,) rows that are not alone in their group; groups of one size lie together
    sizes: tuple[Host, ...]  # of each size n, (G, n, n): which row of a group each row sees
    known: Host  # (K,) rows whose future is known

    @classmethod
    def of(cls, where: str, B: int, groups: Any, targets: Any, known: Any) -> Groups:
        """Check the numbers of the groups and the marks of B rows; a covariate never sees a target.

        Raises
        ------
        ValueError, TypeError
            An array is not one of B whole numbers, or of B truth values.
        """
        number = _by_row(where, "groups", groups, np.arange(B), "iu")
        target = _by_row(where, "targets", targets, np.ones(B, bool), "b")
        _, group, count = np.unique(number, return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        rows, sizes = [], []
        for n in np.unique(count[count > 1]):
            some = order[(count == n)[group[order]]].reshape(-1, n)
            rows.append(some.ravel())
            sizes.append(target[some][:, :, None] | ~target[some][:, None, :])
        found = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return cls(found, tuple(sizes), np.flatnonzero(_by_row(where, "known", known, np.zeros(B, bool), "b")))


def _by_row(where: str, name: str, given: Any, usual: Host, kinds: str) -> Host:
    if given is None:
        return usual
    expected = f"{'truth values' if kinds == 'b' else 'whole numbers'} (B,) = {usual.shape}"
    host = checks.host(where, name, given, expected)
    if host.shape != usual.shape:
        raise ValueError(f"{where}: {name} has shape {host.shape}, expected {expected}")
    if host.dtype.kind not in kinds:
        raise TypeError(f"{where}: {name} has dtype {host.dtype}, expected {expected}")
    return host


def take(xp: Namespace, x: Array, rows: Host) -> Array:
    """Return some rows (T, R, ...) of x (T, B, ...)."""
    return xp.take(x, xp.asarray(rows, device=device_of(x)), axis=1)


def put(xp: Namespace, x: Array, some: Array, rows: Host) -> Array:
    """Return x (T, B, ...) with `some` (T, R, ...) in the place of these rows."""
    places = np.arange(x.shape[1])
    places[rows] = x.shape[1] + np.arange(len(rows))
    return take(xp, xp.concat((x, some), axis=1), places)


@dataclass(frozen=True)
class VariateMixer(SameWidth, SequenceLayer):
    """Attention between the rows of a group, and a feed-forward layer, each after an RMSNorm and added to x.

    Each token is by itself: there is no state. Rows that are alone in their group, which all are where a call has no
    groups, pass as they are.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_heads : int
        Number N of heads. Parameters are `q.W`, `k.W`, `v.W` and `o.W` (D, D), `up.W` (4D, D), `down.W` (D, 4D), and
        the gains `norm.w` and `ffn_norm.w` (D,).
    activation : str
        Activation of the feed-forward layer.
    qk_norm : bool
        Whether queries and keys are divided by the root of their mean square (Henry et al. 2020).
    """

    size: int
    num_heads: int = 4
    _: KW_ONLY
    activation: str = "silu"
    qk_norm: bool = True

    HEADED = ("size",)

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        D, std = self.size, math.sqrt(2 / (5 * self.size))
        norm = RMSNorm(D, eps=NORM_EPS)
        maps = dict.fromkeys("qkvo", Linear(D, D, bias=False, std=std))
        up, down = Linear(D, 4 * D, bias=False, std=std), Linear(4 * D, D, bias=False, std=std / 2)
        return {"norm": norm, **maps, "ffn_norm": norm, "up": up, "down": down}

    @property
    def states(self) -> State:
        return ()

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        xp, groups = span.xp, span.groups
        if groups is None or not len(groups.rows):
            return x, (), None
        kept: dict[str, Any] = {}
        a = take(xp, x, groups.rows)  # (1)
        u = self.through(xp, "norm", p, a, kept)  # (2)
        q, k, v = (self._heads(xp, self.through(xp, name, p, u, kept)) for name in "qkv")  # (3)
        if self.qk_norm:
            eps = float(finfo(xp, x.dtype).eps)
            (q, qr), (k, kr) = (normalize_root(xp, h, -1, eps) for h in (q, k))  # (4)
            kept["qk"] = q, qr, k, kr
        heads = []
        kept["sets"] = []
        for some, seen in self._sets(xp, groups, x):
            sets = [self._by_set(xp, b[:, some, ...], seen) for b in (q, k, v)]
            h, one = attention(xp, sets[0], sets[1], sets[2], seen)  # (5)
            heads.append(self._by_row(xp, h))
            kept["sets"].append(one)
        a = a + self.through(xp, "o", p, xp.concat(heads, axis=1), kept)  # (6)
        z = self.through(xp, "up", p, self.through(xp, "ffn_norm", p, a, kept), kept)  # (7)
        s = fuse(xp, FEED_FORWARD[self.activation].fwd, z)  # (8)
        a = a + self.through(xp, "down", p, s, kept)  # (9)
        return put(xp, x, a, groups.rows), (), {**kept, "z": z, "s": s}  # (10)

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        xp, groups = span.xp, span.groups
        if kept is None:
            return {name: xp.zeros_like(a) for name, a in p.items()}, dy, ()
        grads: Params = {}
        da = take(xp, dy, groups.rows)  # (10)
        ds = self.through_bwd(xp, "down", p, kept, da, grads)  # (9)
        dz = fuse(xp, FEED_FORWARD[self.activation].bwd, ds, kept["z"], kept["s"])  # (8)
        dz = self.through_bwd(xp, "up", p, kept, dz, grads)  # (7)
        da = da + self.through_bwd(xp, "ffn_norm", p, kept, dz, grads)
        dh = self._heads(xp, self.through_bwd(xp, "o", p, kept, da, grads))  # (6)
        found = []
        for (some, seen), one in zip(self._sets(xp, groups, dy), kept["sets"], strict=True):
            parts = attention_bwd(xp, self._by_set(xp, dh[:, some, ...], seen), one)  # (5)
            found.append([self._by_row(xp, d) for d in parts])
        dq, dk, dv = (xp.concat(d, axis=1) for d in zip(*found, strict=True))
        if self.qk_norm:
            q, qr, k, kr = kept["qk"]
            dq, dk = (  # (4)
                xp.reshape(normalize_root_bwd(xp, self._heads(xp, d), n, r, -1), d.shape)
                for d, n, r in ((dq, q, qr), (dk, k, kr))
            )
        du = sum(self.through_bwd(xp, name, p, kept, d, grads) for name, d in (("q", dq), ("k", dk), ("v", dv)))  # (3)
        da = da + self.through_bwd(xp, "norm", p, kept, du, grads)  # (2)
        return grads, put(xp, dy, da, groups.rows), ()  # (1)

    def _heads(self, xp: Namespace, a: Array) -> Array:
        """Return (T, R, D) as (T, R, N, K)."""
        return xp.reshape(a, (*a.shape[:2], self.num_heads, self.size // self.num_heads))

    def _sets(self, xp: Namespace, groups: Groups, like: Array) -> Iterator[tuple[slice, Array]]:
        """Yield the places of all groups of a size among their rows, and who sees whom, (G, 1, n, n)."""
        start = 0
        for seen in groups.sizes:
            G, n, _ = seen.shape
            yield slice(start, start + G * n), xp.asarray(seen[:, None], device=device_of(like))
            start += G * n

    def _by_set(self, xp: Namespace, a: Array, seen: Array) -> Array:
        """Return rows (T, G n, N, K) as (T, G, N, n, K)."""
        T, _, N, K = a.shape
        return xp.permute_dims(xp.reshape(a, (T, seen.shape[0], seen.shape[-1], N, K)), (0, 1, 3, 2, 4))

    def _by_row(self, xp: Namespace, a: Array) -> Array:
        """Return (T, G, N, n, K) as rows (T, G n, D)."""
        T, G, N, n, K = a.shape
        return xp.reshape(xp.permute_dims(a, (0, 1, 3, 2, 4)), (T, G * n, N * K))
