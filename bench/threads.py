"""Whether the second core takes part: xlstm and PyTorch alone, and in turn in one process; goal: no call on one core.

python -m bench.threads [--json FILE]

A call is on one core where no worker took a piece of any of its jobs. The default number of rounds has 1,008 calls of
xlstm. Nothing else should run.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import xlstm
from bench import peers, run
from bench.cases import LARGE, Case, ours
from xlstm.cli.bench import Timing
from xlstm.engines.numba import team, work_queue

SHAPES = {(100, 32, 64, 128): 26, LARGE[0]: 2}  # calls in a round


class Counts:
    """How many calls there were, and how many of them no worker joined.

    Attributes
    ----------
    joined : list of bool
        Whether a worker joined each job of this call.
    """

    def __init__(self) -> None:
        self.calls = self.one_core = 0
        self.joined: list[bool] = []

    def end(self) -> None:
        """Count the call that has ended."""
        self.calls += 1
        self.one_core += bool(self.joined) and not any(self.joined)
        self.joined.clear()

    def __str__(self) -> str:
        return f"on one core {self.one_core} of {self.calls} calls"


@contextlib.contextmanager
def watched(counts: Counts) -> Iterator[None]:
    """Note of each job meanwhile who took part."""
    lead = team._lead

    def noted(rows: Any, helpers: int) -> None:
        lead(rows, helpers)
        left = int(team.queue[work_queue.OPEN]) >> 2 * work_queue.SHIFT  # places for helpers that nobody took
        counts.joined.append(left < helpers)

    team._lead = noted
    try:
        yield
    finally:
        team._lead = lead


def measure(calls: dict[str, Callable[[], object]], rounds: int, count: int) -> tuple[dict[str, Timing], list[Counts]]:
    """Return the times of calls, alone and in turn, and the counts of the first one in both."""
    seconds: dict[str, list[float]] = {name + how: [] for how in ("", ", in turn") for name in calls}
    alone, in_turn = Counts(), Counts()

    def timed(name: str, how: str, counts: Counts) -> None:
        with watched(counts):
            start = time.perf_counter()
            calls[name]()
            seconds[name + how].append(time.perf_counter() - start)
        if name == next(iter(calls)):
            counts.end()

    for call in calls.values():
        call()
    for _ in range(rounds):
        for name in calls:
            for _ in range(count):
                timed(name, "", alone)
        for _ in range(count):
            for name in calls:
                timed(name, ", in turn", in_turn)
    return {name: Timing(min(s), statistics.median(s), len(s)) for name, s in seconds.items()}, [alone, in_turn]


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("threads")
    total = Counts()
    for shape, count in SHAPES.items():
        for train in (True, False):
            case = Case("lstm", *shape, train=train)
            found, missing = peers.calls(case, ("torch",))
            mine = ours(case, xlstm.backend("numpy", dtype="float32"))
            timings, counts = measure({"xlstm": mine, **found}, options.rounds, count)
            results = {name: asdict(timing) for name, timing in timings.items()}
            for name, one in zip(("xlstm", "xlstm, in turn"), counts, strict=True):
                results[name] |= {"one_core": one.one_core}
                total.calls += one.calls
                total.one_core += one.one_core
            name = f"{case}{'' if train else ', inference'}"
            run.record("threads", name, results, "seconds", options.json, missing, asdict(case))
            for how, one in zip(("alone", "in turn"), counts, strict=True):
                print(f"    {how}: {one}")
    print(f"in all {total}: {'pass' if not total.one_core else 'miss'}")


if __name__ == "__main__":
    main()
