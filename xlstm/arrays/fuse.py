"""Functions that work element by element, as one kernel each on CuPy and as they are elsewhere.

On CuPy every operation is a launch and a pass over memory; a chain of them is neither where it is traced and compiled
as a whole. Nothing is written twice for that: the function is the one that NumPy runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import probe
from xlstm.arrays.backend import HALVES, Array, Namespace
from xlstm.tracing.c import statements
from xlstm.tracing.symbols import Symbols, trace

CUPY = "array_api_compat.cupy"


def compiles(xp: Namespace) -> bool:
    """Whether arrays of this namespace are worth a kernel of their own: those of CuPy."""
    return bool(xp.__name__ == CUPY)


def fuse(xp: Namespace, function: Callable[..., Any], *arrays: Array, out: Array | None = None, **options: Any) -> Any:
    """`function(xp, *arrays, **options)`; on CuPy in one launch.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        Pure, element by element and traceable (see `trace`), of the top level of a module. It may use up an argument
        that nobody else has. Each of its results has the shape of all arrays broadcast together: those that have not
        belong into a call of their own.
    arrays
        Their shapes broadcast, in any memory order.
    out : array, optional
        Room for the only result, which may be one of the arrays.
    options
        Of the function; hashable. On CuPy there is a kernel for each set of options and dtypes.

    Returns
    -------
    array or tuple of array
        Of the dtypes that NumPy would give them. Where no array is float64 they are computed in float32, else each
        operation in the widest of its operands.

    Raises
    ------
    UntraceableError
        On CuPy, where the function is not element by element.
    """
    if xp.__name__ != CUPY:  # not by `compiles`: small arrays feel a call
        found = function(xp, *arrays, **options)
        if out is None:
            return found
        out[...] = found
        return out
    kernel = _kernel(function, tuple(a.dtype for a in arrays), tuple(options.items()))
    return kernel(*arrays) if out is None else kernel(*arrays, out)


def total(xp: Namespace, a: Array, b: Array, axes: int | tuple[int, ...] = -1) -> Array:
    """The sum of a * b over some axes; on CuPy in one launch, and float16 summed in float32."""
    if xp.__name__ != CUPY or a.dtype != b.dtype:
        return xp.sum(a * b, axis=axes)
    return _total(a.dtype)(a, b, axis=axes)


def real(dtype: Any) -> str:
    """What is computed in, from the dtype that something is stored in: "float" or "double"."""
    return "double" if name(dtype) == "float64" else "float"


def name(dtype: Any) -> str:
    """As kernels call it."""
    return str(np.dtype(dtype).name)


def loaded(text: str, dtype: Any) -> str:
    """An element of memory as an operand."""
    return f"(float){text}" if name(dtype) in HALVES else text


def stored(text: str, dtype: Any) -> str:
    """A result as an element of memory."""
    return loaded(text, dtype)  # their types come from float alone


class Text(NamedTuple):
    """What a kernel is made of: parameters in and out ("float32 x0, float64 x1") and statements for one element."""

    inputs: str
    outputs: str
    body: str


@functools.cache
def source(function: Callable[..., Any], dtypes: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> Text:
    """The text of the kernel that `fuse` runs: inputs are x0, x1, ..., results y0, y1, ..."""
    inputs = {f"x{k}": dtype for k, dtype in enumerate(dtypes)}

    def named(xp: Any, **symbols: Symbols) -> dict[str, Symbols]:
        return {f"y{k}": a for k, a in enumerate(listed(function(xp, *symbols.values(), **dict(options))))}

    outputs = {f"y{k}": dtype for k, dtype in enumerate(_results(function, dtypes, dict(options)))}
    lines, _ = trace(named, dict.fromkeys(inputs))
    body = statements(
        lines,
        lambda x, _: loaded(x, inputs[x]),
        lambda y, _, value: f"{y} = {stored(value, outputs[y])};",
        {x: real(dtype) for x, dtype in inputs.items()},
    )
    return Text(parameters(inputs), parameters(outputs), "\n".join(body))


def _results(function: Callable[..., Any], dtypes: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """The dtypes of what the function makes of NumPy arrays; bfloat16, which NumPy makes float32, as float16."""
    wider = {dtype: np.dtype("float16") for dtype in (*dtypes, *options.values()) if str(dtype) == "bfloat16"}
    back = {half: dtype for dtype, half in wider.items()}
    with np.errstate(all="ignore"):
        found = function(
            np,
            *(np.ones(1, dtype=wider.get(dtype, dtype)) for dtype in dtypes),
            **{option: wider.get(value, value) for option, value in options.items()},
        )
    return [back.get(a.dtype, a.dtype) for a in listed(found)]


def parameters(dtypes: dict[str, Any]) -> str:
    """Parameters of a kernel by name, as CuPy takes them."""
    return ", ".join(f"{name(dtype)} {parameter}" for parameter, dtype in dtypes.items())


def listed(found: Any) -> tuple[Any, ...]:
    """Results of a function that may have one or several."""
    return found if isinstance(found, tuple) else (found,)


@functools.cache
def _kernel(function: Callable[..., Any], dtypes: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> Any:
    text = source(function, dtypes, options)
    return probe.cupy().ElementwiseKernel(*text, f"xlstm_{function.__name__.strip('_')}")


@functools.cache
def _total(dtype: Any) -> Any:
    x, y = (loaded(x, dtype) for x in ("x0", "x1"))
    types = parameters({"x0": dtype, "x1": dtype}), parameters({"y0": dtype})
    end = f"y0 = {stored('a', dtype)}"
    return probe.cupy().ReductionKernel(*types, f"{x} * {y}", "a + b", end, "0", "xlstm_total", real(dtype))
