"""Times of several calls measured side by side, and the peak memory of a call in a process of its own.

python -m xlstm.cli.timing MODULE:FUNCTION [JSON] prints the bytes of a call.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm.arrays import probe

WARM = 0.02  # seconds
CALLS = 3  # the first takes memory, later ones show what is given back and taken again
_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """Seconds a call, the fastest and the median of many."""

    best: float
    median: float
    calls: int


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int = 9, block: float = 0.15) -> dict[str, Timing]:
    """Time callables in blocks in turn, A B C, B C A, ..., so that a noisy machine is noisy for all of them alike.

    Each callable must have finished its work when it returns, on a GPU too. A block lasts `block` seconds, at least one
    call. Its first calls, for `WARM` seconds, are not counted: the worker threads of another library may still be
    spinning, and a device may have to wake up.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _repeat(calls[name], min(WARM, block))
            samples[name] += _repeat(calls[name], block)
    return {name: Timing(min(s), statistics.median(s), len(s)) for name, s in samples.items()}


def _repeat(call: Callable[[], object], duration: float) -> list[float]:
    """Call for so many seconds, at least once, and return the seconds of each call."""
    seconds: list[float] = []
    now = time.perf_counter()
    end = now + duration
    while not seconds or now <= end:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        seconds.append(now - start)
    return seconds


def peak_memory(target: str, *arguments: Any) -> int | None:
    """Return the bytes of the device that calls take at most, beyond what was taken before; None if that is unknown.

    `target` is "module:function"; the function is given `arguments`, which JSON can hold, prepares everything, runs
    something small so that all is loaded and compiled, and returns the callable that is measured. A process that fails
    is a RuntimeError.
    """
    command = [sys.executable, "-m", "xlstm.cli.timing", target, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["the process died"])[-1]
        raise RuntimeError(f"peak memory of {target}{arguments}: {reason}")
    peak: int | None = json.loads(done.stdout.splitlines()[-1])
    return peak


def peak_here(call: Callable[[], object]) -> int | None:
    """Measure the memory of a call in this process, which should have made no GPU arrays but those of the call."""
    pool, cuda = _cupy_pool(), _torch_cuda()
    peak: Callable[[], int]
    try:
        if pool is not None and pool.used_bytes():
            pool.free_all_blocks()
            before, peak = pool.used_bytes(), pool.total_bytes
        elif cuda is not None:
            cuda.reset_peak_memory_stats()
            before, peak = cuda.memory_allocated(), cuda.max_memory_allocated
        else:
            _REFS.write_text("5")  # the peak starts anew
            before, peak = resident("VmRSS"), lambda: resident("VmHWM")
        for _ in range(CALLS):
            call()
        return int(peak() - before)
    except OSError:  # the system keeps no account of memory
        return None


def release() -> None:
    """Give unused memory of GPUs back, so that another process can have it."""
    if (pool := _cupy_pool()) is not None:
        pool.free_all_blocks()
    if (cuda := _torch_cuda()) is not None:
        cuda.empty_cache()


def _cupy_pool() -> Any:
    """Return CuPy's memory pool where CuPy is in use, else None."""
    used = "cupy" in sys.modules and probe.cupy_failure() is None
    return probe.cupy().get_default_memory_pool() if used else None


def _torch_cuda() -> Any:
    """Return `torch.cuda` where PyTorch uses a GPU, else None."""
    used = "torch" in sys.modules and probe.torch().cuda.is_initialized()
    return probe.torch().cuda if used else None


def resident(name: str) -> int:
    """Return bytes of resident memory, as Linux keeps account of them."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    prepare = getattr(importlib.import_module(module), function)
    sys.stdout.write(json.dumps(peak_here(prepare(*json.loads(sys.argv[2])))))
