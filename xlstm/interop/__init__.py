"""Weights in and out of other libraries, and our layers as parts of their programs; no maths."""

import importlib
from typing import Any

__all__ = ["c", "jax", "keras", "nxai", "onnx", "tirex", "torch"]


def __getattr__(name: str) -> Any:
    """Import a submodule on first use."""
    if name in __all__:
        return importlib.import_module(f"xlstm.interop.{name}")
    raise AttributeError(f"module 'xlstm.interop' has no attribute {name!r}")
