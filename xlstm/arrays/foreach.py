"""One function of many arrays, each by itself: on CuPy one launch does all of them.

An optimiser does a little with each of many arrays, and so does what clips gradients. To ask a GPU
for a kernel takes longer than most of these arrays do. So a kernel is given the addresses of as
many arrays as its arguments have room for, and each of its blocks finds the array that its chunk of
elements belongs to.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import fuse, optional_imports
from xlstm.arrays.cuda import device, kernel_fallback
from xlstm.arrays.cuda.row_kernel_text import SYNC
from xlstm.arrays.namespace import Array, Namespace
from xlstm.tracing.writers import C

CHUNK = 2048
THREADS = 256  # elements of a block, which belong to one array, and its threads
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
    function: Callable[..., Any],
    columns: Sequence[Sequence[Array]],
    numbers: Sequence[Any] = (),
    into: Sequence[int] = (),
    **options: Any,
) -> list[tuple[Array, ...]]:
    """Return the results of `function(xp, *arrays, *numbers, **options)` for the k-th arrays of all
    columns, for all k.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`; each result has the shape of the arrays.
    columns : sequence of sequences of arrays
        Arguments of the function: one array of each. Those of one call have one shape, those of a
        column one dtype.
    numbers : sequence of float or 0-d array
        More arguments, which change from call to call and are the same for all arrays. Those that
        are no float are for CuPy alone, and need not have the dtype of the arrays.
    into : sequence of int, optional
        The columns whose places the results take, one for each result, of their dtypes; their
        arrays are contiguous.
    options
        Options of the function; hashable. On CuPy there is a kernel for each set of options.

    Returns
    -------
    list of tuple of array
        On CuPy parts of one array for each result, which stays in memory as long as any of them.

    Raises
    ------
    ValueError
        The arrays whose places results take are not contiguous; or on CuPy the arrays of a call
        differ in shape.
    """
    if into and not all(a.flags.c_contiguous for k in into for a in columns[k]):
        raise ValueError("foreach: results take the places of contiguous arrays alone")
    if not _takes(xp, columns):
        return _one_by_one(
            columns, into, lambda a: fuse.with_numbers(xp, function, a, numbers, **options)
        )
    dtypes = tuple(column[0].dtype for column in columns)
    shapes = tuple([a.shape for a in columns[0]])
    for column in columns[1:]:
        for a, shape in zip(column, shapes, strict=True):
            if a.shape != shape:
                raise ValueError(
                    f"foreach: an array has shape {a.shape}, expected {shape} as the others of its"
                    " call"
                )
    kinds = tuple(_kind(number) for number in numbers)
    kernel, results = _each_kernel(function, dtypes, kinds, tuple(into), tuple(options.items()))
    real = REAL[fuse.real(dtypes[0])]
    given = [
        real(number) if kind is None else number
        for number, kind in zip(numbers, kinds, strict=True)
    ]
    found = kernel_fallback.attempt(
        kernel.name, _applied, kernel, columns, shapes, results, into, given
    )
    if found is not None:
        return found
    given = [number if isinstance(number, real) else xp.astype(number, real) for number in given]
    return _one_by_one(columns, into, lambda a: fuse.plain(xp, function, a, options, *given))


def _one_by_one(
    columns: Sequence[Sequence[Array]], into: Sequence[int], run: Callable[..., Any]
) -> list[tuple[Array, ...]]:
    made = [fuse.listed(run(arrays)) for arrays in zip(*columns, strict=True)]
    for k, results in enumerate(made if into else ()):
        for j, result in zip(into, results, strict=True):
            columns[j][k][...] = result
    return list(zip(*(columns[j] for j in into), strict=True)) if into else made


def _applied(
    kernel: Any,
    columns: Sequence[Sequence[Array]],
    shapes: tuple[tuple[int, ...], ...],
    results: Sequence[Any],
    into: Sequence[int],
    given: Sequence[Any],
) -> list[tuple[Array, ...]]:
    """Return the results from one launch."""
    plan = _plan(shapes, tuple([column[0].itemsize for column in columns]))
    cp = optional_imports.cupy()
    flat = [] if into else [cp.ndarray((plan.chunks * CHUNK,), dtype) for dtype in results]
    _launch(kernel, plan, columns, *flat, *given)
    if into:
        return list(zip(*(columns[k] for k in into), strict=True))
    return list(zip(*(views(a, shapes, plan.places) for a in flat), strict=True))


def views(flat: Array, shapes: Sequence[tuple[int, ...]], places: Sequence[int]) -> list[Array]:
    """Return the arrays of CuPy that begin in these places of a longer one."""
    cp = optional_imports.cupy()
    dtype = flat.dtype
    start = flat.data
    return [
        cp.ndarray(shape, dtype, start + k * dtype.itemsize)
        for shape, k in zip(shapes, places, strict=True)
    ]


def _kind(number: Any) -> str | None:
    """Return the C type that a number has on the device, or None where the host knows it."""
    return None if isinstance(number, int | float | np.generic) else device.type_of(number.dtype)


def copies(xp: Namespace, arrays: Sequence[Array]) -> list[Array]:
    """Return copies of arrays, on CuPy from one launch."""
    if not _takes(xp, [arrays]) or not all(a.flags.c_contiguous for a in arrays):
        return [xp.asarray(a, copy=True) for a in arrays]
    return [a for (a,) in apply(xp, _same, [arrays])]


def _same(xp: Namespace, a: Array) -> Array:
    return a


def norm(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return the root of the sum of the squares of all elements, a 0-d array; on CuPy from two
    launches.
    """
    if not _takes(xp, [arrays]):
        return _norm(xp, arrays)
    found = kernel_fallback.attempt("xlstm_squares", _launched_norm, arrays)
    if found is not None:
        return found
    dtype = arrays[0].dtype
    return xp.astype(_norm(xp, [xp.astype(a, REAL[fuse.real(dtype)]) for a in arrays]), dtype)


def _norm(xp: Namespace, arrays: Sequence[Array]) -> Array:
    squares = [xp.sum(a * a) for a in arrays]
    return xp.sqrt(sum(squares[1:], squares[0]))


def _launched_norm(arrays: Sequence[Array]) -> Array:
    dtype = arrays[0].dtype
    plan = _plan(tuple([a.shape for a in arrays]), (arrays[0].itemsize,))
    kernel, root = _squares_kernels(dtype)
    sums = optional_imports.cupy().ndarray((plan.chunks,), REAL[fuse.real(dtype)])
    _launch(kernel, plan, [arrays], sums)
    return root(sums, axis=0)


def _takes(xp: Namespace, columns: Sequence[Sequence[Array]]) -> bool:
    """Return whether there is a kernel for these arrays."""
    if not fuse.compiles(xp) or not all(a.size for a in columns[0]):
        return False
    return all(
        device.known(column[0].dtype) and {a.dtype for a in column} == {column[0].dtype}
        for column in columns
    )


def _most(columns: int) -> int:
    """Return how many arrays of so many columns the arguments of a kernel have room for."""
    return ROOM // (8 * columns + 12)


def _launch(kernel: Any, plan: Plan, columns: Sequence[Sequence[Array]], *arguments: Any) -> None:
    """Launch a kernel on all arrays of columns, as many at once as it has room for; more arguments
    come last.
    """
    for part in plan.parts:
        arrays = [
            a if a.strides == steps or a.flags.c_contiguous else a.copy(order="C")
            for column, lie in zip(columns, plan.lie, strict=True)
            for a, steps in zip(column[part.some], lie[part.some], strict=True)
        ]
        table = device.struct([a.data.ptr for a in arrays], part.sizes, part.form)
        kernel(part.grid, (THREADS,), (table, *part.numbers, *arguments))


class Part(NamedTuple):
    """The arrays of a launch."""

    some: slice
    form: str  # of the addresses of its columns, each with room for more
    sizes: bytes  # `Table` after its addresses
    grid: tuple[int]
    numbers: tuple[Any, Any]  # how many arrays there are, and chunks of arrays before them


class Plan(NamedTuple):
    """How arrays of some shapes are divided into chunks, one after the other, and into launches."""

    chunks: int
    places: list[int]  # where each array begins, in elements
    # the strides of the arrays of each column where they are contiguous
    lie: list[list[tuple[int, ...]]]
    parts: list[Part]


@functools.lru_cache(maxsize=64)
def _plan(shapes: tuple[tuple[int, ...], ...], itemsizes: tuple[int, ...]) -> Plan:
    """Return the plan for columns of arrays, from the bytes of an element of each column."""
    most = _most(len(itemsizes))
    parts = []
    sizes = [math.prod(shape) for shape in shapes]
    ends = [0, *itertools.accumulate(-(-size // CHUNK) for size in sizes)]
    lie = [[fuse.contiguous_steps(shape, size) for shape in shapes] for size in itemsizes]
    for k in range(0, len(sizes), most):
        some = sizes[k : k + most]
        first = ends[k : k + most + 1]
        table = np.zeros(
            (), np.dtype([("size", "i8", (most,)), ("first", "i4", (most,))], align=True)
        )
        table["size"][: len(some)] = some
        table["first"][: len(some)] = np.subtract(first[:-1], first[0])
        numbers = np.int32(len(some)), np.int64(first[0])
        form = f"{len(some)}Q{8 * (most - len(some))}x" * len(itemsizes)
        parts.append(
            Part(slice(k, k + most), form, table.tobytes(), (first[-1] - first[0],), numbers)
        )
    return Plan(ends[-1], [end * CHUNK for end in ends[:-1]], lie, parts)


@functools.cache
def _each_kernel(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    kinds: tuple[str | None, ...],
    into: tuple[int, ...],
    options: tuple[tuple[str, Any], ...],
) -> tuple[Any, tuple[Any, ...]]:
    """Return the kernel, and the dtypes of its results; `kinds` has those of numbers, by
    `_kind`.
    """
    own = (*dtypes, *(dtypes[0] for _ in kinds))
    real = fuse.real(dtypes[0])
    results = tuple(fuse.results(function, own, dict(options)))
    body = C(
        fuse.traced(function, len(own), options),
        lambda x, _: x,
        lambda y, _, value: f"narrow({y}, {value});",
        {f"x{k}": fuse.real(dtype) for k, dtype in enumerate(own)},
    ).statements()
    types = [device.type_of(dtype) for dtype in results]
    load = [
        f"const {fuse.real(dtype)} x{k} = widen(table.x{k}[k][from + at]);"
        for k, dtype in enumerate(dtypes)
    ]
    parameters = [] if into else [f"{type_}* to{k}" for k, type_ in enumerate(types)]
    for k, kind in enumerate(kinds):
        parameters.append(f"{real} number{k}" if kind is None else f"const {kind}* number{k}")
        load.append(
            f"const {real} x{len(dtypes) + k} ="
            f" ({real})widen(number{k}{'' if kind is None else '[0]'});"
        )
    for k, type_ in enumerate(types):
        to = f"(({type_}*)table.x{into[k]}[k])[from + at]" if into else f"to{k}[to + at]"
        load.append(f"{type_}& y{k} = {to};")
    parts = {"load": load, "body": body, "parameters": [f", {p}" for p in parameters]}
    return _kernel(EACH, f"xlstm_each_{function.__name__.strip('_')}", dtypes, **parts), results


@functools.cache
def _squares_kernels(dtype: Any) -> tuple[Any, Any]:
    """Return the kernel that sums the squares of chunks, and the one that makes a norm of the
    sums.
    """
    real = fuse.real(dtype)
    name = {"float": "float32", "double": "float64"}[real]
    end = f"y0 = {fuse.converted('sqrt(a)', dtype)}"
    parts = (f"{name} x0", f"{fuse.name(dtype)} y0", "x0", "a + b", end, "0", "xlstm_norm", real)
    return _kernel(SQUARES, "xlstm_squares", (dtype,)), optional_imports.cupy().ReductionKernel(
        *parts
    )


def _kernel(text: str, name: str, dtypes: Sequence[Any], **parts: Sequence[str]) -> Any:
    most = _most(len(dtypes))
    members = [
        f"    const {device.type_of(dtype)}* x{k}[{most}];" for k, dtype in enumerate(dtypes)
    ]
    sizes = {
        "name": name,
        "real": fuse.real(dtypes[0]),
        "most": most,
        "chunk": CHUNK,
        "threads": THREADS,
    }
    lines = {
        part: ("" if part == "parameters" else "\n        ").join(some)
        for part, some in parts.items()
    }
    made = device.TEXT + SYNC + (TABLE + text).format(members="\n".join(members), **sizes, **lines)
    return device.kernel(made, name)
