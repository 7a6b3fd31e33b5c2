"""The stream of the current work on CuPy, and the CUDA graph that is being captured on it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

from xlstm.arrays import optional_imports

PER_THREAD = 2  # CUDA's address of the default stream of each thread
StreamKey = tuple[int, int]  # an address, and for `PER_THREAD` the thread

_capturing: contextvars.ContextVar[Any] = contextvars.ContextVar("capturing", default=None)


def capturing() -> Any:
    """Return the graph whose capture is under way, a `CudaGraph`, or None."""
    return _capturing.get()


@contextlib.contextmanager
def capture_of(graph: Any) -> Iterator[None]:
    """Let `capturing` return a graph within the context."""
    token = _capturing.set(graph)
    try:
        yield
    finally:
        _capturing.reset(token)


def stream() -> StreamKey:
    """Return the stream of the current work; in a capture, the stream of the graph's launches."""
    if (graph := _capturing.get()) is not None:
        return graph.recorder.stream  # type: ignore[no-any-return]
    address = int(optional_imports.cupy().cuda.get_current_stream().ptr)
    return address, threading.get_ident() if address == PER_THREAD else 0
