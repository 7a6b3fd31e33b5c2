"""The BLAS that makes matrix products on the CPU: how many threads it has, and which shapes it is quick with."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.backend import Array

# OpenBLAS multiplies matrices without packing them first where it takes at most SMALL multiplications. Its AVX-512
# kernels are quicker so: in tiles, (2048, 512) @ (512, 32) ran at 113 GFLOP/s on one core, and at 91 whole.
SMALL = 10**6
UNPACKED = ("SkylakeX", "Cooperlake", "Sapphirerapids")


_limited: list[tuple[Any, int]] = []  # libraries, and how many threads they had before `limited`


def threads() -> int:
    """Threads of a product, by BLAS's own choice or its user's: whether it is limited meanwhile does not matter."""
    return max([n for _, n in _limited] or [now()])


def now() -> int:
    """Threads of a product at this moment."""
    return max((library.num_threads for library in _libraries()), default=1)


def describe() -> list[str]:
    """Each library in words: where it lies, its version, the kernel it chose for this processor, and threads."""
    return [
        f"{Path(library.filepath).parent.name}: {library.internal_api} {library.version} "
        f"{getattr(library, 'architecture', 'of unknown kernel')}, threads: {library.num_threads}"
        for library in sorted(_libraries(), key=lambda library: str(library.filepath))
    ]


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """`threads` threads a product meanwhile, in the whole process; not for several callers at once."""
    before = [(library, library.num_threads) for library in _libraries()]
    _limited[:] = before
    try:
        for library, n in before:
            if n != threads:
                library.set_num_threads(threads)
        yield
    finally:
        unlimited()


def unlimited() -> None:
    """End what `limited` began."""
    for library, n in _limited:
        if library.num_threads != n:
            library.set_num_threads(n)
    _limited.clear()


def tiles(R: int, K: int, n: int) -> tuple[int, int]:
    """How to divide a matrix (R, K) for a product with (K, n): rows of a tile, and pieces along K; (R, 1) for not."""
    if not 1 < n <= 64 or R * K * n <= SMALL or now() > 1 or not _unpacked(_scipy()):
        return R, 1
    least = min(64, max(8, 512 // n))  # rows
    for pieces in range(1, 17):
        if K % pieces == 0 and least * (K // pieces) * n <= SMALL:
            return min(128, SMALL // (K // pieces * n) // 8 * 8), pieces
    return R, 1


def product(a: Array, b: Array, out: Array) -> None:
    """out = a @ b, in tiles where that is quicker; all are matrices, out is contiguous."""
    (R, K), n = a.shape, b.shape[1]
    rows, pieces = tiles(R, K, n)
    rows = next((rows for rows in range(rows, 7, -8) if R % rows == 0), R) if rows < R else R
    if rows == R or a.strides[1] != a.itemsize or b.strides[1] != b.itemsize:
        np.matmul(a, b, out=out)
        return
    depth = K // pieces
    strides = (depth * a.strides[1], rows * a.strides[0], *a.strides)
    view = np.lib.stride_tricks.as_strided(a, (pieces, R // rows, rows, depth), strides)
    if pieces == 1:
        np.matmul(view[0], b, out=out.reshape(R // rows, rows, n))
    else:
        np.sum(np.matmul(view, b.reshape(pieces, 1, depth, n)).reshape(pieces, R, n), axis=0, out=out)


def blocks(W: Array, n: int) -> Array:
    """W (R, K) for many products with (K, n): itself, or as (blocks, rows, K) where that is quicker."""
    R, K = W.shape
    rows, pieces = tiles(R, K, n)
    rows = next((rows for rows in range(rows, 7, -8) if R % rows == 0), R) if rows < R and pieces == 1 else R
    return W if rows == R else W.reshape(R // rows, rows, K)


def _libraries() -> list[Any]:
    """Those that can be told how many threads to use; SciPy brings another one when a compiled loop is loaded."""
    return _found(_scipy())


def _scipy() -> bool:
    return "scipy.linalg.cython_blas" in sys.modules


@functools.cache
def _found(scipy: bool) -> list[Any]:
    import threadpoolctl

    return list(threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers)


@functools.cache
def _unpacked(scipy: bool) -> bool:
    return all(getattr(library, "architecture", None) in UNPACKED for library in _found(scipy))
