"""Functions that work element by element, each as one kernel on CuPy and as one compiled loop over
large NumPy arrays.

Every operation of an array library is a pass over memory, and on CuPy a launch. A chain of
operations that is traced and compiled as a whole is one pass, and nothing is written twice for
that: the function is the one that NumPy runs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import kernel_fallback
from xlstm.arrays.namespace import HALVES, Array, Namespace, device_of
from xlstm.tracing.symbols import Line, SymbolicNamespace, Symbols, trace
from xlstm.tracing.writers import C

CUPY = "array_api_compat.cupy"

# `loops(function, arrays, sums, options)` runs a function over large NumPy arrays as one compiled
# loop, or returns None; the last `sums` results are summed over all axes but the last. An engine
# that compiles sets it.
loops: Callable[..., Any] | None = None

Walked = tuple[tuple[Array, ...], tuple[Array, ...]]

# `walks(function, given, lags, results, reverse)` returns what `walk` does for NumPy arrays from
# one compiled loop, or None. An engine that compiles sets it.
walks: Callable[..., Walked | None] | None = None


@functools.lru_cache(maxsize=16)
def compiles(xp: Namespace) -> bool:
    """Tell whether arrays of this namespace are worth a kernel of their own, which those of CuPy on
    CUDA are.
    """
    return bool(xp.__name__ == CUPY) and not optional_imports.rocm()


def fuse(
    xp: Namespace,
    function: Callable[..., Any],
    *arrays: Array,
    out: Array | tuple[Array, ...] | None = None,
    **options: Any,
) -> Any:
    """Return `function(xp, *arrays, **options)`, on CuPy from one launch.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        Pure, element by element and traceable (see `trace`), of the top level of a module. It may
        use up an argument that nobody else has. Each of its results has the shape of all arrays
        broadcast together: those that have not belong into a call of their own.
    arrays
        Their shapes broadcast, in any memory order.
    out : array, optional
        Room for the only result, which may be one of the arrays; on CuPy also a tuple with room for
        several.
    options
        Options of the function; hashable. On CuPy there is a kernel for each set of options and
        dtypes.

    Returns
    -------
    array or tuple of array
        Results in the dtypes of NumPy. Where no array is float64 they are computed in float32, else
        each operation in the widest of its operands.

    Raises
    ------
    UntraceableError
        On CuPy, where the function is not element by element.
    """
    if xp.__name__ != CUPY:  # `compiles` would be one more call, which small arrays feel
        found = looped(xp, function, arrays, 0, options) if out is None else None
        if found is not None:
            return found
        found = function(xp, *arrays, **options)
        if out is None:
            return found
        if found is not out:
            out[...] = found  # type: ignore[index]  # a tuple is for CuPy
        return out
    kernel = _kernel(function, tuple(a.dtype for a in arrays), tuple(options.items()))
    found = kernel_fallback.attempt(
        kernel.name, kernel, *arrays, *(() if out is None else listed(out))
    )
    if found is None:
        found = plain(xp, function, arrays, options)
        for room, a in zip(() if out is None else listed(out), listed(found), strict=False):
            room[...] = a
    return found if out is None else out


def plain(
    xp: Namespace,
    function: Callable[..., Any],
    arrays: Sequence[Array],
    options: dict[str, Any],
    *numbers: Any,
    leading: Sequence[int | None] = (),
) -> Any:
    """Return `function(xp, *arrays, *numbers, **options)` by operations of CuPy, halves computed in
    float32.

    Results are those of a kernel: CuPy itself would compute in halves, and make float32 of some
    results in bfloat16.
    """
    wide = [xp.astype(a, xp.float32) if name(a.dtype) in HALVES else a for a in arrays]
    dtypes = results(
        function,
        (*(a.dtype for a in arrays), *(arrays[0].dtype for _ in numbers)),
        options,
        leading,
    )
    pairs = zip(listed(function(xp, *wide, *numbers, **options)), dtypes, strict=True)
    found = tuple(xp.astype(a, dtype, copy=False) for a, dtype in pairs)
    return found[0] if len(found) == 1 else found


def looped(
    xp: Namespace,
    function: Callable[..., Any],
    arrays: tuple[Array, ...],
    sums: int,
    options: dict[str, Any],
) -> Any:
    """Return what `loops` returns, and None for arrays that are not NumPy's."""
    if xp is not np or loops is None:
        return None
    return loops(function, arrays, sums, options)


