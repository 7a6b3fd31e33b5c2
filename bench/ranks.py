"""Training on several ranks of one thread beside one process: sequences a second, and where the time
goes.

    python -m bench.ranks [--rounds N] [--seconds S] [--models NAME ...] [--ranks N ...] [--json FILE]

It needs mpi4py and mpich, and idle cores. Programs start in turn, and each trains for some seconds.

    "process"     one process with a thread for each core
    "strong"      ranks that divide the batch of "process"
    "weak"        ranks that each have as large a batch
    "quotient"    sequences a second, relative to "process"
    "efficiency"  sequences a second and rank, relative to one rank; with more ranks than cores, which
                  a star marks, it is at most cores / ranks
    "sums"        the share of a step in which rank 0 does nothing but sums with others
    "waiting"     the share in which it waits until all others have come to a sum
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import run
from xlstm import LSTM, distributed, optim, training, xLSTMStack
from xlstm.arrays import cores
from xlstm.data import Shard, Streams, Windows
from xlstm.models import SequenceModel, xLSTMLanguageModel

TIMED = ("sum", "sum_part", "gather_parts", "exchange")


def lstm(batch: int, steps: int, inputs: int, hidden: int, layers: int) -> tuple[Any, Any]:
    """Return a model that adds its inputs up, and its data."""
    x = np.random.default_rng(0).normal(size=(4 * batch, steps, inputs)).astype("float32")
    model = SequenceModel(LSTM(inputs, hidden, num_layers=layers), 1, last=True)
    return model, Windows(x, x.sum(axis=(1, 2))[:, None] / steps, batch_size=batch)


def text(batch: int, width: int, blocks: int, vocab_size: int = 96) -> tuple[Any, Any]:
    """Return a language model of xLSTM blocks, and a text of random characters."""
    tokens = np.random.default_rng(0).integers(0, 96, 40_000)
    model = xLSTMLanguageModel(xLSTMStack(width, blocks, [1], num_heads=4), vocab_size)
    return model, Streams.of_tokens(tokens, batch, 64)


# The function that makes a model and its data, the sequences of a batch, and other sizes.
MODELS: dict[str, Any] = {
    "LSTM 20k": (lstm, 64, 50, 8, 64, 1),
    "LSTM 0.3M": (lstm, 64, 50, 32, 256, 1),
    "xLSTM LM 0.5M": (text, 32, 128, 4),
    "LSTM 13.7M": (lstm, 32, 20, 256, 1024, 2),
    "LSTM 13.7M, B 128": (lstm, 128, 20, 256, 1024, 2),
}


class Timed:
    """A group that notes how long this rank waits for others before sums, and how long sums take."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.waited = self.summed = 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.group, name)
        return functools.partial(self._timed, method) if name in TIMED else method

    def later(self, function: Callable[..., None], *arrays: Any) -> Callable[[], None]:
        """Run a function beside the caller; the time in which the caller waits for it is noted."""
        return functools.partial(self._sum, self.group.later(function, *arrays))

    def _timed(self, method: Callable[..., None], *arrays: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return method(*arrays)
        begin = time.perf_counter()
        self.group.sum(np.zeros(1))  # nobody is through before all have come
        self.waited += time.perf_counter() - begin
        self._sum(method, *arrays)

    def _sum(self, method: Callable[..., None], *arrays: Any) -> None:
        begin = time.perf_counter()
        method(*arrays)
        self.summed += time.perf_counter() - begin


def work(name: str, batch: int, seconds: float) -> None:
    """Train a model with batches of so many sequences, and print as JSON how it went."""
    make, _, *sizes = MODELS[name]
    model, data = make(batch, *sizes)
    ranks = distributed.group()
    group = Timed(ranks) if ranks.size > 1 else None
    if group is not None:
        data = Shard(data, group)
    step = training.TrainStep(model, optim.adam(1e-4), group=group)
    state = step.init(model.init(0, "numpy", "float32"))

    def train(count: int) -> list[float]:
        nonlocal state
        times: list[float] = []
        while True:
            for batch in data.batches():
                begin = time.perf_counter()
                state, _ = step(state, batch)
                times.append(time.perf_counter() - begin)
                if len(times) == count:
                    return times

    quickest = min(train(4))  # compiled code is loaded
    before = vars(group).copy() if group is not None else {}
    times = train(ranks.tell(max(4, round(seconds / quickest)))[0])
    line = {"sequences/s": batch / statistics.median(times)}
    line["parameters"] = sum(p.size for p in state.params.values())
    if group is not None:
        line["sums"] = (group.summed - before["summed"]) / sum(times)
        line["waiting"] = (group.waited - before["waited"]) / sum(times)
    if ranks.rank == 0:
        print(json.dumps(line))


def measure(name: str, way: str, ranks: int, seconds: float) -> dict[str, float]:
    """Return what a program prints that trains for some seconds."""
    _, batch, *_ = MODELS[name]
    command = [sys.executable, "-m", "bench.ranks", "--worker", name, "--seconds", str(seconds)]
    command += ["--batch", str(batch * ranks if way == "weak" else batch)]
    threads = ranks if way == "process" else 1
    if ranks > threads:
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *command]
    variables = (cores.VARIABLE, "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(variables, str(threads))}
    line: dict[str, float] = json.loads(
        subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    )
    return line


def main() -> None:
    parser = run.parser(__doc__)
    parser.set_defaults(rounds=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of training in a program")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, options.batch, options.seconds)
    process = ("process", cores.usable())
    alone = ("strong", 1)
    programs = [process, alone, *itertools.product(("strong", "weak"), options.ranks)]
    lines = collections.defaultdict(list)
    for _, name in itertools.product(range(options.rounds), options.models):
        measured = {program: measure(name, *program, options.seconds) for program in programs}
        for (way, ranks), line in measured.items():
            rate = line["sequences/s"]
            line["quotient"] = rate / measured[process]["sequences/s"]
            line["efficiency"] = rate / measured[alone]["sequences/s"] / ranks
            lines[name, way, ranks].append(line)
    for (name, way, ranks), rounds in lines.items():
        star = "*" * (ranks > cores.usable())
        medians = {key: statistics.median(line[key] for line in rounds) for key in rounds[0]}
        cells = "  ".join(f"{key} {value:.3g}" for key, value in medians.items())
        print(f"  {name:18s} {way:8s} {ranks}{star:1s} {cells}")
        case = {"way": way, "ranks": ranks, "rounds": len(rounds)}
        run.append(options.json, {"bench": "ranks", "name": name, "case": case, **medians})


if __name__ == "__main__":
    main()
