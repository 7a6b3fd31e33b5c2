"""Pools of memory: the arrays of the stand-in lie elsewhere, and only ask for it."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from cupy import cards


class MemoryPointer:
    """An address of memory, in which nothing lies here."""

    def __init__(self, ptr: int, free: Callable[[], None]) -> None:
        self.ptr, self._free = ptr, free

    def __del__(self) -> None:
        self._free()


class PythonFunctionAllocator:
    """Memory from functions."""

    def __init__(self, malloc_func: Any, free_func: Any) -> None:
        self._malloc, self._free = malloc_func, free_func

    def malloc(self, size: int) -> MemoryPointer:
        number = cards.current.number
        address = self._malloc(size, number)
        return MemoryPointer(address, lambda: self._free(address, number))


class MemoryPool:
    """A pool of its own."""

    def __init__(self, allocator: Any = None) -> None:
        self._allocator, self._blocks, self._used = allocator, list[MemoryPointer](), 0

    def malloc(self, size: int) -> MemoryPointer:
        if self._allocator is None:
            address = next(_ADDRESSES)
        else:
            self._blocks.append(self._allocator(size))
            address = self._blocks[-1].ptr
        self._used += size
        return MemoryPointer(address, lambda: self._back(size))

    def _back(self, size: int) -> None:
        self._used -= size

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self.used_bytes()

    def free_all_blocks(self) -> None:
        self._blocks.clear()


class DefaultPool(MemoryPool):
    """The pool of the current device."""

    def used_bytes(self) -> int:
        return cards.card().used


class _Allocators(threading.local):
    def __init__(self) -> None:
        self.stack: list[Any] = []


_ADDRESSES = itertools.count(1 << 40, 1 << 20)
default = DefaultPool().malloc  # arrays do not call it: their memory is that of their device
_allocators, _everywhere = _Allocators(), [default]


def set_allocator(allocator: Any = None) -> None:
    _everywhere[0] = allocator or default


def get_allocator() -> Any:
    return _allocators.stack[-1] if _allocators.stack else _everywhere[0]


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    _allocators.stack.append(allocator)
    try:
        yield
    finally:
        _allocators.stack.pop()
