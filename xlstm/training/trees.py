"""Nested values with arrays in them, as a JSON value and a flat dict of arrays, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xlstm.arrays.backend import backend_like
from xlstm.arrays.checks import shown
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array

Host = np.ndarray[Any, Any]
PLAIN = (str, bool, int, float, type(None))


def pack(tree: Any) -> tuple[Any, dict[str, Host]]:
    """Return a tree as a JSON value, and its arrays on the host by name.

    Parameters
    ----------
    tree : dict, list, tuple, str, number, None, or array
        Dicts have text as keys. An array that is there several times is kept once.

    Returns
    -------
    value : JSON value
        A container is {"dict": ...}, {"list": ...} or {"tuple": ...}, an array {"array": name, "dtype": dtype}, and a
        number that is not finite {"float": "inf"}.
    arrays : dict of str to NumPy array

    Raises
    ------
    TypeError
        The tree holds something else.
    """
    arrays: dict[str, Host] = {}
    names: dict[int, str] = {}

    def packed(value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}  # which JSON does not have
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: packed(part, f"{path}.{key}") for key, part in value.items()}}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [packed(part, f"{path}.{k}") for k, part in enumerate(value)]}
        if not hasattr(value, "shape") or (isinstance(value, np.ndarray) and value.dtype.kind not in "fiub"):
            raise TypeError(
                f"{path[1:]} is {shown(value)}, expected numbers, text, arrays of numbers, or containers of them"
            )
        name = names.setdefault(id(value), path[1:])
        if name not in arrays:
            arrays[name] = np.ascontiguousarray(to_numpy(value)).reshape(value.shape)
        return {"array": name, "dtype": _floating(value)}

    return packed(tree, ""), arrays


def unpack(value: Any, arrays: dict[str, Host], put: Callable[[Host, str], Array]) -> Any:
    """Return the tree that `pack` was given.

    Parameters
    ----------
    value : JSON value
    arrays : dict of str to NumPy array
    put : callable
        `put(array, dtype)` moves an array of floating-point numbers to where it belongs; others stay on the host.

    Returns
    -------
    dict, list, tuple, str, number, None, or array

    Raises
    ------
    ValueError
        The value is none that `pack` made, or an array is missing.
    """
    placed: dict[str, Array] = {}

    def unpacked(value: Any) -> Any:
        match value:
            case {"dict": dict() as parts}:
                return {key: unpacked(part) for key, part in parts.items()}
            case {"list": list() as parts}:
                return [unpacked(part) for part in parts]
            case {"tuple": list() as parts}:
                return tuple(unpacked(part) for part in parts)
            case {"float": "inf" | "-inf" | "nan" as number}:
                return float(number)
            case {"array": str() as name, "dtype": str() as dtype} if name in arrays:
                if name not in placed:
                    placed[name] = put(arrays[name], dtype) if dtype else arrays[name]
                return placed[name]
            case str() | bool() | int() | float() | None:
                return value
        raise ValueError(f"{shown(value)} is not one of the values that a checkpoint holds")

    return unpacked(value)


def _floating(array: Array) -> str:
    """Return the dtype of an array of floating-point numbers, or nothing for one that stays on the host."""
    on_host = isinstance(array, np.ndarray) and array.dtype.kind != "f"
    return "" if on_host else backend_like(array).dtype
