"""Kernels of CuPy, and the text with GPU instructions that most of them begin with."""

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
# C types of elements in memory, by dtype; `widen` turns an element into the type to compute in,
# `narrow` does the reverse.
TYPES = {"float32": "float", "float64": "double", "float16": "half_t", "bfloat16": "bf16_t"}


def known(dtype: Any) -> bool:
    """Tell whether kernels know a dtype."""
    return dtype_name(dtype) in TYPES


def type_of(dtype: Any) -> str:
    """Return the C type of elements of a dtype."""
    return TYPES[dtype_name(dtype)]


@functools.cache
def kernel(text: str, name: str, options: tuple[str, ...] = ()) -> Any:
    """Return the kernel of a text, compiled once."""
    return optional_imports.cupy().RawKernel(text, name, options, backend="nvrtc")


def struct(numbers: Sequence[Any], rest: bytes = b"", form: str = "") -> np.ndarray[Any, Any]:
    """Return numbers, and bytes after them, as one value that a kernel takes as a struct.

    `form` is a format of the module `struct`; by default each number has 64 bits.
    """
    whole = packing.pack(form or f"{len(numbers)}q", *numbers) + rest
    return np.frombuffer(whole, f"V{len(whole)}")
