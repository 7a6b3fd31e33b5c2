"""A recurrence of few steps, element by element: a loop of steps, on CuPy one launch for each and one to keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xlstm.arrays.fuse import compiles, fuse, listed
from xlstm.arrays.namespace import Array, Namespace, device_of


def scan(
    xp: Namespace,
    function: Callable[..., Any],
    start: Sequence[Array],
    *arrays: Array,
    axis: int = -1,
    reverse: bool = False,
) -> list[tuple[Array, Array]]:
    """Apply `function(xp, *carried, *arrays of a step)` to `start` step by step; its results are carried on.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`; it returns as many arrays as `start` has, or the only one.
    start
        The values that are carried into the first step: arrays without the axis of steps.
    arrays
        Arrays with steps along `axis`; their shapes without it broadcast with those of `start`.
    axis : int
        Negative.
    reverse : bool
        Whether to go from the last step to the first.

    Returns
    -------
    list of (array, array)
        For each value that is carried: those before each step, along `axis`, and the one after the last step.
    """
    n, tail = arrays[0].shape[axis], (slice(None),) * (-axis - 1)
    carried, kept = tuple(start), list[Array]()
    for t in range(n - 1, -1, -1) if reverse else range(n):
        at = (..., t, *tail)
        given = (*carried, *(a[at] for a in arrays))
        new = listed(fuse(xp, function, *given) if compiles(xp) else function(xp, *given))
        if not kept:  # new ones have the shape and the dtype of all of them
            axes = [(*a.shape[: a.ndim + axis + 1], n, *a.shape[a.ndim + axis + 1 :]) for a in new]
            kept = [xp.empty(shape, dtype=a.dtype, device=device_of(a)) for a, shape in zip(new, axes, strict=True)]
        for room, a in zip(kept, carried, strict=True):
            room[at] = a
        carried = new
    return list(zip(kept, carried, strict=True))
