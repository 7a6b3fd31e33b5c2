"""The types that cuBLAS computes in."""

from types import SimpleNamespace
from typing import Any

import numpy as np

_routines_linalg = SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_PEDANTIC=2, COMPUTE_TYPE_TF32=7)
_types: dict[str, int] = {}


def get_compute_type(dtype: Any) -> int:
    return _types.get(np.dtype(dtype).name, 1)


def set_compute_type(dtype: Any, compute_type: int) -> None:
    _types[np.dtype(dtype).name] = compute_type
