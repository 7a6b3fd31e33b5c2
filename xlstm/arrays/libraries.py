"""The differences between array libraries when a backend is chosen and arrays are made."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Namespace
from xlstm.core.places import imported

# The module of each library, and the name of its class there; each is imported on first use.
LIBRARIES = {
    "numpy": "xlstm.arrays.libraries:Library",
    "cupy": "xlstm.arrays.cupy_library:CuPy",
    "torch": "xlstm.arrays.torch_library:PyTorch",
}


class Library:
    """NumPy, and the base of the other libraries."""

    def choose(self, device: Any) -> tuple[Namespace, Any]:
        """Return the namespace, and the device that a user named, or the default one for None.

        Raises
        ------
        ValueError
            There is no such device.
        BackendError
            The library or the device does not work here.
        """
        if device is not None and str(device) != "cpu":
            raise ValueError(
                f"backend: numpy has only the device 'cpu', got {checks.shown(device)}"
            )
        return np, "cpu"

    def check_bfloat16(self) -> None:
        """Raise BackendError if the library has no bfloat16."""

    def current(self, device: Any) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which new arrays are made on a device."""
        return contextlib.nullcontext()

    def accepted(self, values: Any) -> Any:
        """Return values in a form that the library's `asarray` takes."""
        return values

    def synchronize(self, device: Any) -> None:
        """Wait until a device has finished all its work."""

    def place(self, device: Any) -> str:
        """Return the name of a device; for a GPU, with the name of the card."""
        return "CPU" if str(device) == "cpu" else str(device)


@functools.cache
def library_of(name: str) -> Library:
    """Return a library by its name; one that is not in the table is like NumPy."""
    library: Library = imported(LIBRARIES.get(name, LIBRARIES["numpy"]))()
    return library
