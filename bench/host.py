"""CPU time of the host for calls on CuPy, with kernels that do nothing; two versions of xlstm in turn.

    python -m bench.host [--against FOLDER] [--rounds N] [--only TEXT]

It needs no GPU, but the CuPy of cuda_on_cpu. The folder is a checkout of an older version; each version runs in a
process of its own, on its own checkout. A worker runs this file, too, which then imports nothing else of `bench`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS, CALLS = 0.1, {"matmul": 16}  # of an answer, and of what it times, which is short: others disturb little of it
CASES = ("matmul", "language model, a step", "language model, a token", "LSTM(512) forward", "LSTM(512) backward")


def case(name: str) -> Callable[[], Any]:
    """Return a call that is timed, whose arrays are made."""
    import numpy as np

    import xlstm
    from xlstm.arrays.matmul import matmul
    from xlstm.data import Streams
    from xlstm.training import Step, optimizers
    from xlstm.training.callbacks import Clip

    home, text = xlstm.backend("cupy"), xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 4, [1], 2), 11)
    if name == "matmul":
        a = home.asarray(np.ones((8, 8)))
        return lambda: matmul(home.xp, a, a)
    if name == "language model, a step":
        # It does not wait, which nothing is worth where kernels have not written what the host would read.
        step = Step(text, optimizers.adamw(1e-3), callbacks=[Clip(1.0)], wait=False)
        state, tokens = step.init(text.init(0, home)), np.arange(101) % 11
        batch = next(iter(Streams(tokens[:-1], tokens[1:], 4, 25).batches()))
        return lambda: step(state, batch)
    if name == "language model, a token":
        params, tokens = text.init(0, home), home.asarray(np.arange(4))
        state = text.step(params, tokens)[1]
        return lambda: text.step(params, tokens, state)
    layer = xlstm.LSTM(512, 512)
    params, x = layer.init(0, home), home.asarray(np.ones((4, 2, 512)))
    y, _, saved = layer.forward(params, x)
    return (lambda: layer.forward(params, x)) if "forward" in name else lambda: layer.backward(params, saved, y)


def work() -> None:
    """Answer requests, JSON lines: the least seconds of the processor for a call of a case."""
    answers, sys.stdout = sys.stdout, sys.stderr
    idle = ctypes.CDLL(str(Path(sys.prefix, "cuda_on_cpu/lib/libcuda.so.1"))).cuda_on_cpu_set
    ready: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        (name,) = json.loads(line)
        if name not in ready:
            idle(b"idle", 0)  # values are right, and stay in memory
            ready[name] = case(name)
            for _ in range(3):
                ready[name]()
            idle(b"idle", 1)
        gc.collect()
        stop, blocks, calls = time.process_time() + SECONDS, [], CALLS.get(name, 1)
        while time.process_time() < stop:
            begun = time.process_time()
            for _ in range(calls):
                ready[name]()
            blocks.append(time.process_time() - begun)
        print(json.dumps(min(blocks) / calls), file=answers, flush=True)


def main() -> None:
    from bench.theirs import Worker

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a checkout of an older version")
    parser.add_argument("--rounds", type=int, default=15, help="how often each is timed in turn")
    parser.add_argument("--only", default="", help="only cases whose name has this text")
    options = parser.parse_args()
    trees = {"new": ROOT} if options.against is None else {"old": options.against.resolve(), "new": ROOT}
    command = [sys.executable, str(Path(__file__).resolve()), "--work"]
    workers = {name: Worker(command, tree, {**os.environ, "PYTHONPATH": str(tree)}) for name, tree in trees.items()}
    print(f"{'least microseconds of CPU time':32}" + "".join(f"{name:>10}" for name in workers))
    for call in [call for call in CASES if options.only in call]:
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for k in range(options.rounds):
            for name in list(workers)[:: 1 if k % 2 else -1]:
                seconds[name].append(workers[name].ask(call))
        print(f"{call:32}" + "".join(f"{min(found) * 1e6:10.1f}" for found in seconds.values()), flush=True)
    for worker in workers.values():
        worker.end()


if __name__ == "__main__":
    work() if sys.argv[1:] == ["--work"] else main()
