"""Arrays beside each other along an axis: on CuPy from one launch, where CuPy's own function copies each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import device, fuse, probe
from xlstm.arrays.namespace import Array, Namespace, device_of

AXES, PARTS, THREADS = 6, 6, 256

TEXT = f"""
struct Parts {{
    const void* at[{PARTS}];          // 0 where there is one number
    long long steps[{PARTS}][{AXES}];  // in elements
    unsigned long long value[{PARTS}];
    unsigned shape[{AXES}];           // of the result
    unsigned first[{PARTS}];          // place of a part along its axis
    int count, axes, axis;
}};
template <class T>
__device__ __forceinline__ void put(const Parts& all, unsigned place, T* to) {{
    unsigned index[{AXES}], rest = place;
    for (int axis = all.axes - 1; axis > 0; axis--) {{
        index[axis] = rest % all.shape[axis];
        rest /= all.shape[axis];
    }}
    index[0] = rest;
    int part = 0;
    while (part + 1 < all.count && all.first[part + 1] <= index[all.axis]) part++;
    long long from = -(long long)all.first[part] * all.steps[part][all.axis];
    for (int axis = 0; axis < all.axes; axis++) from += index[axis] * all.steps[part][axis];
    to[place] = all.at[part] ? ((const T*)all.at[part])[from] : (T)all.value[part];
}}
extern "C" __global__ void xlstm_concat(const Parts all, unsigned count, int size, void* to) {{
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= count) return;
    if (size == 2) put(all, place, (unsigned short*)to);
    else if (size == 4) put(all, place, (unsigned*)to);
    else put(all, place, (unsigned long long*)to);
}}
"""


LAYOUT = np.dtype(
    [
        *(("at", "u8", (PARTS,)), ("steps", "i8", (PARTS, AXES)), ("value", "u8", (PARTS,))),
        *(("shape", "u4", (AXES,)), ("first", "u4", (PARTS,)), ("count", "i4"), ("axes", "i4"), ("axis", "i4")),
    ],
    align=True,
)


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
    if not _takes(xp, parts, shape):
        arrays = [_array(xp, part, like, axis) if isinstance(part, Filled) else part for part in parts]
        return xp.concat(arrays, axis=axis)
    found = probe.cupy().empty(tuple(shape), dtype=like.dtype)
    with device_of(like):
        blocks = -(-found.size // THREADS)
        given = (_table(parts, shape, axis, found), np.uint32(found.size), np.int32(found.itemsize), found)
        device.kernel(TEXT, "xlstm_concat")((blocks,), (THREADS,), given)
    return found


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


def _table(parts: Sequence[Array | Filled], shape: Sequence[int], axis: int, found: Array) -> np.ndarray[Any, Any]:
    """Return `Parts`."""
    table, first = np.zeros((), LAYOUT), 0
    for k, part in enumerate(parts):
        table["first"][k] = first
        if isinstance(part, Filled):
            table["value"][k] = np.array(part.value).astype(found.dtype).view(f"u{found.itemsize}")
            first += part.width
        else:
            table["at"][k] = part.data.ptr
            table["steps"][k, : part.ndim] = [step // part.itemsize for step in part.strides]
            first += part.shape[axis]
    table["shape"][: len(shape)] = shape
    table["count"], table["axes"], table["axis"] = len(parts), len(shape), axis
    return table
