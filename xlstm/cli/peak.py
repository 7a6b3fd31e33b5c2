"""Peak memory of a call, measured in a process of its own.

python -m xlstm.cli.peak MODULE:FUNCTION [JSON]
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xlstm.arrays import probe

CALLS = 3  # the first takes memory, later ones show what is given back and taken again
_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def of(target: str, *arguments: Any) -> int | None:
    """Bytes of the device that calls take at most, beyond what was taken before; None where that cannot be seen.

    Parameters
    ----------
    target : str
        "module:function"; the function is given `arguments`, prepares everything, runs something small so that
        what is loaded and compiled once is there, and returns the callable that is measured.
    arguments
        Fit for JSON.

    Raises
    ------
    RuntimeError
        The process failed.
    """
    command = [sys.executable, "-m", "xlstm.cli.peak", target, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["the process died"])[-1]
        raise RuntimeError(f"peak memory of {target}{arguments}: {reason}")
    found = json.loads(done.stdout.splitlines()[-1])
    return None if found is None else int(found)


def here(call: Callable[[], object]) -> int | None:
    """`of` in this process, which should have made no GPU arrays but those of the call."""
    if "cupy" in sys.modules and probe.cupy_failure() is None:
        pool = probe.cupy().get_default_memory_pool()
        if pool.used_bytes():
            return _cupy(call, pool)
    if "torch" in sys.modules and probe.torch().cuda.is_initialized():
        return _torch(call, probe.torch().cuda)
    return _host(call)


def release() -> None:
    """Give unused memory of GPUs back, so that another process can have it."""
    if "cupy" in sys.modules and probe.cupy_failure() is None:
        probe.cupy().get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules and probe.torch().cuda.is_initialized():
        probe.torch().cuda.empty_cache()


def _host(call: Callable[[], object]) -> int | None:
    """Resident memory, as Linux keeps account of it."""
    try:
        _REFS.write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
        for _ in range(CALLS):
            call()
        return _resident("VmHWM") - before
    except OSError:
        return None


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _cupy(call: Callable[[], object], pool: Any) -> int:
    """What the memory pool has to hold."""
    pool.free_all_blocks()
    before = pool.used_bytes()
    for _ in range(CALLS):
        call()
    return int(pool.total_bytes() - before)


def _torch(call: Callable[[], object], cuda: Any) -> int:
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    for _ in range(CALLS):
        call()
    return int(cuda.max_memory_allocated() - before)


def main() -> None:
    """Measure what the command line names, print bytes."""
    module, _, function = sys.argv[1].partition(":")
    sys.stdout.write(json.dumps(here(getattr(importlib.import_module(module), function)(*json.loads(sys.argv[2])))))


if __name__ == "__main__":
    main()
