"""Fused functions, element by element: one kernel on CuPy, one compiled loop on large NumPy arrays.

Every operation of an array library is a pass over memory, and on CuPy a launch. A chain of
operations that is traced and compiled as a whole is one pass. The formula is written only once: it
is the function that NumPy runs.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from xlstm.arrays import compiled, optional_imports
from xlstm.arrays.namespace import (
    Array,
    Namespace,
    Shape,
    device_of,
    dtype_name,
    is_of_duals,
)
from xlstm.tracing.array_functions import Formula
from xlstm.tracing.array_functions import listed as listed

CUPY = "array_api_compat.cupy"
# elements of the largest argument from which on a compiled loop is used; results may be larger
SMALL = 1 << 11


@functools.lru_cache(maxsize=16)
def compiles(xp: Namespace) -> bool:
    """Tell whether functions of this namespace get kernels of their own, as on CuPy with CUDA."""
    return bool(xp.__name__ == CUPY) and not optional_imports.rocm()


def fuse(
    xp: Namespace,
    function: Formula,
    *arrays: Array,
    out: Array | tuple[Array, ...] | None = None,
    **options: Any,
) -> Any:
    """Return `function(xp, *arrays, **options)`; on CuPy one launch computes it.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        A function that is pure, element by element and traceable (see `trace`), from the top level
        of a module. It may overwrite an argument that nobody else uses. Each of its results has the
        shape of all arrays broadcast together; put other results into a call of their own.
    arrays
        Arguments of the function. Their shapes broadcast, in any memory order.
    out : array, optional
        Memory for the only result, which may be one of the arrays; on CuPy also a tuple with memory
        for several results.
    options
        Options of the function; hashable. On CuPy there is a kernel for each set of options and
        dtypes.

    Returns
    -------
    array or tuple of array
        Results in the dtypes of NumPy. If no array is float64 they are computed in float32, else
        each operation in the widest dtype of its operands.

    Raises
    ------
    UntraceableError
        On CuPy, if the function is not element by element.
    """
    if xp.__name__ != CUPY:  # a call of `compiles` would slow small arrays
        results = looped(xp, function, arrays, 0, options) if out is None else None
        if results is None:
            results = function(xp, *arrays, **options)
        if out is None or results is out:
            return results
        out[...] = results  # type: ignore[index]  # a tuple is for CuPy
        return out
    return compiled.module("cupy.fuse").fuse(xp, function, arrays, out, options)


def looped(
    xp: Namespace,
    function: Formula,
    arrays: tuple[Array, ...],
    sums: int,
    options: dict[str, Any],
) -> Any:
    """Run a function over large NumPy arrays as one compiled loop, or return None.

    The last `sums` results are summed over all axes but the last.
    """
    if is_of_duals(xp):
        return xp.looped(function, arrays, sums, options)
    if xp is not np or max([a.size for a in arrays]) < SMALL:
        return None
    return compiled.module("numpy.loops").run(function, arrays, sums, options)


def total(xp: Namespace, a: Array, b: Array, axes: int | Shape = -1, dtype: Any = None) -> Array:
    """Return the sum of a * b over some axes; on CuPy in one launch, with halves in float32.

    `dtype` is the dtype of the sum, by default the product's.
    """
    if xp.__name__ != CUPY or a.dtype != b.dtype:
        if xp is np and axes == (-2, -1) and a.shape == b.shape:
            flat = (*a.shape[:-2], a.shape[-2] * a.shape[-1])
            axes = -1
            a = a.reshape(flat)
            b = b.reshape(flat)
        return np.vecdot(a, b) if xp is np and axes == -1 else xp.sum(a * b, axis=axes, dtype=dtype)
    return compiled.module("cupy.fuse").total(xp, a, b, axes, dtype)


def where(xp: Namespace, condition: Array, a: Array, b: Array) -> Array:
    """Return `xp.where(condition, a, b)`, in bfloat16 by a kernel of our own.

    CuPy itself would return float32 for bfloat16.
    """
    if xp.__name__ == CUPY and dtype_name(a.dtype) == "bfloat16":
        return fuse(xp, _where, condition, a, b)
    return xp.where(condition, a, b)


def scan(
    xp: Namespace,
    function: Formula,
    start: Array,
    *arrays: Array,
    axis: int = -1,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Run a recurrence of few steps; on CuPy each step is one launch, plus one to keep its value.

    A step applies `function(xp, carried, *arrays of the step)` and carries the result to the next
    step.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`, with one result.
    start
        The value carried into the first step: an array without the axis of steps.
    arrays
        Arrays with steps along `axis`; without this axis their shapes broadcast with the shape of
        `start`.
    axis : int
        Negative.
    reverse : bool
        Whether to go from the last step to the first.

    Returns
    -------
    before : array
        The values carried into the steps, along `axis`.
    end : array
        The value after the last step.
    """
    n = arrays[0].shape[axis]
    tail = (slice(None),) * (-axis - 1)
    carried = start
    before = None
    for t in range(n - 1, -1, -1) if reverse else range(n):
        at = (..., t, *tail)
        operands = (carried, *(a[at] for a in arrays))
        new = fuse(xp, function, *operands) if compiles(xp) else function(xp, *operands)
        if before is None:  # the result has the shape and the dtype of all values
            place = new.ndim + axis + 1
            shape = (*new.shape[:place], n, *new.shape[place:])
            before = xp.empty(shape, dtype=new.dtype, device=device_of(new))
        before[at] = carried
        carried = new
    return before, carried


