"""The peak memory of a call, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

CALLS = 3  # the first takes memory, later ones give it back and take it again
STATUS = Path("/proc/self/status")
REFS = Path("/proc/self/clear_refs")


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int | None:
    """Return the bytes that calls take at most, beyond what was taken before; None if the system
    keeps no account.

    `prepare`, a function of a module, is given the arguments in a process of its own. It prepares
    everything, runs something small so that all is loaded and compiled, and returns the callable
    that is measured. Its errors are raised here; a process that dies is a RuntimeError.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak, prepare, arguments).result()


def _peak(prepare: Callable[..., Callable[[], object]], arguments: Sequence[Any]) -> int | None:
    call = prepare(*arguments)
    before = peak_from_now()
    for _ in range(CALLS):
        call()
    return None if before is None else resident("VmHWM") - before


def peak_from_now() -> int | None:
    """Return resident memory now, from which Linux keeps account of the peak; None elsewhere."""
    try:
        REFS.write_text("5")
        return resident("VmRSS")
    except OSError:
        return None


def resident(name: str) -> int:
    """Return bytes of resident memory, as Linux keeps account of them."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
