"""The mLSTM cell: a matrix memory without a recurrent weight (Beck et al. 2024, eqs. 19 to 27).

    C = f C0 + i v k^T   (19)       n = f n0 + i k    (20)       h = C q / max(|n q|, 1)   (21)
    i = exp(i~)          (25)       f = sigmoid(f~)   (26)       k is divided by sqrt(K)   (23)

The layer makes q, k and v (22 to 24) and has the output gate (27). C is kept transposed, (K, V). C and n are divided by
exp(m), so that nothing overflows (15 to 17, and appendix A.3); m = -inf with C = n = 0 is the state before the first
step, and a step with i~ = -inf writes nothing.

There are two forms of the same function. `step` computes one step. `chunkwise` computes all steps: it takes `chunk`
steps at once by matrix products and loops over the chunks; with a single chunk it is the parallel form. Axes before
those named are free: q and k (..., T, K), v (..., T, V), i and f (..., T), C (..., K, V), n (..., K), m (...).
`chunkwise` raises a log f below -10^5 to -10^5, which lets nothing through either.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xlstm.arrays.fuse import compiles, fuse, total
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, astype
from xlstm.arrays.rows import by_rows
from xlstm.cells.activations import FORGET
from xlstm.cells.denominator import at_least, denominator, exp_minus, limit_of, low_of, sign_beyond
from xlstm.cells.mlstm_chunks import CHUNK, chunkwise, chunkwise_bwd

__all__ = ["CHUNK", "chunkwise", "chunkwise_bwd", "step", "step_bwd"]


class SavedStep(NamedTuple):
    """The arrays that `step` keeps for backward."""

    inputs: tuple[Array, ...]  # q, k, v, i~, f~, C0, n0, m0
    logf: Array
    gates: tuple[Array, Array]  # i, f, stabilised
    state: tuple[Array, Array, Array]  # C, n, m
    s: Array  # n q
    den: Array
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
    """Compute one step: return h (..., V), the state C, n, m after it, and what backward needs.

    q and k are (..., K), v is (..., V), i = i~ and f = f~ are (...).
    """
    wide = n0.dtype
    f = astype(xp, f, wide)
    options: dict[str, Any] = {"forget": forget, "low": low_of(xp, m0.dtype), "root": q.shape[-1] ** -0.5}
    options |= {"eps": eps, "limit": limit_of(xp, wide), "dtype": wide}
    arrays = i[..., None], f[..., None], m0[..., None], q, k, n0
    *found, ik, n = by_rows(xp, _begin, *arrays, **options) if compiles(xp) else _begin(xp, *arrays, **options)
    logf, m, i1, f1, s, den = [a[..., 0] for a in found]
    C = fuse(xp, _memory, C0, f1[..., None, None], ik[..., :, None], v[..., None, :])  # (19)
    Cq = matmul(xp, astype(xp, q, C.dtype)[..., None, :], C)[..., 0, :]  # (21)
    h = astype(xp, Cq / den[..., None], q.dtype)  # (21)
    return h, C, n, m, SavedStep((q, k, v, i, f, C0, n0, m0), logf, (i1, f1), (C, n, m), s, den, h)


def _begin(
    xp: Namespace,
    i: Array,
    f: Array,
    m0: Array,
    q: Array,
    k: Array,
    n0: Array,
    *,
    forget: str,
    low: float,
    root: float,
    eps: float,
    limit: float,
    dtype: Any,
) -> tuple[Array, ...]:
    """Return all but the memory and h: log f, m, the gates divided by exp(m), n q, the denominator, i k and n."""
    logf = FORGET[forget].fwd(xp, f)  # (26)
    kept = logf + m0  # (15)
    m = xp.maximum(kept, i)  # (15)
    r = at_least(xp, m, low)  # (15) finite before the first write
    i1, f1 = xp.exp(i - r), xp.exp(at_least(xp, kept, low) - r)  # (16) (17)
    ik = root * i1 * k  # (23)
    n = f1 * n0 + ik  # (20)
    s = xp.sum(q * n, axis=-1, keepdims=True)  # (21) n q
    return logf, m, i1, f1, s, denominator(xp, s, m, eps=eps, limit=limit, dtype=dtype), ik, n  # (21) max(|n q|, 1)


def _memory(xp: Namespace, C0: Array, f: Array, ik: Array, v: Array) -> Array:
    return f * C0 + ik * v  # (19)


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
    """Return the gradients of q, k, v, i~, f~, C0, n0 and m0."""
    (q, k, v, i, f, C0, n0, m0), logf, (i1, f1), (C, n, m), s, den, h = saved
    root = q.shape[-1] ** -0.5
    dCq = dh / den[..., None]  # (21) by C q
    dden = -total(xp, dCq, h)  # (21) by the denominator
    one = exp_minus(xp, m, limit_of(xp, s.dtype), s.dtype)  # (21)
    sign = sign_beyond(xp, s, one, s.dtype)  # (21)
    ds, dm = dden * sign, dm - dden * one * (1 - xp.abs(sign))  # (21) by n q and m
    dq = matmul(xp, C, dCq[..., :, None])[..., 0] + ds[..., None] * n  # (21)
    dC = dC + q[..., :, None] * dCq[..., None, :]  # (21)
    dn = dn + q * ds[..., None]  # (21)
    dk = root * i1[..., None] * (matmul(xp, dC, v[..., :, None])[..., 0] + dn)  # (19) (20) (23)
    dv = root * i1[..., None] * matmul(xp, k[..., None, :], dC)[..., 0, :]  # (19)
    i_di = total(xp, k, dk)  # (19) (20): i times its gradient
    f_df = f1 * (total(xp, C0, dC, (-2, -1)) + total(xp, n0, dn))  # (19) (20): f times its gradient
    dm = dm - i_di - f_df  # (16) (17)
    wrote = xp.astype(i > logf + m0, dm.dtype)  # (15)
    di = i_di + wrote * dm  # (16) (15)
    dlogf = f_df + (1 - wrote) * dm  # (17) (15), and the gradient of m0
    df = FORGET[forget].bwd(xp, dlogf, f, logf)  # (26)
    return dq, dk, dv, di, df, f1[..., None, None] * dC, f1[..., None] * dn, dlogf  # (19) (20) (15)
