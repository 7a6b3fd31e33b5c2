"""The mLSTM cell, chunk by chunk; see `cells/mlstm.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from xlstm.arrays.backend import Array, Namespace, device_of
from xlstm.arrays.fuse import compiles, fuse, total
from xlstm.arrays.matmul import matmul, packed
from xlstm.arrays.scan import scan
from xlstm.cells.activations import FORGET
from xlstm.cells.stabiliser import denominator, floor, limit_of, low_of, one_of, sign_of

CHUNK = 64
FORGOTTEN = -1e5  # of log f, as low as can matter: digits of what else is in a sum with it would be lost
WIDTH = 8  # of which widths are multiples on CuPy, for the aligned rows that cuBLAS is fast with


class Saved(NamedTuple):
    """What `chunkwise` keeps: inputs as they are, the rest in chunks (..., chunks, steps), and no matrix of steps."""

    inputs: tuple[Array, ...]  # q, k, v, i, f
    logf: Array
    h: Array
    gates: Gates
    C: Array  # before every chunk, (..., chunks, K, V + 1): n is the column after the last one of C
    end: Array  # after the last one
    s: Array  # (7)
    den: Array  # (8)


class Gates(NamedTuple):
    """Logarithms, of every step in its chunk: (..., chunks, steps), in float64.

    What step s wrote has at step t the weight exp(b_t + w_s - m_t) = exp(w_s - r_t), what was there before the chunk
    exp(b_t + m0 - m_t) = exp(m0 - r_t).
    """

    b: Array  # sum of log f from the start of the chunk on
    w: Array  # i - b
    most: Array  # the largest w until then
    m: Array  # before every chunk, (..., chunks)
    r: Array  # the larger of `most` and of m before the chunk, which makes m = b + r


def chunkwise(
    xp: Namespace,
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    C0: Array,
    n0: Array,
    m0: Array,
    eps: float = 0.0,
    forget: str = "sigmoid",
    chunk: int = CHUNK,
) -> tuple[Array, Array, Array, Array, Saved]:
    """All steps: h (..., T, V), the state after the last one, and what is kept."""
    T = q.shape[-2]
    L = min(chunk, T)
    V = v.shape[-1]
    logf = fuse(xp, FORGET[forget].fwd, f)
    gates, m = _gates(xp, _chunks(xp, i, L, -1, -math.inf), _chunks(xp, logf, L, -1), _wide(xp, m0))
    Q, K = (packed(xp, _chunks(xp, a, L, -2)) for a in (q, k))
    V1 = _joined(xp, _chunks(xp, v, L, -2))
    bb, a, g = _weights(xp, gates, q)
    weigh = _weighing(xp, gates, q)
    written = matmul(xp, _T(xp, a[..., None] * K), V1)
    ((C, end),) = scan(xp, _step, [_joined(xp, C0, n0)], g[..., None, None], written, axis=-3)
    P = weigh(matmul(xp, Q, _T(xp, K)))
    num = matmul(xp, P, V1)
    num = matmul(xp, bb[..., None] * Q, C, add=num)
    s = num[..., V]  # (7)
    den = fuse(xp, _lowest, s, gates.b, gates.r, eps=eps, limit=limit_of(xp, s.dtype), dtype=s.dtype)  # (8)
    h = _steps(xp, fuse(xp, _quotient, num[..., :V], den[..., None], out=_room(xp, v, L)), T, -2)  # (9)
    saved = Saved((q, k, v, i, f), logf, h, gates, C, end, s, den)
    return h, end[..., :V], end[..., V], xp.astype(m, q.dtype), saved


def chunkwise_bwd(
    xp: Namespace,
    dh: Array,
    dC: Array | None,
    dn: Array | None,
    dm: Array | None,
    saved: Saved,
    eps: float = 0.0,
    forget: str = "sigmoid",
) -> tuple[Array, ...]:
    """Gradients of q, k, v, i, f, C0, n0 and m0. Those by the final state may be None all three, for zero."""
    (q, k, v, _, f), logf, h, gates, C, end, s, den = saved
    T, L, V = q.shape[-2], gates.b.shape[-1], v.shape[-1]
    Q, K, V1, H, dH = (_chunks(xp, a, L, -2) for a in (q, k, v, h, dh))
    Q, K, V1 = packed(xp, Q), packed(xp, K), _joined(xp, V1)
    bb, a, g = _weights(xp, gates, q)
    weigh = _weighing(xp, gates, q)
    along = total(xp, dH, H)
    ds = fuse(xp, _lowest_bwd, along, den, s, gates.b, gates.r, limit=limit_of(xp, s.dtype), dtype=s.dtype)  # (8) (7)
    E = _joined(xp, dH / den[..., None], ds)  # (9), by the numerator
    read = matmul(xp, _T(xp, bb[..., None] * Q), E)
    final = dC is not None and dn is not None and dm is not None
    last = _joined(xp, dC, dn) if dC is not None and dn is not None else xp.zeros_like(end)
    # By the state after every chunk, and before the first one.
    ((dCs, dC0),) = scan(xp, _step, [last], g[..., None, None], read, axis=-3, reverse=True)
    X = weigh(matmul(xp, E, _T(xp, V1)))
    dQ = fuse(xp, _sum, matmul(xp, E, _T(xp, C)), bb[..., None], matmul(xp, X, K), out=_room(xp, q, L))
    dK = fuse(xp, _sum, matmul(xp, V1, _T(xp, dCs)), a[..., None], matmul(xp, _T(xp, X), Q), out=_room(xp, k, L))
    P = weigh(matmul(xp, Q, _T(xp, K)))
    dV = matmul(xp, _T(xp, P), E)
    dV = matmul(xp, a[..., None] * K, dCs, add=dV)[..., :V]
    # Of logarithms: w_s is in everything that step s wrote, b_t in everything that step t read.
    dw = total(xp, K, dK)
    db = fuse(xp, _read_bwd, along, ds, s, dw)
    after = _after(xp, C, end, dCs)
    dm0 = total(xp, C[..., 0, :, :], dC0, (-2, -1))
    if final or eps:
        # Which of its terms the largest m of all was is in nothing but m itself and what eps is added to.
        dmt = fuse(xp, _shifted_bwd, along, den, eps=eps)
        u = None if dm is None else dm - after[..., -1]
        more, dmb, extra = _largest_bwd(xp, gates, dmt, u)
        dw, db, dm0 = dw + more, db + dmb, dm0 + extra
    di = _steps(xp, dw, T, -1)
    dlogf = _steps(xp, _sums_bwd(xp, db, after), T, -1)
    df = fuse(xp, FORGET[forget].bwd, dlogf, f, logf)
    return *(_steps(xp, d, T, -2) for d in (dQ, dK, dV)), di, df, dC0[..., :V], dC0[..., V], dm0


def _gates(xp: Namespace, i: Array, logf: Array, m0: Array) -> tuple[Gates, Array]:
    """And m after the last chunk."""
    b, w, most = _sums(xp, i, logf)
    ((ms, end),) = scan(xp, _larger, [m0], b[..., -1], most[..., -1])
    return Gates(b, w, most, ms, fuse(xp, _reference, most, ms[..., None], low=low_of(xp, most.dtype))), end


def _sums(xp: Namespace, i: Array, logf: Array) -> tuple[Array, Array, Array]:
    """b, w and `most` of `Gates`: in one kernel step by step, or all steps at once by few calls."""
    if compiles(xp):
        (b, _), (most, _) = scan(xp, _summed, [0.0, -math.inf], i, logf, after=True)
        return b, i - b, most
    L = i.shape[-1]
    i, logf = _wide(xp, i), _wide(xp, logf)
    b = xp.maximum(logf, xp.full_like(logf, FORGOTTEN)) @ xp.triu(_ones(xp, logf, (L, L)))
    w = i - b
    return b, w, _running_max(xp, w)


def _sums_bwd(xp: Namespace, db: Array, after: Array) -> Array:
    """Of each step the sum of db from it on, and of what comes after the chunk."""
    if compiles(xp):
        return scan(xp, _added, [after], db, reverse=True, after=True)[0][0]
    L = db.shape[-1]
    return db @ xp.tril(_ones(xp, db, (L, L))) + after[..., None]


def _weights(xp: Namespace, gates: Gates, q: Array) -> tuple[Array, Array, Array]:
    """Of what each step reads of what was there before the chunk, of what each step adds to the state after the chunk,
    and of the state before it: (..., L), (..., L), (...). What steps write is times 1 / sqrt(K)."""
    _, w, _, m, r = gates
    root, last = q.shape[-1] ** -0.5, r[..., -1]
    options = {"low": low_of(xp, m.dtype), "dtype": q.dtype}
    bb, a = fuse(xp, _ends, w, r, m[..., None], last[..., None], root=root, **options)
    return bb, a, fuse(xp, _through, m, last, **options)


def _weighing(xp: Namespace, gates: Gates, q: Array) -> Callable[[Array], Array]:
    """What multiplies numbers of steps and steps, (..., L, L), by what each reads of each; in their place."""
    _, w, _, _, r = gates
    steps = xp.arange(w.shape[-1], dtype=xp.float32, device=device_of(w))
    given = (w[..., None, :], r[..., :, None], steps[None, :], steps[:, None])
    options = {"root": q.shape[-1] ** -0.5, "dtype": q.dtype}
    if compiles(xp):  # where exp costs less than to keep what it gives
        return lambda P: fuse(xp, _weighed, P, *given, out=P, **options)
    D = _weight(xp, *given, **options)

    def weigh(P: Array) -> Array:
        P *= D
        return P

    return weigh


def _largest_bwd(xp: Namespace, gates: Gates, dm: Array, u: Array | None) -> tuple[Array, Array, Array]:
    """Gradients of w, b and of m before the first chunk from those of m (..., chunks, L) and of the last of all, u."""
    _, w, most, m, _ = gates
    dtype = dm.dtype
    steps = xp.arange(w.shape[-1], dtype=xp.float32, device=device_of(w))
    old = fuse(xp, _older, m[..., None], most, dtype=dtype)  # where m comes from before the chunk
    u = xp.zeros_like(dm[..., 0, 0]) if u is None else u
    ((us, u),) = scan(xp, _step, [u], old[..., -1], total(xp, old, dm), reverse=True)
    dm = fuse(xp, _and_last, dm, us[..., None], steps, steps[-1:], dtype=dtype)
    hit = fuse(xp, _hits, w[..., None, :], most[..., :, None], steps[None, :], steps[:, None], dtype=dtype)
    share = fuse(xp, _share, old, dm, xp.sum(hit, axis=-1))
    dw = matmul(xp, share[..., None, :], hit)[..., 0, :]
    return dw, dm - dw, u


def _after(xp: Namespace, C: Array, end: Array, dCs: Array) -> Array:
    """By the sum of log f of the whole chunk, (..., chunks)."""
    last = total(xp, end, dCs[..., -1, :, :], (-2, -1))[..., None]
    if C.shape[-3] == 1:
        return last
    return xp.concat((total(xp, C[..., 1:, :, :], dCs[..., :-1, :, :], (-2, -1)), last), axis=-1)


# Element by element:


def _step(xp: Namespace, C: Array, g: Array, written: Array) -> Array:
    return g * C + written


def _summed(xp: Namespace, b: Array, most: Array, i: Array, logf: Array) -> tuple[Array, Array]:
    logf = _wide(xp, logf)
    b = b + xp.maximum(logf, xp.full_like(logf, FORGOTTEN))
    return b, xp.maximum(most, _wide(xp, i) - b)


def _added(xp: Namespace, total: Array, d: Array) -> Array:
    return total + d


def _larger(xp: Namespace, m: Array, b: Array, most: Array) -> Array:
    return b + xp.maximum(most, m)


def _reference(xp: Namespace, most: Array, m: Array, low: float) -> Array:
    return floor(xp, xp.maximum(most, m), low)


def _ends(
    xp: Namespace, w: Array, r: Array, before: Array, last: Array, root: float, low: float, dtype: Any
) -> tuple[Array, Array]:
    return xp.astype(xp.exp(floor(xp, before, low) - r), dtype), xp.astype(root * xp.exp(w - last), dtype)


def _through(xp: Namespace, before: Array, last: Array, low: float, dtype: Any) -> Array:
    return xp.astype(xp.exp(floor(xp, before, low) - last), dtype)


def _weight(xp: Namespace, w: Array, r: Array, at: Array, of: Array, root: float, dtype: Any) -> Array:
    until = xp.astype(at <= of, dtype)
    D = xp.astype(w - r, dtype)
    D = xp.exp(xp.minimum(D, xp.zeros_like(until)))  # later steps may have written with any weight
    D *= root * until
    return D


def _weighed(xp: Namespace, P: Array, w: Array, r: Array, at: Array, of: Array, root: float, dtype: Any) -> Array:
    return P * _weight(xp, w, r, at, of, root, dtype)


def _lowest(xp: Namespace, s: Array, b: Array, r: Array, eps: float, limit: float, dtype: Any) -> Array:
    return denominator(xp, s, b + r, eps, limit, dtype)


def _lowest_bwd(
    xp: Namespace, along: Array, den: Array, s: Array, b: Array, r: Array, limit: float, dtype: Any
) -> Array:
    return -along / den * sign_of(xp, s, one_of(xp, b + r, limit, dtype), dtype)


def _quotient(xp: Namespace, num: Array, den: Array) -> Array:
    return num / den


def _sum(xp: Namespace, far: Array, scale: Array, near: Array) -> Array:
    """In the place of `far`, which nobody else has, where it has one."""
    far *= scale
    far += near
    return far


def _read_bwd(xp: Namespace, along: Array, ds: Array, s: Array, dw: Array) -> Array:
    return along + ds * s - dw


def _shifted_bwd(xp: Namespace, along: Array, den: Array, eps: float) -> Array:
    return -eps * along / den


def _older(xp: Namespace, before: Array, most: Array, dtype: Any) -> Array:
    return xp.astype(before >= most, dtype)


def _and_last(xp: Namespace, dm: Array, end: Array, at: Array, last: Array, dtype: Any) -> Array:
    return dm + end * xp.astype(at >= last, dtype)


def _hits(xp: Namespace, w: Array, most: Array, at: Array, of: Array, dtype: Any) -> Array:
    return xp.astype(w >= most, dtype) * xp.astype(at <= of, dtype)


def _share(xp: Namespace, old: Array, dm: Array, hits: Array) -> Array:
    return (1 - old) * dm / hits


def _wide(xp: Namespace, a: Array) -> Array:
    """In float64: sums of logarithms have to keep the digits of their smallest terms."""
    return xp.astype(a, xp.float64)


# Steps and chunks:


def _running_max(xp: Namespace, a: Array) -> Array:
    """The largest of all until then, along the last axis."""
    k = 1
    while k < a.shape[-1]:
        a = xp.concat((a[..., :k], xp.maximum(a[..., k:], a[..., :-k])), axis=-1)
        k *= 2
    return a


def _chunks(xp: Namespace, a: Array, L: int, axis: int, fill: float = 0.0) -> Array:
    """Steps along `axis` (-1 or -2) as chunks of L steps, the last one filled up."""
    T = a.shape[axis]
    before, rest = tuple(a.shape[: a.ndim + axis]), tuple(a.shape[a.ndim + axis + 1 :])
    if T % L:
        spare = xp.full((*before, L - T % L, *rest), fill, dtype=a.dtype, device=device_of(a))
        a = xp.concat((a, spare), axis=axis)
    return xp.reshape(a, (*before, -(-T // L), L, *rest))


def _steps(xp: Namespace, a: Array, T: int, axis: int) -> Array:
    """The reverse of `_chunks`."""
    at = a.ndim + axis - 1
    a = xp.reshape(a, (*a.shape[:at], a.shape[at] * a.shape[at + 1], *a.shape[at + 2 :]))
    return a if a.shape[axis] == T else a[..., :T] if axis == -1 else a[..., :T, :]


def _room(xp: Namespace, like: Array, L: int) -> Array | None:
    """On CuPy, room for a result in chunks that has steps first in memory, as the caller of layers has them: to go from
    there to steps and back to rows takes no copy."""
    if not compiles(xp):
        return None
    *before, T, F = like.shape
    n, steps = -(-T // L), len(before)
    room = xp.empty((n * L, *before, F), dtype=like.dtype)
    return xp.reshape(xp.permute_dims(room, (*range(1, steps + 1), 0, steps + 1)), (*before, n, L, F))


def _joined(xp: Namespace, v: Array, n: Array | None = None) -> Array:
    """[v, n], or [v, 1]: the normaliser is one column more. On CuPy there are also columns of zeros."""
    if not compiles(xp):
        n = _ones(xp, v, tuple(v.shape[:-1])) if n is None else n
        return xp.concat((v, n[..., None]), axis=-1)
    V = v.shape[-1]
    both = xp.zeros((*v.shape[:-1], V + WIDTH - V % WIDTH), dtype=v.dtype)
    both[..., :V] = v
    both[..., V] = 1 if n is None else n
    return both


def _ones(xp: Namespace, like: Array, shape: tuple[int, ...]) -> Array:
    return xp.ones(shape, dtype=like.dtype, device=device_of(like))


def _T(xp: Namespace, a: Array) -> Array:  # noqa: N802
    return xp.matrix_transpose(a)
