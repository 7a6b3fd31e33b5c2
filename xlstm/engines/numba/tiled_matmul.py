"""Matrix products of NumPy arrays outside the time loops, by the tiles of `products.py`.

BLAS multiplies the matrices of a batch one by one, each as if it were large, and its threads ask for work for 0.1 s
after each product, on cores that whatever comes next needs. `arrays/matmul.py` calls `run`; threads share the work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from xlstm.arrays import matmul
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import jit
from xlstm.engines.numba.packed_products import NARROW, products
from xlstm.engines.numba.team import Call, address, share

DTYPES = {np.dtype("float32"): "float32", np.dtype("float64"): "float64"}
SMALL = 1 << 16  # multiplications below which NumPy's call costs less
# Numbers of a matrix from which on tiles are quicker than BLAS though they are mostly empty, since it comes from far
# memory, and from which on threads are quicker that share its product with a vector; and the rows (or columns, where it
# is the right factor) below which BLAS is quicker all the same.
FAR, VECTOR, LONG = 1 << 18, 1 << 20, 512


def run(a: Array, b: Array, add: Array | None = None) -> Array | None:
    """Return a @ b of matrices in the last two axes, or None where this is no work for compiled tiles.

    Parameters
    ----------
    a, b : array
        (..., M, K) and (..., K, N), float32 or float64, the axes before broadcast.
    add : array, optional
        (..., M, N), contiguous: the product is added to it, in its place.
    """
    dtype = DTYPES.get(a.dtype)
    if dtype is None or a.dtype != b.dtype or min(a.ndim, b.ndim) < 2 or not jit.enabled():
        return None
    narrow = add is None and bool(a.flags.c_contiguous and b.flags.f_contiguous)
    plan = _plan(a.shape, a.strides, b.shape, b.strides, a.itemsize, narrow)
    if plan is None:
        return None
    compiled, shape = jit.shared(dtype), (*plan.batch, plan.sizes[0], plan.sizes[2])
    if add is None and len(shape) == 2 and (a.flags.c_contiguous or a.flags.f_contiguous):
        return products(compiled, [(a, b)])[0]
    if add is not None and (add.shape != shape or not add.flags.c_contiguous or add.dtype != a.dtype):
        return None
    out = np.empty(shape, a.dtype) if add is None else add
    calls = _calls(compiled, a, b, out, add is not None)
    if calls is None:
        return None
    share(calls, out.size * plan.sizes[1])
    return out


def run_into(triples: Sequence[tuple[Array, Array, Array]]) -> bool:
    """Set each `out` of (a, b, out) to a @ b, or return False where this is no work for compiled tiles.

    They are (n, M, K), (n, K, N) and (n, M, N), of one dtype; the rows of `out` are contiguous.
    """
    dtype = DTYPES.get(triples[0][0].dtype)
    if dtype is None or any(x.dtype != triples[0][0].dtype for triple in triples for x in triple) or not jit.enabled():
        return False
    compiled, calls, multiplications = jit.shared(dtype), [], 0
    for a, b, out in triples:
        some = _calls(compiled, a, b, out, False)
        if some is None:
            return False
        calls += some
        multiplications += out.size * a.shape[-1]
    share(calls, multiplications)
    return True


def _calls(compiled: ModuleType, a: Array, b: Array, out: Array, add: bool) -> list[Call] | None:
    """Return the calls that multiply a batch, or None where operands would have to be copied.

    There are several calls where the matrices of an operand are not equally far apart.
    """
    plan = _plan(a.shape, a.strides, b.shape, b.strides, a.itemsize, False)
    if plan is None:
        return None
    if None not in plan.operands:
        left, right = plan.operands
        assert left is not None
        assert right is not None
        *apart, line, _ = out.strides
        given = (
            *(compiled.PRODUCT, *plan.sizes),
            *(address(a), *((1, left.lead) if left.columns else (left.lead, 1)), left.step),
            *(address(b), right.lead, right.columns, right.step),
            *(address(out), line // out.itemsize, apart[-1] // out.itemsize if apart else 0, add),
        )
        return [(math.prod(plan.batch), compiled.products_of_batch, given, 1)]
    if not plan.batch:
        return None
    a, b = (np.broadcast_to(x, (*plan.batch, *x.shape[-2:])) for x in (a, b))
    found = [_calls(compiled, a[k], b[k], out[k], add) for k in range(plan.batch[0])]
    return None if None in found else [call for calls in found for call in calls or ()]


@functools.lru_cache(maxsize=1024)
def _plan(
    a: tuple[int, ...],
    a_strides: tuple[int, ...],
    b: tuple[int, ...],
    b_strides: tuple[int, ...],
    itemsize: int,
    narrow: bool,
) -> matmul.Plan | None:
    """Return how to multiply arrays of these shapes and strides (in bytes), or None where compiled tiles are not to.

    If `narrow`, a has one row after the other and b one column after the other, so there may be few of either.
    """
    if any(s % itemsize for s in (*a_strides, *b_strides)):
        return None
    left, right = ([s // itemsize for s in strides] for strides in (a_strides, b_strides))
    try:
        found = matmul.plan(a, left, b, right)
    except ValueError:  # NumPy says why
        return None
    (M, K, N), least = found.sizes, NARROW
    if narrow and not found.batch and max(M, N) >= LONG and K * max(M, N) >= FAR:
        least = 1 if K * max(M, N) >= VECTOR else 2
    return None if math.prod(found.batch) * M * K * N < SMALL or min(M, N) < least else found
