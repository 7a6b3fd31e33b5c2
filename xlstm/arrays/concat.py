"""Arrays beside each other along an axis: on CuPy from one launch, where CuPy's own function copies each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import broken, device, fuse, probe
from xlstm.arrays.namespace import Array, Namespace, device_of

AXES, PARTS, THREADS = 6, 6, 256

TEXT = f"""
struct Part {{
    const void* at;  // 0 where there is one number, the value
    long long value, first;  // place along the axis
    long long steps[{AXES}];  // in elements
}};
struct Parts {{
    long long count, axes, axis, shape[{AXES}];  // of the result
    Part each[{PARTS}];
}};
template <class T>
__device__ __forceinline__ void put(const Parts& all, unsigned place, T* to) {{
    unsigned index[{AXES}], rest = place;
    for (int axis = all.axes - 1; axis > 0; axis--) {{
        const unsigned size = all.shape[axis];
        index[axis] = rest % size;
        rest /= size;
    }}
    index[0] = rest;
    int k = 0;
    while (k + 1 < all.count && all.each[k + 1].first <= index[all.axis]) k++;
    const Part& part = all.each[k];
    long long from = -part.first * part.steps[all.axis];
    for (int axis = 0; axis < all.axes; axis++) from += index[axis] * part.steps[axis];
    to[place] = part.at ? ((const T*)part.at)[from] : (T)part.value;
}}
extern "C" __global__ void xlstm_concat(const Parts all, unsigned count, int size, void* to) {{
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= count) return;
    if (size == 2) put(all, place, (unsigned short*)to);
    else if (size == 4) put(all, place, (unsigned*)to);
    else put(all, place, (unsigned long long*)to);
}}
"""


class Filled(NamedTuple):
    """A part with one number in all its places, so wide along the axis."""

    value: float
    width: int


def concat(xp: Namespace, parts: Sequence[Array | Filled], axis: int) -> Array:
    """Return arrays, and parts that are filled with a number, one beside the other along an axis.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    parts : sequence of array or Filled
        One at least is an array; all have one dtype, and one shape but along the axis.
    axis : int

    Returns
    -------
    array
    """
    if fuse.compiles(xp) and len(parts) > PARTS and not any(isinstance(part, Filled) for part in parts):
        parts = [concat(xp, parts[k : k + PARTS], axis) for k in range(0, len(parts), PARTS)]
        return concat(xp, parts, axis)
    like: Array = next(part for part in parts if not isinstance(part, Filled))
    axis %= like.ndim
    shape = list(like.shape)
    shape[axis] = sum(part.width if isinstance(part, Filled) else part.shape[axis] for part in parts)
    if _takes(xp, parts, shape) and broken.works("xlstm_concat"):
        try:
            return _launched(parts, shape, axis, like)
        except Exception as error:
            broken.failed("xlstm_concat", error)
    arrays = [_array(xp, part, like, axis) if isinstance(part, Filled) else part for part in parts]
    return xp.concat(arrays, axis=axis)


def _launched(parts: Sequence[Array | Filled], shape: Sequence[int], axis: int, like: Array) -> Array:
    result = probe.cupy().empty(tuple(shape), dtype=like.dtype)
    with device_of(like):
        blocks = -(-result.size // THREADS)
        arguments = (_table(parts, shape, axis, result), np.uint32(result.size), np.int32(result.itemsize), result)
        device.kernel(TEXT, "xlstm_concat")((blocks,), (THREADS,), arguments)
    return result


def stack(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return arrays of one shape and dtype along a new first axis, on CuPy without a copy where there is one array."""
    if not fuse.compiles(xp):
        return xp.stack(arrays)
    return arrays[0][None, ...] if len(arrays) == 1 else concat(xp, [a[None, ...] for a in arrays], 0)


def _takes(xp: Namespace, parts: Sequence[Array | Filled], shape: Sequence[int]) -> bool:
    """Return whether the kernel does it."""
    if not fuse.compiles(xp) or len(parts) > PARTS or len(shape) > AXES or not 0 < math.prod(shape) < 2**31:
        return False
    arrays = [part for part in parts if not isinstance(part, Filled)]
    return all(a.dtype == arrays[0].dtype and a.itemsize > 1 for a in arrays)


def _array(xp: Namespace, part: Filled, like: Array, axis: int) -> Array:
    shape = (*like.shape[:axis], part.width, *like.shape[axis + 1 :])
    return xp.full(shape, part.value, dtype=like.dtype, device=device_of(like))


def _table(parts: Sequence[Array | Filled], shape: Sequence[int], axis: int, result: Array) -> np.ndarray[Any, Any]:
    """Return `Parts`."""
    numbers, first = [len(parts), len(shape), axis, *_padded(shape)], 0
    for part in parts:
        if isinstance(part, Filled):
            value = np.array(part.value).astype(result.dtype).view(f"i{result.itemsize}")
            numbers += [0, int(value), first, *_padded([])]
        else:
            numbers += [part.data.ptr, 0, first, *_padded([step // part.itemsize for step in part.strides])]
        first += part.width if isinstance(part, Filled) else part.shape[axis]
    return device.struct([*numbers, *[0] * ((PARTS - len(parts)) * (3 + AXES))])


def _padded(numbers: Sequence[int]) -> list[int]:
    """Return a number for each axis that there may be."""
    return [*numbers, *[0] * (AXES - len(numbers))]
