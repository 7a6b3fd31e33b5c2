"""Memory that is used again: large arrays of one call serve the next.

Fresh memory costs a page fault and a cleared page for every 4 KB; that was a tenth of a training step of
middle size. The memory of arrays of 256 KB or more is kept when nobody refers to them any more, for the next array of
about their size. No more than 128 MB in the process are used in this way, further arrays have fresh memory. It is kept
until `release` is called, or until it makes room for an array of another size. Beside that, once a layer such as an
mLSTM has run, the allocator of C keeps up to 62 MB of what small arrays leave (`settle`).

There is no lock and no finaliser: every change is one operation of a dict, which is atomic, and memory is free when the
weak reference to its user is dead. So a signal handler, another thread and a forked process can use this at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
import weakref
from typing import Any

import numpy as np

from xlstm.arrays.backend import Array, Namespace, device_of

SMALL = 1 << 18  # bytes below which the allocator of C does well by itself
LIMIT = 1 << 27  # bytes that are used again, at most

# With glibc, what lies free at the end of its memory goes back to the system as soon as it is twice the largest block
# that it ever gave back; blocks above 32 MB do not count.
LARGEST = 31 << 20


def settle(xp: Namespace) -> None:
    """Let the allocator of C keep what small arrays of NumPy leave, once for the process; see `_settle`."""
    if xp is np:
        _settle()


@functools.cache
def _settle() -> None:
    """Let the allocator of C keep what small arrays leave, some tens of megabytes, once for the process.

    Otherwise functions that make and leave many arrays of some hundred KB have every page anew: an mLSTM forward and
    backward took 57 ms, and 37 ms afterwards.
    """
    np.empty(LARGEST, dtype=np.uint8)


class _Lease:
    """Holds memory for an array; NumPy keeps it as the base of every view, so it ends with the last of them."""

    def __init__(self, memory: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.memory = memory
        self.__array_interface__ = {
            **{"version": 3, "shape": shape, "typestr": dtype.str},
            "data": memory.__array_interface__["data"],  # NumPy imports something for `ctypes`, which fails at exit
        }


# Memory and its lease, by the number of the lease; what was used last is at the end. No number comes twice, so whoever
# removes one whose lease was seen dead removes just that lease, whatever other threads did meanwhile.
_kept: dict[int, tuple[np.ndarray[Any, Any], weakref.ref[_Lease]]] = {}
_numbers = itertools.count()


def empty(xp: Namespace, shape: tuple[int, ...], like: Array) -> Array:
    """An array with any contents, of the dtype and on the device of `like`."""
    if xp is not np or (size := math.prod(shape) * like.dtype.itemsize) < SMALL:
        return xp.empty(shape, dtype=like.dtype, device=device_of(like))
    memory = _take(size)
    if memory is None and _shrink(LIMIT - size):
        memory = np.empty(size, dtype=np.uint8)
    if memory is None:
        return np.empty(shape, dtype=like.dtype)
    lease = _Lease(memory, shape, like.dtype)
    _kept[next(_numbers)] = memory, weakref.ref(lease)
    return np.asarray(lease)


def release() -> None:
    """Give memory that is kept and not used back to the system, with glibc also that which its allocator keeps."""
    _shrink(0)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _take(size: int) -> np.ndarray[Any, Any] | None:
    """Memory of this size or up to a quarter more that nobody uses, or None."""
    for key, (memory, user) in reversed(list(_kept.items())):
        # Another thread may have taken it meanwhile.
        if size <= memory.nbytes <= size + size // 4 and user() is None and _kept.pop(key, None) is not None:
            found: np.ndarray[Any, Any] = memory
            return found
    return None


def _shrink(limit: int) -> bool:
    """Keep no more than so many bytes; False where more are in use."""
    kept = list(_kept.items())
    total = sum(memory.nbytes for _, (memory, _) in kept)
    for key, (memory, user) in kept:
        if total > limit and user() is None:
            _kept.pop(key, None)
            total -= memory.nbytes
    return total <= limit
