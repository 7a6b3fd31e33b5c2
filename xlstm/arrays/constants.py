"""Small constant arrays, made once for each stream and read by every call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from xlstm.arrays import capture, optional_imports
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import Array, Host, Namespace
from xlstm.arrays.optional_imports import BackendError

Home = tuple[Any, ...]
Made = TypeVar("Made")


def home(device: Any) -> Home:
    """Return a device as a key for arrays that stay there between calls; on CuPy with its stream.

    If two streams shared such an array, one of them might read it before the other has filled it,
    and its memory might be reused too early. The first entry is the device for creation functions.
    None means CuPy's current device, as CuPy's devices have no hash.
    """
    number = getattr(device, "id", None)
    return (device,) if number is None else (None, number, *capture.stream())


def kept(most: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Cache at most `most` results of a function that makes arrays; its last argument is a `Home`.

    The cache also holds the allocator of each array: a pool that is freed may take the memory of
    its arrays along. A graph keeps the arrays that it reads. An array made during a capture is not
    cached, because it is filled only when the graph is launched.
    """

    def decorate(make: Callable[..., Made]) -> Callable[..., Made]:
        @functools.lru_cache(most)
        def place(*arguments: Any) -> list[Any]:
            return []

        @functools.wraps(make)
        def cached(*arguments: Any) -> Made:
            held = place(*arguments)
            graph = capture.capturing()
            if not held:
                arrays = make(*arguments)
                if graph is not None:
                    return arrays
                on_cupy = len(arguments[-1]) > 1
                held[:] = arrays, on_cupy and optional_imports.cupy().cuda.get_allocator()
            if graph is not None:
                graph.kept.append(held)
            return held[0]  # type: ignore[no-any-return]

        cached.cache_clear = place.cache_clear  # type: ignore[attr-defined]
        return cached

    return decorate


def from_host(xp: Namespace, values: Host, home: Home) -> Array:
    """Return an array with values of the host; raise BackendError during a capture.

    A graph would read the host's memory at every launch.
    """
    if capture.capturing() is not None:
        raise BackendError(
            "CuPy: values of the host are copied in a capture, expected them on the device"
            " before it"
        )
    return xp.asarray(values, device=home[0])


def steps(xp: Namespace, n: int, dtype: Any, device: Any) -> Array:
    """Return the numbers from 0 to n - 1."""
    return _made(xp, "arange", (n,), dtype, home(device))


def identity(xp: Namespace, n: int, dtype: Any, device: Any) -> Array:
    """Return a matrix with ones on its diagonal, (n, n)."""
    return _made(xp, "eye", (n,), dtype, home(device))


def number(xp: Namespace, value: float, dtype: Any, device: Any) -> Array:
    """Return a number as an array without axes."""
    return _made(xp, "full", ((), value), dtype, home(device))


def counters(xp: Namespace, n: int, device: Any) -> Array:
    """Return n zeros in which kernels count, one kernel of a stream after the other.

    Each kernel leaves zeros.
    """
    return _made(xp, "zeros", (n,), xp.uint32, home(device))


@kept(192)
def _made(xp: Namespace, function: str, args: tuple[Any, ...], dtype: Any, home: Home) -> Array:
    return getattr(xp, function)(*args, dtype=dtype, device=home[0])


def copied(xp: Namespace, values: Host, device: Any) -> Array:
    """Return an array with values of the host, copied to CuPy once for all calls."""
    if not compiles(xp):
        return xp.asarray(values, device=device)
    return _copied(xp, values.tobytes(), values.shape, values.dtype, home(device))


@kept(64)
def _copied(xp: Namespace, values: bytes, shape: tuple[int, ...], dtype: Any, home: Home) -> Array:
    return from_host(xp, np.frombuffer(values, dtype).reshape(shape), home)
