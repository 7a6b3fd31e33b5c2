"""Batches of matrix products: on CuPy one call of cuBLAS, which is told how operands lie instead of copying them.

CuPy's own product of more than two axes copies whatever is transposed. cuBLAS takes a matrix with its rows or its
columns one after the other, any distance between them, and one distance from each matrix of the batch to the next.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import cuda_graph, fuse, probe
from xlstm.arrays.namespace import Array, Namespace, astype

FLOATS = ("float16", "bfloat16", "float32", "float64")
LIMIT = 2**31  # sizes for cuBLAS are less
PEDANTIC, TF32 = 2, 7  # CuPy's numbers of compute types


# Multiplies NumPy arrays, or returns None where that is no work for it. An engine that compiles sets it.
compiled: Callable[[Array, Array], Array | None] | None = None


class Operand(NamedTuple):
    """How the matrices of a batch lie in memory, distances in elements."""

    columns: bool  # one column after the other, instead of rows
    lead: int  # from one row (or column) to the next
    step: int  # from one matrix to the next


class Plan(NamedTuple):
    """A batch of products, (M, K) times (K, N); an operand is None if it has to be copied first."""

    batch: tuple[int, ...]
    sizes: tuple[int, int, int]  # M, K, N
    operands: tuple[Operand | None, Operand | None]


def matmul(xp: Namespace, A: Array, B: Array, add: Array | None = None, dtype: Any = None) -> Array:
    """Return A @ B of matrices in the last two axes, the axes before broadcast.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    A, B
        (..., M, K) and (..., K, N). Transposed ones cost nothing; on CuPy other views cost nothing either where the
        rows or columns are contiguous and the matrices of the batch equally far apart, and a copy where not.
    add : array, optional
        (..., M, N), contiguous: the product is added to it, in its place.
    dtype : optional
        That of a new array, by default the factors'; it may be float32 where they are float16 or bfloat16.

    Returns
    -------
    array
        (..., M, N), or `add`, which may be float32, too. On CuPy float16 and bfloat16 are summed up in float32, and
        float32 is rounded to TF32 where CuPy was told to.

    Raises
    ------
    ValueError
        On CuPy, where shapes do not fit.
    """
    if not fuse.compiles(xp) or A.dtype != B.dtype or fuse.name(A.dtype) not in FLOATS:
        found = compiled(A, B) if xp is np and compiled is not None else None
        if found is None:
            found = A @ B
        if add is None:
            return found if dtype is None else astype(xp, found, dtype)
        add += found
        return add
    way = plan(A.shape, strides(A), B.shape, strides(B))
    shape = (*way.batch, way.sizes[0], way.sizes[2])
    wide = add is not None and add.dtype == np.float32 and A.dtype.itemsize == 2
    if add is not None and (add.shape != shape or not add.flags.c_contiguous or not (wide or add.dtype == A.dtype)):
        add += matmul(xp, A, B)
        return add
    out = probe.cupy().empty(shape, dtype=A.dtype if dtype is None else dtype) if add is None else add
    _multiply(way, A, B, out, add is not None)
    return out


def multiply(A: Array, B: Array, out: Array) -> None:
    """Set a CuPy array (..., M, N) to A @ B; its rows are contiguous, its matrices equally far apart.

    cuBLAS is told dtypes and believes them, so others than those of `matmul` are a TypeError.
    """
    kind = fuse.name(A.dtype)
    wide = out.dtype == np.float32 and A.dtype.itemsize == 2
    if kind not in FLOATS or A.dtype != B.dtype or not (wide or out.dtype == A.dtype):
        raise TypeError(
            f"multiply: dtypes are {A.dtype} @ {B.dtype} -> {out.dtype}, expected one of {', '.join(FLOATS)}"
        )
    _multiply(plan(A.shape, strides(A), B.shape, strides(B)), A, B, out, add=False)


def _multiply(way: Plan, A: Array, B: Array, out: Array, add: bool) -> None:
    """Set `out` to A @ B, or add this to it; operands that cuBLAS cannot be told of are copied."""
    cp = probe.cupy()
    if out.size == 0 or way.sizes[1] == 0:
        if not add:
            out[...] = 0
        return
    if None in way.operands:
        A, B = (
            a if operand else cp.ascontiguousarray(cp.broadcast_to(a, (*way.batch, *a.shape[-2:])))
            for a, operand in zip((A, B), way.operands, strict=True)
        )
        way = plan(A.shape, strides(A), B.shape, strides(B))
    _gemm(cp, way, A, B, out, add)


def multiply_each(xp: Namespace, triples: Sequence[tuple[Array, Array, Array]]) -> None:
    """Set each `out` of (a, b, out), NumPy or CuPy arrays of one dtype, to a @ b.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    triples : sequence of (array (n, M, K), array (n, K, N), array (n, M, N))
        The rows of an `out` are contiguous; those of its matrices may have other numbers between them.
    """
    for a, b, out in triples:
        if fuse.compiles(xp):
            multiply(a, b, out)
        else:
            out[...] = a @ b


def product(xp: Namespace, A: Array, B: Array) -> Array:
    """Return A @ B, on CuPy by `matmul`, which a CUDA graph can capture."""
    return matmul(xp, A, B) if fuse.compiles(xp) else A @ B


def packed(xp: Namespace, a: Array) -> Array:
    """Return `a`, which on CuPy is copied once where each product would have to copy it."""
    if not fuse.compiles(xp) or _operand(a.shape, strides(a), a.shape[:-2]):
        return a
    return probe.cupy().ascontiguousarray(a)


def strides(a: Array) -> tuple[int, ...]:
    """Return the strides of an array in elements."""
    return tuple(s // a.itemsize for s in a.strides)


def plan(a: Sequence[int], a_strides: Sequence[int], b: Sequence[int], b_strides: Sequence[int]) -> Plan:
    """Return how to multiply arrays of these shapes and strides (in elements).

    Raises
    ------
    ValueError
        The shapes do not fit.
    """
    try:
        batch = np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2]))
    except ValueError:
        batch = None
    if batch is None or a[-1] != b[-2]:
        raise ValueError(f"matmul: shapes {tuple(a)} and {tuple(b)} do not fit")
    sizes = (a[-2], a[-1], b[-1])
    if max(math.prod(batch), *sizes) >= LIMIT:
        raise ValueError(f"matmul: {math.prod(batch)} products of sizes {sizes}, cuBLAS takes less than 2^31 each")
    return Plan(batch, sizes, (_operand(a, a_strides, batch), _operand(b, b_strides, batch)))


def _operand(shape: Sequence[int], strides: Sequence[int], batch: Sequence[int]) -> Operand | None:
    """Return how matrices of this shape lie, or None where cuBLAS cannot be told without a copy."""
    step = line(shape[:-2], strides[:-2], batch)
    if step is None or step < 0:
        return None
    (rows, columns), (down, right) = shape[-2:], strides[-2:]
    for by_columns, n, far, length, near in ((False, rows, down, columns, right), (True, columns, right, rows, down)):
        # The stride of an axis of length 1 means nothing.
        if (near == 1 or length == 1) and (far >= length or n == 1):
            lead = max(1, length) if n == 1 else far
            return Operand(by_columns, lead, step) if lead < LIMIT else None
    return None


def line(shape: Sequence[int], strides: Sequence[int], batch: Sequence[int]) -> int | None:
    """Return the one stride that makes a line of all axes of an array that is broadcast to `batch`, or None."""
    missing = len(batch) - len(shape)
    shape, strides = (1,) * missing + tuple(shape), (0,) * missing + tuple(strides)
    step, span = None, 1
    for own, stride, n in zip(shape[::-1], strides[::-1], batch[::-1], strict=True):
        if n == 1:
            continue
        stride = stride if own == n else 0
        if step is None:
            step = stride
        elif stride != step * span:
            return None
        span *= n
    return step or 0


@functools.cache
def _scalars(dtype: str) -> tuple[Any, int, int]:
    """Return 0 and 1 on the host, and their addresses."""
    both = np.array([0, 1], dtype="float64" if dtype == "float64" else "float32")
    return both, both.ctypes.data, both.ctypes.data + both.itemsize


def _gemm(cp: Any, found: Plan, A: Array, B: Array, out: Array, add: bool) -> None:
    """Multiply; matrices of cuBLAS have columns one after the other, and out^T = B^T A^T is one such."""
    a, b = found.operands
    assert a is not None
    assert b is not None
    M, K, N = found.sizes
    cublas, dtype, (*apart, lead, _) = cp.cuda.cublas, fuse.name(A.dtype), strides(out)
    _, zero, one = _scalars(dtype)
    kinds = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1}  # numbers in cudaDataType
    kind = kinds[dtype]
    args = (
        *(int(b.columns), int(a.columns)),
        *(N, M, K, one),
        *(B.data.ptr, kind, b.lead, b.step),
        *(A.data.ptr, kind, a.lead, a.step),
        one if add else zero,
        *(out.data.ptr, kinds[fuse.name(out.dtype)], max(lead, N), apart[-1] if apart else M * N),
        *(math.prod(found.batch), _compute(cp, cublas, dtype), cublas.CUBLAS_GEMM_DEFAULT),
    )
    if (handle := cuda_graph.handle()) is not None:
        handle.gemm(*args)
    else:
        cublas.gemmStridedBatchedEx(cp.cuda.get_cublas_handle(), *args)


def _compute(cp: Any, cublas: Any, dtype: str) -> int:
    """Return the type that is multiplied and summed up in, as CuPy's own products of two axes choose it."""
    kind = "64F" if dtype == "float64" else "32F"
    if dtype in ("float32", "float64"):
        chosen = cp._core.get_compute_type(np.dtype(dtype))
        if chosen == PEDANTIC:
            kind += "_PEDANTIC"
        elif chosen == TF32 and dtype == "float32":
            kind += "_FAST_TF32"
    return int(getattr(cublas, f"CUBLAS_COMPUTE_{kind}"))
