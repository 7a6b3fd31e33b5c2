"""Memory that is used again: large arrays of one call serve the next.

Fresh memory costs a page fault and a cleared page for every 4 KB; that was a tenth of a training step of
middle size. What nobody refers to any more is kept for the next array of about its size, up to LIMIT bytes.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections import deque
from typing import Any

import numpy as np

from xlstm.backend import Array, Namespace, device_of

SMALL = 1 << 18  # bytes below which the allocator of C does well by itself
LIMIT = 1 << 28  # bytes kept at most while nobody uses them

# With glibc, what lies free at the end of its memory goes back to the system as soon as it is twice the largest block
# that it ever gave back; blocks above 32 MB do not count.
LARGEST = 31 << 20

_spare: list[np.ndarray[Any, Any]] = []  # the one given back last at the end
_returned: deque[np.ndarray[Any, Any]] = deque()  # given back, but not yet among the spare ones
_lock = threading.Lock()


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
        # The collector may end a lease at any moment, also within the functions below: it must not wait for the lock.
        with contextlib.suppress(AttributeError, TypeError):  # at exit these may be gone
            _returned.append(self.memory)
            if _lock.acquire(blocking=False):
                try:
                    _collect()
                finally:
                    _lock.release()


def empty(xp: Namespace, shape: tuple[int, ...], like: Array) -> Array:
    """An array with any contents, of the dtype and on the device of `like`."""
    if xp is not np or (size := math.prod(shape) * like.dtype.itemsize) < SMALL:
        return xp.empty(shape, dtype=like.dtype, device=device_of(like))
    with _lock:
        _collect()
        fits = [k for k, memory in enumerate(_spare) if size <= memory.nbytes <= size + size // 4]
        memory = _spare.pop(fits[-1]) if fits else np.empty(size, dtype=np.uint8)
    return np.asarray(_Lease(memory, shape, like.dtype))


def _collect() -> None:
    """Take what was given back among the spare memory; only with the lock."""
    while _returned:
        _spare.append(_returned.popleft())
    while sum(memory.nbytes for memory in _spare) > LIMIT:
        del _spare[0]


def _after_fork() -> None:
    """Another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
