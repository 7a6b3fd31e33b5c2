"""The mLSTM cell, one step; see `cells/mlstm.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

from xlstm.arrays.backend import Array, Namespace
from xlstm.arrays.fuse import fuse, total
from xlstm.arrays.matmul import matmul
from xlstm.cells.activations import FORGET
from xlstm.cells.stabiliser import denominator, floor, limit_of, low_of, one_of, sign_of


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
    logf, m, a, g = fuse(xp, _scales, i, f, m0, forget=forget, low=low_of(xp, m0.dtype))  # (1) (2)
    ak, n = fuse(xp, _written, a[..., None], g[..., None], k, n0, root=root)
    C = fuse(xp, _remembered, C0, g[..., None, None], ak[..., :, None], v[..., None, :])  # (3)
    s = total(xp, q, n)  # (4)
    den = fuse(xp, denominator, s, m, eps=eps, limit=limit_of(xp, s.dtype), dtype=s.dtype)  # (5)
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
    ds, dm = fuse(xp, _denominator_bwd, dden, s, m, dm, limit=limit_of(xp, s.dtype), dtype=s.dtype)  # (5)
    dq = fuse(xp, _plus, matmul(xp, C, e[..., :, None])[..., 0], ds[..., None], n)  # (6) (4)
    dC = fuse(xp, _plus, dC, q[..., :, None], e[..., None, :])
    dn = fuse(xp, _plus, dn, q, ds[..., None])
    dk = fuse(xp, _written_bwd, a[..., None], matmul(xp, dC, v[..., :, None])[..., 0], dn, root=root)  # (3)
    dv = fuse(xp, _scaled, a[..., None], matmul(xp, k[..., None, :], dC)[..., 0, :], root=root)
    ea = total(xp, k, dk)  # da a
    eg = g * (total(xp, C0, dC, (-2, -1)) + total(xp, n0, dn))  # dg g
    di, df, dlogf = fuse(xp, _scales_bwd, dm, ea, eg, i, f, logf, m0, forget=forget, dtype=i.dtype)  # (2) (1)
    return dq, dk, dv, di, df, g[..., None, None] * dC, g[..., None] * dn, dlogf


# Element by element:


def _scales(xp: Namespace, i: Array, f: Array, m0: Array, forget: str, low: float) -> tuple[Array, ...]:
    logf = FORGET[forget].fwd(xp, f)
    kept = logf + m0
    m = xp.maximum(kept, i)  # (1)
    r = floor(xp, m, low)
    return logf, m, xp.exp(i - r), xp.exp(floor(xp, kept, low) - r)  # (2)


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


def _denominator_bwd(
    xp: Namespace, dden: Array, s: Array, m: Array, dm: Array, limit: float, dtype: Any
) -> tuple[Array, Array]:
    """`dden` is with the opposite sign."""
    one = one_of(xp, m, limit, dtype)
    sign = sign_of(xp, s, one, dtype)
    return -dden * sign, dm + dden * one * (1 - xp.abs(sign))


def _plus(xp: Namespace, a: Array, b: Array, c: Array) -> Array:
    return a + b * c
