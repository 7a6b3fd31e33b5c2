"""Memory that is used again: large arrays of one call serve the next.

Fresh memory costs a page fault and a cleared page for every 4 KB; that was a tenth of a training step of
middle size. Memory of an array of 256 KB or more that nobody refers to any more is kept for the next array of about its
size: up to 64 MB in all for the process, what was given back first goes first. It is kept until it is used again or
`release` is called. Beside that, once a layer such as an mLSTM has run, the allocator of C keeps up to 62 MB of what
small arrays leave (`settle`).

No lock is needed: every change is one operation of a dict, which is atomic. So a signal handler, a finaliser, another
thread and a forked process can take and give back memory at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from typing import Any

import numpy as np

from xlstm.backend import Array, Namespace, device_of

SMALL = 1 << 18  # bytes below which the allocator of C does well by itself
LIMIT = 1 << 26  # bytes kept at most while nobody uses them

# With glibc, what lies free at the end of its memory goes back to the system as soon as it is twice the largest block
# that it ever gave back; blocks above 32 MB do not count.
LARGEST = 31 << 20

_spare: dict[int, np.ndarray[Any, Any]] = {}  # by identity, the one given back last at the end


@functools.cache
def settle() -> None:
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
            "data": (memory.ctypes.data, False),
        }

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, TypeError):  # at exit these may be gone
            _spare[id(self.memory)] = self.memory
            _shrink(LIMIT)


def empty(xp: Namespace, shape: tuple[int, ...], like: Array) -> Array:
    """An array with any contents, of the dtype and on the device of `like`."""
    if xp is not np or (size := math.prod(shape) * like.dtype.itemsize) < SMALL:
        return xp.empty(shape, dtype=like.dtype, device=device_of(like))
    return np.asarray(_Lease(_take(size), shape, like.dtype))


def release() -> None:
    """Give the memory that is kept back to the system, with glibc also that which its allocator keeps."""
    _shrink(0)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _take(size: int) -> np.ndarray[Any, Any]:
    """Spare memory of this size or up to a quarter more, the one given back last, or fresh memory."""
    for key, memory in reversed(list(_spare.items())):
        # Another thread may have taken it meanwhile.
        if size <= memory.nbytes <= size + size // 4 and (found := _spare.pop(key, None)) is not None:
            return found
    return np.empty(size, dtype=np.uint8)


def _shrink(limit: int) -> None:
    """Keep no more than so many bytes, and of these what was given back last."""
    spare = list(_spare.items())
    total = sum(memory.nbytes for _, memory in spare)
    for key, memory in spare:
        if total <= limit:
            break
        _spare.pop(key, None)
        total -= memory.nbytes