def walk(
    xp: Namespace,
    function: Formula,
    operands: tuple[tuple[Array, ...], ...],
    lags: Shape,
    results: int,
    reverse: bool = False,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Run a recurrence whose states are used later, if possible in one compiled loop.

    Each state is used `lag` steps later, one or more.

    A step applies `function(xp, *arrays, *states, *numbers)` to the row t of each array and state.
    It adds the last results to the row t + lag of each state. In reverse, a step uses the rows t +
    lag of the states and adds to the rows t.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`, with several results.
    operands : tuple
        A tuple of arrays (T, B), a tuple of states (T + lag, B), which are overwritten, and a tuple
        of numbers (1,).
    lags : tuple of int
        The number of steps for each state.
    results : int
        The number of results before the results for states.
    reverse : bool
        Whether to go from the last step to the first.

    Returns
    -------
    states : tuple of array (T + lag, B)
    results : tuple of array (T, B)
    """
    if xp is np:
        walked = compiled.module("numpy.loops").walk(function, operands, lags, results, reverse)
        if walked is not None:
            return walked  # type: ignore[no-any-return]
    arrays, states, numbers = operands
    run = functools.partial(fuse, xp, function) if compiles(xp) else functools.partial(function, xp)
    rows = [[a[t, ...] for t in range(a.shape[0])] for a in states]
    of_steps = []
    steps = range(arrays[0].shape[0])
    for t in reversed(steps) if reverse else steps:
        used = (row[t + lag * reverse] for row, lag in zip(rows, lags, strict=True))
        new = run(*(a[t, ...] for a in arrays), *used, *numbers)
        of_steps.append(new[:results])
        for row, lag, more in zip(rows, lags, new[results:], strict=True):
            at = t + lag * (not reverse)
            row[at] = row[at] + more
    of_steps = of_steps[::-1] if reverse else of_steps
    return tuple(map(xp.stack, rows)), tuple(map(xp.stack, zip(*of_steps, strict=True)))


def windows(a: Array, width: int) -> Array:
    """Return a view of a CuPy array (T + width - 1, ...) as (width, T, ...).

    Entry k has the T steps from step k on.
    """
    shape = (width, a.shape[0] - width + 1, *a.shape[1:])
    steps = (a.strides[0], *a.strides)
    return optional_imports.cupy().ndarray(shape, a.dtype, a.data, steps)


def _where(xp: Namespace, condition: Array, a: Array, b: Array) -> Array:
    return xp.where(condition, a, b)


def same(xp: Namespace, a: Array) -> Array:
    """Return an array: the formula of copies and of plain sums."""
    return a
