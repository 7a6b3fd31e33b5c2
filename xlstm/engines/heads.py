"""The heads of an mLSTM: all at once, or on a CPU in groups of heads and sequences, whose arrays stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xlstm.arrays.namespace import Array, Namespace

# On a CPU so many heads are taken at once as have about this many elements: few large calls, and arrays that stay near.
GROUP = 1 << 18

Group = tuple[slice, slice]  # of sequences, and of heads
WHOLE: Group = (slice(None), slice(None))


def run(
    xp: Namespace,
    cell: Callable[..., tuple[Any, ...]],
    arrays: Sequence[Array],
    results: Sequence[tuple[bool, tuple[int, ...]]],
    elements: int,
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
    saved : list, optional
        For the backward pass `kept` of the forward pass, which has its groups.

    Returns
    -------
    results : list of arrays (B, N, ...)
    kept : list of (group, what the cell keeps of it)
    """
    B, N = arrays[0].shape[:2]
    if saved is None:
        saved = [(group, None) for group in _groups(xp, B, N, elements)]
        more: list[tuple[Any, ...]] = [()] * len(saved)
    else:
        more = [(kept,) for _, kept in saved]
    if len(saved) == 1:
        *found, kept = cell(*arrays, *more[0])
        return found, [(saved[0][0], kept)]
    outs = [_empty((B, N), steps, shape, arrays[0]) for steps, shape in results]

    kept = []
    for (group, _), extra in zip(saved, more, strict=True):
        *found, own = cell(*(np.ascontiguousarray(a[group]) for a in arrays), *extra)
        for out, values in zip(outs, found, strict=True):
            out[group] = values
        kept.append((group, own))
    return outs, kept


def _groups(xp: Namespace, B: int, N: int, elements: int) -> list[Group]:
    """Return the sequences and heads that are taken at once."""
    if xp is not np or B == 0:
        return [WHOLE]
    size = max(1, GROUP // elements)
    some, many = min(size, N), max(1, size // N)
    return [(slice(b, b + many), slice(n, n + some)) for b in range(0, B, many) for n in range(0, N, some)]


def _empty(outer: tuple[int, int], steps: bool, shape: tuple[int, ...], like: Array) -> Array:
    """Return room for a result (B, N, ...)."""
    if not steps:
        return np.empty((*outer, *shape), dtype=like.dtype)
    T, *rest = shape
    return np.moveaxis(np.empty((T, *outer, *rest), dtype=like.dtype), 0, 2)
