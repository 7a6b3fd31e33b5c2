"""Small arrays that are the same in every call, which are made once; nobody changes them."""

from __future__ import annotations

import functools
from typing import Any

from xlstm.arrays.namespace import Array, Namespace


@functools.lru_cache(maxsize=64)
def steps(xp: Namespace, n: int, dtype: Any, device: Any) -> Array:
    """Return the numbers from 0 to n - 1."""
    return xp.arange(n, dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
def identity(xp: Namespace, n: int, dtype: Any, device: Any) -> Array:
    """Return a matrix with ones on its diagonal, (n, n)."""
    return xp.eye(n, dtype=dtype, device=device)
