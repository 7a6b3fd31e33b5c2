"""cuBLAS by its definition, as `tests/ctargets.py` has it, counted: CuPy's functions, and the library behind them."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

from cupy import _capture
from cupy._counts import record

from tests import ctargets
from tests.compilers import load

# The functions that are looked for in the library; each calls one of Python.
PARAMETERS = {
    "cublasCreate_v2": ("void**",),
    "cublasDestroy_v2": ("void*",),
    "cublasSetStream_v2": ("void*", "void*"),
    "cublasSetWorkspace_v2": ("void*", "void*", "size_t"),
    "cublasGemmStridedBatchedEx": (
        *("void*", "int", "int", "int", "int", "int", "void*"),
        *("void*", "int", "int", "long long") * 2,
        *("void*", "void*", "int", "int", "long long", "int", "int", "int"),
    ),
}
TYPES = {"void**": ctypes.POINTER(ctypes.c_void_p), "void*": ctypes.c_void_p, "size_t": ctypes.c_size_t}
TYPES |= {"int": ctypes.c_int, "long long": ctypes.c_longlong}


class Cublas(ctargets.Cublas):
    def gemmStridedBatchedEx(self, *args: Any) -> None:  # noqa: N802
        if not all(type(a) is int for a in args):
            raise TypeError(f"cuBLAS takes numbers of Python, got {[type(a) for a in args]}")
        _capture.guard()
        _product(args)
        super().gemmStridedBatchedEx(*args)

    @property
    def __file__(self) -> str:
        return _library()


def _product(args: Any) -> None:
    record("products", f"{args[20]} x ({args[4]}, {args[5]}) @ ({args[5]}, {args[3]})")


class _Library:
    """The library itself: its handles are numbers, each with a stream and a workspace."""

    def __init__(self) -> None:
        self.numbers, self.streams, self.rooms = itertools.count(100), dict[int, int](), dict[int, int]()
        self.loaded: set[tuple[int, ...]] = set()

    def cublasCreate_v2(self, made: Any) -> int:  # noqa: N802
        if _capture.now.capture is not None:
            return 1  # CUBLAS_STATUS_NOT_INITIALIZED
        made[0] = next(self.numbers)
        self.streams[made[0]], self.rooms[made[0]] = 0, 0
        return 0

    def cublasDestroy_v2(self, handle: int) -> int:  # noqa: N802
        del self.streams[handle], self.rooms[handle]
        return 0

    def cublasSetStream_v2(self, handle: int, stream: int) -> int:  # noqa: N802
        self.streams[handle], self.rooms[handle] = stream or 0, 0  # back to the workspace of its own
        return 0

    def cublasSetWorkspace_v2(self, handle: int, room: int, size: int) -> int:  # noqa: N802
        self.rooms[handle] = room
        return 0

    def cublasGemmStridedBatchedEx(self, handle: int, *args: Any) -> int:  # noqa: N802
        import cupy

        if self.streams[handle] != cupy.cuda.get_current_stream().ptr or not self.rooms[handle]:
            return 14  # CUBLAS_STATUS_INTERNAL_ERROR: the stand-in asks for the current stream and a workspace
        given = [a or 0 for a in args]
        kind = (*given[:2], *(given[k] for k in (7, 20)))
        if _capture.now.capture is not None and kind not in self.loaded:
            return 14  # its kernels would be loaded within the capture, which not every CUDA can do
        self.loaded.add(kind)
        _product((handle, *given))
        _capture.run(
            lambda: ctargets.Cublas().gemmStridedBatchedEx(handle, *given), [], [given[k] for k in (6, 10, 15)]
        )
        return 0


_KEPT: list[Any] = []


def _library() -> str:
    """Return the path of a shared library with these functions."""
    text = []
    for name, types in PARAMETERS.items():
        parameters = ", ".join(f"{type_} a{k}" for k, type_ in enumerate(types))
        values = ", ".join(f"a{k}" for k in range(len(types)))
        text.append(
            f"int (*to_{name})({', '.join(types)});\nint {name}({parameters}) {{ return to_{name}({values}); }}"
        )
    made = load('#include <stddef.h>\nextern "C" {\n' + "\n".join(text) + "\n}", "g++", "-x", "c++", "-w")
    if not _KEPT:
        library = _Library()
        _KEPT.append(library)
        for name, types in PARAMETERS.items():
            function = ctypes.CFUNCTYPE(ctypes.c_int, *(TYPES[type_] for type_ in types))(getattr(library, name))
            _KEPT.append(function)
            ctypes.c_void_p.in_dll(made, f"to_{name}").value = ctypes.cast(function, ctypes.c_void_p).value
    return str(made._name)
