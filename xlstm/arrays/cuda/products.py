"""Batches of products of CuPy arrays: one call of cuBLAS, without copies of transposed operands.

CuPy's own product of more than two axes copies every transposed operand. cuBLAS takes a matrix with
its rows or its columns one after the other, at any distance, and with one distance from each matrix
of the batch to the next.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import cuda_graph
from xlstm.arrays.namespace import Array, Shape, dtype_name
from xlstm.tracing.loop_nest import loop_nest

KINDS = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1}  # values of cudaDataType
LIMIT = 2**31  # sizes for cuBLAS must be below this
PEDANTIC = 2
TF32 = 7  # CuPy's numbers for compute types


class Operand(NamedTuple):
    """The memory layout of the matrices of a batch, with distances in elements."""

    columns: bool  # one column after the other, instead of rows
    lead: int  # from one row (or column) to the next
    step: int  # from one matrix to the next


WHOLE = Operand(False, 1, 0)  # stands for an operand that is copied first


class GemmCall(NamedTuple):
    """All arguments of cuBLAS for a product, except the addresses.

    They are the same for all arrays of one layout.
    """

    shape: Shape  # shape of the result
    empty: bool  # whether there is nothing to sum up
    copied: tuple[bool, bool]  # which operands must be copied first
    zero: int  # the addresses of 0 and 1
    unit: int
    head: Shape  # transpositions, sizes, alpha
    b: Shape  # the kind of numbers, lead and step
    a: Shape
    out: Shape  # these, and how many products there are


def matmul(A: Array, B: Array, add: Array | None, dtype: Any) -> Array | None:
    """Return the product of `matmul` in `arrays/matmul.py`, or None if cuBLAS has no such product."""
    if A.dtype != B.dtype or dtype_name(A.dtype) not in KINDS:
        return None
    if add is None:
        to = A.dtype if dtype is None else dtype
        call = _call(*_lie(A, B), to)
        return _multiply(call, A, B, optional_imports.cupy().ndarray(call.shape, to), call.zero)
    wide = add.dtype == np.float32 and A.dtype.itemsize == 2
    if add.flags.c_contiguous and (wide or add.dtype == A.dtype):
        call = _call(*_lie(A, B), add.dtype)
        if add.shape == call.shape:
            return _multiply(call, A, B, add, call.unit)
    add += matmul(A, B, None, None)
    return add


def multiply(A: Array, B: Array, out: Array) -> None:
    """Set `out` to A @ B; see `multiply` in `arrays/matmul.py`."""
    call = _call(*_lie(A, B), out.dtype, out.strides)
    _multiply(call, A, B, out, call.zero)


def packed(a: Array) -> Array:
    """Return `a`, or a copy of it if each product would have to copy it."""
    strides = [step // a.itemsize for step in a.strides]
    if _operand(a.shape, strides, a.shape[:-2]):
        return a
    return optional_imports.cupy().ascontiguousarray(a)


def _lie(A: Array, B: Array) -> tuple[Any, ...]:
    return A.shape, A.strides, B.shape, B.strides, A.dtype, B.dtype


def _multiply(call: GemmCall, A: Array, B: Array, out: Array, beta: int) -> Array:
    """Return `out`, after A @ B is written or added to it; `beta` is the address of 0 or 1."""
    cp = optional_imports.cupy()
    if call.empty:
        if beta == call.zero:
            out[...] = 0
        return out
    if any(call.copied):
        A, B = (
            _copy(a, call.shape[:-2]) if copied else a
            for a, copied in zip((A, B), call.copied, strict=True)
        )
        call = _call(*_lie(A, B), out.dtype, out.strides)
    how = _compute(A.dtype, cp._core.get_compute_type(A.dtype) if A.dtype.itemsize > 2 else 0)
    args = (
        *call.head,
        B.data.ptr,
        *call.b,
        A.data.ptr,
        *call.a,
        beta,
        out.data.ptr,
        *call.out,
        *how,
    )
    if (handle := cuda_graph.handle()) is not None:
        handle.gemm(*args)
    else:
        cp.cuda.cublas.gemmStridedBatchedEx(cp.cuda.get_cublas_handle(), *args)
    return out


def _copy(a: Array, batch: Shape) -> Array:
    cp = optional_imports.cupy()
    return cp.ascontiguousarray(a if a.ndim == 2 else cp.broadcast_to(a, (*batch, *a.shape[-2:])))


def _operand(shape: Sequence[int], strides: Sequence[int], batch: Sequence[int]) -> Operand | None:
    """Return the layout of matrices of this shape, or None if cuBLAS needs a copy."""
    step = _distance(shape[:-2], strides[:-2], batch)
    if step is None or step < 0:
        return None
    rows, columns = shape[-2:]
    down, right = strides[-2:]
    for by_columns, n, far, length, near in (
        (False, rows, down, columns, right),
        (True, columns, right, rows, down),
    ):
        # The stride of an axis of length 1 means nothing.
        if (near == 1 or length == 1) and (far >= length or n == 1):
            lead = max(1, length) if n == 1 else far
            return Operand(by_columns, lead, step) if lead < LIMIT else None
    return None


def _distance(shape: Sequence[int], strides: Sequence[int], batch: Sequence[int]) -> int | None:
    """Return the distance from each matrix, or row, of a batch to the next; None if it varies."""
    nest = loop_nest(batch, [(shape, strides)])
    return None if len(nest.sizes) > 1 else sum(nest.steps[0])


@functools.cache
def _scalars(dtype: str) -> tuple[Any, int, int]:
    """Return 0 and 1 on the host, and their addresses."""
    both = np.array([0, 1], dtype="float64" if dtype == "float64" else "float32")
    return both, both.ctypes.data, both.ctypes.data + both.itemsize


@functools.lru_cache(maxsize=4096)
def _call(
    a: Shape, a_steps: Shape, b: Shape, b_steps: Shape,
    A: Any, B: Any, to: Any, out_steps: Shape | None = None,
) -> GemmCall:  # fmt: skip
    """Return the call for shapes, strides and dtypes, by default into a new array.

    cuBLAS stores matrices by columns, so it computes out^T = B^T A^T.
    """
    kind = dtype_name(A)
    kind_out = dtype_name(to)
    sums = "float32" if A.itemsize == 2 else kind
    if kind not in KINDS or A != B or kind_out not in (kind, sums):
        raise TypeError(
            f"multiply: dtypes are {A} @ {B} -> {to}, expected one of {', '.join(KINDS)}"
        )
    shape = _product_shape(a, b)
    batch = shape[:-2]
    a_steps, b_steps = (tuple(step // A.itemsize for step in steps) for steps in (a_steps, b_steps))
    if len(b) == 2 != len(a) and out_steps is None:
        rows = math.prod(a[:-1])
        row = _distance(a[:-1], a_steps[:-1], a[:-1])
        if row or rows == 1:  # all rows of A are one matrix
            a = (rows, a[-1])
            a_steps = (row or 0, a_steps[-1])
            batch = ()
    M, K = a[-2:]
    N = b[-1]
    count = math.prod(batch)
    if max(count, M, K, N) >= LIMIT:
        problem = f"{count} products of sizes {(M, K, N)}, cuBLAS takes less than 2^31 each"
        raise ValueError(f"matmul: {problem}")
    lead = N
    step = M * N
    if out_steps is not None:
        *apart, lead, _ = (far // np.dtype(to).itemsize for far in out_steps)
        step = apart[-1] if apart else step
    left = _operand(a, a_steps, batch)
    right = _operand(b, b_steps, batch)
    copied = (left is None, right is None)
    left = left or WHOLE
    right = right or WHOLE
    _, zero, unit = _scalars(kind)
    return GemmCall(
        *(shape, math.prod(shape) * K == 0, copied, zero, unit),
        head=(int(right.columns), int(left.columns), N, M, K, unit),
        a=(KINDS[kind], left.lead, left.step),
        b=(KINDS[kind], right.lead, right.step),
        out=(KINDS[kind_out], max(lead, N), step, count),
    )


def _product_shape(a: Shape, b: Shape) -> Shape:
    with contextlib.suppress(ValueError):
        if a[-1] == b[-2]:
            return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])
    raise ValueError(f"matmul: shapes {a} and {b} do not fit")


@functools.cache
def _compute(dtype: Any, compute_type: int) -> tuple[int, int]:
    """Return the type to multiply and sum up in, and the algorithm.

    The type is the choice of CuPy's own products of two axes.
    """
    cublas = optional_imports.cupy().cuda.cublas
    kind = "64F" if dtype_name(dtype) == "float64" else "32F"
    if compute_type == PEDANTIC:
        kind += "_PEDANTIC"
    elif compute_type == TF32 and kind == "32F":
        kind += "_FAST_TF32"
    return int(getattr(cublas, f"CUBLAS_COMPUTE_{kind}")), cublas.CUBLAS_GEMM_DEFAULT
