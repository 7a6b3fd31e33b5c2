"""Rows of CuPy arrays added up by whole numbers, as gradients are by tokens, in an order that is the same each time.

Sorting by counting compares all numbers with one another, N^2 of them, which is less work than the product with one-hot
rows by as many times as a row has elements, and needs nothing of the host, so that a graph captures it. Equal numbers
are a segment then. A block adds up some rows of one; the last of the blocks of a long segment adds up their sums.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from xlstm.arrays import device, fuse, probe
from xlstm.arrays.namespace import Array

THREADS, ROWS = 256, 16  # threads of a block, and rows that it adds up

TEXT = """
// For each place in sorted order: the number that is there, where its segment begins and how long that is.
struct Place {{ int from, first, length, come; }};  // `come` counts blocks
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
    if (n < count) places[less + before] = {{n, less, equal, 0}};
}}
// Long segments have a row of `parts` for each block: of {rows} places two at most are where such a block begins, the
// first of a segment and another one.
__device__ __forceinline__ long long part_of(int place, int first) {{ return place / {rows} * 2 + (place > first); }}
extern "C" __global__ void xlstm_add_rows(
    const long long* keys, Place* places, const {type}* rows, long long step, int columns, long long count,
    {real}* parts, {type}* to) {{
    __shared__ bool last;
    const int place = blockIdx.x;
    const Place here = places[place];
    const long long key = keys[here.from];
    if ((place - here.first) % {rows} || key < 0 || key >= count) return;
    const int end = here.first + here.length, some = end - place < {rows} ? end - place : {rows};
    const bool whole = here.length <= {rows};
    for (int at = threadIdx.x; at < columns; at += {threads}) {{
        {real} sum = 0;
        for (int k = 0; k < some; k++) sum += widen(rows[places[place + k].from * step + at]);
        if (whole) narrow(to[key * columns + at], sum);
        else parts[part_of(place, here.first) * columns + at] = sum;
    }}
    if (whole) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicAdd(&places[here.first].come, 1) + 1 == (here.length + {rows} - 1) / {rows};
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int at = threadIdx.x; at < columns; at += {threads}) {{
        {real} sum = 0;
        for (int k = here.first; k < end; k += {rows})
            sum += ((volatile {real}*)parts)[part_of(k, here.first) * columns + at];  // that other blocks wrote
        narrow(to[key * columns + at], sum);
    }}
}}
"""


def takes(rows: Array) -> bool:
    """Tell whether there are kernels for rows (N, D)."""
    return device.known(rows.dtype) and rows.size > 0 and rows.shape[0] < 2**31


def added(keys: Array, rows: Array, count: int) -> Array:
    """Return (count, D) with each of rows (N, D) added at its key, from 0 to count - 1; others are left out."""
    cp, (N, D) = probe.cupy(), rows.shape
    keys, rows = cp.ascontiguousarray(keys), rows if rows.strides[1] == rows.itemsize else rows.copy(order="C")
    places = cp.empty((N, 4), dtype=np.int32)
    parts = cp.empty((2 * (N // ROWS + 1), D), dtype={"float": np.float32, "double": np.float64}[fuse.real(rows.dtype)])
    found = cp.zeros((count, D), dtype=rows.dtype)
    sort, add = _kernels(rows.dtype)
    sort((-(-N // THREADS),), (THREADS,), (keys, np.int32(N), places))
    sizes = np.int64(rows.strides[0] // rows.itemsize), np.int32(D), np.int64(count)
    add((N,), (THREADS,), (keys, places, rows, *sizes, parts, found))
    return found


def text(dtype: Any) -> str:
    """Return the text of both kernels."""
    own = {"type": device.type_of(dtype), "real": fuse.real(dtype)}
    return device.TEXT + TEXT.format(threads=THREADS, rows=ROWS, **own)


@functools.cache
def _kernels(dtype: Any) -> tuple[Any, Any]:
    return device.kernel(text(dtype), "xlstm_sort"), device.kernel(text(dtype), "xlstm_add_rows")
