"""Rows of CuPy arrays added up by whole numbers, as gradients are by tokens, in an order that is the same each time.

Sorting by counting compares all numbers with one another, N^2 of them, which is less work than the product with one-hot
rows by as many times as a row has elements, and needs nothing of the host, so that a graph captures it. Equal numbers
are a segment then, whose rows are added up one after the other, in float64 since there may be many.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from xlstm.arrays import device, probe
from xlstm.arrays.namespace import Array

THREADS = 256  # of a block

TEXT = """
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


def takes(rows: Array) -> bool:
    """Tell whether there are kernels for rows (N, D)."""
    return device.known(rows.dtype) and rows.size > 0 and rows.shape[0] < 2**31


def added(keys: Array, rows: Array, count: int) -> Array:
    """Return (count, D) with each of rows (N, D) added at its key, from 0 to count - 1; others are left out."""
    cp, (N, D) = probe.cupy(), rows.shape
    keys, rows = cp.ascontiguousarray(keys), rows if rows.strides[1] == rows.itemsize else rows.copy(order="C")
    places = cp.empty((N, 3), dtype=np.int32)
    found = cp.zeros((count, D), dtype=rows.dtype)
    sort, add = _kernels(rows.dtype)
    sort((-(-N // THREADS),), (THREADS,), (keys, np.int32(N), places))
    sizes = np.int64(rows.strides[0] // rows.itemsize), np.int32(D), np.int64(count)
    add((N, -(-D // THREADS)), (THREADS,), (keys, places, rows, *sizes, found))
    return found


def text(dtype: Any) -> str:
    """Return the text of both kernels."""
    return device.TEXT + TEXT.format(threads=THREADS, type=device.type_of(dtype))


@functools.cache
def _kernels(dtype: Any) -> tuple[Any, Any]:
    return device.kernel(text(dtype), "xlstm_sort"), device.kernel(text(dtype), "xlstm_add_rows")
