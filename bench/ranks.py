"""Training on two ranks of one thread beside one process of two threads; goal: at least as quick, for all models.

python -m bench.ranks [--rounds N] [--seconds S] [--json FILE]

It needs mpi4py and mpich, and two cores on which nothing else runs. Programs are started in turn, and each trains for
some seconds. "Weak" is the time of one process with one thread for half a batch, over that of the two ranks for all of
it: 1.00 where the second core doubles what is done. "In the sum" is the share of a step that a rank spends in sums of
gradients, and "waiting" the share in which it waits for the other rank before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import run
from xlstm import LSTM, distributed, optim, training, xLSTMStack
from xlstm.arrays import cores
from xlstm.data import Shard, Streams, Windows
from xlstm.models import SequenceModel, xLSTMLanguageModel


def lstm(steps: int, batch: int, inputs: int, hidden: int, layers: int) -> tuple[Any, Any]:
    """Return a model that sums its inputs up, and its data."""
    x = np.random.default_rng(0).normal(size=(4 * batch, steps, inputs)).astype("float32")
    model = SequenceModel(LSTM(inputs, hidden, num_layers=layers), 1, last=True)
    return model, Windows(x, x.sum(axis=(1, 2))[:, None] / steps, batch_size=batch)


def language(batch: int) -> tuple[Any, Any]:
    """Return a language model of xLSTM blocks, and a text of random letters."""
    text = np.random.default_rng(0).integers(0, 96, 40_000)
    model = xLSTMLanguageModel(xLSTMStack(128, 4, [1], num_heads=4), 96)
    return model, Streams.of_tokens(text, batch, 64)


# Sequences of a batch, and what makes a model and its data for a batch.
MODELS = {
    "LSTM 20k": (64, lambda batch: lstm(50, batch, 8, 64, 1)),
    "LSTM 0.3M": (64, lambda batch: lstm(50, batch, 32, 256, 1)),
    "LSTM 0.3M, B 256": (256, lambda batch: lstm(50, batch, 32, 256, 1)),
    "xLSTM LM 0.5M": (32, language),
    "LSTM 13.7M": (32, lambda batch: lstm(20, batch, 256, 1024, 2)),
    "LSTM 13.7M, B 128": (128, lambda batch: lstm(20, batch, 256, 1024, 2)),
}


class Timed:
    """A group that notes how long this rank waits for others before sums, and how long the sums take."""

    def __init__(self, group: Any) -> None:
        self.group, self.waited, self.summed = group, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.group, name)

    def sum(self, a: Any) -> None:
        """Sum an array over all ranks."""
        self._timed(self.group.sum, a)

    def sum_part(self, a: Any, out: Any) -> None:
        """Sum a part of an array over all ranks."""
        self._timed(self.group.sum_part, a, out)

    def gather_parts(self, part: Any, out: Any) -> None:
        """Put parts side by side."""
        self._timed(self.group.gather_parts, part, out)

    def _timed(self, call: Any, *arrays: Any) -> None:
        begin = time.perf_counter()
        self.group.sum(np.zeros(1))  # nobody is through before all have come
        came = time.perf_counter()
        call(*arrays)
        self.waited += came - begin
        self.summed += time.perf_counter() - came


def work(name: str, share: int, seconds: float) -> None:
    """Train a model on one of so many parts of its batch, and print as JSON what a step took, in seconds."""
    batch, make = MODELS[name]
    model, data = make(batch // share)
    ranks = distributed.group()
    group = Timed(ranks) if ranks.size > 1 else None
    if group is not None:
        data = Shard(data, group)
    step = training.Step(model, optim.adam(1e-4), group=group)
    state = step.init(model.init(0, "numpy", "float32"))
    times = list[float]()

    def train(count: int) -> None:
        nonlocal state
        while count:
            for one in data.batches():
                begin = time.perf_counter()
                state, _ = step(state, one)
                times.append(time.perf_counter() - begin)
                count -= 1
                if not count:
                    break

    train(4)  # compiled code is loaded
    count = ranks.tell(max(4, round(seconds / min(times))))[0]
    times.clear()
    if group is not None:
        group.waited = group.summed = 0.0
    train(count)
    if ranks.rank == 0:
        found = {"step": statistics.median(times), "parameters": sum(p.size for p in state.params.values())}
        if group is not None:
            found |= {"sum": group.summed / sum(times), "wait": group.waited / sum(times)}
        print(json.dumps(found))


def measure(name: str, seconds: float, ranks: int, threads: int, share: int = 1) -> dict[str, float]:
    """Return what a program prints that trains for some seconds."""
    launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "bench.ranks", "--worker", name, "--share", str(share)]
    command += ["--seconds", str(seconds)]
    many = str(threads)
    environment = {**os.environ, cores.VARIABLE: many, "OPENBLAS_NUM_THREADS": many, "OMP_NUM_THREADS": many}
    found: dict[str, float] = json.loads(subprocess.run(command, env=environment, check=True, stdout=-1).stdout)
    return found


def summary(batch: int, rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Return medians over rounds: sequences a second, their quotient, shares of a step, and weak scaling."""
    numbers = [
        {
            "parameters": one["ranks"]["parameters"],
            "ranks": batch / one["ranks"]["step"],
            "process": batch / one["process"]["step"],
            "quotient": one["process"]["step"] / one["ranks"]["step"],
            "sum": one["ranks"]["sum"],
            "wait": one["ranks"]["wait"],
            "weak": one["half"]["step"] / one["ranks"]["step"],
        }
        for one in rounds
    ]
    return {key: statistics.median(one[key] for one in numbers) for key in numbers[0]}


def main() -> None:
    parser = run.parser(__doc__)
    parser.set_defaults(rounds=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of training in a program")
    parser.add_argument("--worker", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options.share, options.seconds)
        return
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in MODELS}
    for _ in range(options.rounds):
        for name, rounds in found.items():
            ways = {"ranks": (2, 1, 1), "process": (1, 2, 1), "half": (1, 1, 2)}
            rounds.append({way: measure(name, options.seconds, *numbers) for way, numbers in ways.items()})
    print("sequences/s: 2 ranks of a thread, 1 process of 2 threads, quotient; in the sum, waiting; weak; rounds")
    for name, rounds in found.items():
        line = summary(MODELS[name][0], rounds)
        print(
            f"  {name:17s} {line['parameters']:10,.0f}  {line['ranks']:8.0f} {line['process']:8.0f}  "
            f"{line['quotient']:.2f}  {line['sum']:6.1%} {line['wait']:6.1%}  {line['weak']:.2f}  {len(rounds)}"
        )
        if options.json is not None:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"bench": "ranks", "name": name, **line, "rounds": rounds}) + "\n")


if __name__ == "__main__":
    main()
