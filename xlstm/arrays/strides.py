"""The axes of arrays that are broadcast together, joined where memory goes on from one to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def broadcast(shape: Sequence[int], own: Sequence[int], steps: Sequence[int]) -> list[int]:
    """Return the steps of an array along each axis of `shape`, 0 where it has one number for all."""
    return [0] * (len(shape) - len(own)) + [0 if n == 1 else step for n, step in zip(own, steps, strict=True)]


def contiguous(shape: Sequence[int], unit: int = 1) -> tuple[int, ...]:
    """Return the steps of a contiguous array, in elements or in units such as bytes."""
    return tuple(unit * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def joined(
    axes: Iterable[int], shape: Sequence[int], steps: Sequence[Sequence[int]], alone: int | None = None
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
    along: list[list[int]] = [[] for _ in steps]
    for axis in axes:
        n, new = shape[axis], [step[axis] for step in steps]
        if n == 1:
            continue
        if sizes and axis != alone and all(far[-1] == s * n for far, s in zip(along, new, strict=True)):
            sizes[-1] *= n
            for far, s in zip(along, new, strict=True):
                far[-1] = s
        else:
            sizes.append(n)
            for far, s in zip(along, new, strict=True):
                far.append(s)
    return sizes, along
