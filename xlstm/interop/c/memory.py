"""The memory of a C program: which variable holds each result, and which new states overwrite old
ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xlstm.interop.c.arrays import Node
from xlstm.interop.c.kernels import Kernel, Store, is_whole

# keywords of C and C++, and macros of math.h and of compilers
KEYWORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
char32_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
constinit continue decltype default delete do double dynamic_cast else enum explicit export extern
false final float for friend goto if inline int long mutable namespace new noexcept not not_eq
nullptr operator or or_eq private protected public register reinterpret_cast requires restrict
return short signed sizeof static static_assert static_cast struct switch template this
thread_local throw true try typedef typeid typename typeof union unsigned using virtual void
volatile wchar_t while xor xor_eq INFINITY NAN HUGE_VAL M_E M_PI linux unix
"""
# names that every written function uses or calls
OWN = """
expf expm1f fabsf logf log1pf sqrtf tanhf state w x y x0 x1 x2 x3 x4 x5 x6 x7 part head row column
unit
"""


@dataclass(frozen=True)
class Memory:
    """Consecutive numbers: a named array, or a variable for a single local number."""

    name: str
    size: int
    start: int = 0
    local: bool = False

    @property
    def declaration(self) -> str:
        """The statement that declares the memory."""
        return f"float {self.name}{'' if self.size == 1 else f'[{self.size}]'};"

    def at(self, index: str) -> str:
        """Return the expression of the number at an index."""
        return self.name if self.local and self.size == 1 else f"{self.name}[{index}]"


def unique(name: str, names: set[str]) -> str:
    """Return a C name that is not in use, and add it to the names."""
    name = name if name.isascii() and name.isidentifier() else "v"
    k = 1
    unused = name
    while unused in names:
        k += 1
        unused = f"{name}{k}"
    names.add(unused)
    return unused


class Layout:
    """An assignment of memory to every store of kernels.

    Parameters
    ----------
    kernels : list of Kernel
    memory : dict of Node to Memory
        The memory of the inputs, which are x, the states, and y.
    reserved : collection of str
        Names that local variables must not have.

    Attributes
    ----------
    memory : dict of Node to Memory
        The memory of all stored nodes, except constants.
    copies : list of (Store, Memory)
        New states that are copied over the old ones once nothing reads the old ones any more.
    names : set of str
        The names in use.
    """

    def __init__(
        self, kernels: Sequence[Kernel], memory: Mapping[Node, Memory], reserved: Collection[str]
    ) -> None:
        self.kernels = kernels
        self.memory = dict(memory)
        self.copies: list[tuple[Store, Memory]] = []
        self.names = {*KEYWORDS.split(), *OWN.split(), *reserved}
        for k, kernel in enumerate(kernels):
            for store in kernel.stores:
                if store.to in memory:
                    self._place_result(k, kernel, store)
        for kernel in kernels:
            for store in kernel.stores:
                if store.to not in self.memory:
                    self.memory[store.to] = self._local(store.to.name, store.to.size)

    def target(self, store: Store) -> Memory:
        """Return the memory that a store writes to."""
        copied = (memory for of, memory in self.copies if of is store)
        to = self.memory[store.to]
        return next(copied, Memory(to.name, to.size, to.start + store.start, to.local))

    def is_copied(self, store: Store) -> bool:
        """Return whether a store is copied to its place later."""
        return any(of is store for of, _ in self.copies)

    def _local(self, name: str, size: int) -> Memory:
        return Memory(unique(name, self.names), size, local=True)

    def _place_result(self, k: int, kernel: Kernel, store: Store) -> None:
        """Place a kernel's result at its destination if that is free by then; otherwise note a
        copy.
        """
        node = store.value.node
        if not self._is_free(k, store):
            self.copies.append((store, self._local(f"next_{store.to.name}", store.value.size)))
        elif (
            node not in self.memory
            and any(other.to is node for other in kernel.stores)
            and is_whole(node, store.value.places)
        ):
            to = self.memory[store.to]
            self.memory[node] = Memory(to.name, to.size, store.start)

    def _is_free(self, k: int, store: Store) -> bool:
        """Return whether kernel k and later kernels read none of the numbers that a store of k
        overwrites.

        The number that each new number replaces does not count.
        """
        own = np.arange(store.start, store.start + store.value.size)
        for number, kernel in enumerate(self.kernels[k:], k):
            for node, places in kernel.loads:
                overlaps = node is store.to and np.isin(places, own).any()
                if overlaps and not (number == k and np.array_equal(places.reshape(-1), own)):
                    return False
        return True
