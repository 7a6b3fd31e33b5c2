"""Batches of matrix products: on CuPy one call of cuBLAS, on NumPy in compiled tiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xlstm.arrays import compiled, fuse
from xlstm.arrays.namespace import Array, Namespace, astype, is_of_duals, reshape

SMALL = 1 << 16  # multiplications below which NumPy's product takes less time than compiled tiles


def matmul(xp: Namespace, A: Array, B: Array, add: Array | None = None, dtype: Any = None) -> Array:
    """Return A @ B of matrices in the last two axes; all axes before these broadcast.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    A, B
        Arrays (..., M, K) and (..., K, N). If B is one matrix, it multiplies all rows of A at once.
        Transposed operands cost nothing. On CuPy other views cost nothing either, if their rows or
        columns are contiguous and the matrices of the batch equally far apart; else they cost a
        copy.
    add : array, optional
        A contiguous array (..., M, N), to which the product is added in-place.
    dtype : optional
        The dtype of a new array, by default the factors' dtype. It may be float32 if they are
        float16 or bfloat16.

    Returns
    -------
    array
        The product (..., M, N), or `add`, which may be float32, too. On CuPy float16 and bfloat16
        are summed up in float32, and float32 is rounded to TF32 if CuPy is set to do so.

    Raises
    ------
    ValueError
        On CuPy, if the shapes do not fit.
    """
    if fuse.compiles(xp):
        result: Array | None = compiled.module("cupy.products").matmul(A, B, add, dtype)
        if result is not None:
            return result
    product = _elsewhere(xp, A, B)
    if add is not None:
        add += product
        return add
    return product if dtype is None else astype(xp, product, dtype)


def _elsewhere(xp: Namespace, A: Array, B: Array) -> Array:
    """Return A @ B by the library or by compiled tiles.

    If B is one matrix, all rows of A become one matrix, too.
    """
    if is_of_duals(xp):
        return xp.product(A, B)
    if B.ndim == 2 != A.ndim:
        product = _elsewhere(xp, reshape(A, (math.prod(A.shape[:-1]), A.shape[-1])), B)
        return reshape(product, (*A.shape[:-1], B.shape[1]))
    tiled = None
    if xp is np and A.size * B.shape[-1] >= SMALL:
        tiled = compiled.module("numpy.products").matmul(A, B)
    return A @ B if tiled is None else tiled


def multiply(xp: Namespace, A: Array, B: Array, out: Array) -> None:
    """Set (..., M, N) to A @ B, all of one dtype.

    Rows of `out` must be contiguous, and its matrices equally far apart, possibly with gaps.
    """
    if fuse.compiles(xp):
        compiled.module("cupy.products").multiply(A, B, out)
    else:
        out[...] = A @ B


def product(xp: Namespace, A: Array, B: Array) -> Array:
    """Return A @ B; on CuPy by `matmul`, which a CUDA graph can capture."""
    return matmul(xp, A, B) if fuse.compiles(xp) else A @ B


def packed(xp: Namespace, a: Array) -> Array:
    """Return `a`, or on CuPy a copy of it if each product would have to copy it."""
    return compiled.module("cupy.products").packed(a) if fuse.compiles(xp) else a
