"""CUDA graphs: what a function asks of a GPU is captured once, and then asked for by one launch.

Nothing is done while it is captured. A launch does it on the same memory, so that the arrays that a
graph reads and writes must stay where they are. CuPy's own products refuse to be captured; cuBLAS
itself can be where its workspace was set before (cuBLAS, "CUDA Graphs Support"), so its functions
are called by ctypes in the library that CuPy has loaded.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_longlong, c_size_t, c_void_p
from typing import Any

from xlstm.arrays import optional_imports
from xlstm.arrays.namespace import Array
from xlstm.arrays.optional_imports import BackendError

PER_THREAD = 2  # the address that CUDA has for the default stream of each thread
StreamKey = tuple[int, int]  # an address, and for `PER_THREAD` the thread


class CudaGraph:
    """A graph of CUDA, and all that it needs.

    Attributes
    ----------
    kept : list
        Arrays that it reads and that others may drop.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.kept = list[Any]()
        self.executable = None

    def launch(self) -> None:
        """Ask for everything that was captured, on the stream of the recorder, which has to be
        current.
        """
        self.recorder.check()
        self.executable.launch()  # type: ignore[attr-defined]


class _HeldMemory:
    """Memory from the allocator that is current, which is not given back before this object is
    gone.

    A pool gives memory back where it has too little, but graphs write to it whenever they are
    launched.
    """

    def __init__(self) -> None:
        cuda = optional_imports.cupy().cuda
        self._take = cuda.get_allocator()
        self._stream = cuda.get_current_stream()
        self._chunks = list[Any]()

    def malloc(self, size: int, device: int) -> int:
        # on which graphs are launched: others may have used the memory there before
        with self._stream:
            self._chunks.append(self._take(size))
        return int(self._chunks[-1].ptr)

    def free(self, address: int, device: int) -> None:
        pass


class _Memory:
    """Memory of graphs, which goes back when this object is gone: the recorder, its graphs and
    their arrays have it.
    """

    def __init__(self) -> None:
        cuda = optional_imports.cupy().cuda
        source = _HeldMemory()
        self.pool = cuda.MemoryPool(cuda.PythonFunctionAllocator(source.malloc, source.free).malloc)
        weakref.finalize(self, _emptied, self.pool, cuda.Device()).atexit = False

    def malloc(self, size: int) -> Any:
        cuda = optional_imports.cupy().cuda
        memory = self.pool.malloc(size)
        return cuda.MemoryPointer(
            cuda.UnownedMemory(memory.ptr, size, (self, memory), memory.device_id), 0
        )


def _emptied(pool: Any, device: Any) -> None:
    """Give back what is free in a pool, which CuPy does not do for a pool that is gone."""
    with device:
        pool.free_all_blocks()


class Recorder:
    """Captures graphs that are launched one at a time, and that share the memory of their
    intermediate arrays.

    Attributes
    ----------
    stream : StreamKey
        The stream that was current when this object was made, on which the graphs are launched.
    """

    def __init__(self) -> None:
        self._memory = _Memory()
        self._stream = optional_imports.cupy().cuda.Stream(non_blocking=True)
        self._cublas = Handle()
        self.stream = stream()

    def check(self) -> None:
        """Raise ValueError where another stream is current: it does not wait for what graphs read
        and overwrite.
        """
        if (came := stream()) != self.stream:
            expected = f"expected {self.stream}, for which the graph was made"
            raise ValueError(
                f"CUDA graph: the current stream and the thread it is of are {came}, {expected}"
            )

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Multiply as captures do, so that all that cuBLAS needs is loaded before."""
        self._cublas.use(optional_imports.cupy().cuda.get_current_stream().ptr)
        token = _handle.set(self._cublas)
        try:
            yield
        finally:
            _handle.reset(token)

    def capture(self, function: Callable[[], None]) -> CudaGraph:
        """Return the graph of what a function asks for; it was called in a rehearsal, which
        compiled its kernels.
        """
        self.check()
        graph = CudaGraph(self)
        token = _capturing.set(graph)
        try:
            with (
                optional_imports.cupy().cuda.using_allocator(self._memory.malloc),
                self._stream,
                self.rehearsal(),
            ):
                graph.executable = _captured(self._stream, function)
        finally:
            _capturing.reset(token)
        return graph


def _captured(stream: Any, function: Callable[[], None]) -> Any:
    stream.begin_capture()
    try:
        function()
    except BaseException:
        with contextlib.suppress(Exception):  # CUDA says a second time that the capture failed
            stream.end_capture()
        raise
    return stream.end_capture()


def capturing() -> CudaGraph | None:
    """Return the graph that is captured now, if any."""
    return _capturing.get()


def stream() -> StreamKey:
    """Return the stream that work is done on: within a capture, that of the graph's launches."""
    if (graph := _capturing.get()) is not None:
        return graph.recorder.stream
    address = int(optional_imports.cupy().cuda.get_current_stream().ptr)
    return address, threading.get_ident() if address == PER_THREAD else 0


