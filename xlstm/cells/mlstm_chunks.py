"""The mLSTM cell computed chunk by chunk; see `cells/mlstm.py`.

These are the equations of a chunk of L steps. C0, n0 and m0 are the state before the chunk. Capital
letters span its steps.

    b_t = sum of log f_s over s <= t                                      (1)
    w_s = i~_s - b_s                                                      (2)
    r_t = max(m0, max of w_s over s <= t)       m_t = b_t + r_t           (3)  eq. 15
    D_ts = exp(w_s - r_t) / sqrt(K) for s <= t, else 0                    (4)  eqs. 16, 17, 23
    P = (Q K^T) * D                                                       (5)
    [num, s] = P [V, 1] + exp(m0 - r) Q [C0, n0]                          (6)  eqs. 19, 20, q of 21
    den = max(|s|, exp(-m)) + eps                                         (7)  eq. 21
    h = num / den                                                         (8)  eq. 21
    [C, n] = exp(m0 - r_L) [C0, n0] + (exp(w - r_L) / sqrt(K) K)^T [V, 1] (9)  eqs. 19, 20

The state after the chunk is (9).

The normaliser n is one more column of C, so that it needs no code of its own.

If q, k and v are float16 or bfloat16, the state, the gates, num, s, den and all sums are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from xlstm.arrays import constants
from xlstm.arrays.concat import concat, filled
from xlstm.arrays.fuse import compiles, fuse, scan, total
from xlstm.arrays.matmul import matmul, packed, product
from xlstm.arrays.namespace import Array, Namespace, astype, device_of
from xlstm.arrays.sliding import computes_again
from xlstm.cells import mlstm_formulas as formulas
from xlstm.cells.activations import FORGET
from xlstm.cells.mlstm_formulas import limit_of, low_of

CHUNK = 64


class Saved(NamedTuple):
    """The arrays that `chunkwise` keeps: inputs unchanged, the rest in chunks (..., chunks, L), and
    no matrix (L, L).
    """

    inputs: tuple[Array, ...]  # q, k, v, i~, f~, unchanged
    logf: Array  # (..., T)
    h: Array  # (..., T, V)
    logs: Logs
    C: Array  # [C, n] before every chunk, (..., chunks, K, V + 1)
    end: Array  # [C, n] after the last chunk
    s: Array  # (6)
    den: Array  # (7)


class Logs(NamedTuple):
    """The logarithms of every step of every chunk, (..., chunks, L), in float64."""

    b: Array  # (1)
    w: Array  # (2)
    most: Array  # the largest w_s over s <= t
    m: Array  # m0 of every chunk, (..., chunks)
    r: Array  # (3)


def chunkwise(
    xp: Namespace, *arrays: Array, eps: float = 0.0, forget: str = "sigmoid", chunk: int = CHUNK
) -> tuple[Array, Array, Array, Array, Saved]:
    """Compute all steps: return h (..., T, V), the state C, n, m after the last step, and the
    values that the backward pass needs.

    The arrays are q, k, v, i~, f~, C0, n0 and m0.
    """
    q, k, v, i, f, C0, n0, m0 = arrays
    T = q.shape[-2]
    V = v.shape[-1]
    L = min(chunk, T)
    dtype = q.dtype
    wide = C0.dtype
    f = astype(xp, f, wide)
    logf = fuse(xp, FORGET[forget].fwd, f)
    logs, m = _logs(
        xp, _chunks(xp, i, L, -1, -math.inf), _chunks(xp, logf, L, -1), m0
    )  # (1) (2) (3)
    Q, K = (packed(xp, _chunks(xp, a, L, -2)) for a in (q, k))
    V1 = _with_normaliser(xp, _chunks(xp, v, L, -2))
    read, write, keep = _weights(xp, logs, q, wide)  # (6) (9)
    written = matmul(xp, _T(xp, write[..., None] * K), V1, dtype=wide)  # (9)
    start = _with_normaliser(xp, C0, n0)
    C, end = scan(xp, formulas.state, start, keep[..., None, None], written, axis=-3)  # (9)
    times_D = _multiplier(xp, q, logs)  # (4)
    num = matmul(xp, times_D(matmul(xp, Q, _T(xp, K))), V1, dtype=wide)  # (5) (6)
    num = matmul(xp, read[..., None] * Q, astype(xp, C, dtype), add=num)  # (6)
    s = num[..., V]
    # (7)
    den = fuse(
        xp, formulas.den, s, logs.b, logs.r, eps=eps, limit=limit_of(xp, s.dtype), dtype=s.dtype
    )
    # (8)
    h = fuse(xp, formulas.quotient, num[..., :V], den[..., None], out=_room(xp, v, L), dtype=dtype)
    h = _steps(xp, h, T, -2)
    saved = Saved((q, k, v, i, f), logf, h, logs, C, end, s, den)
    return h, end[..., :V], end[..., V], xp.astype(m, wide), saved


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
    """Return the gradients with respect to q, k, v, i~, f~, C0, n0 and m0.

    dC, dn and dm may all be None, which means 0.
    """
    (q, k, v, i, f), logf, h, logs, C, end, s, den = saved
    dtype = q.dtype
    wide = C.dtype
    T = q.shape[-2]
    L = logs.b.shape[-1]
    V = v.shape[-1]
    Q, K, V1, H, dH = (_chunks(xp, a, L, -2) for a in (q, k, v, h, dh))
    Q = packed(xp, Q)
    K = packed(xp, K)
    V1 = _with_normaliser(xp, V1)
    read, write, keep = _weights(xp, logs, q, wide)  # (6) (9)
    times_D = _multiplier(xp, q, logs)
    dh_h = total(xp, dH, H, dtype=wide)  # -den times the gradient with respect to den (8)
    # (7)
    ds = fuse(
        xp,
        formulas.den_bwd,
        dh_h,
        den,
        s,
        logs.b,
        logs.r,
        limit=limit_of(xp, s.dtype),
        dtype=s.dtype,
    )
    dnum = fuse(xp, formulas.quotient, dH, den[..., None], dtype=dtype)  # (8)
    dnum = _with_normaliser(xp, dnum, astype(xp, ds, dtype))  # (8) d[num, s]
    dCs = matmul(xp, _T(xp, read[..., None] * Q), dnum, dtype=wide)  # (6)
    last = xp.zeros_like(end) if dC is None or dn is None else _with_normaliser(xp, dC, dn)
    # (9), after each chunk
    dCs, dC0 = scan(xp, formulas.state, last, keep[..., None, None], dCs, axis=-3, reverse=True)
    dS = times_D(matmul(xp, dnum, _T(xp, V1)))  # (6) (5) d(Q K^T)
    dQ = matmul(xp, dnum, _T(xp, astype(xp, C, dtype)))  # (6)
    # (6) (5)
    dQ = fuse(
        xp, formulas.scale_add, dQ, read[..., None], matmul(xp, dS, K), out=_room(xp, q, L, dQ)
    )
    dCs_low = astype(xp, dCs, dtype)
    dK = matmul(xp, V1, _T(xp, dCs_low))  # (9)
    dK = fuse(
        xp,
        formulas.scale_add,
        dK,
        write[..., None],
        matmul(xp, _T(xp, dS), Q),
        out=_room(xp, k, L, dK),
    )  # (9) (5)
    dV = matmul(xp, _T(xp, times_D(matmul(xp, Q, _T(xp, K)))), dnum)  # (6)
    dV = matmul(xp, write[..., None] * K, dCs_low, add=dV)[..., :V]  # (9)
    # w_s scales everything that step s writes, b_t everything that step t reads (4) (6) (9).
    dw = total(xp, K, dK, dtype=wide)
    db = fuse(xp, formulas.b_bwd, dh_h, ds, s, dw)  # (1) (2)
    dtotal = _total_decay_bwd(xp, C, end, dCs)  # (1) (9)
    dm0 = total(xp, C[..., 0, :, :], dC0, (-2, -1))  # (3) (6) (9)
    if dm is not None or eps:
        # The choice of the maximum cancels out of h, C and n, except for the weight of eps. It also
        # changes the final m.
        dms = fuse(xp, formulas.m_bwd, dh_h, den, eps=eps)  # (7) with respect to m of (3)
        # (3)
        more, dmb, extra = _maximum_bwd(xp, logs, dms, None if dm is None else dm - dtotal[..., -1])
        dw = dw + more
        db = db + dmb
        dm0 = dm0 + extra  # (3)
    di = astype(xp, _steps(xp, dw, T, -1), i.dtype)  # (2)
    dlogf = _steps(xp, _suffix_sums(xp, dtotal, db), T, -1)  # (1)
    df = astype(xp, fuse(xp, FORGET[forget].bwd, dlogf, f, logf), i.dtype)  # (1)
    return *(_steps(xp, d, T, -2) for d in (dQ, dK, dV)), di, df, dC0[..., :V], dC0[..., V], dm0


def _logs(xp: Namespace, i: Array, logf: Array, m0: Array) -> tuple[Logs, Array]:
    """Return the logarithms, and m after the last chunk; the running maximum at each step is m = b
    + r.
    """
    b, most = _accumulated(xp, i, logf)  # (1) (3)
    # (3) of the chunks
    m, end = scan(xp, formulas.m_after, formulas.wide(xp, m0), b[..., -1], most[..., -1])
    r = fuse(xp, formulas.stabilise, most, m[..., None], low=low_of(xp, most.dtype))  # (3)
    return Logs(b, formulas.written(xp, i, b), most, m, r), end  # (2)


def _weights(xp: Namespace, logs: Logs, q: Array, wide: Any) -> tuple[Array, Array, Array]:
    """Return the weights of (6) and (9): to read the old state and to write to the state, (..., L)
    each, and to keep it (...).
    """
    _, w, _, m, r = logs
    low = low_of(xp, m.dtype)
    last = r[..., -1]
    read, write = fuse(
        xp, formulas.read_write, w, r, m[..., None], last[..., None], low=low, **_root_and_dtype(q)
    )
    return read, write, fuse(xp, formulas.keep, m, last, low=low, dtype=wide)


def _pairs(xp: Namespace, w: Array, r: Array) -> tuple[Array, ...]:
    """Return w and r (..., L) and the step numbers as matrices, with a row for each reading step
    and a column for each writing step.
    """
    steps = constants.steps(xp, w.shape[-1], xp.float32, device_of(w))
    return w[..., None, :], r[..., :, None], steps[None, :], steps[:, None]


def _multiplier(xp: Namespace, q: Array, logs: Logs) -> Callable[[Array], Array]:
    """Return a function that multiplies an array by D."""
    pairs = _pairs(xp, logs.w, logs.r)
    options = _root_and_dtype(q)
    if computes_again(xp):
        return lambda a: fuse(xp, _times_D, a, *pairs, **options)
    D = fuse(xp, formulas.D, *pairs, **options)  # (4)
    return lambda a: a * D


def _times_D(xp: Namespace, a: Array, *pairs: Array, **options: Any) -> Array:  # noqa: N802
    return a * formulas.D(xp, *pairs, **options)  # (4)


def _root_and_dtype(q: Array) -> dict[str, Any]:
    return {"root": q.shape[-1] ** -0.5, "dtype": q.dtype}


def _maximum_bwd(
    xp: Namespace, logs: Logs, dm: Array, dend: Array | None
) -> tuple[Array, Array, Array]:
    """Return the gradients with respect to w, b and m0, from those with respect to m (..., chunks,
    L) and to the final m (3).
    """
    _, w, most, m, _ = logs
    dtype = dm.dtype
    old = fuse(xp, formulas.from_before, m[..., None], most, dtype=dtype)  # (3)
    dend = xp.zeros_like(dm[..., 0, 0]) if dend is None else dend
    # (3) with respect to m0
    ends, dm0 = scan(xp, formulas.state, dend, old[..., -1], total(xp, old, dm), reverse=True)
    pairs = _pairs(xp, w, most)
    steps = pairs[2][0, :]
    dm = fuse(xp, formulas.add_to_last, dm, ends[..., None], steps, steps[-1:], dtype=dtype)  # (3)
    largest = fuse(xp, formulas.is_largest, *pairs, dtype=dtype)  # (3)
    share = fuse(xp, formulas.share, old, dm, xp.sum(largest, axis=-1))  # (3)
    dw = matmul(xp, share[..., None, :], largest)[..., 0, :]  # (3) with respect to w
    return dw, dm - dw, dm0  # (3) (2) with respect to b


def _total_decay_bwd(xp: Namespace, C: Array, end: Array, dCs: Array) -> Array:
    """Return the gradient (..., chunks) with respect to the sum of log f of each chunk, through the
    state after it.
    """
    last = total(xp, end, dCs[..., -1, :, :], (-2, -1))[..., None]  # (1) (9)
    if C.shape[-3] == 1:
        return last
    # (1) (9)
    return xp.concat((total(xp, C[..., 1:, :, :], dCs[..., :-1, :, :], (-2, -1)), last), axis=-1)


# All steps at once:


def _accumulated(xp: Namespace, i: Array, logf: Array) -> tuple[Array, Array]:
    """Return b and the running maximum of w after every step, as `formulas.accumulate` does step by
    step.
    """
    i = formulas.wide(xp, i)
    logf = formulas.wide(xp, logf)
    logf = xp.maximum(logf, xp.full_like(logf, formulas.FORGOTTEN))
    b = product(xp, logf, xp.triu(_ones(xp, logf)))  # (1)
    most = i - b
    k = 1  # (2)
    while k < i.shape[-1]:  # the largest of the last 2 k steps, from those of k steps
        most = xp.concat((most[..., :k], xp.maximum(most[..., k:], most[..., :-k])), axis=-1)  # (3)
        k *= 2
    return b, most


def _suffix_sums(xp: Namespace, start: Array, d: Array) -> Array:
    """Return for each step `start` plus the sum of d from that step to the end."""
    return product(xp, d, xp.tril(_ones(xp, d))) + start[..., None]  # (1)


# Steps and chunks:


def _chunks(xp: Namespace, a: Array, L: int, axis: int, fill: float = 0.0) -> Array:
    """Return steps along `axis` (-1 or -2) as chunks of L steps, with `fill` at the end of the last
    chunk.
    """
    at = a.ndim + axis
    if left := -a.shape[at] % L:
        a = concat(xp, (a, filled(xp, a, fill, left, axis)), axis)
    return xp.reshape(a, (*a.shape[:at], a.shape[at] // L, L, *a.shape[at + 1 :]))


def _steps(xp: Namespace, a: Array, T: int, axis: int) -> Array:
    """Return chunks as T steps along `axis`, the inverse of `_chunks`."""
    at = a.ndim + axis - 1
    a = xp.reshape(a, (*a.shape[:at], a.shape[at] * a.shape[at + 1], *a.shape[at + 2 :]))
    return a if a.shape[axis] == T else a[..., :T] if axis == -1 else a[..., :T, :]


def _room(xp: Namespace, like: Array, L: int, spare: Array | None = None) -> Array | None:
    """Return memory for a result in chunks: on CuPy with steps first, like the layer's arrays, and
    `spare` elsewhere.
    """
    if not compiles(xp):
        return spare
    *before, T, F = like.shape
    memory = xp.empty((-(-T // L), L, *before, F), dtype=like.dtype, device=device_of(like))
    return xp.permute_dims(memory, (*range(2, len(before) + 2), 0, 1, len(before) + 2))


def _with_normaliser(xp: Namespace, v: Array, n: Array | None = None) -> Array:
    """Return [v, n], or [v, 1] if there is no n."""
    return concat(xp, [v, filled(xp, v, 1.0, 1, -1) if n is None else n[..., None]], -1)


def _ones(xp: Namespace, like: Array) -> Array:
    """Return a square matrix of ones, as large as the last axis of `like`."""
    L = like.shape[-1]
    return xp.ones((L, L), dtype=like.dtype, device=device_of(like))


def _T(xp: Namespace, a: Array) -> Array:  # noqa: N802
    return xp.matrix_transpose(a)
