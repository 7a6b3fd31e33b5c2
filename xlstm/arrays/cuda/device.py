"""Kernels of CuPy, and the instructions of a GPU that they use, as the text that most of them begin
with.
"""

from __future__ import annotations

import functools
import struct as packing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.namespace import dtype_name

TEXT = Path(__file__).with_name("device.cuh").read_text(encoding="utf-8")
# C types of elements in memory, by dtype; `widen` makes of one what is computed in, and `narrow`
# the reverse.
TYPES = {"float32": "float", "float64": "double", "float16": "half_t", "bfloat16": "bf16_t"}


def known(dtype: Any) -> bool:
    """Tell whether there are elements of a dtype."""
    return dtype_name(dtype) in TYPES


def type_of(dtype: Any) -> str:
    """Return the C type of elements of a dtype."""
    return TYPES[dtype_name(dtype)]


@functools.cache
def kernel(text: str, name: str, options: tuple[str, ...] = ()) -> Any:
    """Return the kernel of a text, which is compiled once."""
    return optional_imports.cupy().RawKernel(text, name, options, backend="nvrtc")


def struct(numbers: Sequence[Any], rest: bytes = b"", form: str = "") -> np.ndarray[Any, Any]:
    """Return numbers, in a form of the module `struct` or by default of 64 bits, and bytes after
    them as one value.

    A kernel takes it as a struct.
    """
    whole = packing.pack(form or f"{len(numbers)}q", *numbers) + rest
    return np.frombuffer(whole, f"V{len(whole)}")
