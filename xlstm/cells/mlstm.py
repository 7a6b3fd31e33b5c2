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

import math
from typing import NamedTuple

from xlstm.activations import FORGET, clamp
from xlstm.backend import Array, Namespace, device_of

STATES = ("C", "n", "m")
CHUNK = 64
LOW = -1e30  # in place of -inf where it would be subtracted from itself
FORGOTTEN = -1e5  # of log f, as low as can matter: digits of what else is in a sum with it would be lost


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
    logf = FORGET[forget].fwd(xp, f)
    m = xp.maximum(logf + m0, i)  # (1)
    low = _floor(xp, m)
    a, g = xp.exp(i - low), xp.exp(logf + m0 - low)  # (2)
    ak = (q.shape[-1] ** -0.5 * a)[..., None] * k
    C = g[..., None, None] * C0 + ak[..., :, None] * v[..., None, :]  # (3)
    n = g[..., None] * n0 + ak
    s = xp.sum(q * n, axis=-1)  # (4)
    den = xp.maximum(xp.abs(s), _one(xp, low, s)) + eps  # (5)
    h = (q[..., None, :] @ C)[..., 0, :] / den[..., None]  # (6)
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
    ar, one = q.shape[-1] ** -0.5 * a, _one(xp, _floor(xp, m), s)
    e = dh / den[..., None]  # (6) by the numerator
    dden = -xp.sum(e * h, axis=-1)  # (6)
    above = xp.astype(xp.abs(s) > one, s.dtype)
    ds = dden * xp.sign(s) * above  # (5) (4)
    dm = dm - dden * one * (1 - above)  # (5)
    dq = (C @ e[..., :, None])[..., 0] + ds[..., None] * n
    dC = dC + q[..., :, None] * e[..., None, :]
    dn = dn + q * ds[..., None]
    dk = ar[..., None] * ((dC @ v[..., :, None])[..., 0] + dn)  # (3)
    dv = ar[..., None] * (k[..., None, :] @ dC)[..., 0, :]
    ea = xp.sum(k * dk, axis=-1)  # da a
    eg = g * (xp.sum(C0 * dC, axis=(-2, -1)) + xp.sum(n0 * dn, axis=-1))  # dg g
    dm = dm - ea - eg  # (2)
    wrote = xp.astype(i > logf + m0, i.dtype)  # (1)
    dlogf = eg + (1 - wrote) * dm
    df = FORGET[forget].bwd(xp, dlogf, f, logf)
    return dq, dk, dv, ea + wrote * dm, df, g[..., None, None] * dC, g[..., None] * dn, dlogf


