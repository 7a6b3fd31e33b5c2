"""Functions that take means and maxima along rows: one compiled loop over NumPy arrays, one kernel on CuPy.

A block of the kernel has one row. A mean needs the whole row before whatever depends on it, so the trace of the
function is divided into stages: each is a loop over the row, at the end of which the block's threads add up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import broken, device, fuse, probe, strides
from xlstm.arrays.namespace import SINGLE, Array, Namespace
from xlstm.tracing.reductions import Rows, RowWriter, SingleRows
from xlstm.tracing.symbols import UntraceableError
from xlstm.tracing.writers import C

OUTER, MOST = 3, 256  # axes of rows, and threads of a block at most

# The sum or the maximum of a value of all threads of a block, of which there are a power of two.
SYNC = """
template <class T>
__device__ __forceinline__ T sync_row(T v, T* room, bool largest) {
    __syncthreads();
    room[threadIdx.x] = v;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) {
            const T a = room[threadIdx.x], b = room[threadIdx.x + half];
            room[threadIdx.x] = largest ? (a > b || a != a ? a : b) : a + b;
        }
    }
    __syncthreads();
    return room[0];
}
"""
TEXT = """
struct Layout {{
    long long shape[{outer}];           // of the rows
    long long steps[{arrays}][{outer}];  // of each array along these axes, in elements
    long long along[{arrays}];          // and along a row
}};
extern "C" __global__ void {name}(const Layout layout, long long columns{parameters}) {{
    __shared__ double memory[{most}];
    const long long row = blockIdx.x;
    const long long i2 = row % layout.shape[2], i1 = row / layout.shape[2] % layout.shape[1];
    const long long i0 = row / layout.shape[2] / layout.shape[1];
    {begin}
    {body}
}}
"""


def by_rows(xp: Namespace, function: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
    """Return `function(xp, *arrays, **options)`, which may take sums, means and maxima along the last axis.

    It keeps that axis. It runs in one compiled loop where NumPy's arrays are large, and in one kernel on CuPy; sums and
    maxima are for CuPy alone. Where `axis` is among the options, that axis takes the place of the last one.
    """
    axis = options.get("axis", -1)
    if isinstance(axis, int) and axis >= 0 and fuse.compiles(xp):
        found = by_rows(xp, function, *(xp.moveaxis(a, axis, -1) for a in arrays), **{**options, "axis": -1})
        back = tuple(xp.moveaxis(a, -1, axis) for a in fuse.listed(found))
        return back[0] if len(back) == 1 else back
    found = _launched(xp, function, arrays, options) if fuse.compiles(xp) else None
    found = fuse.looped(xp, function, arrays, 0, options) if found is None else found
    return function(xp, *arrays, **options) if found is None else found


def _launched(xp: Namespace, function: Callable[..., Any], arrays: Sequence[Array], options: dict[str, Any]) -> Any:
    """Return the results from one launch, or None where there is no kernel for these arrays."""
    plan = _plan(function, tuple([(a.dtype, a.shape, a.strides) for a in arrays]), tuple(options.items()))
    if plan is None:
        return None
    kernel, grid, threads, given, results = plan
    if broken.works(kernel.name):
        try:
            outputs = [probe.cupy().ndarray(shape, dtype) for shape, dtype in results]
            kernel(grid, threads, (*given, *arrays, *outputs))
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        except Exception as error:
            broken.failed(kernel.name, error)
    return fuse.plain(xp, function, arrays, options)


@functools.lru_cache(maxsize=1024)
def _plan(
    function: Callable[..., Any], arrays: tuple[tuple[Any, ...], ...], options: tuple[tuple[str, Any], ...]
) -> tuple[Any, ...] | None:
    """Return a launch but for arrays, and the shapes and dtypes of results, from dtypes, shapes and strides."""
    dtypes, shapes, _ = zip(*arrays, strict=True)
    shape, single = np.broadcast_shapes(*shapes), tuple(not own or own[-1] == 1 for own in shapes)
    if not all(map(device.known, dtypes)) or math.prod(shape) == 0 or all(single):
        return None
    layout = _layout(shape, [(own, [step // dtype.itemsize for step in far]) for dtype, own, far in arrays])
    kernel_text = source(function, dtypes, single, options)
    if layout is None or kernel_text is None:
        return None
    text, results = kernel_text
    threads = min(MOST, 1 << max(5, (shape[-1] - 1).bit_length()))
    made = [((*shape[:-1], 1 if one else shape[-1]), dtype) for dtype, one in results]
    given = layout, np.int64(shape[-1])
    return device.kernel(text, _name(function)), (math.prod(shape[:-1]),), (threads,), given, made


def _name(function: Callable[..., Any]) -> str:
    return f"xlstm_rows_{function.__name__.strip('_')}"


def _layout(shape: Sequence[int], arrays: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Any:
    """Return `Layout` from the shapes and steps of arrays, or None where their rows have too many axes."""
    steps = [strides.broadcast(shape, own, step) for own, step in arrays]
    sizes, along = strides.joined(range(len(shape) - 1), shape, steps)
    if len(sizes) > OUTER:
        return None
    missing = OUTER - len(sizes)
    far = [step for one in along for step in ([0] * missing + one)]
    return device.struct([*[1] * missing, *sizes, *far, *(step[-1] for step in steps)])


@functools.cache
def source(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    single: tuple[bool, ...],
    options: tuple[tuple[str, Any], ...],
) -> tuple[str, list[tuple[Any, bool]]] | None:
    """Return the text of a kernel, and the dtype of each result and whether it has one number for a row.

    None says that the trace of the function has something else than rows. `single` has which arrays are one number for
    a row.
    """
    inputs = [f"x{k}" for k in range(len(dtypes))]
    try:
        lines = fuse.traced(function, len(dtypes), options, SingleRows if set(dtypes) == {SINGLE} else Rows)
    except UntraceableError:
        return None

    def load(name: str, _: int | None) -> str:
        return f"widen({name}[{'0' if name in rows.single else f'unit * layout.along[{name[1:]}]'}])"

    def store(name: str, _: int | None, value: str) -> str:
        return f"narrow({name}[{'row' if name in rows.single else 'row * columns + unit'}], {value});"

    real = {name: fuse.real(dtype) for name, dtype in zip(inputs, dtypes, strict=True)}
    rows = RowWriter(C(lines, load, store, real), {name for name, one in zip(inputs, single, strict=True) if one})
    begin = [" + ".join(f"i{axis} * layout.steps[{k}][{axis}]" for axis in range(OUTER)) for k in range(len(dtypes))]
    body = rows.body()
    results = [(dtype, f"y{k}" in rows.single) for k, dtype in enumerate(fuse.results(function, dtypes, dict(options)))]
    parameters = [f"const {device.type_of(dtype)}* x{k}" for k, dtype in enumerate(dtypes)]
    parameters += [f"{device.type_of(dtype)}* y{k}" for k, (dtype, _) in enumerate(results)]
    text = TEXT.format(
        **{"name": _name(function), "outer": OUTER, "most": MOST, "arrays": len(dtypes)},
        begin="\n    ".join(f"x{k} += {far};" for k, far in enumerate(begin)),
        body="\n    ".join(body),
        parameters="".join(f", {p}" for p in parameters),
    )
    return device.TEXT + SYNC + text, results
