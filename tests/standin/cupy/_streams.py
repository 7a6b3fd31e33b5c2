"""Streams, events, and the order that they put the device's work into.

All is done when it is asked for; but it is known what a stream has been told to wait for. Memory that one stream filled
and another one reads without such a wait is counted, as a GPU might read it too early. No stream waits for the default
one by itself, as no stream that is made with `non_blocking=True` does.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from typing import Any

import cupy
from cupy import _capture, cards
from cupy._counts import record

PTDS = 2  # the address that the default stream of each thread has
_numbers = itertools.count(1 << 12)
_asked: dict[int, int] = defaultdict(int)  # operations of each stream
_done: dict[int, int] = defaultdict(int)  # those that the host has waited for
_known: dict[tuple[int, int], int] = defaultdict(int)  # those of a second stream that a first one waits for


class _Current(threading.local):
    def __init__(self) -> None:
        self.stacks: dict[int, list[Stream]] = {}  # by devices

    @property
    def stack(self) -> list[Stream]:
        return self.stacks.setdefault(cards.current.number, [Stream.null])


class Stream:
    """A stream by its address."""

    null: Stream
    ptds: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else PTDS if ptds else next(_numbers)

    def __enter__(self) -> Stream:
        current.stack.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        current.stack.pop()

    def use(self) -> Stream:
        current.stack[-1] = self
        return self

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        key = self._key(), event.stream
        _known[key] = max(_known[key], event.asked)

    def synchronize(self) -> None:
        record("waits", "")
        _done[self._key()] = _asked[self._key()]

    def begin_capture(self, mode: Any = None) -> None:
        if self.ptr == 0 or _capture.now.capture is not None:
            raise cupy.cuda.CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        _capture.now.capture = _capture.Capture(self)

    def end_capture(self) -> _capture.Graph:
        capture, _capture.now.capture = _capture.now.capture, None
        if capture is None or capture.stream is not self:
            problem = "cudaErrorIllegalState: the operation cannot be performed in the present state"
            raise cupy.cuda.CUDARuntimeError(problem)
        if capture.broken:
            problem = "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error"
            raise cupy.cuda.CUDARuntimeError(problem)
        return _capture.Graph._of(capture)

    def is_capturing(self) -> bool:
        return _capture.now.capture is not None and _capture.now.capture.stream is self

    def _key(self) -> int:
        """Streams of two threads, or of two devices, differ although they may have one address."""
        own = threading.get_ident() if self.ptr == PTDS else 0
        return hash((self.ptr, own, cards.current.number if self.ptr <= PTDS else 0))


Stream.null, Stream.ptds = Stream(null=True), Stream(ptds=True)
current = _Current()


class Event:
    """A place in the work of a stream, and a time of the host."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.time, self.stream, self.asked = 0.0, 0, 0

    def record(self, stream: Stream | None = None) -> None:
        self.time = time.perf_counter()
        self.stream = (stream or get_current_stream())._key()
        self.asked = _asked[self.stream]

    @property
    def done(self) -> bool:
        return _done[self.stream] >= self.asked

    def synchronize(self) -> None:
        record("waits", "")
        _done[self.stream] = max(_done[self.stream], self.asked)


def get_current_stream(device_id: Any = None) -> Stream:
    return current.stack[-1]


def get_elapsed_time(start: Event, end: Event) -> float:
    return (end.time - start.time) * 1e3


def wait_for(address: int) -> None:
    """Wait for the stream of an address, where 1 is the default one."""
    record("waits", "")
    number = 0 if address == 1 else address
    key = hash((number, 0, cards.current.number if number <= PTDS else 0))
    _done[key] = _asked[key]


def synchronize_all() -> None:
    """Wait for all streams of all devices."""
    record("waits", "")
    _done.update(_asked)


def asked() -> tuple[int, int]:
    """Count an operation of the current stream; return the stream and the number of its operation."""
    key = get_current_stream()._key()
    _asked[key] += 1
    return key, _asked[key]


def in_order(stream: int, number: int) -> bool:
    """Whether the current stream runs after an operation of another one; a graph does what it is launched after."""
    if _capture.now.capture is not None:
        return True
    key = get_current_stream()._key()
    return key == stream or max(_done[stream], _known[key, stream]) >= number
