"""One function of many arrays, each by itself: on CuPy one launch does all of them.

An optimiser does a little with each of many arrays, and so does what clips gradients. To ask a GPU for a kernel takes
longer than most of these arrays do. So a kernel is given the addresses of as many arrays as its arguments have room
for, and each of its blocks finds the array that its chunk of elements belongs to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import fuse, probe
from xlstm.arrays.namespace import DOUBLE, SINGLE, Array, Namespace, device_of

CHUNK, THREADS = 2048, 256  # elements of a block, which belong to one array, and its threads
ROOM = 3840  # bytes of a kernel's arguments for addresses and sizes; a device takes 4096 bytes in all

TABLE = """
struct Table {{
    const {real}* x[{columns}][{most}];
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
    const long long to = start + (long long)blockIdx.x * {chunk};
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
    for (int at = threadIdx.x; at < {chunk} && from + at < table.size[k]; at += {threads})
        sum += table.x[0][k][from + at] * table.x[0][k][from + at];
    sums[threadIdx.x] = sum;
    for (int half = {threads} / 2; half > 0; half /= 2) {{
        __syncthreads();
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }}
    if (threadIdx.x == 0) to[start + blockIdx.x] = sums[0];
}}
"""


def each(
    xp: Namespace,
    function: Callable[..., Any],
    columns: Sequence[Sequence[Array]],
    numbers: Sequence[Any] = (),
    **options: Any,
) -> list[tuple[Array, ...]]:
    """Return the results of `function(xp, *arrays, *numbers, **options)` for the k-th arrays of all columns, for all k.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`; each result has the shape of the arrays.
    columns : sequence of sequences of arrays
        Arguments of the function: one array of each. Those of one call have one shape, and all have one dtype.
    numbers : sequence of float or 0-d array
        More arguments, which change from call to call and are the same for all arrays.
    options
        Options of the function; hashable. On CuPy there is a kernel for each set of options.

    Returns
    -------
    list of tuple of array
        On CuPy parts of one array for each result, which stays in memory as long as any of them.
    """
    if not _takes(xp, columns):
        calls = zip(*columns, strict=True)
        return [fuse.listed(fuse.with_numbers(xp, function, arrays, numbers, **options)) for arrays in calls]
    dtype, shapes = columns[0][0].dtype, [a.shape for a in columns[0]]
    known = tuple(not hasattr(number, "ndim") for number in numbers)
    kernel, results = _each_kernel(function, dtype, len(columns), known, tuple(options.items()))
    given = [dtype.type(number) if host else number for number, host in zip(numbers, known, strict=True)]
    with device_of(columns[0][0]):
        chunks = _chunks(columns[0])
        flat = [probe.cupy().empty((chunks * CHUNK,), dtype=dtype) for _ in range(results)]
        for part in _parts(columns, dtype):
            kernel((part.blocks,), (THREADS,), (part.table, part.arrays, np.int64(part.start * CHUNK), *flat, *given))
    return list(zip(*(_views(a, shapes) for a in flat), strict=True))


def copies(xp: Namespace, arrays: Sequence[Array]) -> list[Array]:
    """Return copies of arrays, on CuPy from one launch."""
    if not _takes(xp, [arrays]) or not all(a.flags.c_contiguous for a in arrays):
        return [xp.asarray(a, copy=True) for a in arrays]
    return [a for (a,) in each(xp, _same, [arrays])]


def _same(xp: Namespace, a: Array) -> Array:
    return a


def norm(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return the root of the sum of the squares of all elements, a 0-d array; on CuPy from two launches."""
    if not _takes(xp, [arrays]):
        squares = [xp.sum(a * a) for a in arrays]
        return xp.sqrt(sum(squares[1:], squares[0]))
    dtype = arrays[0].dtype
    kernel, root = _squares_kernels(dtype)
    with device_of(arrays[0]):
        sums = probe.cupy().empty((_chunks(arrays),), dtype=dtype)
        for part in _parts([arrays], dtype):
            kernel((part.blocks,), (THREADS,), (part.table, part.arrays, np.int64(part.start), sums))
        return root(sums, axis=0)


def _takes(xp: Namespace, columns: Sequence[Sequence[Array]]) -> bool:
    """Return whether there is a kernel for these arrays."""
    return fuse.compiles(xp) and columns[0][0].dtype in (SINGLE, DOUBLE) and all(a.size for a in columns[0])


class _Part(NamedTuple):
    """Arrays that one launch does, and the first of their chunks among those of all launches."""

    table: np.ndarray[Any, Any]
    arrays: np.int32
    blocks: int
    start: int


def _chunks(arrays: Sequence[Array]) -> int:
    return sum(-(-a.size // CHUNK) for a in arrays)


def _most(columns: int) -> int:
    """Return how many arrays of so many columns the arguments of a kernel have room for."""
    return ROOM // (8 * columns + 12)


def _parts(columns: Sequence[Sequence[Array]], dtype: Any) -> Iterator[_Part]:
    """Yield what each launch does."""
    most, start = _most(len(columns)), 0
    for k in range(0, len(columns[0]), most):
        some = [[a if a.flags.c_contiguous else a.copy(order="C") for a in column[k : k + most]] for column in columns]
        sizes = [a.size for a in some[0]]
        ends = np.cumsum([-(-size // CHUNK) for size in sizes])
        table = np.zeros((), _layout(len(columns)))
        for j, column in enumerate(some):
            table["x"][j, : len(sizes)] = [a.data.ptr for a in column]
        table["size"][: len(sizes)] = sizes
        table["first"][1 : len(sizes)] = ends[:-1]
        yield _Part(table, np.int32(len(sizes)), int(ends[-1]), start)
        start += int(ends[-1])


@functools.cache
def _layout(columns: int) -> np.dtype[Any]:
    """Return the layout of `Table`."""
    most = _most(columns)
    return np.dtype([("x", "u8", (columns, most)), ("size", "i8", (most,)), ("first", "i4", (most,))], align=True)


def _views(flat: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Return the arrays that lie in chunks one after the other."""
    found, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape, dtype=np.int64))
        found.append(flat[start : start + size].reshape(shape))
        start += -(-size // CHUNK) * CHUNK
    return found


@functools.cache
def _each_kernel(
    function: Callable[..., Any],
    dtype: Any,
    columns: int,
    known: tuple[bool, ...],
    options: tuple[tuple[str, Any], ...],
) -> tuple[Any, int]:
    """Return the kernel, and the number of results; `known` says which numbers the host knows."""
    body, real = fuse.source(function, (dtype,) * (columns + len(known)), options), fuse.real(dtype)
    results = body.outputs.count(",") + 1
    load = [f"const {real} x{k} = table.x[{k}][k][from + at];" for k in range(columns)]
    load += [f"const {real} x{columns + k} = {'' if host else '*'}number{k};" for k, host in enumerate(known)]
    load += [f"{real}& y{k} = to{k}[to + at];" for k in range(results)]
    parameters = [f"{real}* to{k}" for k in range(results)]
    parameters += [f"{real} number{k}" if host else f"const {real}* number{k}" for k, host in enumerate(known)]
    name, text = f"xlstm_each_{function.__name__.strip('_')}", "\n        ".join(load)
    return _kernel(
        EACH, name, real, columns, load=text, body=body.body, parameters="".join(f", {p}" for p in parameters)
    ), results


@functools.cache
def _squares_kernels(dtype: Any) -> tuple[Any, Any]:
    """Return the kernel that sums the squares of chunks, and the one that makes a norm of the sums."""
    real, name = fuse.real(dtype), fuse.name(dtype)
    root = probe.cupy().ReductionKernel(
        f"{name} x0", f"{name} y0", "x0", "a + b", "y0 = sqrt(a)", "0", "xlstm_norm", real
    )
    return _kernel(SQUARES, "xlstm_squares", real, 1), root


def _kernel(text: str, name: str, real: str, columns: int, **parts: str) -> Any:
    sizes = {"real": real, "columns": columns, "most": _most(columns), "chunk": CHUNK, "threads": THREADS}
    return probe.cupy().RawKernel((TABLE + text).format(name=name, **sizes, **parts), name, backend="nvrtc")
