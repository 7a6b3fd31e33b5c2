"""Times of several calls measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WARM = 0.02  # seconds


@dataclass(frozen=True)
class Timing:
    """Seconds a call, the fastest and the median of many."""

    best: float
    median: float
    calls: int


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    block: float = 0.15,
    show: Callable[[str], object] = lambda name: None,
) -> dict[str, Timing]:
    """Time callables in blocks in turn, A B C, B C A, ..., so that a noisy machine is noisy for all of them alike.

    Each callable must have finished its work when it returns, on a GPU too. A block lasts `block` seconds, at least one
    call. Its first calls, for `WARM` seconds, are not counted: the worker threads of another library may still be
    spinning, and a device may have to wake up. `show` is told the name before each block.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            show(name)
            _repeat(calls[name], min(WARM, block))
            samples[name] += _repeat(calls[name], block)
    return {name: Timing(min(s), statistics.median(s), len(s)) for name, s in samples.items()}


def _repeat(call: Callable[[], object], duration: float) -> list[float]:
    """Call for so many seconds, at least once, and return the seconds of each call."""
    found: list[float] = []
    now = time.perf_counter()
    end = now + duration
    while not found or now <= end:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        found.append(now - start)
    return found
