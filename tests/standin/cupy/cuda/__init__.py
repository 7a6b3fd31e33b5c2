"""Devices, memory, the runtime, the driver and cuBLAS."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cupy import cards
from cupy._capture import Graph  # noqa: F401
from cupy._kernels import FUNCTIONS
from cupy._streams import Event, Stream, get_current_stream, get_elapsed_time, synchronize_all  # noqa: F401
from cupy.cuda import compiler, device  # noqa: F401
from cupy.cuda._cublas import Cublas
from cupy.cuda._memory import (  # noqa: F401
    DefaultPool,
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
    pointerGetAttributes=lambda pointer: SimpleNamespace(device=cards.device_of(pointer)),
    runtimeGetVersion=lambda: 12090,
    driverGetVersion=lambda: 12090,
    memGetInfo=lambda: (60 << 30, 80 << 30),
)
