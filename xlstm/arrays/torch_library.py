"""PyTorch as the library of a backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays import checks, optional_imports
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.libraries import Library
from xlstm.arrays.namespace import Namespace
from xlstm.arrays.optional_imports import BackendError


class PyTorch(Library):
    """PyTorch on any of its devices."""

    def choose(self, device: Any) -> tuple[Namespace, Any]:
        """Return the namespace and the device; see `Library`."""
        try:
            torch = optional_imports.torch()
        except ImportError as error:
            raise BackendError("torch: PyTorch is not installed; pip install torch") from error
        import array_api_compat.torch as xp

        try:
            place = torch.device("cpu" if device is None else device)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"backend: {checks.shown(device)} is not a torch device:"
                f" {optional_imports.first_line(error)}"
            ) from error
        try:
            torch.empty(1, device=place)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise BackendError(
                f"torch: device {checks.shown(device)} is not usable:"
                f" {optional_imports.first_line(error)}"
            ) from error
        return xp, place

    def accepted(self, values: Any) -> Any:
        """Return arrays of NumPy as PyTorch takes them: without ml_dtypes, and writeable."""
        if not isinstance(values, np.ndarray):
            return values
        values = to_numpy(values)
        return values if values.flags.writeable else values.copy()

    def synchronize(self, device: Any) -> None:
        """Wait until the device has finished all its work."""
        if device.type == "cuda":
            optional_imports.torch().cuda.synchronize(device)

    def place(self, device: Any) -> str:
        """Return the name of the device; for a GPU, its number and the name of the card."""
        if device.type != "cuda":
            return super().place(device)
        card = optional_imports.torch().cuda.get_device_name(device)
        return f"GPU {device.index or 0} ({card})"
