"""The devices of the stand-in, the current one, and their memory."""

from __future__ import annotations

import bisect
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Card:
    """A GPU as far as programs can see it."""

    name: str = "a small one"
    capability: int = 90
    sms: int = 8
    shared: int = 232448  # bytes of shared memory of a block, and about those of an SM
    together: int = 0  # SMs that a cluster may lie on; 0 for up to 16
    used: int = 0  # bytes

    def clusters(self, blocks: int, threads: int, shared: int) -> bool:
        """Whether a cluster of so many blocks fits next to each other."""
        an_sm = min(self.shared // max(1, shared + 1024), 2048 // threads) if shared else 2048 // threads
        return self.capability >= 90 and blocks <= 16 and -(-blocks // max(1, an_sm)) <= (self.together or 16)


CARDS = [Card(), Card()]


class _Current(threading.local):
    number = 0


current = _Current()


def card() -> Card:
    """The card of the current device."""
    return CARDS[current.number]


@dataclass(eq=False)
class Memory:
    """An allocation: it is the device's again when nobody has it any more."""

    nbytes: int
    filled: tuple[int, int]  # by an operation of a stream
    held: Any = None  # what the user's allocator gave, or who has the memory
    address: int = 0
    number: int = field(default_factory=lambda: current.number)

    def __post_init__(self) -> None:
        self.card = CARDS[self.number]
        self.card.used += self.nbytes
        LIVE.add(self)

    def __del__(self) -> None:
        self.card.used -= self.nbytes


LIVE: weakref.WeakSet[Memory] = weakref.WeakSet()


def there(addresses: Iterable[int]) -> list[Memory]:
    """Return the allocations that addresses are in."""
    found = sorted((m.address, m.nbytes, k, m) for k, m in enumerate(list(LIVE)))
    starts = [start for start, *_ in found]
    places = {address: bisect.bisect_right(starts, address) - 1 for address in addresses}
    return [found[k][3] for address, k in places.items() if k >= 0 and address < found[k][0] + found[k][1]]


def device_of(address: int) -> int:
    """The device that has an address; the current one where nobody knows it."""
    return next((memory.number for memory in there([address])), current.number)
