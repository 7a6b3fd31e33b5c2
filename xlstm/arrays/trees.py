"""Nestings of dicts, tuples and lists of arrays, and the path of each array, as "0.Wx" or "1.0"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xlstm.arrays.namespace import Array


def leaves_by_path(tree: Any) -> dict[str, Array]:
    """Return the arrays of a tree by their paths."""
    leaves: dict[str, Array] = {}
    mapped(tree, leaves.setdefault)
    return leaves


def replaced(tree: Any, new: Mapping[str, Array]) -> Any:
    """Return the same nesting, with new arrays at the paths that `new` has."""
    return mapped(tree, new.get)


def mapped(tree: Any, function: Callable[[str, Any], Any], path: str = "") -> Any:
    """Return the same nesting with `function(path, array)` for each array; None stays.

    Tuples take the place of lists.
    """
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {
            key: mapped(value, function, f"{path}.{key}" if path else str(key))
            for key, value in tree.items()
        }
    if isinstance(tree, tuple | list):
        parts = [
            mapped(value, function, f"{path}.{k}" if path else str(k))
            for k, value in enumerate(tree)
        ]
        return tree._make(parts) if hasattr(tree, "_make") else tuple(parts)
    return function(path or "0", tree)
