"""Kernels whose blocks wait for one another: a kernel that gives up a wait tells the host.

It writes its number to one word of the host's memory, the same for all devices. The host looks at
the word, without a copy, whenever an array has come to the host.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import kernel_fallback
from xlstm.arrays.namespace import Array

GAVE_UP = "its blocks waited for one another for 2 s"
_word: list[Array] = []  # exists once a kernel was launched that may write to it
_kernels: dict[int, tuple[str, str]] = {}  # by their numbers


@functools.cache
def arguments(kernel: str, way: str) -> tuple[np.uintp, np.uint32]:
    """Return the address of the word, and the number that a kernel writes there.

    Parameters
    ----------
    kernel : str
        The name of the kernel.
    way : str
        The name to note in `kernel_fallback` if it is broken.
    """
    if not _word:
        word = np.frombuffer(optional_imports.cupy().cuda.alloc_pinned_memory(4), np.uint32, 1)
        word[0] = 0
        _word.append(word)
    number = zlib.crc32(f"{kernel} {way}".encode()) | 1
    _kernels[number] = kernel, way
    return np.uintp(_word[0].ctypes.data), np.uint32(number)


def look() -> None:
    """Raise CudaError if a kernel gave up, and exclude its way of computing from now on."""
    number = int(_word[0][0]) if _word else 0
    if number:
        optional_imports.cupy().cuda.Device().synchronize()  # kernels under way give up, too
        _word[0][0] = 0
        kernel, way = _kernels[number]
        kernel_fallback.hold([way], GAVE_UP)
        problem = f"{kernel_fallback.current()} {kernel} of {way}: {GAVE_UP}"
        raise kernel_fallback.CudaError(
            f"cuda: on {problem}\nWhat it made is not used; XLSTM_CUDA_PATH=pointwise goes"
            " without it."
        )
