"""CUDA graphs: what a function asks of a GPU is captured once, and then asked for by one launch.

Nothing is done while it is captured. A launch does it on the same memory, so that the arrays that a graph reads and
writes must stay where they are.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable
from typing import Any, TypeVar

from xlstm.arrays import probe
from xlstm.arrays.cublas import Handle

Kept = TypeVar("Kept")


class Graph:
    """A graph of CUDA, and all that it needs.

    Attributes
    ----------
    kept : list
        Arrays that it reads and that others may drop.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.kept, self.made = recorder, list[Any](), None

    def launch(self) -> None:
        """Ask for everything that was captured, on the current stream."""
        self.made.launch()  # type: ignore[attr-defined]


class Recorder:
    """Captures graphs that are launched one at a time, and that share the memory of their intermediate arrays.

    That memory is taken from the current pool and not given back before the recorder and all its graphs are gone: a
    graph writes to it whenever it is launched.
    """

    def __init__(self) -> None:
        cuda = probe.cupy().cuda
        self._take, self._memory = cuda.get_allocator(), list[Any]()
        self._pool = cuda.MemoryPool(cuda.PythonFunctionAllocator(self._malloc, self._free).malloc)
        self._stream = cuda.Stream(non_blocking=True)
        self.cublas = Handle()

    def capture(self, function: Callable[[], None]) -> Graph:
        """Return the graph of what a function asks for; it was called before, so that its kernels are compiled."""
        graph, cuda = Graph(self), probe.cupy().cuda
        token = _capturing.set(graph)
        try:
            with cuda.using_allocator(self._pool.malloc), self._stream:
                self.cublas.use(self._stream.ptr)
                graph.made = _captured(self._stream, function)
        finally:
            _capturing.reset(token)
        return graph

    def _malloc(self, size: int, device: int) -> int:
        self._memory.append(self._take(size))
        return int(self._memory[-1].ptr)

    def _free(self, address: int, device: int) -> None:
        """Keep it: the pool gives memory back where it has too little, and graphs have its address."""


def _captured(stream: Any, function: Callable[[], None]) -> Any:
    stream.begin_capture()
    try:
        function()
    except BaseException:
        with contextlib.suppress(Exception):  # CUDA says a second time that the capture failed
            stream.end_capture()
        raise
    return stream.end_capture()


def capturing() -> Graph | None:
    """Return the graph that is captured now, if any."""
    return _capturing.get()


def kept(found: Kept) -> Kept:
    """Return what a cache has found, and keep it as long as the graph that is captured now, if any."""
    if (graph := _capturing.get()) is not None:
        graph.kept.append(found)
    return found


_capturing: contextvars.ContextVar[Graph | None] = contextvars.ContextVar("capturing", default=None)
