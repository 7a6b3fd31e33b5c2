"""The mLSTM cell: a matrix memory without a recurrent weight (Beck et al. 2024, eqs. 19 to 27).

    C = f C0 + i k v^T      n = f n0 + i k      h = C^T q / max(|n q|, 1)      i = exp(i~), f = sigmoid(f~)

with k divided by sqrt(K). C and n are kept divided by exp(m), so that nothing overflows (appendix A.3 there);
m = -inf with C = n = 0 is the state before the first step, and a step with i~ = -inf writes nothing.

Two forms of the same function: `step`, one step, and `chunkwise`, which works on chunks of `chunk` steps by matrix
products and has a loop over chunks only; one chunk of all steps is the parallel form. Axes before those named are
free: q and k (..., T, K), v (..., T, V), i and f (..., T), C (..., K, V), n (..., K), m (...). In `chunkwise` a log f
below -10^5 counts as that: it lets nothing through either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from xlstm.activations import FORGET, clamp
from xlstm.backend import Array, Namespace, device_of
from xlstm.elementwise import compiles, fuse, total
from xlstm.products import matmul, packed
from xlstm.scans import scan

STATES = ("C", "n", "m")
CHUNK = 64
LOW = -1e30  # in place of -inf where it would be subtracted from itself
FORGOTTEN = -1e5  # of log f, as low as can matter: digits of what else is in a sum with it would be lost
WIDTH = 8  # of which widths are multiples on CuPy, for the aligned rows that cuBLAS is fast with


class SavedStep(NamedTuple):
    """What `step` keeps."""

    inputs: tuple[Array, ...]  # q, k, v, i, f, C0, n0, m0
    logf: Array
    scales: tuple[Array, Array]  # (2)
    state: tuple[Array, Array, Array]
    s: Array  # (4)
    den: Array  # (5)
    h: Array


def step(
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
) -> tuple[Array, Array, Array, Array, SavedStep]:
    """One step from q, k (..., K), v (..., V), i~, f~ (...) and the state: h (..., V), the state, and what is kept."""
    root = q.shape[-1] ** -0.5
    logf, m, a, g = fuse(xp, _scales, i, f, m0, forget=forget)  # (1) (2)
    ak, n = fuse(xp, _written, a[..., None], g[..., None], k, n0, root=root)
    C = fuse(xp, _remembered, C0, g[..., None, None], ak[..., :, None], v[..., None, :])  # (3)
    s = total(xp, q, n)  # (4)
    den = fuse(xp, _denominator, s, m, eps=eps, limit=_limit(xp, s.dtype), dtype=s.dtype)  # (5)
    h = matmul(xp, q[..., None, :], C)[..., 0, :] / den[..., None]  # (6)
    return h, C, n, m, SavedStep((q, k, v, i, f, C0, n0, m0), logf, (a, g), (C, n, m), s, den, h)


def step_bwd(
    xp: Namespace,
    dh: Array,
    dC: Array,
    dn: Array,
    dm: Array,
    saved: SavedStep,
    eps: float = 0.0,
    forget: str = "sigmoid",
) -> tuple[Array, ...]:
    """Gradients of q, k, v, i, f, C0, n0 and m0."""
    (q, k, v, i, f, C0, n0, m0), logf, (a, g), (C, n, m), s, den, h = saved
    root = q.shape[-1] ** -0.5
    e = dh / den[..., None]  # (6) by the numerator
    dden = total(xp, e, h)  # (6), but for its sign
    ds, dm = fuse(xp, _denominator_bwd, dden, s, m, dm, limit=_limit(xp, s.dtype), dtype=s.dtype)  # (5)
    dq = fuse(xp, _plus, matmul(xp, C, e[..., :, None])[..., 0], ds[..., None], n)  # (6) (4)
    dC = fuse(xp, _plus, dC, q[..., :, None], e[..., None, :])
    dn = fuse(xp, _plus, dn, q, ds[..., None])
    dk = fuse(xp, _written_bwd, a[..., None], matmul(xp, dC, v[..., :, None])[..., 0], dn, root=root)  # (3)
    dv = fuse(xp, _scaled, a[..., None], matmul(xp, k[..., None, :], dC)[..., 0, :], root=root)
    ea = total(xp, k, dk)  # da a
    eg = g * (total(xp, C0, dC, (-2, -1)) + total(xp, n0, dn))  # dg g
    di, df, dlogf = fuse(xp, _scales_bwd, dm, ea, eg, i, f, logf, m0, forget=forget, dtype=i.dtype)  # (2) (1)
    return dq, dk, dv, di, df, g[..., None, None] * dC, g[..., None] * dn, dlogf


# Of `step`, element by element:


def _scales(xp: Namespace, i: Array, f: Array, m0: Array, forget: str) -> tuple[Array, ...]:
    logf = FORGET[forget].fwd(xp, f)
    m = xp.maximum(logf + m0, i)  # (1)
    low = _floor(xp, m)
    return logf, m, xp.exp(i - low), xp.exp(logf + m0 - low)  # (2)


def _scales_bwd(
    xp: Namespace,
    dm: Array,
    ea: Array,
    eg: Array,
    i: Array,
    f: Array,
    logf: Array,
    m0: Array,
    forget: str,
    dtype: Any,
) -> tuple[Array, ...]:
    dm = dm - ea - eg  # (2)
    wrote = xp.astype(i > logf + m0, dtype)  # (1)
    dlogf = eg + (1 - wrote) * dm
    return ea + wrote * dm, FORGET[forget].bwd(xp, dlogf, f, logf), dlogf


def _written(xp: Namespace, a: Array, g: Array, k: Array, n0: Array, root: float) -> tuple[Array, Array]:
    ak = root * a * k
    return ak, g * n0 + ak


def _written_bwd(xp: Namespace, a: Array, dk: Array, dn: Array, root: float) -> Array:
    return root * a * (dk + dn)


def _scaled(xp: Namespace, a: Array, d: Array, root: float) -> Array:
    return root * a * d


def _remembered(xp: Namespace, C0: Array, g: Array, ak: Array, v: Array) -> Array:
    return g * C0 + ak * v


def _denominator(xp: Namespace, s: Array, m: Array, eps: float, limit: float, dtype: Any) -> Array:
    return xp.maximum(xp.abs(s), _one(xp, m, limit, dtype)) + eps


def _denominator_bwd(
    xp: Namespace, dden: Array, s: Array, m: Array, dm: Array, limit: float, dtype: Any
) -> tuple[Array, Array]:
    """`dden` is with the opposite sign."""
    one = _one(xp, m, limit, dtype)
    sign = _sign(xp, s, one, dtype)
    return -dden * sign, dm + dden * one * (1 - xp.abs(sign))


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
    den = fuse(xp, _lowest, s, gates.b, gates.r, eps=eps, limit=_limit(xp, s.dtype), dtype=s.dtype)  # (8)
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
    ds = fuse(xp, _lowest_bwd, along, den, s, gates.b, gates.r, limit=_limit(xp, s.dtype), dtype=s.dtype)  # (8) (7)
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
    return Gates(b, w, most, ms, fuse(xp, _reference, most, ms[..., None])), end


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
    bb, a = fuse(xp, _ends, w, r, m[..., None], last[..., None], root=root, dtype=q.dtype)
    return bb, a, fuse(xp, _through, m, last, dtype=q.dtype)


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


# Of `chunkwise`, element by element:


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


def _reference(xp: Namespace, most: Array, m: Array) -> Array:
    return _floor(xp, xp.maximum(most, m))


def _ends(
    xp: Namespace, w: Array, r: Array, before: Array, last: Array, root: float, dtype: Any
) -> tuple[Array, Array]:
    return xp.astype(xp.exp(before - r), dtype), xp.astype(root * xp.exp(w - last), dtype)


def _through(xp: Namespace, before: Array, last: Array, dtype: Any) -> Array:
    return xp.astype(xp.exp(before - last), dtype)


def _weight(xp: Namespace, w: Array, r: Array, at: Array, of: Array, root: float, dtype: Any) -> Array:
    until = xp.astype(at <= of, dtype)
    D = xp.astype(w - r, dtype)
    D = xp.exp(xp.minimum(D, xp.zeros_like(until)))  # later steps may have written with any weight
    D *= root * until
    return D


def _weighed(xp: Namespace, P: Array, w: Array, r: Array, at: Array, of: Array, root: float, dtype: Any) -> Array:
    return P * _weight(xp, w, r, at, of, root, dtype)


def _lowest(xp: Namespace, s: Array, b: Array, r: Array, eps: float, limit: float, dtype: Any) -> Array:
    return _denominator(xp, s, b + r, eps, limit, dtype)


def _lowest_bwd(
    xp: Namespace, along: Array, den: Array, s: Array, b: Array, r: Array, limit: float, dtype: Any
) -> Array:
    return -along / den * _sign(xp, s, _one(xp, b + r, limit, dtype), dtype)


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


# Of both:


def _plus(xp: Namespace, a: Array, b: Array, c: Array) -> Array:
    return a + b * c


def _floor(xp: Namespace, m: Array) -> Array:
    return xp.maximum(m, xp.full_like(m, LOW))


def _one(xp: Namespace, m: Array, limit: float, dtype: Any) -> Array:
    """1 / exp(m), within what the dtype has: it is neither infinite nor 0."""
    one = xp.exp(clamp(xp, -m, limit))
    return one if m.dtype == dtype else xp.astype(one, dtype)


def _sign(xp: Namespace, s: Array, one: Array, dtype: Any) -> Array:
    """Of s, where that is larger than `one`, else 0."""
    return xp.astype(s > one, dtype) - xp.astype(s < -one, dtype)


def _wide(xp: Namespace, a: Array) -> Array:
    """In float64: sums of logarithms have to keep the digits of their smallest terms."""
    return xp.astype(a, xp.float64)


# Of neither:


@functools.cache
def _limit(xp: Namespace, dtype: Any) -> float:
    """The largest of logarithms whose exponentials, and one over them, the dtype has."""
    known = xp.float32 if str(dtype) == "bfloat16" else dtype  # of which CuPy's finfo knows nothing; it is as wide
    return -math.log(float(xp.finfo(known).smallest_normal)) - 1


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
