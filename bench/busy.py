"""LSTMs forward + backward on an idle machine, and beside a Python process that keeps one core busy; goal: 2.2 times.

python -m bench.busy [--json FILE]

The busy process is pinned to one core where the system can do that (Linux), else it runs wherever the system puts it.
Nothing else should run. Idle and busy blocks take turns.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import xlstm
from bench import run
from bench.cases import LARGE, SHAPES, Case, ours
from xlstm.arrays import cores
from xlstm.cli.bench import Timing, interleave

GOAL = 2.2
SPIN = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print("busy", flush=True)
while True:
    pass
"""


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keep one core busy meanwhile."""
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def foreach(parts: list[Timing]) -> Timing:
    """Return the timings of several blocks as one, with the median of their medians."""
    return Timing(min(p.best for p in parts), statistics.median(p.median for p in parts), sum(p.calls for p in parts))


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("beside a busy process")
    where = "pinned to one" if hasattr(os, "sched_setaffinity") else "not pinned: this system cannot, so on any one"
    print(f"the busy process is {where} of {cores.usable()} cores; goal: at most {GOAL} times the idle time")
    backend = xlstm.backend("numpy", dtype="float32")
    worst = 0.0
    for shape in SHAPES + LARGE:
        case = Case("lstm", *shape)
        call = ours(case, backend)
        blocks: dict[str, list[Timing]] = {"xlstm": [], "idle": []}
        for _ in range(options.rounds):
            for name, around in (("idle", contextlib.nullcontext()), ("xlstm", busy())):
                with around:
                    blocks[name].append(interleave({name: call}, 1)[name])
        timings = {name: foreach(parts) for name, parts in blocks.items()}
        worst = max(worst, timings["xlstm"].median / timings["idle"].median)
        run.finish("beside a busy process", str(case), timings, options.json, case=asdict(case))
    print(f"at most {worst:.2f} times the idle time: {'pass' if worst <= GOAL else 'miss'}")


if __name__ == "__main__":
    main()
