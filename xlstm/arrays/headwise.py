"""Products of each head by itself; the last axis of x holds all heads of several maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xlstm.arrays import constants
from xlstm.arrays.fuse import compiles, total
from xlstm.arrays.matmul import multiply
from xlstm.arrays.namespace import Array, Namespace, device_of, reshape, room

# narrow heads are joined into blocks of at most this width, except on a GPU, which would get more
# work
BLOCK = 64


def split(xp: Namespace, x: Array, size: int, N: int) -> Array:
    """Return the G parts of x (..., G size), by N heads, as (G, N, rows, size / N)."""
    whole = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1] // size, N, size // N))
    return xp.permute_dims(whole, (1, 2, 0, 3))


def products(xp: Namespace, pairs: Sequence[tuple[Array, Array]], like: Array) -> Array:
    """Return the products (N, rows, K) of all heads, pair by pair, as (..., G N K).

    `like` is (..., N K).
    """
    # a library may have no views, nor numbers that change
    if xp is not np and not compiles(xp):
        parts = [reshape(xp.permute_dims(a @ b, (1, 0, 2)), like.shape) for a, b in pairs]
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=like.ndim - 1)
    size = like.shape[-1]
    y = room(xp, like, (*like.shape[:-1], len(pairs) * size))
    for (a, b), part in zip(pairs, split(xp, y, size, pairs[0][0].shape[0]), strict=True):
        multiply(xp, a, b, part)
    return y


def joined(xp: Namespace, W: Array) -> Array:
    """Return W (N, K, K) as (N / g, g K, g K) if that is faster.

    Each matrix has g heads on its diagonal.
    """
    N, K, _ = W.shape
    is_known = xp is not np and isinstance(W, np.ndarray)  # while x is a symbol of a C program
    most = 1 if compiles(xp) or is_known else max(1, BLOCK // K)
    g = next(g for g in range(min(N, most), 0, -1) if N % g == 0)
    if g == 1:
        return W
    whole = reshape(W, (N // g, g, K, 1, K)) * _diagonal(xp, W, g)
    return reshape(whole, (N // g, g * K, g * K))


def parted(xp: Namespace, dW: Array, N: int) -> Array:
    """Differentiate `joined`: return the gradient with respect to W (..., N, K, K)."""
    *outer, blocks, width, _ = dW.shape
    if blocks == N:
        return dW
    g = N // blocks
    K = width // g
    of_heads = reshape(dW, (*outer, blocks, g, K, g, K))
    return reshape(total(xp, of_heads, _diagonal(xp, dW, g), -2), (*outer, N, K, K))


def _diagonal(xp: Namespace, like: Array, g: int) -> Array:
    return reshape(constants.identity(xp, g, like.dtype, device_of(like)), (1, g, 1, g, 1))
