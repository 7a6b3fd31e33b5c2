"""Functions from arrays x0, x1, ... to arrays y0, y1, ...: their traces and dtypes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from xlstm.tracing.reductions import RowNamespace, SingleRowNamespace
from xlstm.tracing.symbols import Line, SymbolicNamespace, Symbols, trace

Formula: TypeAlias = Callable[..., Any]  # function(xp, *arrays, **options), pure
Options: TypeAlias = tuple[tuple[str, Any], ...]
Lengths: TypeAlias = "Sequence[int | None]"  # lengths of leading axes that a function splits up


class ArrayFunction:
    """A function that a compiled loop can run, along rows or element by element.

    Parameters
    ----------
    function
        As for `arrays.fuse.fuse`.
    dtypes : tuple of dtype
        The dtypes of its arrays.
    options : tuple of (str, value)
    leading : tuple of int or None
        The lengths of leading axes that it splits up.
    rows : bool
        Whether it may take sums, means and maxima along the last axis.

    Attributes
    ----------
    name : str
    lines : list of Line
        The trace.
    inputs, outputs : dict of str to dtype
        The dtypes of x0, x1, ... and of y0, y1, ...
    kinds : dict of str to {"float", "double"}
        The C type to compute each of them in.

    Raises
    ------
    UntraceableError
        The function uses an operation that cannot be traced.
    """

    def __init__(
        self,
        function: Formula,
        dtypes: tuple[Any, ...],
        options: Options = (),
        leading: Lengths = (),
        rows: bool = False,
    ) -> None:
        self.name = function.__name__.strip("_")
        library = SymbolicNamespace
        if rows:
            single = set(dtypes) == {np.dtype(np.float32)}
            library = SingleRowNamespace if single else RowNamespace
        self.lines = traced(function, len(dtypes), options, library, leading)
        dtypes_out = result_dtypes(function, dtypes, dict(options), leading)
        self.inputs = {f"x{k}": dtype for k, dtype in enumerate(dtypes)}
        self.outputs = {f"y{k}": dtype for k, dtype in enumerate(dtypes_out)}
        both = self.inputs | self.outputs
        self.kinds = {name: kind_of(dtype) for name, dtype in both.items()}


def traced(
    function: Formula,
    inputs: int,
    options: Options,
    library: type[SymbolicNamespace] = SymbolicNamespace,
    leading: Lengths = (),
) -> list[Line]:
    """Return the trace of a function of `inputs` arrays."""

    def named(xp: Any, **symbols: Symbols) -> dict[str, Symbols]:
        results = listed(function(xp, *symbols.values(), **dict(options)))
        return {f"y{k}": a for k, a in enumerate(results)}

    lengths = itertools.zip_longest(range(inputs), leading)
    return trace(named, {f"x{k}": n for k, n in lengths}, library)[0]


def result_dtypes(
    function: Formula,
    dtypes: tuple[Any, ...],
    options: dict[str, Any],
    leading: Lengths = (),
) -> list[Any]:
    """Return the dtypes of a function's results.

    float16 stands in for bfloat16, which NumPy would turn into float32.
    """
    half = np.dtype(np.float16)
    wider = {d: half for d in (*dtypes, *options.values()) if str(d) == "bfloat16"}
    shapes = itertools.zip_longest(dtypes, leading)
    ones = [np.ones((1,) if n is None else (n, 1), wider.get(d, d)) for d, n in shapes]
    options = {option: wider.get(value, value) for option, value in options.items()}
    with np.errstate(all="ignore"):
        results = listed(function(np, *ones, **options))
    back = {stand_in: d for d, stand_in in wider.items()}
    return [back.get(a.dtype, a.dtype) for a in results]


def listed(results: Any) -> tuple[Any, ...]:
    """Return a function's one or several results as a tuple."""
    return results if isinstance(results, tuple) else (results,)


def kind_of(dtype: Any) -> str:
    """Return the type to compute a dtype's numbers in, "float" or "double"."""
    return "double" if dtype == np.float64 else "float"
