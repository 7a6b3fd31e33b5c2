"""Operations on memory, which are done at once, or kept while a stream captures and done by each launch of the graph.

A capture does nothing: what it makes holds the values of memory that nobody has written. It refuses what CUDA and CuPy
refuse. A launch refuses to read or write memory of before the capture that was given back since.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import cupy
import numpy as np
from cupy import cards
from cupy._dtypes import canonical

GUARD = "calling cuBLAS API during stream capture is currently unsupported"


class Capture:
    """Operations of a stream that are kept.

    Attributes
    ----------
    own : list
        Memory of the arrays that were made meanwhile: the pool of the capture keeps it.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.broken = stream, False
        self.operations: list[Callable[[], None]] = []
        self.own: list[Any] = []
        self.numbers: set[int] = set()  # of allocations of this capture
        self.outside: list[weakref.ref[Any]] = []

    def add(self, run: Callable[[], None], memories: Iterable[Any]) -> None:
        if cupy.cuda.get_current_stream() is not self.stream:
            refuse(
                "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing stream"
            )
        self.operations.append(run)
        self.outside += [weakref.ref(m) for m in memories if id(m) not in self.numbers]

    def allocated(self, array: Any) -> None:
        """Take note of an array that is made within the capture; raise where its memory will be given to others."""
        if array._memory.held is None:
            raise RuntimeError("the stand-in: an array of a capture lies in memory that the pool gives to others later")
        self.own += [array._host, array._memory]
        self.numbers.add(id(array._memory))


class _Now(threading.local):
    capture: Capture | None = None


now = _Now()


def refuse(problem: str) -> None:
    """Raise as CUDA does, and spoil the capture."""
    assert now.capture is not None
    now.capture.broken = True
    raise cupy.cuda.CUDARuntimeError(problem)


def asked(kind: str) -> None:
    """Raise where an operation of a kind is not possible now."""
    if now.capture is not None and kind in ("to_device", "to_host", "waits"):
        refuse("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
    if now.capture is not None and kind == "compiled":
        refuse("the stand-in: a kernel is compiled and loaded in a capture, which not every CUDA can do")


def guard() -> None:
    """Raise as CuPy's functions of cuBLAS do."""
    if now.capture is not None:
        now.capture.broken = True
        raise NotImplementedError(GUARD)


def run(function: Callable[[], None], arrays: Iterable[Any], addresses: Iterable[int] = ()) -> None:
    """Do something with arrays, now or later; `addresses` are those of more memory that it may use."""
    if now.capture is None:
        function()
        return
    used = [a._memory for a in arrays if isinstance(a, cupy.ndarray)]
    now.capture.add(function, [*used, *cards.there(addresses)])


def made(compute: Callable[[], Any], arrays: Iterable[Any]) -> Any:
    """Return an array with what `compute` makes of others."""
    with np.errstate(all="ignore") if now.capture is not None else contextlib.nullcontext():
        found = cupy.ndarray._made(compute())
    if now.capture is not None:
        cupy._array._spoil(found._host)
        run(lambda host=found._host: put(host, compute()), arrays)
    return found


def put(host: Any, values: Any) -> None:
    """Write values that were computed."""
    host[...] = values
    canonical(host)


class Graph:
    """The operations that were captured."""

    def __init__(self, *args: Any) -> None:
        raise NotImplementedError("currently this class cannot be initiated by the user")

    @classmethod
    def _of(cls, capture: Capture) -> Graph:
        found = cls.__new__(cls)
        found._capture = capture
        return found

    def launch(self, stream: Any = None) -> None:
        from cupy import _streams
        from cupy._counts import record

        record("launches", "graph")
        used = {memory() for memory in self._capture.outside}
        if None in used:
            raise cupy.cuda.CUDARuntimeError("cudaErrorIllegalAddress: a graph uses memory that was given back")
        for memory in used:
            if not _streams.in_order(*memory.filled):
                record("unordered", f"{memory.nbytes} bytes of a graph")
        with np.errstate(all="ignore"):
            for operation in self._capture.operations:
                operation()
