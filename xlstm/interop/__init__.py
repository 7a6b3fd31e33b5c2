"""Weights to and from other libraries, and xlstm's layers in their programs; no maths here."""

import importlib
from typing import Any

__all__ = ["c", "jax", "keras", "nxai", "onnx", "tirex", "torch"]


def __getattr__(name: str) -> Any:
    """Import a submodule on first use."""
    if name in __all__:
        return importlib.import_module(f"xlstm.interop.{name}")
    raise AttributeError(f"module 'xlstm.interop' has no attribute {name!r}")
