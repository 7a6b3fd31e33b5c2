"""The elementwise formulas of the chunkwise mLSTM, with the numbers of `mlstm_chunks.py`.

They run on arrays and on symbols. From their traces on symbols come the kernels of
`engines/cuda/chunks/` and the compiled loops of `engines/numba/chunks.py`.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any, TypeAlias

import numpy as np

from xlstm.arrays.namespace import Array, Namespace, astype, finfo
from xlstm.cells.activations import FORGET, clamp
from xlstm.tracing.array_functions import Formula

# float64 whatever the dtype of the states; `kinds` looks for this annotation
Wide: TypeAlias = Array
# least log f in use: a lower one would cost the other terms of the sum their digits
FORGOTTEN = -1e5


def accumulate(xp: Namespace, b: Wide, most: Wide, i: Array, logf: Array) -> tuple[Array, Array]:
    logf = wide(xp, logf)
    b = b + xp.maximum(logf, xp.full_like(logf, FORGOTTEN))  # (1)
    return b, xp.maximum(most, written(xp, i, b))  # (3)


def written(xp: Namespace, i: Array, b: Wide) -> Array:
    """Return w (2)."""
    return wide(xp, i) - b  # (2)


def m_after(xp: Namespace, m: Wide, b: Wide, most: Wide) -> Array:
    return b + xp.maximum(most, m)  # (3)


def stabilise(xp: Namespace, most: Wide, m: Wide, low: float) -> Array:
    return at_least(xp, xp.maximum(most, m), low)  # (3)


def read_write(
    xp: Namespace, w: Wide, r: Wide, m0: Wide, last: Wide, root: float, low: float, dtype: Any
) -> tuple[Array, Array]:
    # (6) (9)
    return xp.astype(xp.exp(at_least(xp, m0, low) - r), dtype), xp.astype(
        root * xp.exp(w - last), dtype
    )


def keep(xp: Namespace, m0: Wide, last: Wide, low: float, dtype: Any) -> Array:
    return xp.astype(xp.exp(at_least(xp, m0, low) - last), dtype)  # (9)


def state(xp: Namespace, C: Array, keep: Array, written: Array) -> Array:
    return keep * C + written  # (9)


def D(  # noqa: N802
    xp: Namespace, w: Wide, r: Wide, wrote: Array, reads: Array, root: float, dtype: Any
) -> Array:
    until = xp.astype(wrote <= reads, dtype)  # (4) s <= t
    D = xp.astype(w - r, dtype)  # (4)
    # (4) later steps may have written with any weight
    D = xp.exp(xp.minimum(D, xp.zeros_like(until)))
    D *= root * until  # (4)
    return D


def den(xp: Namespace, s: Array, b: Wide, r: Wide, eps: float, limit: float, dtype: Any) -> Array:
    return denominator(xp, s, b + r, eps, limit, dtype)  # (7)


def den_bwd(
    xp: Namespace, dh_h: Array, den: Array, s: Array, b: Wide, r: Wide, limit: float, dtype: Any
) -> Array:
    return -dh_h / den * sign_beyond(xp, s, exp_minus(xp, b + r, limit, dtype), dtype)  # (8) (7)


def quotient(xp: Namespace, num: Array, den: Array, dtype: Any) -> Array:
    return astype(xp, num / den, dtype)  # (8)


def scale_add(xp: Namespace, a: Array, scale: Array, b: Array) -> Array:
    """Return a * scale + b, computed in place in `a`, which must have no other use."""
    a *= scale
    a += b
    return a


def b_bwd(xp: Namespace, dh_h: Array, ds: Array, s: Array, dw: Array) -> Array:
    return dh_h + ds * s - dw  # (1) (2)


def m_bwd(xp: Namespace, dh_h: Array, den: Array, eps: float) -> Array:
    return -eps * dh_h / den  # (7)


def from_before(xp: Namespace, m0: Wide, most: Wide, dtype: Any) -> Array:
    return xp.astype(m0 >= most, dtype)  # (3)


def add_to_last(
    xp: Namespace, dm: Array, end: Array, step: Array, last: Array, dtype: Any
) -> Array:
    return dm + end * xp.astype(step >= last, dtype)  # (3)


def is_largest(xp: Namespace, w: Wide, most: Wide, wrote: Array, reads: Array, dtype: Any) -> Array:
    return xp.astype(w >= most, dtype) * xp.astype(wrote <= reads, dtype)  # (3)


def share(xp: Namespace, old: Array, dm: Array, count: Array) -> Array:
    return (1 - old) * dm / count  # (3)


def add(xp: Namespace, total: Array, d: Array) -> Array:
    return total + d


def wide(xp: Namespace, a: Array) -> Array:
    """Return an array in float64, in which sums of logarithms keep the digits of their smallest
    terms.
    """
    return xp.astype(a, xp.float64)


# Both forms share the stabilised denominator of h, max(|n q|, exp(-m)) + eps. C and n are divided
# by exp(m) (Beck et al. 2024, appendix A.3), so the 1 of eq. 21 becomes exp(-m). `_begin` of
# `mlstm.py` and `_logs` of `mlstm_chunks.py` compute the running maximum m.


def at_least(xp: Namespace, m: Array, low: float) -> Array:
    """Return max(m, low).

    Before the first write m is -inf; with `low` in its place, the factor of the state is exp(low -
    low) = 1, not NaN.
    """
    return xp.maximum(m, xp.full_like(m, low))


@functools.lru_cache
def low_of(xp: Namespace, dtype: Any) -> float:
    """Return the finite number that replaces -inf in differences of logarithms."""
    return -math.pow(finfo(xp, dtype).max, 0.8)


@functools.lru_cache
def limit_of(xp: Namespace, dtype: Any) -> float:
    """Return the largest |x| for which exp(x) and exp(-x) are normal numbers of the dtype."""
    return -math.log(float(finfo(xp, dtype).smallest_normal)) - 1


def exp_minus(xp: Namespace, m: Array, limit: float, dtype: Any) -> Array:
    """Return exp(-m), limited to the range of the dtype: neither infinite nor 0."""
    return astype(xp, xp.exp(clamp(xp, -m, limit)), dtype)


def denominator(xp: Namespace, s: Array, m: Array, eps: float, limit: float, dtype: Any) -> Array:
    """Return max(|s|, exp(-m)) + eps with s = n q."""
    return xp.maximum(xp.abs(s), exp_minus(xp, m, limit, dtype)) + eps  # (7)


def sign_beyond(xp: Namespace, s: Array, one: Array, dtype: Any) -> Array:
    """Return the derivative of max(|s|, one) with respect to s: the sign of s if |s| is larger,
    else 0.
    """
    return xp.astype(s > one, dtype) - xp.astype(s < -one, dtype)  # (7)


OPTIONS = ("root", "low", "eps", "limit", "dtype")  # arguments that all steps share


def kinds(formula: Formula, real: str, wide: str) -> dict[str, str]:
    """Return the type of each argument that changes from step to step.

    It is `wide` for arguments annotated as `Wide`, and `real`, the dtype of the states, for the
    others.
    """
    arguments = list(inspect.signature(formula).parameters.values())[1:]
    return {
        a.name: wide if a.annotation == "Wide" else real for a in arguments if a.name not in OPTIONS
    }


def taken(formula: Formula, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a formula takes."""
    names = inspect.signature(formula).parameters
    return {name: options[name] for name in names if name in options}


FORMULAS = (
    accumulate,
    written,
    m_after,
    stabilise,
    read_write,
    keep,
    state,
    den_bwd,
    quotient,
    scale_add,
    b_bwd,
    m_bwd,
    from_before,
    add_to_last,
    is_largest,
    share,
    add,
)


def by_name(forget: str) -> dict[str, Formula]:
    """Return all formulas by the names that kernels use, for a kind of forget gate."""
    return {formula.__name__: formula for formula in FORMULAS} | {
        "decay": D,
        "denominator": den,
        "forget": FORGET[forget].fwd,
        "forget_bwd": FORGET[forget].bwd,
    }


def options_of(dtype: Any) -> dict[str, Any]:
    """Return the options of all formulas for a dtype of the states."""
    return {"low": low_of(np, np.float64), "limit": limit_of(np, dtype), "dtype": dtype}
