"""One function of many arrays, each by itself; on CuPy one launch computes all of them.

An optimiser does a little work on each of many arrays, and so does the clipping of gradients.
`arrays/cuda/foreach_kernels.py` has the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from xlstm.arrays import compiled, fuse
from xlstm.arrays.namespace import Array, Namespace
from xlstm.tracing.array_functions import Formula, listed

Columns: TypeAlias = Sequence[Sequence[Array]]  # a call takes the k-th array of each


def apply(
    xp: Namespace,
    function: Formula,
    columns: Columns,
    numbers: Sequence[Any] = (),
    into: Sequence[int] = (),
    **options: Any,
) -> list[tuple[Array, ...]]:
    """Run `function(xp, *arrays, *numbers, **options)` on the k-th arrays of columns, for all k.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`; each result has the shape of the arrays.
    columns : sequence of sequences of arrays
        Arguments of the function: one array of each column. The arrays of one call have the same
        shape, the arrays of a column the same dtype.
    numbers : sequence of float or 0-d array
        Further arguments, which change from call to call and are the same for all arrays. 0-d
        arrays are for CuPy alone, and need not have the dtype of the arrays.
    into : sequence of int, optional
        The columns that the results overwrite, one for each result, with the same dtypes. Their
        arrays must be contiguous.
    options
        Options of the function; hashable. On CuPy there is a kernel for each set of options.

    Returns
    -------
    list of tuple of array
        On CuPy, for each result, parts of one array; it stays in memory as long as any of its
        parts.

    Raises
    ------
    ValueError
        The arrays to overwrite are not contiguous.
    """
    if into and not all(a.flags.c_contiguous for k in into for a in columns[k]):
        raise ValueError("foreach: results take the places of contiguous arrays alone")
    if _takes(xp, columns):
        kernels: Any = compiled.module("cupy.foreach")
        return kernels.apply(xp, function, columns, numbers, into, options)  # type: ignore[no-any-return]
    calls = [_call(xp, function, arrays, numbers, options) for arrays in zip(*columns, strict=True)]
    return placed(calls, columns, into)


def _call(
    xp: Namespace,
    function: Formula,
    arrays: tuple[Array, ...],
    numbers: Sequence[Any],
    options: dict[str, Any],
) -> Any:
    """Return the results for one array of each column.

    A compiled loop takes numbers as arrays without axes, so that it is compiled once for all
    numbers.
    """
    if xp is np:
        scalars = [np.asarray(number, arrays[0].dtype) for number in numbers]
        results = fuse.looped(xp, function, (*arrays, *scalars), 0, options)
        if results is not None:
            return results
    return function(xp, *arrays, *numbers, **options)


def placed(calls: Sequence[Any], columns: Columns, into: Sequence[int]) -> list[tuple[Array, ...]]:
    """Return the results of all calls, written over the columns `into`, if there are any."""
    if not into:
        return list(map(listed, calls))
    for k, results in enumerate(calls):
        for j, result in zip(into, listed(results), strict=True):
            columns[j][k][...] = result
    return list(zip(*(columns[j] for j in into), strict=True))


def copies(xp: Namespace, arrays: Sequence[Array]) -> list[Array]:
    """Return copies of arrays; on CuPy one launch makes all of them."""
    if not _takes(xp, [arrays]) or not all(a.flags.c_contiguous for a in arrays):
        return [xp.asarray(a, copy=True) for a in arrays]
    return [a for (a,) in apply(xp, fuse.same, [arrays])]


def norm(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return the Euclidean norm of all elements of all arrays, a 0-d array.

    On CuPy it takes two launches.
    """
    if _takes(xp, [arrays]):
        return compiled.module("cupy.foreach").norm(xp, arrays)
    return root_of_squares(xp, arrays)


def root_of_squares(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return `norm` by operations of the library."""
    squares = [xp.sum(a * a) for a in arrays]
    return xp.sqrt(sum(squares[1:], squares[0]))


def _takes(xp: Namespace, columns: Columns) -> bool:
    """Return whether there is a kernel for these arrays."""
    return fuse.compiles(xp) and compiled.module("cupy.foreach").takes(columns)
