"""Devices, streams, events, the runtime, the driver and cuBLAS."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from cupy import _capture, cards
from cupy._capture import Graph
from cupy._counts import record
from cupy._kernels import FUNCTIONS
from cupy.cuda import compiler, device  # noqa: F401
from cupy.cuda._cublas import Cublas
from cupy.cuda._memory import (  # noqa: F401
    MemoryPointer,
    MemoryPool,
    PythonFunctionAllocator,
    get_allocator,
    set_allocator,
    using_allocator,
)
from cupy.cuda.device import Device  # noqa: F401

OPTIN = 97  # cudaDevAttrMaxSharedMemoryPerBlockOptin
NONPORTABLE = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED


class CUDARuntimeError(RuntimeError):
    pass


class Stream:
    """A name: all is done in the order in which it is asked for."""

    null: Stream
    ptr = 0

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else id(self)

    def __enter__(self) -> Stream:
        _streams.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _streams.pop()

    def synchronize(self) -> None:
        record("waits", "")

    def begin_capture(self, mode: Any = None) -> None:
        if self.ptr == 0 or _capture.now.capture is not None:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        _capture.now.capture = _capture.Capture(self)

    def end_capture(self) -> Graph:
        capture, _capture.now.capture = _capture.now.capture, None
        if capture is None or capture.stream is not self:
            raise CUDARuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        if capture.broken:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        return Graph._of(capture)

    def is_capturing(self) -> bool:
        return _capture.now.capture is not None and _capture.now.capture.stream is self


Stream.null = Stream(null=True)
_streams = [Stream.null]


class Event:
    """A time of the host."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        record("waits", "")


def get_current_stream() -> Stream:
    return _streams[-1]


def get_elapsed_time(start: Event, end: Event) -> float:
    return (end.time - start.time) * 1e3


def is_available() -> bool:
    return bool(cards.CARDS)


def get_cublas_handle() -> int:
    return 1


def get_local_runtime_version() -> int:
    return 12090


def _properties(number: int) -> dict[str, Any]:
    card = cards.CARDS[number]
    return {
        **{"name": card.name.encode(), "major": card.capability // 10, "minor": card.capability % 10},
        **{"multiProcessorCount": card.sms, "totalGlobalMem": 80 << 30, "sharedMemPerBlockOptin": card.shared},
    }


def _attribute(attribute: int, number: int) -> int:
    return {OPTIN: cards.CARDS[number].shared}[attribute]


def _set_device(number: int) -> None:
    if not 0 <= number < len(cards.CARDS):
        raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
    cards.current.number = number


def _set_function_attribute(function: int, attribute: int, value: int) -> None:
    if attribute != NONPORTABLE:
        raise CUDARuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
    FUNCTIONS[function].large_clusters = bool(value)


cublas = Cublas()
driver = SimpleNamespace(funcSetAttribute=_set_function_attribute)
nvrtc = SimpleNamespace(getVersion=lambda: (12, 9))
runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDevice=lambda: cards.current.number,
    setDevice=_set_device,
    getDeviceCount=lambda: len(cards.CARDS),
    getDeviceProperties=_properties,
    deviceGetAttribute=_attribute,
    deviceSynchronize=lambda: record("waits", ""),
    runtimeGetVersion=lambda: 12090,
    driverGetVersion=lambda: 12090,
    memGetInfo=lambda: (60 << 30, 80 << 30),
)
