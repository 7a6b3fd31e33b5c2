"""Products of packed matrices: weights of a pass, products over all steps and outside loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import addressof, c_char
from types import ModuleType
from typing import Any

import numpy as np

from xlstm.arrays.namespace import Array
from xlstm.engines.cell_step import Step
from xlstm.engines.numba import jit
from xlstm.engines.numba.team import Call, share

DTYPES = {np.dtype(name): name for name in ("float32", "float64")}
# rows of the right factor of a product, with which rows of the left one stay in the cache of a core
DEEP = 1024
FEW = 128  # most rows of a left factor that is packed in place of the right one
LINE = 64  # bytes of a cache line; packed weights begin with one, so that no vector lies in two
# rows or columns below which a tile is mostly empty: fewer take as long as this many
NARROW = 8
COPY = 32  # multiplications that take as long as to copy a number
SMALL = 1 << 16  # multiplications below which NumPy's call costs less
# From FAR numbers of a matrix on, tiles are faster than BLAS even if they are mostly empty, since
# the matrix comes from far memory. With fewer than LONG rows (or columns, if it is the right
# factor) BLAS is faster nevertheless.
FAR = 1 << 18
LONG = 512
ROWS = 24
SLIVERS = 4  # rows or slivers that stay together when threads share them


def for_states(step: Step, columns: int, parts: int) -> list[tuple[Array, ...]]:
    """Return the weights of `loops.forward` for each part of the batch; weights of x, or slivers of
    h, may be missing.
    """
    V = recurrent(step)
    x = step.w.get("Wx")
    H = step.H
    Vx = np.empty((1, 0, 0, 0), V.dtype) if x is None else contiguous(x).reshape(1, step.G, H, -1)
    N, G, K, _ = V.shape
    of_x = 0 if x is None else G * -(-H // columns), Vx.shape[3]
    of_h = N, G * -(-K // columns) * step.recurrent, K
    return [
        (Vx, V, aligned(V.dtype, *of_x, columns), aligned(V.dtype, *of_h, columns))
        for _ in range(parts)
    ]


def for_gradients(step: Step, columns: int, parts: int) -> list[tuple[Array, ...]]:
    """Return the weights of `loops.backward`, for each part of the batch."""
    V = recurrent(step)
    if not step.heads:
        V = V.reshape(1, 1, step.R, step.H)
    N, G, depth, K = V.shape
    slivers = -(-K // columns) * step.recurrent
    return [(V, aligned(V.dtype, N, G, slivers, depth, columns)) for _ in range(parts)]


def recurrent(step: Step) -> Array:
    """Return the weights of h, (heads, G, K, K)."""
    if step.heads:
        return contiguous(step.Wh.swapaxes(0, 1))
    return contiguous(step.Wh).reshape(1, step.G, step.H, step.H)


def aligned(dtype: np.dtype[Any], *shape: int) -> Array:
    """Return an array with arbitrary contents that begins with a cache line."""
    room = np.empty(math.prod(shape) * dtype.itemsize + LINE, np.uint8)
    return np.ndarray(shape, dtype, room, -addressof(c_char.from_buffer(room.data)) % LINE)


def matmul(a: Array, b: Array) -> Array | None:
    """Return a @ b for two matrices, or None if compiled tiles do not pay.

    After each product, threads of BLAS look for more work for 0.1 s, on cores that the next work
    needs.
    """
    dtype = DTYPES.get(a.dtype)
    flags = a.flags
    others = b.flags
    if (
        dtype is None
        or a.dtype != b.dtype
        or a.ndim != 2
        or b.ndim != 2
        or a.shape[1] != b.shape[0]
    ):
        return None
    M, K = a.shape
    N = b.shape[1]
    least = NARROW
    if flags.c_contiguous and others.f_contiguous and max(M, N) >= LONG and K * max(M, N) >= FAR:
        least = 2
    if (
        M * K * N < SMALL
        or min(M, N) < least
        or not (flags.c_contiguous or flags.f_contiguous)
        or not jit.enabled()
    ):
        return None
    return products(jit.shared(dtype), [(a, b)])[0]


def products(compiled: ModuleType, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
    """Return a @ b for every pair.

    In each pair, a is contiguous or the transpose of a contiguous matrix. Products with the same
    transposed a are computed together.
    """
    outs: list[Array] = []
    calls: list[Call] = []
    together: dict[int, tuple[Array, list[tuple[Array, Array]]]] = {}
    work = 0
    for a, b in pairs:
        outs.append(out := np.empty((a.shape[0], b.shape[1]), b.dtype))
        work += a.shape[1] * max(out.shape) * max(NARROW, min(out.shape))
        if a.flags.c_contiguous:
            calls.append(_of_rows(compiled, contiguous(a), b, out))
        elif b.shape[1] == 1:
            calls.append(
                (a.shape[0], compiled.vector_over_rows, (contiguous(a.T), contiguous(b), out), ROWS)
            )
        else:
            _, factors = together.setdefault(id(a), (a, []))
            factors.append((contiguous(b), out))
    for a, factors in together.values():
        # Every part packs all right factors, so each thread has only one part.
        bs, results = zip(*factors, strict=True)
        calls.append((a.shape[0], compiled.products_over_rows, (contiguous(a.T), bs, results), 0))
    share(calls, work)
    return outs


def _of_rows(compiled: ModuleType, a: Array, b: Array, out: Array) -> Call:
    """Return the call of a product with contiguous a, for which blocks of rows of b are packed, or
    a if it is small.
    """
    turned = b.flags.f_contiguous and not b.flags.c_contiguous
    K, width = b.shape
    least = -(-K // DEEP)  # equal blocks of at most DEEP rows, unless K has no such divisor
    blocks = 1 if least == 1 else next((n for n in range(least, 2 * least) if K % n == 0), 1)
    b = contiguous(b.T if turned else b)
    if a.shape[0] <= min(FEW, width) and turned:
        return width, compiled.product_of_few_rows, (compiled.PRODUCT, b, a, blocks, out), 0
    packed = aligned(b.dtype, blocks, -(-width // compiled.COLUMNS), K // blocks, compiled.COLUMNS)
    slivers = packed.reshape(-1, *packed.shape[2:])
    far = K // blocks * (1 if turned else width)
    lies = b.reshape(-1), 0, turned, far, K if turned else width, width
    share([(slivers.shape[0], compiled.pack, (*lies, slivers), SLIVERS)], COPY * packed.size)
    return a.shape[0], compiled.product_of_rows, (compiled.PRODUCT, a, packed, out), ROWS


def contiguous(a: Array) -> Array:
    """Return an array that is contiguous and not read-only, so that one compilation serves all
    arrays.
    """
    flags = a.flags
    return a if flags.c_contiguous and flags.writeable else np.array(a, order="C")
