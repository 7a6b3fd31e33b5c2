"""A budget of seconds for parts that run one after the other: what does not fit is cut short or
left out by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """A part of a check, and the time that it may take."""

    name: str
    most: float  # seconds it may take
    # seconds that are kept for it when parts before it are slow; with less it is not begun
    least: float


class Budget:
    """`total` seconds from now on.

    Parameters
    ----------
    total : float
    clock : callable
        Seconds from whenever.
    """

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.clock = clock
        self.start = clock()

    @property
    def spent(self) -> float:
        """Seconds."""
        return self.clock() - self.start

    @property
    def left(self) -> float:
        """Seconds."""
        return self.total - self.spent

    def of(self, part: Part, later: Sequence[Part] = ()) -> float:
        """Seconds that a part may take now, so that those after it get their least; 0 if it should
        not be begun.
        """
        seconds = min(part.most, self.left - sum(p.least for p in later))
        return seconds if seconds >= part.least else 0.0
