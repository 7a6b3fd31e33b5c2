"""CuPy as the library of a backend."""

from __future__ import annotations

import contextlib
from typing import Any

from xlstm.arrays import checks, optional_imports
from xlstm.arrays.libraries import Library
from xlstm.arrays.namespace import Namespace
from xlstm.arrays.optional_imports import BackendError


class CuPy(Library):
    """CuPy on an NVIDIA GPU, or on an AMD GPU without kernels of our own."""

    def choose(self, device: Any) -> tuple[Namespace, Any]:
        """Return the namespace and the device; see `Library`."""
        works = optional_imports.cupy_failure() is None
        current = int(optional_imports.cupy().cuda.runtime.getDevice()) if works else 0
        number = getattr(device, "id", current if device is None else device)
        is_number = isinstance(number, int) and not isinstance(number, bool)
        if not is_number or not 0 <= number <= checks.LARGEST:
            raise ValueError(
                f"backend: a cupy device is a number from 0 up, got {checks.shown(device)}"
            )
        failure = optional_imports.cupy_failure(None if number == current else number)
        if failure is not None:
            raise BackendError(f"cupy: {failure}")
        if number != current:  # new arrays go to the current device, whatever `device=` says
            raise ValueError(
                f"backend: cupy device {number} is not the current one; make it so with"
                f" cupy.cuda.Device({number}).use()"
            )
        import array_api_compat.cupy as xp

        return xp, optional_imports.cupy().cuda.Device(number)

    def check_bfloat16(self) -> None:
        """Raise BackendError if this CuPy has no bfloat16."""
        version = optional_imports.cupy().__version__
        if int(version.split(".")[0]) < 14:
            raise BackendError(
                f"cupy: bfloat16 needs CuPy 14 or newer, this is {version}; {optional_imports.CUPY}"
            )
        if optional_imports.rocm():
            raise BackendError(
                "cupy: bfloat16 needs CUDA, this is CuPy for ROCm; use float16 or float32"
            )

    def current(self, device: Any) -> contextlib.AbstractContextManager[Any]:
        """Return the device, which is a context of CuPy."""
        return device  # type: ignore[no-any-return]

    def synchronize(self, device: Any) -> None:
        """Wait until the device has finished all its work."""
        device.synchronize()

    def place(self, device: Any) -> str:
        """Return the number of the device and the name that CUDA gives it, also for an emulation."""
        properties = optional_imports.cupy().cuda.runtime.getDeviceProperties(device.id)
        return f"device {device.id} ({properties['name'].decode()})"