def handle() -> Handle | None:
    """Return the handle of cuBLAS that captures and their rehearsals multiply with, within one."""
    return _handle.get()


_handle: contextvars.ContextVar[Handle | None] = contextvars.ContextVar("handle", default=None)
_capturing: contextvars.ContextVar[CudaGraph | None] = contextvars.ContextVar(
    "capturing", default=None
)


# Parameters of cublasGemmStridedBatchedEx: the transpositions and sizes, alpha, A, B, beta, C, and
# how it is computed.
OPERAND = (c_void_p, c_int, c_int, c_longlong)
GEMM = (c_void_p, *[c_int] * 5, c_void_p, *OPERAND, *OPERAND, c_void_p, *OPERAND, *[c_int] * 3)


class Handle:
    """A handle of cuBLAS with a workspace of its own, for products that are captured on one stream
    at a time.
    """

    def __init__(self) -> None:
        cp = optional_imports.cupy()
        number = c_void_p()
        # cuBLAS takes as many bytes by itself: with others it may multiply in another way.
        size = 32 << 20 if int(cp.cuda.Device().compute_capability) >= 90 else 4 << 20
        self.workspace: Array = cp.empty((size,), dtype=cp.uint8)
        _call("cublasCreate_v2", (c_void_p,), byref(number))
        self.number = number.value
        weakref.finalize(self, _call, "cublasDestroy_v2", (c_void_p,), self.number).atexit = False

    def use(self, stream: int) -> None:
        """Multiply on a stream from now on."""
        _call("cublasSetStream_v2", (c_void_p, c_void_p), self.number, stream)
        room = self.workspace
        _call(
            "cublasSetWorkspace_v2",
            (c_void_p, c_void_p, c_size_t),
            self.number,
            room.data.ptr,
            room.nbytes,
        )

    def gemm(self, *args: int) -> None:
        """Do as CuPy's `gemmStridedBatchedEx`, of which the handle is left out."""
        _call("cublasGemmStridedBatchedEx", GEMM, self.number, *args)


def _call(name: str, types: tuple[Any, ...], *args: Any) -> None:
    status = _function(name, types)(*args)
    if status:
        raise BackendError(f"cuBLAS: {name} returned {status}")


@functools.cache
def _function(name: str, types: tuple[Any, ...]) -> Any:
    """Return a function of the cuBLAS that CuPy has loaded: systems find a library that is there by
    its name.
    """
    cuda = optional_imports.cupy().cuda
    cuda.get_cublas_handle()  # loads it
    version = cuda.runtime.runtimeGetVersion() // 1000  # of 12090, say
    windows = sys.platform == "win32"
    library = f"cublas64_{version}.dll" if windows else f"libcublas.so.{version}"
    try:
        function = getattr(ctypes.CDLL(library), name)
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"cuBLAS: {name} is not found in {library} ({optional_imports.first_line(error)})"
        ) from error
    function.argtypes = types
    function.restype = c_int
    return function