def with_numbers(
    xp: Namespace,
    function: Callable[..., Any],
    arrays: Sequence[Array],
    numbers: Sequence[float],
    **options: Any,
) -> Any:
    """Return `function(xp, *arrays, *numbers, **options)` for numbers that change from call to
    call.

    It runs in one compiled loop where NumPy's arrays are large, which takes the numbers as arrays
    without axes.
    """
    if xp is np and loops is not None:
        given = [np.asarray(number, arrays[0].dtype) for number in numbers]
        found = looped(xp, function, (*arrays, *given), 0, options)
        if found is not None:
            return found
    return function(xp, *arrays, *numbers, **options)


def total(
    xp: Namespace, a: Array, b: Array, axes: int | tuple[int, ...] = -1, dtype: Any = None
) -> Array:
    """Return the sum of a * b over some axes, on CuPy from one launch, where halves are summed in
    float32.

    `dtype` is that of the sum, by default that of the product.
    """
    if xp.__name__ != CUPY or a.dtype != b.dtype:
        if xp is np and axes == (-2, -1) and a.shape == b.shape:
            flat = (*a.shape[:-2], a.shape[-2] * a.shape[-1])
            axes = -1
            a = a.reshape(flat)
            b = b.reshape(flat)
        return np.vecdot(a, b) if xp is np and axes == -1 else xp.sum(a * b, axis=axes, dtype=dtype)
    to = a.dtype if dtype is None else dtype
    found = kernel_fallback.attempt("xlstm_total", lambda: _total(a.dtype, to)(a, b, axis=axes))
    if found is not None:
        return found
    wide = xp.float32 if name(a.dtype) in HALVES else a.dtype
    return xp.astype(xp.sum(xp.astype(a, wide) * xp.astype(b, wide), axis=axes), to)


def where(xp: Namespace, condition: Array, a: Array, b: Array) -> Array:
    """Return `xp.where(condition, a, b)`, from our own kernel where CuPy would make float32 of
    bfloat16.
    """
    if xp.__name__ == CUPY and name(a.dtype) == "bfloat16":
        return fuse(xp, _where, condition, a, b)
    return xp.where(condition, a, b)


