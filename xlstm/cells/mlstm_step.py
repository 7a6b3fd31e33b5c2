"""The mLSTM cell, one step; see `cells/mlstm.py`. Numbers are those of the equations in Beck et al. 2024."""

from __future__ import annotations

from typing import Any, NamedTuple

from xlstm.arrays.fuse import compiles, fuse, total
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, astype
from xlstm.arrays.rows import by_rows
from xlstm.cells.activations import FORGET
from xlstm.cells.denominator import at_least, denominator, exp_minus, limit_of, low_of, sign_beyond


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
    root, dtype, wide = q.shape[-1] ** -0.5, q.dtype, n0.dtype
    f = astype(xp, f, wide)
    if compiles(xp):
        gates, row = {"forget": forget, "low": low_of(xp, m0.dtype)}, [a[..., None] for a in (i, f, m0)]
        options = {**gates, "root": root, "eps": eps, "limit": limit_of(xp, wide), "dtype": wide}
        *found, ik, n = by_rows(xp, _begin, *row, q, k, n0, **options)
        logf, m, i1, f1, s, den = (a[..., 0] for a in found)
        C = fuse(xp, _memory, C0, f1[..., None, None], ik[..., :, None], v[..., None, :])  # (19)
        h = astype(xp, _read(xp, q, C) / den[..., None], dtype)  # (21)
        return h, C, n, m, SavedStep((q, k, v, i, f, C0, n0, m0), logf, (i1, f1), (C, n, m), s, den, h)
    logf, m, i1, f1 = fuse(xp, _gates, i, f, m0, forget=forget, low=low_of(xp, m0.dtype))  # (25) (26) by (15) to (17)
    ik, n = fuse(xp, _normaliser, i1[..., None], f1[..., None], k, n0, root=root)  # (23) (20)
    C = fuse(xp, _memory, C0, f1[..., None, None], ik[..., :, None], v[..., None, :])  # (19)
    s = total(xp, q, n)  # (21) n q
    den = fuse(xp, denominator, s, m, eps=eps, limit=limit_of(xp, s.dtype), dtype=s.dtype)  # (21) max(|n q|, 1)
    h = astype(xp, _read(xp, q, C) / den[..., None], dtype)  # (21)
    return h, C, n, m, SavedStep((q, k, v, i, f, C0, n0, m0), logf, (i1, f1), (C, n, m), s, den, h)


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
    ds, dm = fuse(  # (21) by n q and m
        xp, _denominator_bwd, total(xp, dCq, h), s, m, dm, limit=limit_of(xp, s.dtype), dtype=s.dtype
    )
    dq = fuse(xp, _add_product, matmul(xp, C, dCq[..., :, None])[..., 0], ds[..., None], n)  # (21)
    dC = fuse(xp, _add_product, dC, q[..., :, None], dCq[..., None, :])  # (21)
    dn = fuse(xp, _add_product, dn, q, ds[..., None])  # (21)
    dk = fuse(xp, _key_bwd, i1[..., None], matmul(xp, dC, v[..., :, None])[..., 0], dn, root=root)  # (19) (20) (23)
    dv = fuse(xp, _value_bwd, i1[..., None], matmul(xp, k[..., None, :], dC)[..., 0, :], root=root)  # (19)
    i_di = total(xp, k, dk)  # (19) (20): i times its gradient
    f_df = f1 * (total(xp, C0, dC, (-2, -1)) + total(xp, n0, dn))  # (19) (20): f times its gradient
    di, df, dm0 = fuse(xp, _gates_bwd, dm, i_di, f_df, i, f, logf, m0, forget=forget, dtype=i.dtype)  # (17) to (15)
    return dq, dk, dv, di, df, f1[..., None, None] * dC, f1[..., None] * dn, dm0


def _read(xp: Namespace, q: Array, C: Array) -> Array:
    """Return C q."""
    return matmul(xp, astype(xp, q, C.dtype)[..., None, :], C)[..., 0, :]


# Element by element:


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
    """Return all but the memory and h: what `_gates` gives, n q, the denominator, i k and n."""
    logf, m, i1, f1 = _gates(xp, i, f, m0, forget=forget, low=low)  # (25) (26) by (15) to (17)
    ik, n = _normaliser(xp, i1, f1, k, n0, root=root)  # (23) (20)
    s = xp.sum(q * n, axis=-1, keepdims=True)  # (21) n q
    return logf, m, i1, f1, s, denominator(xp, s, m, eps=eps, limit=limit, dtype=dtype), ik, n


def _gates(xp: Namespace, i: Array, f: Array, m0: Array, forget: str, low: float) -> tuple[Array, ...]:
    """Return log f, the running maximum m, and the gates i and f divided by exp(m)."""
    logf = FORGET[forget].fwd(xp, f)  # (26)
    kept = logf + m0
    m = xp.maximum(kept, i)  # (15)
    r = at_least(xp, m, low)
    return logf, m, xp.exp(i - r), xp.exp(at_least(xp, kept, low) - r)  # (16) (17)


def _gates_bwd(
    xp: Namespace,
    dm: Array,
    i_di: Array,
    f_df: Array,
    i: Array,
    f: Array,
    logf: Array,
    m0: Array,
    forget: str,
    dtype: Any,
) -> tuple[Array, ...]:
    dm = dm - i_di - f_df  # (16) (17)
    wrote = xp.astype(i > logf + m0, dtype)  # (15)
    dlogf = f_df + (1 - wrote) * dm  # (17) (15), and the gradient of m0
    return i_di + wrote * dm, FORGET[forget].bwd(xp, dlogf, f, logf), dlogf  # (26)


def _normaliser(xp: Namespace, i: Array, f: Array, k: Array, n0: Array, root: float) -> tuple[Array, Array]:
    ik = root * i * k
    return ik, f * n0 + ik


def _memory(xp: Namespace, C0: Array, f: Array, ik: Array, v: Array) -> Array:
    return f * C0 + ik * v


def _key_bwd(xp: Namespace, i: Array, dCv: Array, dn: Array, root: float) -> Array:
    return root * i * (dCv + dn)


def _value_bwd(xp: Namespace, i: Array, kdC: Array, root: float) -> Array:
    return root * i * kdC


def _denominator_bwd(
    xp: Namespace, dh_h: Array, s: Array, m: Array, dm: Array, limit: float, dtype: Any
) -> tuple[Array, Array]:
    """Return the gradients of s and m; that of the denominator is -dh_h."""
    one = exp_minus(xp, m, limit, dtype)
    sign = sign_beyond(xp, s, one, dtype)
    return -dh_h * sign, dm + dh_h * one * (1 - xp.abs(sign))


def _add_product(xp: Namespace, a: Array, b: Array, c: Array) -> Array:
    return a + b * c
