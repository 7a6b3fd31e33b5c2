"""One kernel for many CuPy arrays, each by itself.

Launching a kernel takes longer than the work on most of these arrays. So one kernel gets the
addresses of as many arrays as its arguments have room for, and each of its blocks finds the array
of its chunk of elements.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import device, fused_kernels, kernel_fallback
from xlstm.arrays.cuda.row_kernel_text import SYNC
from xlstm.arrays.foreach import Columns, placed, root_of_squares
from xlstm.arrays.namespace import Array, Namespace, Shape, dtype_name
from xlstm.tracing.array_functions import ArrayFunction, Formula, Options, kind_of
from xlstm.tracing.writers import C

CHUNK = 2048
THREADS = 256  # threads of a block, and its elements, all of one array
REAL = {"float": np.float32, "double": np.float64}
# bytes of a kernel's arguments for addresses and sizes; a device takes 4096 bytes in all
ROOM = 3840

TABLE = """
struct Table {{
{members}
    long long size[{most}];
    int first[{most}];  // chunk of each array
}};
// The number of the array that a block belongs to.
__device__ __forceinline__ int array_of(const Table& table, int count) {{
    int low = 0;
    for (int high = count; high - low > 1;) {{
        const int middle = (low + high) / 2;
        if (table.first[middle] <= (int)blockIdx.x) low = middle;
        else high = middle;
    }}
    return low;
}}
"""
EACH = """
extern "C" __global__ void {name}(const Table table, int count, long long start{parameters}) {{
    const int k = array_of(table, count);
    const long long from = (long long)((int)blockIdx.x - table.first[k]) * {chunk};
    const long long to = (start + blockIdx.x) * {chunk};
    for (int at = threadIdx.x; at < {chunk} && from + at < table.size[k]; at += {threads}) {{
        {load}
        {body}
    }}
}}
"""
SQUARES = """
extern "C" __global__ void {name}(const Table table, int count, long long start, {real}* to) {{
    __shared__ {real} sums[{threads}];
    const int k = array_of(table, count);
    const long long from = (long long)((int)blockIdx.x - table.first[k]) * {chunk};
    {real} sum = 0;
    for (int at = threadIdx.x; at < {chunk} && from + at < table.size[k]; at += {threads}) {{
        const {real} x = widen(table.x0[k][from + at]);
        sum += x * x;
    }}
    sum = sync_row<{real}>(sum, sums, false);
    if (threadIdx.x == 0) to[start + blockIdx.x] = sum;
}}
"""


def apply(
    xp: Namespace,
    function: Formula,
    columns: Columns,
    numbers: Sequence[Any],
    into: Sequence[int],
    options: dict[str, Any],
) -> list[tuple[Array, ...]]:
    """Return the results of `apply` in `arrays/foreach.py` for arrays that kernels take."""
    shapes = tuple([a.shape for a in columns[0]])
    dtypes = tuple(column[0].dtype for column in columns)
    real = REAL[kind_of(dtypes[0])]
    # numbers of the host, and numbers on the device
    numbers = [real(a) if isinstance(a, int | float | np.generic) else a for a in numbers]
    # the C types of those on the device
    types = tuple([None if isinstance(a, np.generic) else device.type_of(a.dtype) for a in numbers])
    kernel, results = _each_kernel(function, dtypes, types, tuple(into), tuple(options.items()))
    launched = kernel_fallback.attempt(
        kernel.name, _applied, kernel, columns, shapes, results, into, numbers
    )
    if launched is not None:
        return launched
    wide = [number if isinstance(number, real) else xp.astype(number, real) for number in numbers]
    calls = [
        fused_kernels.plain(xp, function, arrays, options, *wide)
        for arrays in zip(*columns, strict=True)
    ]
    return placed(calls, columns, into)


def norm(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return the Euclidean norm of all elements of arrays that kernels take."""
    launched = kernel_fallback.attempt("xlstm_squares", _launched_norm, arrays)
    if launched is not None:
        return launched
    dtype = arrays[0].dtype
    real = REAL[kind_of(dtype)]
    return xp.astype(root_of_squares(xp, [xp.astype(a, real) for a in arrays]), dtype)


def takes(columns: Columns) -> bool:
    """Return whether there is a kernel for these arrays."""
    return all(a.size for a in columns[0]) and all(
        device.known(column[0].dtype) and {a.dtype for a in column} == {column[0].dtype}
        for column in columns
    )


def _applied(
    kernel: Any,
    columns: Columns,
    shapes: tuple[Shape, ...],
    results: Sequence[Any],
    into: Sequence[int],
    numbers: Sequence[Any],
) -> list[tuple[Array, ...]]:
    """Return the results from one launch."""
    plan = _plan(shapes, len(columns))
    new = optional_imports.cupy().ndarray
    flat = [] if into else [new((plan.chunks * CHUNK,), dtype) for dtype in results]
    _launch(kernel, plan, columns, *flat, *numbers)
    parts = [columns[k] for k in into] or [views(a, shapes, plan.places) for a in flat]
    return list(zip(*parts, strict=True))


def views(flat: Array, shapes: Sequence[Shape], places: Sequence[int]) -> list[Array]:
    """Return views of a flat array of CuPy that begin at these places."""
    cp = optional_imports.cupy()
    dtype = flat.dtype
    start = flat.data
    return [
        cp.ndarray(shape, dtype, start + k * dtype.itemsize)
        for shape, k in zip(shapes, places, strict=True)
    ]


