"""CuPy acted out; `tests/standin/__init__.py` says what is, and what is not."""

from __future__ import annotations

from cupy import _functions, _ufunc, cards  # noqa: F401
from cupy._array import ndarray  # noqa: F401
from cupy._functions import *  # noqa: F403
from cupy._kernels import ElementwiseKernel, RawKernel, RawModule, ReductionKernel  # noqa: F401
from cupy._ufunc import ufunc  # noqa: F401
from numpy import (  # noqa: F401
    bool_,
    broadcast_shapes,
    can_cast,
    complex64,
    complex128,
    complexfloating,
    dtype,
    e,
    finfo,
    float16,
    float32,
    float64,
    floating,
    generic,
    iinfo,
    inf,
    int8,
    int16,
    int32,
    int64,
    integer,
    intp,
    issubdtype,
    nan,
    newaxis,
    pi,
    promote_types,
    result_type,
    uint8,
    uint16,
    uint32,
    uint64,
)

globals().update(_ufunc.UFUNCS | _functions.NAMED)
abs, divide, bitwise_not = (_ufunc.UFUNCS[name] for name in ("absolute", "true_divide", "invert"))
where, clip = _functions.where, _functions.clip

from cupy import _core, cuda, fft, lib, linalg  # noqa: E402, F401

__version__ = "14.2.0"
__all__ = [name for name in globals() if not name.startswith("_")]


def get_default_memory_pool() -> cuda.MemoryPool:
    return cuda.DefaultPool()
