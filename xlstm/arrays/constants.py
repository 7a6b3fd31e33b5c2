"""Small arrays that are the same in every call, which are made once; nobody changes them."""

from __future__ import annotations

import functools
from typing import Any

from xlstm.arrays.namespace import Array, Namespace


class Home:
    """A device as a key: CuPy's own have no hash."""

    def __init__(self, device: Any) -> None:
        self.device, self._text = device, str(device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Home) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def steps(xp: Namespace, n: int, dtype: Any, device: Any) -> Array:
    """Return the numbers from 0 to n - 1."""
    return _steps(xp, n, dtype, Home(device))


def identity(xp: Namespace, n: int, dtype: Any, device: Any) -> Array:
    """Return a matrix with ones on its diagonal, (n, n)."""
    return _identity(xp, n, dtype, Home(device))


def number(xp: Namespace, value: float, dtype: Any, device: Any) -> Array:
    """Return a number as an array without axes."""
    return _number(xp, value, dtype, Home(device))


@functools.lru_cache(maxsize=64)
def _steps(xp: Namespace, n: int, dtype: Any, home: Home) -> Array:
    return xp.arange(n, dtype=dtype, device=home.device)


@functools.lru_cache(maxsize=64)
def _number(xp: Namespace, value: float, dtype: Any, home: Home) -> Array:
    return xp.full((), value, dtype=dtype, device=home.device)


@functools.lru_cache(maxsize=64)
def _identity(xp: Namespace, n: int, dtype: Any, home: Home) -> Array:
    return xp.eye(n, dtype=dtype, device=home.device)