def _launched_norm(arrays: Sequence[Array]) -> Array:
    dtype = arrays[0].dtype
    plan = _plan(tuple([a.shape for a in arrays]), 1)
    kernel, root = _squares_kernels(dtype)
    sums = optional_imports.cupy().ndarray((plan.chunks,), REAL[kind_of(dtype)])
    _launch(kernel, plan, [arrays], sums)
    return root(sums, axis=0)


def _most(columns: int) -> int:
    """Return how many arrays of each column fit into the arguments of a kernel."""
    return ROOM // (8 * columns + 12)


class ChunkLaunch(NamedTuple):
    """The arrays of a launch."""

    arrays: slice
    form: str  # format of its columns' addresses, each with room for more
    sizes: bytes  # `Table` after its addresses
    grid: tuple[int]
    numbers: tuple[Any, Any]  # the numbers of arrays, and of chunks of arrays before them


class ChunkPlan(NamedTuple):
    """How arrays of some shapes are divided into chunks, one after the other, and into launches."""

    chunks: int
    places: list[int]  # where each array begins, in elements
    launches: list[ChunkLaunch]


def _launch(kernel: Any, plan: ChunkPlan, columns: Columns, *arguments: Any) -> None:
    """Launch a kernel on all arrays of columns, as many at once as it has room for.

    Further arguments come last.
    """
    for launch in plan.launches:
        # `a.flags` would take ten times as long
        arrays = [
            a if a._c_contiguous else a.copy(order="C")
            for column in columns
            for a in column[launch.arrays]
        ]
        table = device.struct([a.data.ptr for a in arrays], launch.sizes, launch.form)
        kernel(launch.grid, (THREADS,), (table, *launch.numbers, *arguments))


@functools.lru_cache(maxsize=64)
def _plan(shapes: tuple[Shape, ...], columns: int) -> ChunkPlan:
    """Return the plan for arrays of these shapes in each of `columns` columns."""
    most = _most(columns)
    sizes = [math.prod(shape) for shape in shapes]
    ends = [0, *itertools.accumulate(-(-size // CHUNK) for size in sizes)]
    launches = []
    for k in range(0, len(sizes), most):
        own = sizes[k : k + most]
        first = ends[k : k + most + 1]
        table = np.zeros(
            (), np.dtype([("size", "i8", (most,)), ("first", "i4", (most,))], align=True)
        )
        table["size"][: len(own)] = own
        table["first"][: len(own)] = np.subtract(first[:-1], first[0])
        form = f"{len(own)}Q{8 * (most - len(own))}x" * columns
        grid = (first[-1] - first[0],)
        numbers = np.int32(len(own)), np.int64(first[0])
        launches.append(ChunkLaunch(slice(k, k + most), form, table.tobytes(), grid, numbers))
    return ChunkPlan(ends[-1], [end * CHUNK for end in ends[:-1]], launches)


@functools.cache
def _each_kernel(
    function: Formula,
    dtypes: tuple[Any, ...],
    numbers: tuple[str | None, ...],
    into: Shape,
    options: Options,
) -> tuple[Any, tuple[Any, ...]]:
    """Return the kernel, and the dtypes of its results.

    `numbers` has the C types of numbers on the device.
    """
    traced = ArrayFunction(function, (*dtypes, *(dtypes[0] for _ in numbers)), options)
    body = C(
        traced.lines, lambda x, _: x, lambda y, _, value: f"narrow({y}, {value});", traced.kinds
    ).statements()
    real = kind_of(dtypes[0])
    load = [
        f"const {kind_of(dtype)} x{k} = widen(table.x{k}[k][from + at]);"
        for k, dtype in enumerate(dtypes)
    ]
    parameters = []
    stores = []
    for k, dtype in enumerate(traced.outputs.values()):
        type_ = device.type_of(dtype)
        to = f"to{k}[to + at]"
        if into:
            to = f"(({type_}*)table.x{into[k]}[k])[from + at]"
        else:
            parameters.append(f"{type_}* to{k}")
        stores.append(f"{type_}& y{k} = {to};")
    for k, memory in enumerate(numbers):
        parameters.append(f"{real} number{k}" if memory is None else f"const {memory}* number{k}")
        value = f"number{k}" if memory is None else f"number{k}[0]"
        load.append(f"const {real} x{len(dtypes) + k} = ({real})widen({value});")
    name = f"xlstm_each_{traced.name}"
    parts = {
        "load": "\n        ".join([*load, *stores]),
        "body": "\n        ".join(body),
        "parameters": "".join(f", {parameter}" for parameter in parameters),
    }
    return _kernel(EACH, name, dtypes, **parts), tuple(traced.outputs.values())


@functools.cache
def _squares_kernels(dtype: Any) -> tuple[Any, Any]:
    """Return the kernel that sums squares of chunks, and the kernel from these sums to the norm."""
    real = kind_of(dtype)
    types = f"{np.dtype(REAL[real]).name} x0", f"{dtype_name(dtype)} y0"
    end = f"y0 = {fused_kernels.converted('sqrt(a)', dtype)}"
    root = optional_imports.cupy().ReductionKernel(
        *types, "x0", "a + b", end, "0", "xlstm_norm", real
    )
    return _kernel(SQUARES, "xlstm_squares", (dtype,)), root


def _kernel(text: str, name: str, dtypes: Sequence[Any], **parts: str) -> Any:
    most = _most(len(dtypes))
    members = "\n".join(
        f"    const {device.type_of(dtype)}* x{k}[{most}];" for k, dtype in enumerate(dtypes)
    )
    whole = (
        device.TEXT
        + SYNC
        + (TABLE + text).format(
            members=members,
            name=name,
            real=kind_of(dtypes[0]),
            most=most,
            chunk=CHUNK,
            threads=THREADS,
            **parts,
        )
    )
    return device.kernel(whole, name)
