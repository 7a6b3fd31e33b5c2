"""Devices, memory, the runtime, the driver and cuBLAS."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from cupy import cards
from cupy._kernels import FUNCTIONS
from cupy._streams import Event, Stream, get_current_stream, get_elapsed_time, synchronize_all  # noqa: F401
from cupy.cuda import compiler, device  # noqa: F401
from cupy.cuda._cublas import Cublas
from cupy.cuda.device import Device  # noqa: F401

OPTIN = 97  # cudaDevAttrMaxSharedMemoryPerBlockOptin
NONPORTABLE = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED


class CUDARuntimeError(RuntimeError):
    pass


class MemoryPointer:
    """Memory that an allocator gave."""

    def __init__(self, pool: MemoryPool, size: int) -> None:
        self.pool, self.size = pool, size
        pool.used += size

    def __del__(self) -> None:
        self.pool.used -= self.size


class MemoryPool:
    """A pool of its own."""

    def __init__(self, allocator: Any = None) -> None:
        self.used = 0

    def malloc(self, size: int) -> MemoryPointer:
        return MemoryPointer(self, size)

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return self.used_bytes()

    def free_all_blocks(self) -> None:
        pass


class DefaultPool(MemoryPool):
    """The pool of the current device."""

    def used_bytes(self) -> int:
        return cards.card().used


class _Allocators(threading.local):
    def __init__(self) -> None:
        self.stack: list[Any] = []


_allocators, _default = _Allocators(), [None]


def set_allocator(allocator: Any = None) -> None:
    _default[0] = allocator


def get_allocator() -> Any:
    return _allocators.stack[-1] if _allocators.stack else _default[0]


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    _allocators.stack.append(allocator)
    try:
        yield
    finally:
        _allocators.stack.pop()


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
    deviceSynchronize=synchronize_all,
    runtimeGetVersion=lambda: 12090,
    driverGetVersion=lambda: 12090,
    memGetInfo=lambda: (60 << 30, 80 << 30),
)