class Saved(NamedTuple):
    """What `chunkwise` keeps: inputs as they are, the rest in chunks (..., chunks, steps), and no matrix of steps."""

    inputs: tuple[Array, ...]  # q, k, v, i, f
    logf: Array
    h: Array
    gates: Gates
    C: Array  # of n too, its last column, before and after every chunk: (..., chunks + 1, K, V + 1)
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
    m: Array  # before and after every chunk, (..., chunks + 1)
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
    logf = FORGET[forget].fwd(xp, f)
    gates = _gates(xp, _chunks(xp, _wide(xp, i), L, -1, -math.inf), _chunks(xp, _wide(xp, logf), L, -1), _wide(xp, m0))
    Q, K = (_chunks(xp, a, L, -2) for a in (q, k))
    V = _beside_ones(xp, _chunks(xp, v, L, -2))
    D, bb, a, g = _weights(xp, gates, q)
    written = _T(xp, a[..., None] * K) @ V
    C = [xp.concat((C0, n0[..., None]), axis=-1)]
    for c in range(written.shape[-3]):
        C.append(g[..., c, None, None] * C[-1] + written[..., c, :, :])
    states = xp.stack(C, axis=-3)
    P = Q @ _T(xp, K)
    P *= D
    num = P @ V
    num += (bb[..., None] * Q) @ states[..., :-1, :, :]
    s = num[..., -1]  # (7)
    den = xp.maximum(xp.abs(s), _one(xp, gates.b + gates.r, s)) + eps  # (8)
    h = _steps(xp, num[..., :-1] / den[..., None], T, -2)  # (9)
    end = states[..., -1, :, :]
    saved = Saved((q, k, v, i, f), logf, h, gates, states, s, den)
    return h, end[..., :-1], end[..., -1], xp.astype(gates.m[..., -1], q.dtype), saved


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
    (q, k, v, _, f), logf, h, gates, C, s, den = saved
    T, L = q.shape[-2], gates.b.shape[-1]
    Q, K, V, H, dH = (_chunks(xp, a, L, -2) for a in (q, k, v, h, dh))
    V = _beside_ones(xp, V)
    D, bb, a, g = _weights(xp, gates, q)
    along = xp.sum(dH * H, axis=-1)
    ds = -along / den * xp.sign(s) * xp.astype(xp.abs(s) > _one(xp, gates.b + gates.r, s), s.dtype)  # (8) (7)
    E = xp.concat((dH / den[..., None], ds[..., None]), axis=-1)  # (9), by the numerator
    bQ = bb[..., None] * Q
    read = _T(xp, bQ) @ E
    final = dC is not None and dn is not None and dm is not None
    ends = [xp.zeros_like(C[..., 0, :, :])]
    if dC is not None and dn is not None:
        ends = [xp.concat((dC, dn[..., None]), axis=-1)]
    for c in range(read.shape[-3] - 1, -1, -1):
        ends.append(g[..., c, None, None] * ends[-1] + read[..., c, :, :])
    dC0 = ends.pop()
    dCs = xp.stack(ends[::-1], axis=-3)  # by the state after every chunk
    X = E @ _T(xp, V)
    X *= D
    dQ = E @ _T(xp, C[..., :-1, :, :])
    dQ *= bb[..., None]
    dQ += X @ K
    dK = V @ _T(xp, dCs)
    dK *= a[..., None]
    dK += _T(xp, X) @ Q
    P = Q @ _T(xp, K)
    P *= D
    dV = _T(xp, P) @ E
    dV += (a[..., None] * K) @ dCs
    dV = dV[..., :-1]
    # Of logarithms: w_s is in everything that step s wrote, b_t in everything that step t read.
    dw = xp.sum(K * dK, axis=-1)
    db = along + ds * s - dw
    after = xp.sum(C[..., 1:, :, :] * dCs, axis=(-2, -1))  # by the sum of log f of the whole chunk
    dm0 = xp.sum(C[..., 0, :, :] * dC0, axis=(-2, -1))
    if final or eps:
        # Which of its terms the largest m of all was is in nothing but m itself and what eps is added to.
        dmt = -eps * along / den
        u = None if dm is None else dm - after[..., -1]
        more, dmb, extra = _largest_bwd(xp, gates, dmt, u)
        dw, db, dm0 = dw + more, db + dmb, dm0 + extra
    di = _steps(xp, dw, T, -1)
    dlogf = _steps(xp, db @ xp.tril(_ones(xp, db, (L, L))) + after[..., None], T, -1)
    df = FORGET[forget].bwd(xp, dlogf, f, logf)
    dC0, dn0 = dC0[..., :-1], dC0[..., -1]
    return *(_steps(xp, d, T, -2) for d in (dQ, dK, dV)), di, df, dC0, dn0, dm0


def _gates(xp: Namespace, i: Array, logf: Array, m0: Array) -> Gates:
    L = i.shape[-1]
    b = xp.maximum(logf, xp.full_like(logf, FORGOTTEN)) @ xp.triu(_ones(xp, logf, (L, L)))
    w = i - b
    most = _running_max(xp, w)
    m = [m0]
    for c in range(b.shape[-2]):
        m.append(b[..., c, -1] + xp.maximum(most[..., c, -1], m[-1]))
    ms = xp.stack(m, axis=-1)
    return Gates(b, w, most, ms, _floor(xp, xp.maximum(most, ms[..., :-1, None])))


