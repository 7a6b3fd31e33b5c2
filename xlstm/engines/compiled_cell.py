"""A cell whose functions run on dual numbers of CuPy as one kernel each.

The reference engine would launch one kernel or more for each operation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from xlstm.arrays.dual import DualNamespace, of_pairs, on_pairs
from xlstm.arrays.namespace import Array, Namespace
from xlstm.arrays.rows import summed
from xlstm.arrays.trees import leaves_by_path, mapped
from xlstm.cells.cell import Cell
from xlstm.tracing.array_functions import Formula


class CompiledCell:
    """A cell with kernels in place of its three functions, which `Cell` describes."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cell, name)

    def gates(self, xp: DualNamespace, zx: Array, *arrays: Array, **own: Array) -> Any:
        """Run one step."""
        return _launched(xp, self.cell.gates, zx.ndim - 1, (zx, *arrays), own)

    def derivatives(self, xp: DualNamespace, saved: Any, *carry: Array, **own: Array) -> Any:
        """Compute the part of the derivative that needs no upstream gradient, for many steps."""
        return _launched(xp, self.cell.derivatives, 3, (saved, *carry), own)

    def gates_bwd(self, xp: DualNamespace, saved: Any, *dstate: Array, **own: Array) -> Any:
        """Compute the gradients of one step."""
        return _launched(xp, self.cell.gates_bwd, 2, (saved, *dstate), own)


def _launched(
    xp: DualNamespace, function: Any, ndim: int, arguments: tuple[Any, ...], own: dict[str, Array]
) -> Any:
    """Return `function(xp, *arguments, **own)` from one launch; arrays have `ndim` axes, possibly
    after an axis of rows.
    """
    arrays = [*leaves_by_path(arguments).values(), *own.values()]
    axes = [ndim] * (len(arrays) - len(own)) + [2] * len(own)
    rows = [a.shape[0] if a.ndim > n else None for a, n in zip(arrays, axes, strict=True)]
    parts = list(map(xp.parts, arrays))
    leading = [n for n, part in zip(rows, parts, strict=True) for _ in part]
    flat = _flat(function, _numbered(arguments, arrays), tuple(own))
    results = summed(
        xp.base,
        on_pairs(flat, tuple(map(xp.owns, arrays))),
        *(a for part in parts for a in part),
        sums=0,
        leading=tuple(leading),
    )
    return _filled(flat.results, of_pairs(xp, results))  # type: ignore[attr-defined]


@functools.cache
def _flat(function: Any, places: Any, names: tuple[str, ...]) -> Formula:
    """Return a function of arrays alone, with the places of its results as the attribute `results`.

    Its arrays are those at `places` of the arguments, followed by those with `names`.
    """

    def flat(xp: Namespace, *arrays: Array) -> tuple[Array, ...]:
        own = dict(zip(names, arrays[len(arrays) - len(names) :], strict=True))
        outputs = function(xp, *_filled(places, arrays), **own)
        new = list({id(a): a for a in leaves_by_path(outputs).values()}.values())
        flat.results = _numbered(outputs, new)  # type: ignore[attr-defined]
        return tuple(new)

    flat.__name__ = function.__name__
    return flat


def _numbered(tree: Any, arrays: Sequence[Array]) -> Any:
    """Return the same nesting, with the place of each array among `arrays`."""
    numbers = {id(a): k for k, a in enumerate(arrays)}
    return mapped(tree, lambda _, a: numbers[id(a)])


def _filled(places: Any, arrays: Sequence[Array]) -> Any:
    """Return the same nesting, with the arrays at these places."""
    return mapped(places, lambda _, place: arrays[place])
