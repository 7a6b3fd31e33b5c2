"""Values from the host to the library and dtype of an array, and back."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from xlstm.arrays import checks, compiled
from xlstm.arrays.foreign import from_foreign, is_foreign
from xlstm.arrays.namespace import (
    DTYPES,
    Array,
    Host,
    Namespace,
    device_of,
    dtype_name,
    namespace_of,
)
from xlstm.arrays.optional_imports import BackendError as BackendError

# further dtypes that `Backend.asarray` knows, in which layers do not compute
OTHERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def to_numpy(array: Array) -> Host:
    """Return a NumPy array with the values of `array`, copied to the host if necessary.

    Parameters
    ----------
    array : array
        An array of NumPy, CuPy, PyTorch, or another library with `__cuda_array_interface__` or
        DLPack.

    Returns
    -------
    numpy array
        NumPy has no bfloat16, so such values come as float32, which holds all of them.

    Raises
    ------
    TypeError
        The array is on a GPU, and CuPy does not work here; or it has a mask.
    CudaError
        Blocks of a kernel waited for one another in vain.
    """
    if type(array) is np.ndarray and array.dtype.kind in "fiub":
        return array  # the most frequent case needs no further question
    checks.unmasked("to_numpy", "array", array)
    if is_foreign(array):
        own = from_foreign("to_numpy", array)
        return np.array(own) if isinstance(own, np.ndarray) else to_numpy(own)
    if isinstance(array, np.ndarray | np.generic):
        low = array.dtype.kind == "V" and dtype_name(array.dtype) == "bfloat16"
        return np.asarray(array.astype(np.float32) if low else array)
    if array_api_compat.is_cupy_array(array):
        host = array.get()
        compiled.module("cupy.waits").look()
        return to_numpy(host)
    if array_api_compat.is_torch_array(array):
        host = array.detach().cpu()
        return np.asarray((host.float() if dtype_name(host.dtype) == "bfloat16" else host).numpy())
    if array_api_compat.is_array_api_obj(array):
        try:
            return np.from_dlpack(array, device="cpu", copy=True)
        except TypeError:  # NumPy 2.0 takes only arrays on the host
            return np.array(np.from_dlpack(array))
    return np.asarray(array)


def like(values: Any, array: Array) -> Array:
    """Return host values as an array of the library, device and dtype of `array`."""
    return namespace_of(array).asarray(
        np.asarray(values), dtype=array.dtype, device=device_of(array)
    )


def dtype_text(where: str, dtype: Any) -> str:
    """Return the name of a dtype, given as a name, np.float32 or np.dtype("float32")."""
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and issubclass(dtype, np.generic)):
        return np.dtype(dtype).name
    return str(checks.text(where, "dtype", dtype))


def dtype_of(xp: Namespace, name: str) -> Any:
    """Return the dtype of that name in a library's own terms.

    NumPy and CuPy get bfloat16 from ml_dtypes.
    """
    if name == "bfloat16" and not hasattr(xp, name):
        try:
            from ml_dtypes import bfloat16
        except ImportError as error:
            raise BackendError(
                "bfloat16 needs ml_dtypes, which is not installed; pip install ml_dtypes"
            ) from error
        return np.dtype(bfloat16)
    if name not in (*DTYPES, *OTHERS):
        raise ValueError(
            f"asarray: dtype {checks.shown(name)} is unknown, expected a name such as"
            f" {', '.join(DTYPES)}"
        )
    return getattr(xp, name)
