"""The heads of an mLSTM: all at once, or on a CPU in groups of heads and sequences on all cores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import blas, threads
from xlstm.arrays.namespace import Array, Namespace

# On a CPU so many heads are taken at once as have about this many elements: few large calls, whose threads seldom wait
# for one another, and arrays that stay near.
GROUP = 1 << 18

Group = tuple[slice, slice]  # of sequences, and of heads
WHOLE: Group = (slice(None), slice(None))

_known: set[Any] = set()  # the shapes and dtypes that a cell has run with


def run(
    xp: Namespace,
    cell: Callable[..., tuple[Any, ...]],
    arrays: Sequence[Array],
    results: Sequence[tuple[bool, tuple[int, ...]]],
    elements: int,
    work: int,
    saved: Sequence[tuple[Group, Any]] | None = None,
) -> tuple[list[Array], list[tuple[Group, Any]]]:
    """Apply a cell to all heads of all sequences.

    Parameters
    ----------
    cell : callable
        From arrays, and what it kept before where `saved` is given, to results and what it keeps.
    arrays : sequence of arrays (B, N, ...)
    results : sequence of (bool, tuple)
        Whether each result has steps first in memory, as the caller has them, and its shape after (B, N), in which
        steps, if any, are the first axis.
    elements : int
        Numbers that one head works on at once.
    work : int
        Multiplications of all heads.
    saved : list, optional
        For the backward pass `kept` of the forward pass, which has its groups.

    Returns
    -------
    results : list of arrays (B, N, ...)
    kept : list of (group, what the cell keeps of it)
    """
    B, N = arrays[0].shape[:2]
    if saved is None:
        saved = [(group, None) for group in _groups(xp, B, N, elements, work)]
        more: list[tuple[Any, ...]] = [()] * len(saved)
    else:
        more = [(kept,) for _, kept in saved]
    if len(saved) == 1:
        whole = functools.partial(cell, *arrays, *more[0])
        alone = xp is not np or work <= blas.SINGLE
        *found, kept = whole() if alone else threads.work(1, lambda _: whole(), threads.available())
        return found, [(saved[0][0], kept)]
    outs = [_empty((B, N), steps, shape, arrays[0]) for steps, shape in results]

    def one(g: Group, more: tuple[Any, ...]) -> tuple[Group, Any]:
        *found, kept = cell(*(np.ascontiguousarray(a[g]) for a in arrays), *more)
        for out, values in zip(outs, found, strict=True):
            out[g] = values
        return g, kept

    tasks = [functools.partial(one, g, m) for (g, _), m in zip(saved, more, strict=True)]
    size = min(threads.available(), len(tasks)) if work > threads.LARGE else 1
    first: list[tuple[Group, Any]] = []
    shapes = tuple(a[saved[0][0]].shape for a in arrays)
    if size > 1 and (shapes, arrays[0].dtype) not in _known:
        # The chains of the cell are compiled here: a worker would wait for the compiler, and with it a fork.
        first = threads.work(1, lambda _: [tasks.pop(0)()])
        _known.add((shapes, arrays[0].dtype))
    return outs, first + threads.work(size, lambda team: team.run(tasks))


def step(xp: Namespace, call: Callable[[], tuple[Any, ...]], multiplications: int) -> tuple[Any, ...]:
    """Return the result of one step of a cell, on a CPU in its turn where its products may use several threads."""
    return blas.in_turn(call, multiplications if xp is np else 0)


def _groups(xp: Namespace, B: int, N: int, elements: int, work: int) -> list[Group]:
    """Return the sequences and heads that are taken at once, a part of the work for each core at least."""
    if xp is not np or B == 0:
        return [WHOLE]
    parts = threads.available() if work > threads.LARGE else 1
    size = min(max(1, GROUP // elements), max(1, B * N // parts))
    some, many = min(size, N), max(1, size // N)
    return [(slice(b, b + many), slice(n, n + some)) for b in range(0, B, many) for n in range(0, N, some)]


def _empty(outer: tuple[int, int], steps: bool, shape: tuple[int, ...], like: Array) -> Array:
    """Return room for a result (B, N, ...)."""
    if not steps:
        return np.empty((*outer, *shape), dtype=like.dtype)
    T, *rest = shape
    return np.moveaxis(np.empty((T, *outer, *rest), dtype=like.dtype), 0, 2)
