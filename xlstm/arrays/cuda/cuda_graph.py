"""CUDA graphs: the GPU work of a function is captured once, and then started by one launch.

The capture computes nothing. A launch works on the memory of the capture, so the arrays that a
graph reads and writes must stay in their places. CuPy's own products refuse to be captured. cuBLAS
itself allows it once its workspace is set (cuBLAS, "CUDA Graphs Support"), so this module calls its
functions by ctypes in the library that CuPy has loaded.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_longlong, c_size_t, c_void_p
from typing import Any

from xlstm.arrays import optional_imports
from xlstm.arrays.capture import capture_of, stream
from xlstm.arrays.namespace import Array
from xlstm.arrays.optional_imports import BackendError


class CudaGraph:
    """A graph of CUDA, and everything that it needs.

    Attributes
    ----------
    kept : list
        Arrays that the graph reads and that others may drop.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.kept = list[Any]()
        self.executable = None

    def launch(self) -> None:
        """Run everything that was captured, on the recorder's stream, which must be current."""
        self.recorder.check()
        self.executable.launch()  # type: ignore[attr-defined]


class _HeldMemory:
    """Memory from the current allocator, held as long as this object lives.

    A pool that runs short gives free memory back, but graphs write to their memory at every launch.
    """

    def __init__(self) -> None:
        cuda = optional_imports.cupy().cuda
        self._take = cuda.get_allocator()
        self._stream = cuda.get_current_stream()
        self._chunks = list[Any]()

    def malloc(self, size: int, device: int) -> int:
        # the stream of launches: other work on it may have used this memory before
        with self._stream:
            self._chunks.append(self._take(size))
        return int(self._chunks[-1].ptr)

    def free(self, address: int, device: int) -> None:
        pass


class _Memory:
    """Memory of graphs, freed with this object, which recorder, graphs and their arrays share."""

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
    """Give back the free memory of a pool; CuPy does not do so for a pool that is gone."""
    with device:
        pool.free_all_blocks()


class Recorder:
    """A recorder of graphs that share the memory of intermediate arrays, and run one at a time.

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
        """Raise ValueError if another stream is current.

        That stream would not wait for the arrays that graphs read and overwrite.
        """
        if (came := stream()) != self.stream:
            expected = f"expected {self.stream}, for which the graph was made"
            raise ValueError(
                f"CUDA graph: the current stream and the thread it is of are {came}, {expected}"
            )

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Multiply as in a capture, so that cuBLAS loads everything before the capture."""
        self._cublas.use(optional_imports.cupy().cuda.get_current_stream().ptr)
        token = _handle.set(self._cublas)
        try:
            yield
        finally:
            _handle.reset(token)

    def capture(self, function: Callable[[], None]) -> CudaGraph:
        """Return the graph of a function's work.

        A rehearsal must have called the function before, to compile its kernels.
        """
        self.check()
        graph = CudaGraph(self)
        with (
            capture_of(graph),
            optional_imports.cupy().cuda.using_allocator(self._memory.malloc),
            self._stream,
            self.rehearsal(),
        ):
            graph.executable = _captured(self._stream, function)
        return graph


def _captured(stream: Any, function: Callable[[], None]) -> Any:
    stream.begin_capture()
    try:
        function()
    except BaseException:
        with contextlib.suppress(Exception):  # CUDA reports the failed capture a second time
            stream.end_capture()
        raise
    return stream.end_capture()


def handle() -> Handle | None:
    """Return the handle of cuBLAS for products, inside a capture or a rehearsal."""
    return _handle.get()


_handle: contextvars.ContextVar[Handle | None] = contextvars.ContextVar("handle", default=None)


# Parameters of cublasGemmStridedBatchedEx: the transpositions and sizes, alpha, A, B, beta, C, and
# the type to compute in.
OPERAND = (c_void_p, c_int, c_int, c_longlong)
GEMM = (c_void_p, *[c_int] * 5, c_void_p, *OPERAND, *OPERAND, c_void_p, *OPERAND, *[c_int] * 3)


class Handle:
    """A handle of cuBLAS with its own workspace, for products captured on one stream at a time."""

    def __init__(self) -> None:
        cp = optional_imports.cupy()
        number = c_void_p()
        # cuBLAS's own default: with another number of bytes it may choose another algorithm.
        size = 32 << 20 if int(cp.cuda.Device().compute_capability) >= 90 else 4 << 20
        self.workspace: Array = cp.empty((size,), dtype=cp.uint8)
        _call("cublasCreate_v2", (c_void_p,), byref(number))
        self.number = number.value
        weakref.finalize(self, _call, "cublasDestroy_v2", (c_void_p,), self.number).atexit = False

    def use(self, stream: int) -> None:
        """Use a stream for all products from now on."""
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
        """Run `gemmStridedBatchedEx` as CuPy's does, without its argument for the handle."""
        _call("cublasGemmStridedBatchedEx", GEMM, self.number, *args)


def _call(name: str, types: tuple[Any, ...], *args: Any) -> None:
    status = _function(name, types)(*args)
    if status:
        raise BackendError(f"cuBLAS: {name} returned {status}")


@functools.cache
def _function(name: str, types: tuple[Any, ...]) -> Any:
    """Return a function of the cuBLAS that CuPy has loaded; the system finds it by its name."""
    cuda = optional_imports.cupy().cuda
    cuda.get_cublas_handle()  # loads it
    version = cuda.runtime.runtimeGetVersion() // 1000  # 12 from 12090, say
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