def _weights(xp: Namespace, gates: Gates, q: Array) -> tuple[Array, Array, Array, Array]:
    """Of what each step reads of each step, and of what was there before; of what each step adds to the state after the
    chunk, and of the state before it: (..., L, L), (..., L), (..., L), (...). What steps write is times 1 / sqrt(K)."""
    _, w, _, m, r = gates
    root, dtype, L, last, before = q.shape[-1] ** -0.5, q.dtype, w.shape[-1], r[..., -1], m[..., :-1]
    D = xp.astype(w[..., None, :] - r[..., :, None], dtype)
    D = xp.exp(xp.minimum(D, xp.zeros_like(D[..., :1, :])))  # later steps may have written with any weight
    D *= root * xp.tril(_ones(xp, q, (L, L)))
    rest = (xp.exp(before[..., None] - r), root * xp.exp(w - last[..., None]), xp.exp(before - last))
    return D, *(xp.astype(a, dtype) for a in rest)


def _largest_bwd(xp: Namespace, gates: Gates, dm: Array, u: Array | None) -> tuple[Array, Array, Array]:
    """Gradients of w, b and of m before the first chunk from those of m (..., chunks, L) and of the last of all, u."""
    _, w, most, m, _ = gates
    L = w.shape[-1]
    old = xp.astype(m[..., :-1, None] >= most, dm.dtype)  # where m comes from before the chunk
    u = xp.zeros_like(dm[..., 0, 0]) if u is None else u
    ends = []
    for c in range(w.shape[-2] - 1, -1, -1):
        ends.append(u)
        u = xp.sum(old[..., c, :] * dm[..., c, :], axis=-1) + old[..., c, -1] * u
    last = xp.astype(xp.arange(L, device=device_of(w)) == L - 1, dm.dtype)
    dm = dm + xp.stack(ends[::-1], axis=-1)[..., None] * last
    hit = xp.astype(w[..., None, :] >= most[..., :, None], dm.dtype) * xp.tril(_ones(xp, dm, (L, L)))
    share = (1 - old) * dm / xp.sum(hit, axis=-1)
    dw = (share[..., None, :] @ hit)[..., 0, :]
    return dw, dm - dw, u


def _running_max(xp: Namespace, a: Array) -> Array:
    """The largest of all until then, along the last axis."""
    k = 1
    while k < a.shape[-1]:
        a = xp.concat((a[..., :k], xp.maximum(a[..., k:], a[..., :-k])), axis=-1)
        k *= 2
    return a


def _floor(xp: Namespace, m: Array) -> Array:
    return xp.maximum(m, xp.full_like(m, LOW))


def _one(xp: Namespace, m: Array, like: Array) -> Array:
    """1 / exp(m), within what the dtype of `like` has: it is neither infinite nor 0."""
    limit = -math.log(float(xp.finfo(like.dtype).smallest_normal)) - 1
    return xp.astype(xp.exp(clamp(xp, -m, limit)), like.dtype)


def _wide(xp: Namespace, a: Array) -> Array:
    """In float64: sums of logarithms have to keep the digits of their smallest terms."""
    return xp.astype(a, xp.float64)


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


def _beside_ones(xp: Namespace, v: Array) -> Array:
    """[v, 1]: the normaliser is one column more."""
    return xp.concat((v, _ones(xp, v, (*v.shape[:-1], 1))), axis=-1)


def _ones(xp: Namespace, like: Array, shape: tuple[int, ...]) -> Array:
    return xp.ones(shape, dtype=like.dtype, device=device_of(like))


def _T(xp: Namespace, a: Array) -> Array:  # noqa: N802
    return xp.matrix_transpose(a)
