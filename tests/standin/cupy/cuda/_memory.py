"""Pools of memory: the arrays of the stand-in lie elsewhere, and only ask for it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from cupy import cards


class MemoryPointer:
    """An address of memory, in which nothing lies here."""

    def __init__(self, ptr: int, free: Any = None) -> None:
        self.ptr, self._free = ptr, free

    def __del__(self) -> None:
        if self._free is not None:
            self._free(self.ptr, cards.current.number)


class PythonFunctionAllocator:
    """Memory from functions."""

    def __init__(self, malloc_func: Any, free_func: Any) -> None:
        self._malloc, self._free = malloc_func, free_func

    def malloc(self, size: int) -> MemoryPointer:
        return MemoryPointer(self._malloc(size, cards.current.number), self._free)


class MemoryPool:
    """The pool of the current device."""

    def __init__(self, allocator: Any = None) -> None:
        self._allocator, self._blocks = allocator, list[MemoryPointer]()

    def malloc(self, size: int) -> MemoryPointer:
        if self._allocator is None:
            return MemoryPointer(next(_ADDRESSES))
        self._blocks.append(self._allocator(size))
        return MemoryPointer(self._blocks[-1].ptr)

    def used_bytes(self) -> int:
        return cards.card().used

    total_bytes = used_bytes

    def free_all_blocks(self) -> None:
        self._blocks.clear()


def get_allocator() -> Any:
    return _allocators[-1]


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    _allocators.append(allocator)
    try:
        yield
    finally:
        _allocators.pop()


def set_allocator(allocator: Any = None) -> None:
    pass


_ADDRESSES = itertools.count(1 << 40, 1 << 20)
default = MemoryPool().malloc
_allocators = [default]
