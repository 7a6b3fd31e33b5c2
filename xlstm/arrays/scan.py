"""A recurrence of few steps, element by element: a loop of steps, on CuPy one launch for each and one to keep it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xlstm.arrays.fuse import compiles, fuse
from xlstm.arrays.namespace import Array, Namespace, device_of


def scan(
    xp: Namespace, function: Callable[..., Any], start: Array, *arrays: Array, axis: int = -1, reverse: bool = False
) -> tuple[Array, Array]:
    """Apply `function(xp, carried, *arrays of a step)` to `start` step by step; its result is carried on.

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
    n, tail = arrays[0].shape[axis], (slice(None),) * (-axis - 1)
    carried, kept = start, None
    for t in range(n - 1, -1, -1) if reverse else range(n):
        at = (..., t, *tail)
        given = (carried, *(a[at] for a in arrays))
        new = fuse(xp, function, *given) if compiles(xp) else function(xp, *given)
        if kept is None:  # the result has the shape and the dtype of all of them
            place = new.ndim + axis + 1
            kept = xp.empty((*new.shape[:place], n, *new.shape[place:]), dtype=new.dtype, device=device_of(new))
        kept[at] = carried
        carried = new
    return kept, carried
