"""Views by strides."""

from types import SimpleNamespace
from typing import Any

from numpy.lib.stride_tricks import as_strided


def _as_strided(x: Any, shape: Any = None, strides: Any = None) -> Any:
    return x._view(as_strided(x._host, shape, strides))


stride_tricks = SimpleNamespace(as_strided=_as_strided)
