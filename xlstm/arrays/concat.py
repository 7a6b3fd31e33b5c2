"""Arrays beside each other along an axis: on CuPy from one launch, where CuPy's own function copies
each by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import fuse, optional_imports
from xlstm.arrays.cuda import device, kernel_fallback
from xlstm.arrays.namespace import Array, Namespace, device_of

AXES = 6
PARTS = 6
THREADS = 256
PART = [("value", "i8"), ("first", "i8"), ("steps", "i8", AXES)]
# `Parts` after its addresses
LAYOUT = [
    ("count", "i8"),
    ("axes", "i8"),
    ("axis", "i8"),
    ("shape", "i8", AXES),
    ("each", PART, PARTS),
]

TEXT = f"""
struct Part {{
    long long value, first;  // the number where there is one alone; place along the axis
    long long steps[{AXES}];  // in elements
}};
struct Parts {{
    const void* at[{PARTS}];  // 0 where there is one number
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
    to[place] = all.at[k] ? ((const T*)all.at[k])[from] : (T)part.value;
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
    if fuse.compiles(xp):
        if len(parts) > PARTS and not any(isinstance(part, Filled) for part in parts):
            parts = [concat(xp, parts[k : k + PARTS], axis) for k in range(0, len(parts), PARTS)]
            return concat(xp, parts, axis)
        layouts = [
            part if isinstance(part, Filled) else (part.dtype, part.shape, part.strides)
            for part in parts
        ]
        plan = _plan(tuple(layouts), axis)
        if plan is not None:
            whole = kernel_fallback.attempt("xlstm_concat", _launched, parts, plan)
            if whole is not None:
                return whole
    like: Array = next(part for part in parts if not isinstance(part, Filled))
    arrays = [_array(xp, part, like, axis) if isinstance(part, Filled) else part for part in parts]
    return xp.concat(arrays, axis=axis)


class ConcatPlan(NamedTuple):
    """A launch, but for the addresses of its arrays."""

    shape: tuple[int, ...]
    dtype: Any
    grid: tuple[int]
    layout: bytes  # `Parts` after its addresses
    sizes: tuple[Any, Any]  # of the result, and of a number


def _launched(parts: Sequence[Array | Filled], plan: ConcatPlan) -> Array:
    result = optional_imports.cupy().ndarray(plan.shape, plan.dtype)
    # An empty part may begin where its array ends, which is memory of another one.
    addresses = [
        0 if isinstance(part, Filled) or part.size == 0 else part.data.ptr for part in parts
    ]
    addresses += [0] * (PARTS - len(parts))
    table = device.struct(addresses, plan.layout, f"{PARTS}Q")
    device.kernel(TEXT, "xlstm_concat")(plan.grid, (THREADS,), (table, *plan.sizes, result))
    return result


def stack(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return arrays of one shape and dtype along a new first axis, on CuPy without a copy where
    there is one array.
    """
    if not fuse.compiles(xp):
        return xp.stack(arrays)
    return (
        arrays[0][None, ...] if len(arrays) == 1 else concat(xp, [a[None, ...] for a in arrays], 0)
    )


def _array(xp: Namespace, part: Filled, like: Array, axis: int) -> Array:
    shape = list(like.shape)
    shape[axis] = part.width
    return xp.full(tuple(shape), part.value, dtype=like.dtype, device=device_of(like))


@functools.lru_cache(maxsize=1024)
def _plan(parts: tuple[Any, ...], axis: int) -> ConcatPlan | None:
    """Return the launch, or None where the kernel does not do it; a part that is not filled is a
    dtype, a shape and strides.
    """
    dtypes, shapes = zip(*(part[:2] for part in parts if not isinstance(part, Filled)), strict=True)
    dtype = dtypes[0]
    shape = list(shapes[0])
    axis %= len(shape)
    widths = [part.width if isinstance(part, Filled) else part[1][axis] for part in parts]
    shape[axis] = sum(widths)
    size = math.prod(shape)
    alike = set(dtypes) == {dtype} and dtype.itemsize > 1
    if not alike or len(parts) > PARTS or len(shape) > AXES or not 0 < size < 2**31:
        return None
    layout = np.zeros((), LAYOUT)
    layout["count"] = len(parts)
    layout["axes"] = len(shape)
    layout["axis"] = axis
    layout["shape"][: len(shape)] = shape
    for k, part in enumerate(parts):
        each = layout["each"][k]
        each["first"] = sum(widths[:k])
        if isinstance(part, Filled):
            each["value"] = np.array(part.value).astype(dtype).view(f"i{dtype.itemsize}")
        else:
            each["steps"][: len(shape)] = [step // dtype.itemsize for step in part[2]]
    sizes = np.uint32(size), np.int32(dtype.itemsize)
    return ConcatPlan(tuple(shape), dtype, (-(-size // THREADS),), layout.tobytes(), sizes)
