"""Dtypes: which there are, which loop of a ufunc takes some, and the bits of NaN."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CHARS = "?bhilqBHILQefdFD"
NAN = {"float32": ("u4", 0x7FFFFFFF), "float16": ("u2", 0x7FFF), "bfloat16": ("u2", 0x7FFF)}


def dtype_of(char: str) -> np.dtype[Any]:
    """The dtype of a character in a list of loops, where E is bfloat16."""
    return BFLOAT16 if char == "E" else np.dtype(char)


def check(dtype: Any) -> np.dtype[Any]:
    """Return a dtype that the device has.

    Raises
    ------
    ValueError
        It has none such.
    """
    dtype = np.dtype(dtype)
    if dtype != BFLOAT16 and (dtype.char not in CHARS or dtype.byteorder == ">"):
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def wide(a: Any) -> Any:
    """Return host values in the type that a GPU computes them in: halves in float32."""
    return a.astype(np.float32) if a.dtype.itemsize == 2 and a.dtype.kind in "fV" else a


def canonical(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give every NaN of an array that was computed the bits that a GPU gives it, in its place."""
    if a.dtype.name in NAN and a.size:
        kind, bits = NAN[a.dtype.name]
        nan = np.isnan(a)
        if nan.any():
            a.view(kind)[nan] = bits
    return a


def kind(dtype: Any) -> int:
    """The order of kinds by which CuPy decides whether Python numbers are weak."""
    if dtype.kind == "b":
        return 0
    return 1 if dtype.kind in "iu" else 2 if dtype.kind in "fc" else 3


def matching(loops: list[str], types: tuple[Any, ...], weak: tuple[Any, ...]) -> tuple[str, str] | None:
    """Return the inputs and outputs of the first loop that takes arguments of these types, as CuPy looks for it.

    `weak` has the Python type of an argument that is a Python number, and None of another.
    """
    arrays = [kind(t) for t, w in zip(types, weak, strict=True) if w is None]
    numbers = [1 if w is int else 2 for w in weak if w is not None]
    if not numbers or not arrays or max(arrays) < max(numbers):
        weak = (None,) * len(types)
    for loop in loops:
        inputs, _, outputs = loop.partition("->")
        if all(_takes(dtype_of(c), t, w) for c, t, w in zip(inputs, types, weak, strict=True)):
            return inputs, outputs
    return None


def _takes(to: np.dtype[Any], given: np.dtype[Any], weak: Any) -> bool:
    if np.can_cast(given, to):
        return True
    try:
        return weak is not None and np.result_type(weak(0), to) == to
    except TypeError:
        return False
