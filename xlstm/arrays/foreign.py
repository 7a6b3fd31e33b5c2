"""Arrays of other libraries, adopted by the protocols of array libraries without copies.

An object with `__cuda_array_interface__`, such as an array of Numba or a column of cuDF, becomes a
CuPy array. An object with DLPack's `__dlpack__` becomes a CuPy or NumPy array, depending on its
device. Layers take arrays of NumPy, CuPy, PyTorch, and of libraries with the array API as they are;
these stay unchanged.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import array_api_compat
import numpy as np

from xlstm.arrays import optional_imports

P = ParamSpec("P")
R = TypeVar("R")

# types of values that stay as they are, of which others are found
_own: set[type] = {np.ndarray, type(None)}
# DLPack's numbers for the kinds of memory that each library takes.
HOST = (1, 3)  # a CPU, or pinned
DEVICE = (2, 13)  # a GPU, or managed


def is_foreign(value: Any) -> bool:
    """Tell whether a value is an array of another library, to be adopted."""
    kind = type(value)
    if kind is np.ndarray or array_api_compat.is_array_api_obj(value):
        return False
    return hasattr(kind, "__cuda_array_interface__") or hasattr(kind, "__dlpack_device__")


def from_foreign(where: str, value: Any) -> Any:
    """Return a value with arrays of other libraries adopted as arrays of NumPy or CuPy.

    Parameters
    ----------
    where : str
        The caller, whose name begins an error.
    value
        An array; a dict, tuple or list of such values; or anything else, which is returned
        unchanged.

    Returns
    -------
    The value itself, if nothing in it is of another library.

    Raises
    ------
    TypeError
        Neither NumPy nor CuPy takes the memory of an array, CuPy does not work here, or an array
        has a mask.
    """
    kind = type(value)
    if kind in _own:
        return value
    if kind in (dict, tuple, list):
        parts = value.values() if kind is dict else value
        some = [from_foreign(where, a) for a in parts]
        if all(map(operator.is_, some, parts)):
            return value
        return dict(zip(value, some, strict=True)) if kind is dict else kind(some)
    if is_foreign(value):
        return _adopted(where, value)
    _own.add(kind)
    return value


def accepts_foreign(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take arrays of other libraries in all its arguments."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        return function(
            *from_foreign(function.__name__, args), **from_foreign(function.__name__, options)
        )

    return call


def _adopted(where: str, value: Any) -> Any:
    described = hasattr(type(value), "__cuda_array_interface__")
    if not described:
        kind = int(value.__dlpack_device__()[0])
        if kind in HOST:
            return taken(where, value, np.from_dlpack)
        if kind not in DEVICE:
            raise TypeError(
                f"{where}: {_kind(value)} is on a DLPack device of kind {kind}, expected one of"
                f" {HOST + DEVICE}, a CPU or a GPU"
            )
    cupy = cupy_for(where, _kind(value))
    return taken(
        where, value, functools.partial(_described, cupy) if described else cupy.from_dlpack
    )


def _described(cupy: Any, value: Any) -> Any:
    """Return an array on the device of its memory; `asarray` would copy to the current device."""
    pointer = value.__cuda_array_interface__["data"][0]
    with cupy.cuda.Device(
        cupy.cuda.runtime.pointerGetAttributes(pointer).device if pointer else None
    ):
        return cupy.asarray(value)


def cupy_for(where: str, what: str) -> Any:
    """Return CuPy's module, or raise TypeError if CuPy does not work.

    The error names the object on a GPU, `what`.
    """
    failure = optional_imports.cupy_failure()
    if failure is not None:
        raise TypeError(f"{where}: {what} is on a GPU, which needs CuPy: {failure}")
    return optional_imports.cupy()


def taken(where: str, value: Any, take: Callable[[Any], Any]) -> Any:
    """Return `take(value)`, or raise TypeError with the name of the array if that fails."""
    try:
        return take(value)
    except Exception as error:  # from the library that made it, or the library that takes it
        raise TypeError(
            f"{where}: {_kind(value)} cannot be taken as it is ({optional_imports.first_line(error)})"
        ) from error


def _kind(value: Any) -> str:
    return f"an array of {type(value).__module__.partition('.')[0]} ({type(value).__name__})"
