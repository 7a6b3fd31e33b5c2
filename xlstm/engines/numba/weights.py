"""Weights as compiled loops take them, packed, and products over all steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from xlstm.arrays.namespace import Array
from xlstm.engines.numba.team import Call, address, share
from xlstm.engines.step import Step

DEEP = 1024  # rows of the second factor of a product for which rows of the first one stay in the cache of a core
FEW = 128  # rows of the left factor of a product up to which it is packed, and not the right one
LINE = 64  # bytes of a cache line, with which packed weights begin, so that no vector lies in two
NARROW = 8  # rows or columns below which a tile is mostly empty, and a product takes as long as one of so many
COPY = 32  # multiplications that take as long as to copy a number
# So many rows or slivers stay together where threads share them, and blocks of rows where there are many.
ROWS, SLIVERS, BLOCK, MANY = 24, 4, 96, 1024


def for_inputs(step: Step, compiled: ModuleType, units: tuple[int, int]) -> Array:
    """Return Wx of the units from a first to a last one for products with x, (slivers of all gates, D, columns).

    It is empty where x are the products already.
    """
    if "Wx" not in step.w:
        return np.empty((0, 0, 0), step.Wh.dtype)
    W = step.w["Wx"].reshape(step.G, 1, step.H, -1)[:, :, slice(*units)]
    return _packed(compiled, compiled.pack_transposed, W, W.shape[2])


def for_states(step: Step, compiled: ModuleType, apart: bool) -> tuple[Array, Array]:
    """Return W and Wh of `loops.forward`: W is empty, and Wh packed, (heads, slivers of all gates, K, columns).

    If no thread needs the heads of another one, the threads pack them `apart`: then W has the weights, and Wh is room.
    """
    W = _by_head(step)
    G, heads, K, _ = W.shape
    if apart:
        W, packed = contiguous(W), _aligned(G * heads * -(-K // compiled.COLUMNS), K, compiled.COLUMNS, W.dtype)
    else:
        W, packed = np.empty((0, 0, 0, 0), W.dtype), _packed(compiled, compiled.pack_transposed, W, K)
    return W, packed.reshape(heads, -1, *packed.shape[1:])


def for_gradients(step: Step, compiled: ModuleType) -> Array:
    """Return Wh for products with the gradients of all gates, (1, 1, slivers, R, columns).

    With several heads it is for those of one head and gate, (heads, G, slivers, K, columns).
    """
    W = _by_head(step)
    if not step.heads:
        W = W.reshape(1, 1, step.R, step.H)
    packed = _packed(compiled, compiled.pack, W, W.shape[3])
    return packed.reshape(W.shape[1], W.shape[0], -1, *packed.shape[1:])


def _by_head(step: Step) -> Array:
    """Return Wh by gates and heads, (G, heads, K, K)."""
    return step.Wh if step.heads else step.Wh.reshape(step.G, 1, step.H, step.H)


def _packed(compiled: ModuleType, pack: Callable[[Array, Array], None], W: Array, width: int) -> Array:
    """Return matrices (gates, heads, ..., ...) packed, each with so many columns for its product."""
    columns, (gates, heads, rows, wide) = compiled.COLUMNS, W.shape
    packed = _aligned(gates * heads * -(-width // columns), rows * wide // width, columns, W.dtype)
    share([(packed.shape[0], pack, (contiguous(W), packed), SLIVERS)], COPY * packed.size)
    return packed


def _aligned(slivers: int, K: int, columns: int, dtype: np.dtype[Any]) -> Array:
    """Return an array with any contents, which begins with a cache line."""
    room = np.empty(slivers * K * columns * dtype.itemsize + LINE, np.uint8)
    return np.ndarray((slivers, K, columns), dtype, room, -address(room) % LINE)


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
