"""Attention over small sets, softmax(q k^T / sqrt(K)) v, forward and backward (Vaswani et al. 2017, eq. 1)."""

from __future__ import annotations

import math
from typing import Any

from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells.activations import softmax, softmax_bwd


def attention(xp: Namespace, q: Array, k: Array, v: Array, seen: Array) -> tuple[Array, Any]:
    """Return the mean of v that each member of a set attends to, and what `attention_bwd` needs.

    Queries q, keys k and values v are (..., n, K); `seen` (..., n, n) is true where the member of a row sees that of a
    column. Each sees at least one.
    """
    s = matmul(xp, q, xp.matrix_transpose(k)) / math.sqrt(q.shape[-1])  # (1)
    a = softmax(xp, xp.where(seen, s, xp.full_like(s, -math.inf)))  # (2)
    return matmul(xp, a, v), (q, k, v, a)  # (3)


def attention_bwd(xp: Namespace, dy: Array, kept: Any) -> tuple[Array, Array, Array]:
    """Return the gradients of q, k and v."""
    q, k, v, a = kept
    dv = matmul(xp, xp.matrix_transpose(a), dy)  # (3)
    da = matmul(xp, dy, xp.matrix_transpose(v))
    ds = softmax_bwd(xp, da, None, a) / math.sqrt(q.shape[-1])  # (2) (1), zero where nothing is seen, as a is
    return matmul(xp, ds, k), matmul(xp, xp.matrix_transpose(ds), q), dv  # (1)
