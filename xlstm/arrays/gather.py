"""Rows of arrays at places: read, on CuPy of several arrays in one launch, with zeros for missing rows; or added."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xlstm.arrays import broken, device, fuse, probe, segments
from xlstm.arrays.concat import concat
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, device_of

ARRAYS, THREADS = 8, 256

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
__device__ __forceinline__ void put(const Source& one, bool there, long long row, long long at) {{
    ((T*)one.to)[at] = there ? ((const T*)one.from)[row * one.width + at % one.width] : T(0);
}}
extern "C" __global__ void xlstm_gather(const Sources all, int size) {{
    const Source& one = all.each[blockIdx.y];
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= one.count * one.width) return;
    const long long row = one.places[at / one.width];
    const bool there = row < one.rows;
    if (size == 2) put<unsigned short>(one, there, row, at);
    else if (size == 4) put<unsigned>(one, there, row, at);
    else put<unsigned long long>(one, there, row, at);
}}
"""


def gather(xp: Namespace, arrays: Sequence[Array], places: Sequence[Array]) -> list[Array]:
    """Return the rows of each array at its places.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    arrays : sequence of array (N, ...)
        They have one dtype.
    places : sequence of int64 array (M,)
        Numbers of rows, for each array; on CuPy N gives a row of zeros.

    Returns
    -------
    list of array (M, ...)
    """
    if fuse.compiles(xp):
        found = broken.attempt("xlstm_gather", _gathered, arrays, places) if arrays[0].itemsize > 1 else None
        if found is not None:
            return found
        arrays = [xp.concat((a, xp.zeros((1, *a.shape[1:]), dtype=a.dtype)), axis=0) for a in arrays]
    return [xp.take(a, at, axis=0) for a, at in zip(arrays, places, strict=True)]


def _gathered(arrays: Sequence[Array], places: Sequence[Array]) -> list[Array]:
    found: list[Array] = []
    with device_of(places[0]):
        for k in range(0, len(arrays), ARRAYS):
            found += _launched(arrays[k : k + ARRAYS], places[k : k + ARRAYS])
    return found


def _launched(arrays: Sequence[Array], places: Sequence[Array]) -> list[Array]:
    """Return the rows of at most `ARRAYS` arrays."""
    inputs = [a if a.flags.c_contiguous else a.copy(order="C") for a in arrays]
    outputs = [probe.cupy().empty((at.size, *a.shape[1:]), dtype=a.dtype) for a, at in zip(inputs, places, strict=True)]
    most = max(a.size for a in outputs)
    if most:
        sources = [
            (a.data.ptr, to.data.ptr, at.data.ptr, math.prod(a.shape[1:]), at.size, a.shape[0])
            for a, to, at in zip(inputs, outputs, places, strict=True)
        ]
        table = device.struct([*sources, *[(0,) * 6] * (ARRAYS - len(sources))])
        grid = (-(-most // THREADS), len(inputs))
        device.kernel(TEXT, "xlstm_gather")(grid, (THREADS,), (table, np.int32(inputs[0].itemsize)))
    return outputs


COMPARED = 1 << 24  # pairs of a place and a row that are compared at once


def add_rows(xp: Namespace, places: Array, rows: Array, count: int) -> Array:
    """Return (count, D) with each of rows (N, D) added at its place, a whole number of places (N,).

    On CuPy a place that there is not is left out.
    """
    if xp is np:
        total = np.zeros((count, rows.shape[1]), dtype=rows.dtype)
        np.add.at(total, places, rows)
        return total
    if fuse.compiles(xp) and segments.takes(rows):
        found = broken.attempt("xlstm_add_rows", segments.added, places, rows, count)
        if found is not None:
            return found
    # A product with a matrix of ones and zeros does it, some rows of the result at a time.
    parts, step = [], max(1, COMPARED // max(1, places.shape[0]))
    for first in range(0, max(1, count), step):
        some = xp.arange(first, min(first + step, count), dtype=places.dtype, device=device_of(places))
        parts.append(matmul(xp, xp.astype(some[:, None] == places[None, :], rows.dtype), rows))
    return parts[0] if len(parts) == 1 else concat(xp, parts, 0)
