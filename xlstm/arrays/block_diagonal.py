"""Products with block-diagonal matrices of narrow blocks; on CuPy one launch computes several.

Multiplying a few numbers takes less time than reading them, so the kernel reads x once and writes
all results in their places. cuBLAS would need wide blocks of mostly zeros.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import Array, Namespace, Shape, reshape, room
from xlstm.arrays.rows import summed
from xlstm.tracing.array_functions import Formula

WIDEST = 4  # wider blocks would not fit a thread's registers


def takes(xp: Namespace, W: Array) -> bool:
    """Tell whether these functions multiply with blocks W (N, K, K)."""
    return compiles(xp) and W.shape[-1] <= WIDEST


def products(xp: Namespace, xs: Sequence[Array], Ws: Sequence[Array]) -> Array:
    """Return the products x[n] W[n]^T of N blocks, side by side, (..., G N K).

    There is one for each pair of an x (..., N K) and a W (N, K, K).
    """
    N, K, _ = Ws[0].shape
    x = xs[0]
    y = room(xp, x, (*x.shape[:-1], len(Ws) * N * K))
    out = [y[..., k : k + N * K] for k in range(0, y.shape[-1], N * K)]
    _by_blocks(xp, _products, xs, Ws, sums=0, out=out, K=K)
    return y


def products_bwd(
    xp: Namespace,
    dys: Sequence[Sequence[Array]],
    xs: Sequence[Array],
    Ws: Sequence[Array],
    of: Sequence[int],
    add: Sequence[Array | None],
) -> tuple[list[Array], list[Array]]:
    """Return the gradients with respect to each different x, and to the W of each product.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    dys : sequence of sequences of array (..., N K)
        For each product the arrays whose sum is the gradient with respect to its result.
    xs : sequence of array (..., N K)
    Ws : sequence of array (N, K, K)
    of : sequence of int
        For each product the number of its x.
    add : sequence of array or None
        For each x an array to add to its gradient, or None.
    """
    K = Ws[0].shape[-1]
    added = [a for a in add if a is not None]
    counts = tuple(len(some) for some in dys)
    arrays = [*(dy for some in dys for dy in some), *xs, *added]
    dxs = [room(xp, x, x.shape) for x in xs]
    options = {"K": K, "of": tuple(of), "counts": counts, "add": tuple(a is not None for a in add)}
    results = _by_blocks(xp, _products_bwd, arrays, Ws, sums=len(Ws), out=dxs, **options)
    return dxs, [reshape(dW, (*dW.shape[:-2], *Ws[0].shape)) for dW in results[len(dxs) :]]


def _by_blocks(
    xp: Namespace,
    function: Formula,
    arrays: Sequence[Array],
    Ws: Sequence[Array],
    K: int,
    **options: Any,
) -> Any:
    """Return a function of x (K, ..., N) and W (K^2, N), given arrays (..., N K) and (N, K, K)."""
    return summed(
        xp,
        function,
        *arrays,
        *(reshape(W, (-1,)) for W in Ws),
        leading=(K,) * len(arrays) + (K * K,) * len(Ws),
        last=True,
        K=K,
        **options,
    )


def _products(xp: Namespace, *arrays: Array, K: int) -> tuple[Array, ...]:
    half = len(arrays) // 2
    return tuple(_product(xp, W, x, K) for x, W in zip(arrays[:half], arrays[half:], strict=True))


def _product(xp: Namespace, W: Array, x: Array, K: int, turned: bool = False) -> Array:
    """Return W x, or W^T x."""
    far, near = (1, K) if turned else (K, 1)
    return xp.stack(
        [_sum(W[i * far + j * near, ...] * x[j, ...] for j in range(K)) for i in range(K)]
    )


def _products_bwd(
    xp: Namespace,
    *arrays: Array,
    K: int,
    of: Shape,
    counts: Shape,
    add: tuple[bool, ...],
) -> tuple[Array, ...]:
    """Return the gradients with respect to each x, and this row's gradients of each W."""
    rest = iter(arrays)
    dys = [_sum(next(rest) for _ in range(count)) for count in counts]
    xs = [next(rest) for _ in add]
    dxs = [[next(rest)] if added else [] for added in add]
    dWs = []
    for dy, W, k in zip(dys, rest, of, strict=True):
        dxs[k].append(_product(xp, W, dy, K, turned=True))
        dWs.append(xp.stack([dy[i, ...] * xs[k][j, ...] for i in range(K) for j in range(K)]))
    return (*map(_sum, dxs), *dWs)


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)
