"""Gradients of several batches, added up for one update; on CuPy by one launch for all parameters."""

from __future__ import annotations

from typing import Any

from xlstm.arrays import foreach
from xlstm.arrays.fuse import listed
from xlstm.arrays.namespace import Array, Namespace, Params, namespace_of


def added(
    sums: Params | None, grads: Params, weight: float | Array, *counts: Array, first: bool, in_place: bool = False
) -> Params:
    """Return the gradients of a batch, times its weight, added to those that wait.

    Parameters
    ----------
    sums : dict of str to array, or None
    grads : dict of str to array
    weight : float or 0-d array
        The number of targets of the batch.
    counts : 0-d array, optional
        Where it is 0 nothing is added.
    first : bool
        Whether none wait: what is in `sums` does not count.
    in_place : bool
        Change the arrays of `sums`.
    """
    if sums is None or (first and not in_place):
        return _each(_weighted, [grads], weight)
    into = (0,) if in_place else ()
    if first:
        return _each(_first, [sums, grads], weight, into=into)
    return _each(_added_unless_0 if counts else _added, [sums, grads], weight, *counts, into=into)


def mean(sums: Params, total: float | Array) -> Params:
    """Return the mean gradient over all targets."""
    return _each(_shared, [sums], total)


def _each(function: Any, columns: list[Params], *numbers: Any, into: tuple[int, ...] = ()) -> Params:
    """Return a function of arrays by name and of numbers, for each name."""
    names = list(columns[0])
    given = [[one[name] for name in names] for one in columns]
    found = foreach.apply(namespace_of(given[0][0]), function, given, numbers, into)
    return {name: listed(a)[0] for name, a in zip(names, found, strict=True)}


def _weighted(xp: Namespace, g: Array, weight: Any) -> Array:
    return weight * g


def _first(xp: Namespace, sums: Array, g: Array, weight: Any) -> Array:
    return _weighted(xp, g, weight)


def _added(xp: Namespace, sums: Array, g: Array, weight: Any) -> Array:
    return sums + weight * g


def _added_unless_0(xp: Namespace, sums: Array, g: Array, weight: Any, counts: Any) -> Array:
    return xp.where(counts > 0, _added(xp, sums, g, weight), sums)


def _shared(xp: Namespace, sums: Array, total: Any) -> Array:
    return sums / total
