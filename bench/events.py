"""Times of calls on a GPU side by side: until the host has the result, and of the device alone.

A pair of events around a call counts the time in which the device waits for the host. So the device
is first kept busy until the host has asked for everything; the events then see kernels one after
the other. If a call asks for more kernels than the device's queue holds, or waits for the device
itself, both times include the host's time.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import device

ROUNDS = 5
BLOCK = 0.02  # seconds of one call's turn, at least one call
LONGEST = 0.02  # seconds that the device is kept busy at most
SPIN = f"""{device.TEXT}
extern "C" __global__ void bench_spin(long long stay) {{
    const long long begin = nanoseconds();
    while (nanoseconds() - begin < stay) {{}}
}}
"""


@dataclass(frozen=True)
class Side:
    """A call that only asks for its work, and what has to hold meanwhile."""

    call: Callable[[], object]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass(frozen=True)
class Times:
    """Seconds, medians of so many calls."""

    wall: float
    device: float
    best: float  # of wall
    calls: int


class Clock:
    """The clock of CuPy's current device and stream, which must be the one that is measured."""

    def __init__(self) -> None:
        self.cupy = optional_imports.cupy()
        self._spin = self.cupy.RawKernel(SPIN, "bench_spin", backend="nvrtc")

    def now(self) -> float:
        """Seconds of the host."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Wait for the device."""
        self.cupy.cuda.Device().synchronize()

    def busy(self, seconds: float) -> None:
        """Keep the device busy so long from now on."""
        self._spin((1,), (1,), (int(seconds * 1e9),))

    def mark(self) -> Any:
        """An event after what was asked for so far."""
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two events, which have happened."""
        return float(self.cupy.cuda.get_elapsed_time(start, end)) / 1e3


def side_by_side(sides: Mapping[str, Side], clock: Clock, until: float) -> dict[str, Times]:
    """Time the sides in turns, A B C, B C A, ...: as many calls in each turn as fit a block.

    The first call of a turn is not counted. After the first round no other is begun beyond `until`
    on the clock.
    """
    walls: dict[str, list[float]] = {name: [] for name in sides}
    devices: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(ROUNDS):
        if turn and clock.now() > until:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            with sides[name].around():
                _turn(sides[name].call, clock, walls[name], devices[name])
    median = statistics.median
    return {
        n: Times(median(walls[n]), median(devices[n]), min(walls[n]), len(walls[n])) for n in sides
    }


def _turn(
    call: Callable[[], object], clock: Clock, walls: list[float], devices: list[float]
) -> None:
    call()
    clock.synchronize()
    end = clock.now() + BLOCK
    while True:
        before = clock.now()
        call()
        clock.synchronize()
        wall = clock.now() - before
        walls.append(wall)
        clock.busy(min(wall, LONGEST))
        start = clock.mark()
        call()
        done = clock.mark()
        clock.synchronize()
        devices.append(clock.between(start, done))
        if clock.now() > end:
            return
