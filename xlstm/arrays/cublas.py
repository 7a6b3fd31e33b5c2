"""cuBLAS as a CUDA graph can capture it: CuPy's own functions refuse to be called within a capture.

cuBLAS itself can be captured where its workspace was set before (cuBLAS, "CUDA Graphs Support"). Its functions are
found by ctypes, in the library that CuPy has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from ctypes import byref, c_int, c_longlong, c_size_t, c_void_p
from typing import Any

from xlstm.arrays import probe
from xlstm.arrays.convert import BackendError
from xlstm.arrays.namespace import Array

# Parameters of cublasGemmStridedBatchedEx: the transpositions and sizes, alpha, A, B, beta, C, and how it is computed.
OPERAND = (c_void_p, c_int, c_int, c_longlong)
GEMM = (c_void_p, *[c_int] * 5, c_void_p, *OPERAND, *OPERAND, c_void_p, *OPERAND, *[c_int] * 3)
# Bytes of workspace from an sm on, those that cuBLAS takes by itself: with others it may multiply in another way.
WORKSPACES = {90: 32 << 20, 0: 4 << 20}


class Handle:
    """A handle of cuBLAS with a workspace of its own, for products that are captured on one stream at a time."""

    def __init__(self) -> None:
        cp, made = probe.cupy(), c_void_p()
        capability = int(cp.cuda.Device().compute_capability)
        self.workspace: Array = cp.empty((next(n for sm, n in WORKSPACES.items() if capability >= sm),), dtype=cp.uint8)
        _call("cublasCreate_v2", (c_void_p,), byref(made))
        self.number = made.value
        weakref.finalize(self, _call, "cublasDestroy_v2", (c_void_p,), self.number).atexit = False

    def use(self, stream: int) -> None:
        """Multiply on a stream from now on."""
        _call("cublasSetStream_v2", (c_void_p, c_void_p), self.number, stream)
        room = self.workspace
        _call("cublasSetWorkspace_v2", (c_void_p, c_void_p, c_size_t), self.number, room.data.ptr, room.nbytes)

    def gemm(self, *args: int) -> None:
        """Do as CuPy's `gemmStridedBatchedEx`, of which the handle is left out."""
        _call("cublasGemmStridedBatchedEx", GEMM, self.number, *args)


def _call(name: str, types: tuple[Any, ...], *args: Any) -> None:
    status = _function(name, types)(*args)
    if status:
        raise BackendError(f"cuBLAS: {name} returned {status}")


@functools.cache
def _function(name: str, types: tuple[Any, ...]) -> Any:
    """Return a function of the library that CuPy's module of cuBLAS is linked with."""
    found = getattr(ctypes.CDLL(probe.cupy().cuda.cublas.__file__), name)
    found.argtypes, found.restype = types, c_int
    return found
