"""The kernel that joins arrays of CuPy along an axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import device, kernel_fallback
from xlstm.arrays.namespace import Array, Namespace, Shape

AXES = 6
PARTS = 6
THREADS = 256

TEXT = f"""
struct Part {{
    long long first;  // place along the axis
    long long steps[{AXES}];  // in elements
}};
struct Parts {{
    const void* at[{PARTS}];
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
    to[place] = ((const T*)all.at[k])[from];
}}
extern "C" __global__ void xlstm_concat(const Parts all, unsigned count, int size, void* to) {{
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= count) return;
    if (size == 2) put(all, place, (unsigned short*)to);
    else if (size == 4) put(all, place, (unsigned*)to);
    else put(all, place, (unsigned long long*)to);
}}
"""


def concat(xp: Namespace, arrays: Sequence[Array], axis: int) -> Array:
    """Return arrays joined along an axis; see `concat` in `arrays/concat.py`."""
    if len(arrays) > PARTS:
        arrays = [concat(xp, arrays[k : k + PARTS], axis) for k in range(0, len(arrays), PARTS)]
        return concat(xp, arrays, axis)
    plan = _plan(tuple([(a.dtype, a.shape, a.strides) for a in arrays]), axis)
    whole = plan and kernel_fallback.attempt("xlstm_concat", _launched, arrays, plan)
    return xp.concat(arrays, axis=axis) if whole is None else whole


class ConcatPlan(NamedTuple):
    """A launch, except for the addresses of its arrays."""

    shape: Shape
    dtype: Any
    grid: tuple[int]
    layout: bytes  # `Parts` after its addresses
    sizes: tuple[Any, Any]  # sizes of the result and of a number


def _launched(arrays: Sequence[Array], plan: ConcatPlan) -> Array:
    result = optional_imports.cupy().ndarray(plan.shape, plan.dtype)
    # An empty part may begin at the end of its array, in memory of another array.
    addresses = [a.data.ptr if a.size else 0 for a in arrays]
    addresses += [0] * (PARTS - len(arrays))
    table = device.struct(addresses, plan.layout, f"{PARTS}Q")
    device.kernel(TEXT, "xlstm_concat")(plan.grid, (THREADS,), (table, *plan.sizes, result))
    return result


@functools.lru_cache(maxsize=1024)
def _plan(arrays: tuple[tuple[Any, ...], ...], axis: int) -> ConcatPlan | None:
    """Return the launch for dtypes, shapes and strides, or None if the kernel cannot do it."""
    dtypes, shapes, _ = zip(*arrays, strict=True)
    dtype = dtypes[0]
    axis %= len(shapes[0])
    widths = [shape[axis] for shape in shapes]
    shape = (*shapes[0][:axis], sum(widths), *shapes[0][axis + 1 :])
    size = math.prod(shape)
    alike = set(dtypes) == {dtype} and dtype.itemsize > 1
    if not alike or len(shape) > AXES or not 0 < size < 2**31:
        return None
    rest = [0] * (AXES - len(shape))
    layout = [len(arrays), len(shape), axis, *shape, *rest]
    for k, (_, _, strides) in enumerate(arrays):
        layout += [sum(widths[:k]), *(step // dtype.itemsize for step in strides), *rest]
    layout += [0] * ((PARTS - len(arrays)) * (1 + AXES))
    sizes = np.uint32(size), np.int32(dtype.itemsize)
    grid = (-(-size // THREADS),)
    return ConcatPlan(shape, dtype, grid, np.array(layout, np.int64).tobytes(), sizes)
