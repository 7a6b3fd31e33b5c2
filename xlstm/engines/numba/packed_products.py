"""Packed matrices for compiled loops: the weights of a pass, and products over all steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from types import ModuleType
from typing import Any

import numpy as np

from xlstm.arrays.namespace import DOUBLE, SINGLE, Array
from xlstm.engines.cell_step import Step
from xlstm.engines.numba.team import Call, share

NONE = {dtype: np.empty((1, 0, 0, 0), dtype) for dtype in (SINGLE, DOUBLE)}
DEEP = 1024  # rows of the second factor of a product for which rows of the first one stay in the cache of a core
FEW = 128  # rows of the left factor of a product up to which it is packed, and not the right one
LINE = 64  # bytes of a cache line, with which packed weights begin, so that no vector lies in two
NARROW = 8  # rows or columns below which a tile is mostly empty, and a product takes as long as one of so many
COPY = 32  # multiplications that take as long as to copy a number
# So many rows or slivers stay together where threads share them, and blocks of rows where there are many.
ROWS, SLIVERS, BLOCK, MANY = 24, 4, 96, 1024


def units_of(step: Step, parts: int) -> list[tuple[int, int]]:
    """Return the first of the units of each part of the heads, and their end."""
    heads = step.Wh.shape[1] if step.heads else 1
    K = step.H // heads
    return [(K * (heads * k // parts), K * (heads * (k + 1) // parts)) for k in range(parts)]


def for_states(step: Step, compiled: ModuleType, shares: tuple[int, int, int]) -> list[Any]:
    """Return the weights of `loops.forward`, Vx, Wx, V and Wh, for each part of the heads.

    If no thread needs the weights of another one, the threads pack them. Vx and Wx are empty where x are the products
    already.
    """
    (parts, heads, size), columns, x, found = shares, compiled.COLUMNS, step.w.get("Wx"), list[Any]()
    V = contiguous(step.Wh if step.heads else step.Wh.reshape(step.G, 1, step.H, step.H))
    none, (G, N, K, _), apart = NONE[V.dtype], V.shape, parts * size == 1
    if apart:
        Wh = _aligned(G * N * -(-K // columns), K, columns, V.dtype)
    else:
        Wh, V = _packed(compiled, compiled.pack_transposed, V, K), none
    Wh = Wh.reshape(N, -1, K, columns)
    for low, high in ((0, step.H),) if heads == 1 else units_of(step, heads):
        Vx, Wx, n = none, none[0], high - low
        if x is not None:
            Vx = contiguous(x.reshape(G, 1, step.H, -1)[:, :, low:high])
            if apart:
                Wx = _aligned(G * -(-n // columns), Vx.shape[3], columns, V.dtype)
            else:
                Vx, Wx = none, _packed(compiled, compiled.pack_transposed, Vx, n)
        found.append((Vx, Wx, V, Wh))
    return found


def for_gradients(step: Step, compiled: ModuleType) -> Array:
    """Return Wh for products with the gradients of all gates, (1, 1, slivers, R, columns).

    With several heads it is for those of one head and gate, (heads, G, slivers, K, columns).
    """
    W = step.Wh if step.heads else step.Wh.reshape(1, 1, step.R, step.H)
    packed = _packed(compiled, compiled.pack, W, W.shape[3])
    return packed.reshape(W.shape[1], W.shape[0], -1, *packed.shape[1:])


def _packed(compiled: ModuleType, pack: Callable[[Array, Array], None], W: Array, width: int) -> Array:
    """Return matrices (gates, heads, ..., ...) packed, each with so many columns for its product."""
    columns, (gates, heads, rows, wide) = compiled.COLUMNS, W.shape
    packed = _aligned(gates * heads * -(-width // columns), rows * wide // width, columns, W.dtype)
    share([(packed.shape[0], pack, (contiguous(W), packed), SLIVERS)], COPY * packed.size)
    return packed


def _aligned(slivers: int, K: int, columns: int, dtype: np.dtype[Any]) -> Array:
    """Return an array with any contents, which begins with a cache line."""
    room = np.empty(slivers * K * columns * dtype.itemsize + LINE, np.uint8)
    return np.ndarray((slivers, K, columns), dtype, room, -addressof(c_char.from_buffer(room.data)) % LINE)


def products(compiled: ModuleType, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
    """Return a @ b of every pair.

    In each pair a is contiguous, or its transposed. Products with the same transposed a are computed together.
    """
    outs: list[Array] = []
    calls: list[Call] = []
    together: dict[int, tuple[Array, list[Array], list[Array]]] = {}
    work = 0
    for a, b in pairs:
        outs.append(out := np.empty((a.shape[0], b.shape[1]), b.dtype))
        work += a.shape[1] * max(out.shape) * max(NARROW, min(out.shape))
        if a.flags.c_contiguous:
            calls.append(_of_rows(compiled, a, b, out))
        elif b.shape[1] == 1:
            calls.append((a.shape[0], compiled.vector_over_rows, (contiguous(a.T), contiguous(b), out), ROWS))
        else:
            _, bs, rooms = together.setdefault(id(a), (a, [], []))
            bs.append(contiguous(b))
            rooms.append(out)
    for a, bs, rooms in together.values():
        # Every part packs all of the right factors, so each thread has one.
        calls.append((a.shape[0], compiled.products_over_rows, (contiguous(a.T), tuple(bs), tuple(rooms)), 0))
    share(calls, work)
    return outs


def _of_rows(compiled: ModuleType, a: Array, b: Array, out: Array) -> Call:
    """Return the call of a product with contiguous a: b is packed, or a if it is small, or none with a vector."""
    a = contiguous(a)
    if 1 in out.shape and b.flags.f_contiguous:
        W, x = (a, b) if b.shape[1] == 1 else (contiguous(b.T), a)
        return out.size, compiled.product_of_vector, (W, contiguous(x).reshape(-1), out.reshape(-1)), ROWS
    if a.shape[0] <= min(FEW, b.shape[1]) and b.flags.f_contiguous:
        few = compiled.product_of_few_rows
        return b.shape[1], few, (compiled.PRODUCT, contiguous(b.T), a, _blocks(a.shape[1]), out), 0
    unit = BLOCK if a.shape[0] >= MANY else 0
    return a.shape[0], compiled.product_of_rows, (compiled.PRODUCT, a, _by_blocks(compiled, b), out), unit


def _by_blocks(compiled: ModuleType, b: Array) -> Array:
    """Return a matrix packed by equal blocks of its rows; one whose columns are contiguous is packed as it lies."""
    turned, (K, width) = b.flags.f_contiguous and not b.flags.c_contiguous, b.shape
    blocks, slivers = _blocks(K), -(-width // compiled.COLUMNS)
    packed = _aligned(blocks * slivers, K // blocks, compiled.COLUMNS, b.dtype)
    given = (contiguous(b.T if turned else b), turned, slivers, packed)
    share([(packed.shape[0], compiled.pack_blocks, given, SLIVERS)], COPY * packed.size)
    return packed.reshape(blocks, -1, *packed.shape[1:])


def _blocks(K: int) -> int:
    """Return the number of equal blocks of K rows, of at most DEEP each unless K has no such divisor."""
    least = -(-K // DEEP)
    return 1 if least == 1 else next((n for n in range(least, 2 * least) if K % n == 0), 1)


def contiguous(a: Array) -> Array:
    """Return an array as compiled loops take it, contiguous and not read-only: one compilation serves all."""
    flags = a.flags
    return a if flags.c_contiguous and flags.writeable else np.array(a, order="C")
