"""Kernels of CuPy for traced functions, element by element."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import kernel_fallback
from xlstm.arrays.namespace import HALVES, Array, Namespace, Shape, astype, dtype_name, widened
from xlstm.tracing.array_functions import (
    ArrayFunction,
    Formula,
    Options,
    kind_of,
    listed,
    result_dtypes,
)
from xlstm.tracing.writers import C


def fuse(
    xp: Namespace,
    function: Formula,
    arrays: tuple[Array, ...],
    out: Array | tuple[Array, ...] | None,
    options: dict[str, Any],
) -> Any:
    """Return `function(xp, *arrays, **options)` from one launch; see `fuse` in `arrays/fuse.py`."""
    rooms = () if out is None else listed(out)
    kernel = _kernel(function, tuple(a.dtype for a in arrays), tuple(options.items()))
    results = kernel_fallback.attempt(kernel.name, kernel, *arrays, *rooms)
    if results is None:
        results = plain(xp, function, arrays, options)
        for room, a in zip(rooms, listed(results), strict=False):
            room[...] = a
    return results if out is None else out


def plain(
    xp: Namespace,
    function: Formula,
    arrays: Sequence[Array],
    options: dict[str, Any],
    *numbers: Any,
    leading: Sequence[int | None] = (),
) -> Any:
    """Return `function(xp, *arrays, *numbers, **options)` by CuPy's operations, halves in float32.

    The results equal a kernel's. CuPy itself would compute in half precision, and return float32
    for some results in bfloat16.
    """
    wide = [astype(xp, a, widened(xp, a.dtype)) for a in arrays]
    dtypes = (*(a.dtype for a in arrays), *(arrays[0].dtype for _ in numbers))
    results = listed(function(xp, *wide, *numbers, **options))
    results = tuple(
        xp.astype(a, dtype, copy=False)
        for a, dtype in zip(results, result_dtypes(function, dtypes, options, leading), strict=True)
    )
    return results[0] if len(results) == 1 else results


def total(xp: Namespace, a: Array, b: Array, axes: int | Shape, dtype: Any) -> Array:
    """Return the sum of a * b over some axes, with halves in float32."""
    to = a.dtype if dtype is None else dtype
    result = kernel_fallback.attempt("xlstm_total", lambda: _total(a.dtype, to)(a, b, axis=axes))
    if result is not None:
        return result
    wide = widened(xp, a.dtype)
    return xp.astype(xp.sum(xp.astype(a, wide) * xp.astype(b, wide), axis=axes), to)


def converted(text: str, dtype: Any) -> str:
    """Convert an element of memory to an operand, or a result to an element of memory.

    Halves go through float.
    """
    return f"(float){text}" if dtype_name(dtype) in HALVES else text


def parameters(dtypes: dict[str, Any]) -> str:
    """Return the parameters of a kernel from their dtypes by name."""
    return ", ".join(f"{dtype_name(dtype)} {parameter}" for parameter, dtype in dtypes.items())


@functools.cache
def _kernel(function: Formula, dtypes: tuple[Any, ...], options: Options) -> Any:
    """Return the kernel of `fuse`."""
    traced = ArrayFunction(function, dtypes, options)
    body = C(
        traced.lines,
        lambda x, _: converted(x, traced.inputs[x]),
        lambda y, _, value: f"{y} = {converted(value, traced.outputs[y])};",
        traced.kinds,
    ).statements()
    types = parameters(traced.inputs), parameters(traced.outputs)
    name = f"xlstm_fuse_{traced.name}"
    return optional_imports.cupy().ElementwiseKernel(*types, "\n".join(body), name)


@functools.cache
def _total(dtype: Any, to: Any) -> Any:
    x, y = (converted(x, dtype) for x in ("x0", "x1"))
    types = parameters({"x0": dtype, "x1": dtype}), parameters({"y0": to})
    end = f"y0 = {converted('a', to)}"
    return optional_imports.cupy().ReductionKernel(
        *types, f"{x} * {y}", "a + b", end, "0", "xlstm_total", kind_of(dtype)
    )
