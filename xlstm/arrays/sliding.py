"""Functions of the steps in a window that slides along the first axis."""

from __future__ import annotations

from typing import Any

from xlstm.arrays.fuse import compiles, fuse, windows
from xlstm.arrays.namespace import Array, Namespace
from xlstm.arrays.rows import summed
from xlstm.tracing.array_functions import Formula


def computes_again(xp: Namespace) -> bool:
    """Tell whether recomputing an element takes less time than storing it, as on CuPy."""
    return compiles(xp)


def slid(
    xp: Namespace,
    function: Formula,
    taps: Array,
    xs: Array,
    *more: Array,
    **options: Any,
) -> Any:
    """Return `function(xp, *taps, *steps, *more, size=k)` of taps (k, D) and xs (T + k - 1, ...).

    The steps are the k arrays (T, ...) that the taps multiply. On CuPy this is one launch, with the
    options of `summed`.
    """
    size = taps.shape[0]
    if compiles(xp):
        options |= {"leading": (size, size), "of": function, "size": size}
        return summed(xp, of_windows, taps, windows(xs, size), *more, sums=0, **options)
    copies = [taps[j, ...] + 0 for j in range(size)]  # contiguous
    return fuse(xp, function, *copies, *steps_of(xs, size), *more, size=size)


def steps_of(xs: Array, size: int) -> list[Array]:
    """Return the steps that each tap of a window multiplies, as views of xs (T + size - 1, ...)."""
    T = xs.shape[0] - size + 1
    return [xs[j : j + T, ...] for j in range(size)]


def of_windows(xp: Namespace, taps: Array, xs: Array, *more: Array, of: Formula, size: int) -> Any:
    """Return the result of a function of taps and steps, each (size, ...)."""
    return of(xp, *(a[j, ...] for a in (taps, xs) for j in range(size)), *more, size=size)
