"""Interleaved timing, and results as a table and as JSON lines."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import array_api_compat
import numpy as np
import threadpoolctl

import xlstm


@dataclass(frozen=True)
class Timing:
    """Seconds a call, the fastest and the median of many."""

    best: float
    median: float
    calls: int


def interleave(cases: dict[str, Callable[[], object]], rounds: int = 15, block: float = 0.15) -> dict[str, Timing]:
    """Time callables in blocks in turn, A B C A B C ..., so that a noisy machine is noisy for all of them alike.

    A block lasts `block` seconds or one call. Its first call is not counted: the worker threads of
    another library may still be spinning. Each call must have finished its work when it returns,
    on a GPU too.
    """
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            call()
            end = time.perf_counter() + block
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                samples[name].append(now - start)
                if now > end:
                    break
    return {name: Timing(min(s), statistics.median(s), len(s)) for name, s in samples.items()}


def machine() -> dict[str, object]:
    """What a result depends on."""
    blas = [
        {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpoolctl.threadpool_info()
    ]
    found: dict[str, object] = {
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "xlstm": xlstm.__version__,
        "numpy": np.__version__,
        "array-api-compat": array_api_compat.__version__,
        "thread pools": blas,
        "variables": {k: v for k, v in os.environ.items() if k.startswith(("OPENBLAS", "OMP", "MKL", "CUPY_TF32"))},
    }
    for name, backend in xlstm.usable().items():
        found[f"backend {name}"] = str(backend)
    try:
        import torch
    except ImportError:
        return found
    return {**found, "torch": torch.__version__, "torch threads": torch.get_num_threads()}


def report(title: str, rows: dict[str, dict[str, Timing]], ours: str, path: str | None) -> None:
    """Print medians in ms and the ratio of `ours` to each peer; append JSON lines to `path`."""
    print(f"{title}: median ms a call, and {ours} / peer")
    for case, timings in rows.items():
        mine = timings[ours].median
        cells = [
            f"{name} {t.median * 1e3:.3f}" + ("" if name == ours else f" ({mine / t.median:.2f})")
            for name, t in timings.items()
        ]
        print(f"  {case:38s} {'   '.join(cells)}")
    if path is None:
        return
    about = machine()
    with Path(path).open("a", encoding="utf-8") as file:
        for case, timings in rows.items():
            line = {"bench": title, "case": case, "seconds": {n: asdict(t) for n, t in timings.items()}, **about}
            file.write(json.dumps(line) + "\n")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
