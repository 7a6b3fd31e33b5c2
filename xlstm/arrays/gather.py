"""Rows of arrays at places: on CuPy one launch for several arrays, in which a row that there is not is zero."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import fuse, probe
from xlstm.arrays.namespace import Array, Namespace, device_of

ARRAYS, THREADS = 8, 256

TEXT = """
struct Sources {{
    const void* from[{arrays}];
    void* to[{arrays}];
    long long width[{arrays}];
}};
template <class T>
__device__ __forceinline__ void put(const Sources& all, int k, bool there, long long row, long long at) {{
    ((T*)all.to[k])[at] = there ? ((const T*)all.from[k])[row * all.width[k] + at % all.width[k]] : T(0);
}}
extern "C" __global__ void xlstm_gather(
    const Sources all, const long long* places, long long count, long long rows, int size) {{
    const int k = blockIdx.y;
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x, width = all.width[k];
    if (at >= count * width) return;
    const long long row = places[at / width];
    if (size == 2) put<unsigned short>(all, k, row < rows, row, at);
    else if (size == 4) put<unsigned>(all, k, row < rows, row, at);
    else put<unsigned long long>(all, k, row < rows, row, at);
}}
"""


def gather(xp: Namespace, arrays: Sequence[Array], places: Array) -> list[Array]:
    """Return the rows of each array at the same places.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    arrays : sequence of array (N, ...)
        They have one dtype.
    places : int64 array (M,)
        Numbers of rows; on CuPy N gives a row of zeros.

    Returns
    -------
    list of array (M, ...)
    """
    if not fuse.compiles(xp) or len(arrays) > ARRAYS or arrays[0].itemsize == 1:
        return [xp.take(a, places, axis=0) for a in arrays]
    M = places.shape[0]
    given = [a if a.flags.c_contiguous else a.copy(order="C") for a in arrays]
    with device_of(places):
        found = [probe.cupy().empty((M, *a.shape[1:]), dtype=a.dtype) for a in given]
        widths = [int(np.prod(a.shape[1:], dtype=np.int64)) for a in given]
        if M and max(widths):
            table = np.zeros((), _layout())
            table["from"][: len(given)] = [a.data.ptr for a in given]
            table["to"][: len(given)] = [a.data.ptr for a in found]
            table["width"][: len(given)] = widths
            grid = (-(-M * max(widths) // THREADS), len(given))
            sizes = np.int64(M), np.int64(given[0].shape[0]), np.int32(given[0].itemsize)
            _kernel()(grid, (THREADS,), (table, places, *sizes))
    return found


@functools.cache
def _layout() -> np.dtype[Any]:
    return np.dtype([("from", "u8", (ARRAYS,)), ("to", "u8", (ARRAYS,)), ("width", "i8", (ARRAYS,))])


@functools.cache
def _kernel() -> Any:
    return probe.cupy().RawKernel(TEXT.format(arrays=ARRAYS), "xlstm_gather", backend="nvrtc")
