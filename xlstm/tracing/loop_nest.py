"""Loops over arrays that are broadcast together, independent of the target language."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Sizes = Sequence[int]


class LoopNest(NamedTuple):
    """Loops over rows, and axes within a row; axes with contiguous memory are merged into one loop.

    Attributes
    ----------
    sizes : list of int
        The sizes of the loops over rows, outer loops first; none is 1.
    steps : list of tuple of int
        The steps of each array along these loops, then along the axes of a row; 0 where it has one
        number for all.
    """

    sizes: list[int]
    steps: list[tuple[int, ...]]


def loop_nest(shape: Sizes, arrays: Sequence[tuple[Sizes, Sizes]], inner: int = 0) -> LoopNest:
    """Return the loops over arrays with these shapes and strides, which broadcast to `shape`.

    Parameters
    ----------
    shape : sequence of int
    arrays : sequence of (shape, strides)
        Strides in any unit.
    inner : int
        The number of axes of a row, counted from the last. They are not merged.
    """
    sizes: list[int] = []
    loops: list[Sizes] = []  # the steps of all arrays along each loop
    axes = list(zip(shape, *(broadcast_steps(shape, *array) for array in arrays), strict=True))
    outer = len(shape) - inner
    for n, *steps in axes[:outer]:
        if n == 1:
            continue
        if sizes and all(far == near * n for far, near in zip(loops[-1], steps, strict=True)):
            sizes[-1] *= n
            loops[-1] = steps
        else:
            sizes.append(n)
            loops.append(steps)
    loops += [steps for _, *steps in axes[outer:]]
    return LoopNest(sizes, list(zip(*loops, strict=True)) or [()] * len(arrays))


def broadcast_steps(shape: Sizes, own: Sizes, strides: Sizes) -> list[int]:
    """Return an array's steps along each axis of `shape`, 0 where it has one number for all."""
    steps = [0 if n == 1 else step for n, step in zip(own, strides, strict=True)]
    return [0] * (len(shape) - len(own)) + steps


def contiguous_steps(shape: Sizes, unit: int = 1) -> tuple[int, ...]:
    """Return the steps of a contiguous array, in elements or in units such as bytes."""
    return tuple(unit * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
