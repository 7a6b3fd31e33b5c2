"""The choice of an array library and a device, for arrays that do not exist yet.

Existing arrays decide for themselves: every function takes its namespace from its arrays
(`xlstm.arrays.namespace`). CuPy and PyTorch are imported only if you ask for them.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np

from xlstm.arrays import checks, optional_imports
from xlstm.arrays.convert import BackendError, dtype_of, dtype_text
from xlstm.arrays.foreign import from_foreign, is_foreign
from xlstm.arrays.libraries import LIBRARIES, library_of
from xlstm.arrays.namespace import (
    DTYPES,
    HALVES,
    Array,
    DType,
    Namespace,
    device_of,
    dtype_name,
    is_floating,
    library,
    namespace_of,
)

NAMES = tuple(LIBRARIES)
VARIABLE = "XLSTM_BACKEND"


class Portable:
    """The base of classes with a namespace `xp`; copies and pickles hold it by name."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "xp": self.__dict__["xp"].__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, xp=importlib.import_module(state["xp"]))


@dataclass(frozen=True)
class Backend(Portable):
    """An array library, one of its devices, and the dtype of new arrays.

    Attributes
    ----------
    name : str
        "numpy", "cupy" or "torch".
    xp : namespace
        The array API namespace of the library.
    device : object
        The device in that library's own terms.
    dtype : str
        The dtype of new arrays of floating-point values; "float32" by default.
    reason : str
        The reason for the choice of this backend, in words.
    """

    name: str
    xp: Namespace
    device: Any
    dtype: str = "float32"
    reason: str = "asked for"

    def asarray(self, values: Any, dtype: DType | None = None) -> Array:
        """Return values of the host, or an array of any library, as an array on the device.

        Parameters
        ----------
        values : array or nested numbers
            Numbers, or an array of any library with `__cuda_array_interface__` or DLPack.
        dtype : str, optional
            By default the backend's dtype for floating-point values; integers and booleans keep
            their own dtype.

        Returns
        -------
        array
        """
        if self.name == "numpy" and dtype is None and type(values) is np.ndarray:
            kind = values.dtype.kind  # the most frequent case needs no further check
            if kind == "f":
                return values.astype(self.dtype, copy=False)
            if kind in "iub":
                return values
        checks.unmasked("asarray", "values", values)
        values = from_foreign("asarray", values) if is_foreign(values) else values
        if not array_api_compat.is_array_api_obj(values):
            values = np.asarray(values)
        if dtype is None and is_floating(namespace_of(values), values.dtype):
            dtype = self.dtype
        target = None if dtype is None else dtype_of(self.xp, dtype_text("asarray", dtype))
        library = library_of(self.name)
        with library.current(self.device):
            return self.xp.asarray(library.accepted(values), dtype=target, device=self.device)

    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""
        library_of(self.name).synchronize(self.device)

    def __str__(self) -> str:
        """Return the names of library and device; CUDA names a card, and an emulation of one."""
        return f"{self.name} on {library_of(self.name).place(self.device)}"


def backend(name: str = "auto", device: Any = None, dtype: DType = "float32") -> Backend:
    """Choose the array library for arrays that do not exist yet.

    Parameters
    ----------
    name : {"auto", "numpy", "cupy", "torch"}
        "auto" takes CuPy if a small kernel and a matrix product run on its device, else NumPy. If the
        environment variable XLSTM_BACKEND is set, it decides instead of "auto". An explicit name is
        used or refused, never replaced by another.
    device : optional
        CuPy: the device number. PyTorch: a device such as "cpu" (the default) or "cuda:0".
    dtype : {"float32", "float64", "float16", "bfloat16"}
        The dtype of new arrays, as a name or as NumPy's dtype. float16 and bfloat16 need a GPU.
        bfloat16 on CuPy needs CuPy 14 and ml_dtypes.

    Returns
    -------
    Backend
        The library, its device and the dtype.

    Raises
    ------
    ValueError
        The name, device or dtype is unknown.
    TypeError
        The dtype is float16 or bfloat16 and the device is a CPU; or the name is not a string.
    BackendError
        The named library, or a package that it needs for the dtype, is missing or does not work
        here.
    """
    source = "backend: name"
    reason = "asked for"
    if not isinstance(name, str):
        raise TypeError(f"backend: name is {checks.shown(name)}, expected auto, {', '.join(NAMES)}")
    if name == "auto" and os.environ.get(VARIABLE):
        source = f"{VARIABLE}:"
        name = os.environ[VARIABLE]
        reason = f"{VARIABLE}={name}"
    if name == "auto":
        if device is not None:
            raise ValueError(
                f"backend: device {checks.shown(device)} goes with a named backend, not with auto"
            )
        name = "cupy"
        reason = "a kernel and a matrix product ran on the device"
        if failure := optional_imports.cupy_failure():
            name = "numpy"
            reason = f"no usable GPU: {failure}"
    if name not in LIBRARIES:
        raise ValueError(
            f"{source} {checks.shown(name)} is not a backend, expected auto, {', '.join(NAMES)}"
        )
    return _with_dtype(Backend(name, *library_of(name).choose(device), reason=reason), dtype)


def backend_of(choice: str | Backend | None, dtype: DType | None = None) -> Backend:
    """Return the backend for an argument that is a name, a backend, or None for "auto"."""
    if isinstance(choice, Backend):
        return choice if dtype is None else _with_dtype(choice, dtype)
    return backend(
        "auto" if choice is None else choice, dtype="float32" if dtype is None else dtype
    )


def backend_like(array: Array) -> Backend:
    """Return the backend that an array belongs to, with its device and dtype."""
    xp = namespace_of(array)
    return Backend(
        library(xp), xp, device_of(array), dtype_name(array.dtype), "that of the arrays given"
    )


def available_backends() -> dict[str, Backend | str]:
    """Return every backend by name: a `Backend` if it runs here, else the reason why not."""
    available: dict[str, Backend | str] = {}
    for name in NAMES:
        try:
            available[name] = backend(name)
        except BackendError as error:
            available[name] = str(error).removeprefix(f"{name}: ")
    return available


def _with_dtype(backend: Backend, value: DType) -> Backend:
    dtype = dtype_text("backend", value)
    if dtype not in DTYPES:
        raise ValueError(
            f"backend: dtype {checks.shown(dtype)} is not supported, expected one of"
            f" {', '.join(DTYPES)}"
        )
    if dtype in HALVES and str(backend.device) == "cpu":
        raise TypeError(f"backend: {dtype} on a CPU is slow and inexact; use float32, or a GPU")
    if dtype == "bfloat16":
        library_of(backend.name).check_bfloat16()
    dtype_of(backend.xp, dtype)  # raises if a package for the dtype is missing
    return replace(backend, dtype=dtype)
