"""Small arrays that are the same in every call, which are made once for each stream; nobody changes them."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

from xlstm.arrays import cuda_graph
from xlstm.arrays.cuda_graph import kept
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import Array, Namespace

PER_THREAD = 2  # the address that CUDA has for the default stream of each thread


Home = tuple[Any, ...]


def home(device: Any) -> Home:
    """Return a device as a key for arrays that stay there from call to call, on CuPy with its current stream.

    If two streams had such an array together, one of them might read it before the other one has filled it, and its
    memory might be used anew too early. The first entry is the device as creation functions take it; None is the
    current one of CuPy, whose devices have no hash.
    """
    number = getattr(device, "id", None)
    if number is None:
        return (device,)
    address = cuda_graph.stream()
    return None, number, address, threading.get_ident() if address == PER_THREAD else 0


def steps(xp: Namespace, n: int, dtype: Any, device: Any) -> Array:
    """Return the numbers from 0 to n - 1."""
    return kept(_made(xp, "arange", (n,), dtype, home(device)))


def identity(xp: Namespace, n: int, dtype: Any, device: Any) -> Array:
    """Return a matrix with ones on its diagonal, (n, n)."""
    return kept(_made(xp, "eye", (n,), dtype, home(device)))


def number(xp: Namespace, value: float, dtype: Any, device: Any) -> Array:
    """Return a number as an array without axes."""
    return kept(_made(xp, "full", ((), value), dtype, home(device)))


def counters(xp: Namespace, n: int, device: Any) -> Array:
    """Return n zeros that kernels count in, one kernel of a stream after the other; each leaves zeros."""
    return kept(_made(xp, "zeros", (n,), xp.uint32, home(device)))


@functools.lru_cache(maxsize=192)
def _made(xp: Namespace, function: str, args: tuple[Any, ...], dtype: Any, home: Home) -> Array:
    return getattr(xp, function)(*args, dtype=dtype, device=home[0])


def copied(xp: Namespace, values: np.ndarray[Any, Any], device: Any) -> Array:
    """Return an array with values of the host, which CuPy is given once for all calls with the same values."""
    if not compiles(xp):
        return xp.asarray(values, device=device)
    return kept(_copied(xp, values.tobytes(), values.shape, values.dtype, home(device)))


@functools.lru_cache(maxsize=64)
def _copied(xp: Namespace, values: bytes, shape: tuple[int, ...], dtype: Any, home: Home) -> Array:
    return xp.asarray(np.frombuffer(values, dtype).reshape(shape), device=home[0])
