"""Kernels that gather rows of CuPy arrays at places, and that add rows up at places.

Rows are added up in an order that is the same each time. Places are sorted by counting, which
compares all N places with one another: N^2 comparisons. For rows of D elements, the product with
one-hot rows would take D times this work. The sort needs nothing from the host, so a graph can
capture it. Equal places then form a segment, whose rows are added up one after the other, in
float64 because there may be many.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import device, kernel_fallback
from xlstm.arrays.namespace import Array, device_of

ARRAYS = 8
FIELDS = 6  # fields of `Source`
THREADS = 256

TEXT = f"""
struct Source {{
    const void* from;
    void* to;
    const long long* places;
    long long width, count, rows;  // `count` is that of places
}};
struct Sources {{
    Source each[{ARRAYS}];
}};
template <class T>
__device__ __forceinline__ void put(const Source& one, int missing, long long row, long long at) {{
    const bool there = row >= 0 && row < one.rows;
    ((T*)one.to)[at] = there ? ((const T*)one.from)[row * one.width + at % one.width] : T(missing);
}}
// `missing` has the bits of a number in a missing row: 0, or -1 for NaN
extern "C" __global__ void xlstm_gather(const Sources all, int size, int missing) {{
    const Source& one = all.each[blockIdx.y];
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= one.count * one.width) return;
    const long long row = one.places[at / one.width];
    if (size == 2) put<unsigned short>(one, missing, row, at);
    else if (size == 4) put<unsigned>(one, missing, row, at);
    else put<unsigned long long>(one, missing, row, at);
}}
"""


def gather(
    arrays: Sequence[Array], places: Sequence[Array], missing: int = 0
) -> list[Array] | None:
    """Return the rows of each array at its places, or None without a kernel.

    `missing` has the bits of a number in a missing row: 0, or -1 for NaN.
    """
    if arrays[0].itemsize == 1:
        return None
    return kernel_fallback.attempt("xlstm_gather", _gathered, arrays, places, missing)


def _gathered(arrays: Sequence[Array], places: Sequence[Array], missing: int = 0) -> list[Array]:
    """Return the rows; each launch serves `ARRAYS` arrays.

    `missing` has the bits of a number in a missing row.
    """
    cp = optional_imports.cupy()
    with device_of(places[0]):
        inputs = [cp.ascontiguousarray(a) for a in arrays]
        places = [cp.ascontiguousarray(at) for at in places]
        results = [
            cp.empty((at.size, *a.shape[1:]), dtype=a.dtype)
            for a, at in zip(inputs, places, strict=True)
        ]
        for k in range(0, len(inputs), ARRAYS):
            numbers: list[int] = []
            some = slice(k, k + ARRAYS)
            for a, to, at in zip(inputs[some], results[some], places[some], strict=True):
                width = math.prod(a.shape[1:])
                numbers += (a.data.ptr, to.data.ptr, at.data.ptr, width, at.size, a.shape[0])
            most = max(a.size for a in results[some])
            if most:
                count = len(numbers) // FIELDS
                table = device.struct([*numbers, *[0] * (FIELDS * (ARRAYS - count))])
                grid = (-(-most // THREADS), count)
                size = np.int32(inputs[0].itemsize)
                arguments = table, size, np.int32(missing)
                device.kernel(TEXT, "xlstm_gather")(grid, (THREADS,), arguments)
    return results


ADD_TEXT = """
// For each place in sorted order: the number that is there, where its segment begins and how long that is.
struct Place {{ int from, first, length; }};
extern "C" __global__ void xlstm_sort(const long long* keys, int count, Place* places) {{
    __shared__ long long tile[{threads}];
    const int n = blockIdx.x * {threads} + threadIdx.x;
    const long long own = keys[n < count ? n : 0];
    int less = 0, equal = 0, before = 0;
    for (int start = 0; start < count; start += {threads}) {{
        const int some = count - start < {threads} ? count - start : {threads};
        __syncthreads();
        if ((int)threadIdx.x < some) tile[threadIdx.x] = keys[start + threadIdx.x];
        __syncthreads();
        for (int k = 0; k < some; k++) {{
            less += tile[k] < own;
            equal += tile[k] == own;
            before += tile[k] == own && start + k < n;
        }}
    }}
    if (n < count) places[less + before] = {{n, less, equal}};
}}
// A block has some columns of a segment, at the beginning of which it is.
extern "C" __global__ void xlstm_add_rows(
    const long long* keys, const Place* places, const {type}* rows, long long step, int columns, long long count,
    {type}* to) {{
    const Place* here = places + blockIdx.x;
    const long long key = keys[here->from];
    const int at = blockIdx.y * {threads} + threadIdx.x;
    if ((int)blockIdx.x != here->first || key < 0 || key >= count || at >= columns) return;
    double sum = 0;
    for (int k = 0; k < here->length; k++) sum += widen(rows[here[k].from * step + at]);
    narrow(to[key * columns + at], sum);
}}
"""


def add_rows(places: Array, rows: Array, count: int) -> Array | None:
    """Return (count, D) with each row (D,) added at its place; None without a kernel.

    Rows with places out of range are left out.
    """
    if not device.known(rows.dtype) or rows.size == 0 or rows.shape[0] >= 2**31:
        return None
    return kernel_fallback.attempt("xlstm_add_rows", _added, places, rows, count)


def _added(keys: Array, rows: Array, count: int) -> Array:
    """Return (count, D) with each row of `rows` (N, D) added at its key, from 0 to count - 1.

    Rows with other keys are left out.
    """
    cp = optional_imports.cupy()
    N, D = rows.shape
    text = add_text(rows.dtype)
    keys = cp.ascontiguousarray(keys)
    rows = rows if rows.strides[1] == rows.itemsize else rows.copy(order="C")
    places = cp.empty((N, 3), dtype=np.int32)
    sums = cp.zeros((count, D), dtype=rows.dtype)
    blocks = -(-N // THREADS)
    device.kernel(text, "xlstm_sort")((blocks,), (THREADS,), (keys, np.int32(N), places))
    sizes = np.int64(rows.strides[0] // rows.itemsize), np.int32(D), np.int64(count)
    grid = (N, -(-D // THREADS))
    device.kernel(text, "xlstm_add_rows")(grid, (THREADS,), (keys, places, rows, *sizes, sums))
    return sums


@functools.cache
def add_text(dtype: Any) -> str:
    """Return the text of both kernels that add rows."""
    return device.TEXT + ADD_TEXT.format(threads=THREADS, type=device.type_of(dtype))
