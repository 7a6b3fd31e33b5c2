"""Work memory: the C allocator keeps the memory of large arrays on the CPU between calls.

Fresh memory costs a page fault and a cleared page for every 4 KB: a tenth of the time of a training
step of middle size. glibc gives freed memory at the end of the heap back to the system once there
is twice as much of it as the largest block ever freed. Blocks above 32 MB do not count. This module
makes and frees one block of 31 MB, so that glibc keeps up to 62 MB.
"""

from __future__ import annotations

import contextlib
import ctypes

import numpy as np

__all__ = ["release"]

np.empty(31 << 20, dtype=np.uint8)  # once for the process, and never written to


def release() -> None:
    """Give the memory that the C allocator keeps back to the system; this needs glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