def scan(
    xp: Namespace,
    function: Callable[..., Any],
    start: Array,
    *arrays: Array,
    axis: int = -1,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Go through a recurrence of few steps, on CuPy by one launch for each and one to keep it.

    A step applies `function(xp, carried, *arrays of the step)`, whose result is carried on.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`, with one result.
    start
        The value that is carried into the first step: an array without the axis of steps.
    arrays
        Arrays with steps along `axis`; their shapes without it broadcast with that of `start`.
    axis : int
        Negative.
    reverse : bool
        Whether to go from the last step to the first.

    Returns
    -------
    kept : array
        The values that are carried into the steps, along `axis`.
    end : array
        The value after the last step.
    """
    n = arrays[0].shape[axis]
    tail = (slice(None),) * (-axis - 1)
    carried = start
    kept = None
    for t in range(n - 1, -1, -1) if reverse else range(n):
        at = (..., t, *tail)
        given = (carried, *(a[at] for a in arrays))
        new = fuse(xp, function, *given) if compiles(xp) else function(xp, *given)
        if kept is None:  # the result has the shape and the dtype of all of them
            place = new.ndim + axis + 1
            kept = xp.empty(
                (*new.shape[:place], n, *new.shape[place:]), dtype=new.dtype, device=device_of(new)
            )
        kept[at] = carried
        carried = new
    return kept, carried


def walk(
    xp: Namespace, function: Callable[..., Any], given: tuple[tuple[Array, ...], ...], lags: tuple[int, ...],
    results: int, reverse: bool = False,
) -> Walked:  # fmt: skip
    """Go through a recurrence whose states are used one or more steps later, in one compiled loop
    where that can be.

    A step applies `function(xp, *arrays, *states, *numbers)` to the row t of each array and state.
    Its last results are added to the row t + lag of each state. In reverse, rows t + lag of the
    states are used, and rows t added to.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`, with several results.
    given : tuple
        Arrays (T, B), states (T + lag, B), which are used up, and numbers (1,), a tuple of each.
    lags : tuple of int
        One number for each state.
    results : int
        How many results come before those of the states.
    reverse : bool
        Whether to go from the last step to the first.

    Returns
    -------
    states : tuple of array (T + lag, B)
    results : tuple of array (T, B)
    """
    if xp is np and walks is not None:
        found = walks(function, given, lags, results, reverse)
        if found is not None:
            return found
    arrays, states, numbers = given
    run = functools.partial(fuse, xp, function) if compiles(xp) else functools.partial(function, xp)
    rows = [[a[t, ...] for t in range(a.shape[0])] for a in states]
    kept = []
    steps = range(arrays[0].shape[0])
    for t in reversed(steps) if reverse else steps:
        used = (row[t + lag * reverse] for row, lag in zip(rows, lags, strict=True))
        one = run(*(a[t, ...] for a in arrays), *used, *numbers)
        kept.append(one[:results])
        for row, lag, new in zip(rows, lags, one[results:], strict=True):
            at = t + lag * (not reverse)
            row[at] = row[at] + new
    kept = kept[::-1] if reverse else kept
    return tuple(map(xp.stack, rows)), tuple(map(xp.stack, zip(*kept, strict=True)))


def windows(a: Array, width: int) -> Array:
    """Return a view of a CuPy array (T + width - 1, ...) as (width, T, ...): T steps from each of
    `width` steps on.
    """
    shape = (width, a.shape[0] - width + 1, *a.shape[1:])
    steps = (a.strides[0], *a.strides)
    return optional_imports.cupy().ndarray(shape, a.dtype, a.data, steps)


def real(dtype: Any) -> str:
    """Return the C type that is computed in, from the dtype that something is stored in."""
    return "double" if name(dtype) == "float64" else "float"


@functools.lru_cache(maxsize=64)
def name(dtype: Any) -> str:
    """Return the name that kernels have for a dtype."""
    return str(np.dtype(dtype).name)


def converted(text: str, dtype: Any) -> str:
    """Return an element of memory as an operand, or a result as an element of memory: halves go
    through float.
    """
    return f"(float){text}" if name(dtype) in HALVES else text


def parameters(dtypes: dict[str, Any]) -> str:
    """Return the parameters of a kernel from their dtypes by name."""
    return ", ".join(f"{name(dtype)} {parameter}" for parameter, dtype in dtypes.items())


def listed(found: Any) -> tuple[Any, ...]:
    """Return the results of a function that may have one or several."""
    return found if isinstance(found, tuple) else (found,)


def traced(
    function: Callable[..., Any],
    inputs: int,
    options: tuple[tuple[str, Any], ...],
    library: type[SymbolicNamespace] = SymbolicNamespace,
    leading: Sequence[int | None] = (),
) -> list[Line]:
    """Return the trace of a function of x0, x1, ..., which gives y0, y1, ...; `leading` has lengths
    of leading axes.
    """

    def named(xp: Any, **symbols: Symbols) -> dict[str, Symbols]:
        return {
            f"y{k}": a
            for k, a in enumerate(listed(function(xp, *symbols.values(), **dict(options))))
        }

    lengths = itertools.zip_longest(range(inputs), leading)
    return trace(named, {f"x{k}": n for k, n in lengths}, library)[0]


def results(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    options: dict[str, Any],
    leading: Sequence[int | None] = (),
) -> list[Any]:
    """Return the dtypes of the function's results; float16 stands for bfloat16, of which NumPy
    makes float32.
    """
    wider = {
        dtype: np.dtype("float16")
        for dtype in (*dtypes, *options.values())
        if str(dtype) == "bfloat16"
    }
    back = {half: dtype for dtype, half in wider.items()}
    shapes = itertools.zip_longest(dtypes, leading)
    ones = [
        np.ones((1,) if n is None else (n, 1), dtype=wider.get(dtype, dtype)) for dtype, n in shapes
    ]
    with np.errstate(all="ignore"):
        found = function(
            np, *ones, **{option: wider.get(value, value) for option, value in options.items()}
        )
    return [back.get(a.dtype, a.dtype) for a in listed(found)]


def _where(xp: Namespace, condition: Array, a: Array, b: Array) -> Array:
    return xp.where(condition, a, b)


@functools.cache
def _kernel(
    function: Callable[..., Any], dtypes: tuple[Any, ...], options: tuple[tuple[str, Any], ...]
) -> Any:
    """Return the kernel of `fuse`: inputs are x0, x1, ..., results y0, y1, ..."""
    inputs = {f"x{k}": dtype for k, dtype in enumerate(dtypes)}
    outputs = {f"y{k}": dtype for k, dtype in enumerate(results(function, dtypes, dict(options)))}
    body = C(
        traced(function, len(dtypes), options),
        lambda x, _: converted(x, inputs[x]),
        lambda y, _, value: f"{y} = {converted(value, outputs[y])};",
        {x: real(dtype) for x, dtype in inputs.items()},
    ).statements()
    name = f"xlstm_fuse_{function.__name__.strip('_')}"
    return optional_imports.cupy().ElementwiseKernel(
        parameters(inputs), parameters(outputs), "\n".join(body), name
    )


@functools.cache
def _total(dtype: Any, to: Any) -> Any:
    x, y = (converted(x, dtype) for x in ("x0", "x1"))
    types = parameters({"x0": dtype, "x1": dtype}), parameters({"y0": to})
    end = f"y0 = {converted('a', to)}"
    return optional_imports.cupy().ReductionKernel(
        *types, f"{x} * {y}", "a + b", end, "0", "xlstm_total", real(dtype)
    )


# The axes of arrays that are broadcast together, joined where memory goes on from one to the next.


def broadcast_steps(shape: Sequence[int], own: Sequence[int], steps: Sequence[int]) -> list[int]:
    """Return the steps of an array along each axis of `shape`, 0 where it has one number for
    all.
    """
    return [0] * (len(shape) - len(own)) + [
        0 if n == 1 else step for n, step in zip(own, steps, strict=True)
    ]


def contiguous_steps(shape: Sequence[int], unit: int = 1) -> tuple[int, ...]:
    """Return the steps of a contiguous array, in elements or in units such as bytes."""
    return tuple(unit * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def joined_axes(
    axes: Iterable[int],
    shape: Sequence[int],
    steps: Sequence[Sequence[int]],
    alone: int | None = None,
) -> tuple[list[int], list[list[int]]]:
    """Join axes along which every array goes on where the axis before it ended.

    Parameters
    ----------
    axes : iterable of int
        Axes of `shape`, the outer ones first.
    shape : sequence of int
    steps : sequence of sequences
        Those of each array along all axes.
    alone : int, optional
        An axis that is not joined to others.

    Returns
    -------
    sizes : list of int
        Those of the axes that are left, of which none is 1.
    along : list of lists
        The steps of each array along them.
    """
    sizes: list[int] = []
    far: list[list[int]] = []  # the steps of all arrays along each axis that is left
    for axis in axes:
        n = shape[axis]
        new = [step[axis] for step in steps]
        if n == 1:
            continue
        if (
            sizes
            and axis != alone
            and all(outer == inner * n for outer, inner in zip(far[-1], new, strict=True))
        ):
            sizes[-1] = sizes[-1] * n
            far[-1] = new
        else:
            sizes.append(n)
            far.append(new)
    return sizes, [[one[k] for one in far] for k in range(len(steps))]
