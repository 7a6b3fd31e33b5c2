"""The mLSTM cell: a matrix memory without a recurrent weight (Beck et al. 2024, eqs. 19 to 27).

    C = f C0 + i v k^T   (19)       n = f n0 + i k    (20)       h = C q / max(|n q|, 1)   (21)
    i = exp(i~)          (25)       f = sigmoid(f~)   (26)       k is divided by sqrt(K)   (23)

The layer computes q, k and v (22 to 24) and the output gate (27). C is kept transposed, (K, V). C
and n are divided by exp(m), so that nothing overflows (15 to 17, and appendix A.3). The state
before the first step is m = -inf with C = n = 0. A step with i~ = -inf writes nothing.

The function has two forms. `step` computes one step. `chunkwise` computes all steps: matrix
products take `chunk` steps at once, and a loop runs over the chunks. With a single chunk it is the
parallel form. Shapes may have any further axes in front: q and k (..., T, K), v (..., T, V), i and
f (..., T), C (..., K, V), n (..., K), m (...). `chunkwise` raises a log f below -10^5 to -10^5,
which also forgets everything.
"""

from __future__ import annotations

from typing import Any

from xlstm.arrays.fuse import fuse
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, astype, reshape
from xlstm.arrays.rows import by_rows
from xlstm.cells.activations import FORGET
from xlstm.cells.mlstm_chunks import CHUNK, chunkwise, chunkwise_bwd
from xlstm.cells.mlstm_formulas import at_least, denominator, limit_of, low_of

__all__ = ["CHUNK", "chunkwise", "chunkwise_bwd", "step"]


def step(
    xp: Namespace, *arrays: Array, eps: float = 0.0, forget: str = "sigmoid"
) -> tuple[Array, Array, Array, Array]:
    """Compute one step: return h (..., V), and the state C, n, m after it.

    The arrays are q and k (..., K), v (..., V), i = i~ and f = f~ (...), C0, n0 and m0.
    `chunkwise_bwd` has the gradients.
    """
    q, k, v, i, f, C0, n0, m0 = arrays
    options: dict[str, Any] = {
        "forget": forget,
        "low": low_of(xp, m0.dtype),
        "root": q.shape[-1] ** -0.5,
        "eps": eps,
        "limit": limit_of(xp, n0.dtype),
        "dtype": n0.dtype,
    }
    inputs = *(reshape(a, (*m0.shape, 1)) for a in (i, f, m0)), q, k, n0
    m, f1, den, q, ik, n = by_rows(xp, _begin, *inputs, **options)
    C = fuse(xp, _memory, C0, f1[..., None], ik[..., :, None], v[..., None, :])  # (19)
    Cq = reshape(matmul(xp, q[..., None, :], C), v.shape)  # (21)
    return astype(xp, Cq / den, v.dtype), C, n, reshape(m, m0.shape)  # (21)


def _begin(
    xp: Namespace,
    *arrays: Array,
    forget: str,
    low: float,
    root: float,
    eps: float,
    limit: float,
    dtype: Any,
) -> tuple[Array, ...]:
    """Return everything except the memory and h: m, f divided by exp(m), the denominator, q, i k
    divided by exp(m), and n.
    """
    i, f, m0, q, k, n0 = arrays
    f = astype(xp, f, dtype)
    q = astype(xp, q, dtype)
    logf = FORGET[forget].fwd(xp, f)  # (26)
    old = logf + m0  # (15)
    m = xp.maximum(old, i)  # (15)
    r = at_least(xp, m, low)  # (15) finite before the first write
    i1 = xp.exp(i - r)
    f1 = xp.exp(at_least(xp, old, low) - r)  # (16) (17)
    ik = root * i1 * k  # (23)
    n = f1 * n0 + ik  # (20)
    s = xp.sum(q * n, axis=-1, keepdims=True)  # (21) n q
    # (21) max(|n q|, 1)
    return m, f1, denominator(xp, s, m, eps=eps, limit=limit, dtype=dtype), q, ik, n


def _memory(xp: Namespace, C0: Array, f: Array, ik: Array, v: Array) -> Array:
    return f * C0 + ik * v  # (19)
