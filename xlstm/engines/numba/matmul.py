"""Matrix products of NumPy arrays outside the time loops, by the tiles of `products.py`.

BLAS multiplies the matrices of a batch one by one, each as if it were large. `arrays/matmul.py` and
`arrays/threads.py` call `run`.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

import numpy as np

from xlstm.arrays import matmul
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import jit, weights

DTYPES = {np.dtype("float32"): "float32", np.dtype("float64"): "float64"}
SMALL = 1 << 16  # multiplications below which NumPy's call costs less
NARROW = 8  # rows or columns below which a tile would be mostly empty


def run(a: Array, b: Array, add: Array | None = None, shared: bool = False) -> Array | None:
    """Return a @ b of matrices in the last two axes, or None where this is no work for compiled tiles.

    Parameters
    ----------
    a, b : array
        (..., M, K) and (..., K, N), float32 or float64, the axes before broadcast.
    add : array, optional
        (..., M, N), contiguous: the product is added to it, in its place.
    shared : bool
        Whether threads share a large product.
    """
    dtype = DTYPES.get(a.dtype)
    if dtype is None or a.dtype != b.dtype or min(a.ndim, b.ndim) < 2 or not jit.enabled():
        return None
    plan = _plan(a.shape, a.strides, b.shape, b.strides, a.itemsize)
    if plan is None:
        return None
    compiled, whole = jit.shared(dtype), a.ndim == b.ndim == 2
    if whole and add is None and (a.flags.c_contiguous or a.flags.f_contiguous):
        return weights.products(compiled, [(a, b)])[0]
    shape = (*plan.batch, plan.sizes[0], plan.sizes[2])
    if add is not None and (add.shape != shape or not add.flags.c_contiguous or add.dtype != a.dtype):
        return None
    out = np.empty(shape, a.dtype) if add is None else add
    call = functools.partial(_batch, compiled, plan, _address(a), _address(b), _address(out), add is not None)
    n = math.prod(plan.batch)
    if shared:
        weights.share([(n, call)], n * math.prod(plan.sizes))
    else:
        call(0, n)
    return out


def _batch(compiled: ModuleType, plan: matmul.Plan, a: int, b: int, out: int, add: bool, first: int, last: int) -> None:
    """Multiply the matrices from `first` to `last` of a batch."""
    left, right = plan.operands
    assert left is not None
    assert right is not None
    row, pace = (1, left.lead) if left.columns else (left.lead, 1)
    compiled.products_of_batch(
        *(first, last, *plan.sizes),
        *(a, row, pace, left.step),
        *(b, right.lead, right.columns, right.step),
        *(out, add),
    )


@functools.lru_cache(maxsize=1024)
def _plan(
    a: tuple[int, ...], a_strides: tuple[int, ...], b: tuple[int, ...], b_strides: tuple[int, ...], itemsize: int
) -> matmul.Plan | None:
    """Return how to multiply arrays of these shapes and strides (in bytes), or None where compiled tiles are not to."""
    if any(s % itemsize for s in (*a_strides, *b_strides)):
        return None
    left, right = ([s // itemsize for s in strides] for strides in (a_strides, b_strides))
    try:
        found = matmul.plan(a, left, b, right)
    except ValueError:  # NumPy says why
        return None
    M, K, N = found.sizes
    small = math.prod(found.batch) * M * K * N < SMALL or min(M, N) < NARROW
    return None if small or None in found.operands else found


def _address(a: Array) -> int:
    return int(a.__array_interface__["data"][0])
