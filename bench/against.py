"""Two versions of xlstm in turn: an older commit beside the tree as it is, case by case.

    python -m bench.against COMMIT [--host] [--rounds N] [--only TEXT]

Each version runs in a process of its own, in its own checkout. Calls of the two alternate, so that
other work on the machine slows both. `--host` times calls on CuPy whose kernels do nothing, in
processor time of the host: that needs the CuPy of cuda_on_cpu, and no GPU. The cases use only names
that README documents, which both versions have. The worker runs this file, too. There it imports
nothing of `bench`, which would be the older version.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.workers import Worker

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [
    (32, 1, 1, 50),
    (128, 1, 64, 64),
    (100, 32, 64, 128),
    (128, 64, 256, 256),
    (64, 32, 1024, 1024),
]
WITHOUT = " without Numba"
# These calls are timed by --host, and an answer takes so many seconds.
ON_CUPY = (
    "matmul",
    "language model, a step",
    "language model, a token",
    "LSTM(512) forward",
    "LSTM(512) backward",
)
SECONDS = 0.1


def cases() -> dict[str, Callable[[], Any]]:
    """Return the cases by name; each builds its arrays when it is called, and returns a call."""
    import numpy as np

    import xlstm

    rng = np.random.default_rng(0)

    def layer(
        name: str, T: int, B: int, D: int, H: int, train: bool = True, **options: Any
    ) -> Callable[[], Any]:
        module = getattr(xlstm, name)(D, H, **options)
        params = module.init(0, "numpy")
        x = rng.standard_normal((T, B, D)).astype("float32")
        dy = np.ones_like(module(params, x)[0])

        def both() -> None:
            _, _, saved = module.forward(params, x)
            module.backward(params, saved, dy)

        return both if train else lambda: module(params, x)

    def step(B: int) -> Callable[[], Any]:
        lstm = xlstm.LSTM(64, 64)
        params = lstm.init(0, "numpy")
        x = rng.standard_normal((B, 64)).astype("float32")
        state = lstm.step(params, x)[1]
        return lambda: [lstm.step(params, x, state) for _ in range(50)]

    table: dict[str, Callable[[], Any]] = {}
    for name in ("LSTM", "GRU", "RNN"):
        for shape in SHAPES:
            label = f"{name} {','.join(map(str, shape))}"
            table[f"{label} train"] = lambda name=name, shape=shape: layer(name, *shape)
            table[f"{label} inference"] = lambda name=name, shape=shape: layer(
                name, *shape, train=False
            )
    for shape in SHAPES[:4]:
        label = f"LSTM {','.join(map(str, shape))} train"
        table[f"{label}{WITHOUT}"] = table[label]
    table["sLSTM 64,16,64,64 train"] = lambda: layer("sLSTM", 64, 16, 64, 64)
    table["mLSTM 256,8,128,128 train"] = lambda: layer("mLSTM", 256, 8, 128, 128, num_heads=4)
    table["LSTM, 50 steps of B = 1"] = lambda: step(1)
    table["LSTM, 50 steps of B = 8"] = lambda: step(8)
    table[f"LSTM, 50 steps of B = 1{WITHOUT}"] = table["LSTM, 50 steps of B = 1"]
    return table


def on_cupy(name: str) -> Callable[[], Any]:
    """Return a call of `ON_CUPY`, whose arrays are made."""
    import numpy as np

    import xlstm
    from xlstm.arrays.matmul import matmul
    from xlstm.data import Streams
    from xlstm.training import Step, optimizers
    from xlstm.training.callbacks import Clip

    home = xlstm.backend("cupy")
    text = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 4, [1], 2), 11)
    if name == "matmul":
        a = home.asarray(np.ones((8, 8)))
        return lambda: matmul(home.xp, a, a)
    if name == "language model, a step":
        # It does not wait, which nothing is worth where kernels have not written what the host
        # would read.
        step = Step(text, optimizers.adamw(1e-3), callbacks=[Clip(1.0)], wait=False)
        state = step.init(text.init(0, home))
        tokens = np.arange(101) % 11
        batch = next(iter(Streams(tokens[:-1], tokens[1:], 4, 25).batches()))
        return lambda: step(state, batch)
    if name == "language model, a token":
        params = text.init(0, home)
        tokens = home.asarray(np.arange(4))
        state = text.step(params, tokens)[1]
        return lambda: text.step(params, tokens, state)
    layer = xlstm.LSTM(512, 512)
    params = layer.init(0, home)
    x = home.asarray(np.ones((4, 2, 512)))
    y, _, saved = layer.forward(params, x)
    if "forward" in name:
        return lambda: layer.forward(params, x)
    return lambda: layer.backward(params, saved, y)


def seconds_of(name: str, ready: dict[str, Callable[[], Any]]) -> float:
    """Return the seconds of a call; `ready` keeps the call of the case before."""
    if name not in ready:
        ready.clear()
        ready[name] = cases()[name]()
        ready[name]()
    begun = time.perf_counter()
    ready[name]()
    return time.perf_counter() - begun


def processor_seconds_of(name: str, ready: dict[str, Callable[[], Any]]) -> float:
    """Return the least seconds of the processor for a call on CuPy with kernels that do nothing."""
    idle = ctypes.CDLL(str(Path(sys.prefix, "cuda_on_cpu/lib/libcuda.so.1"))).cuda_on_cpu_set
    if name not in ready:
        idle(b"idle", 0)  # values are right, and stay in memory
        ready[name] = on_cupy(name)
        for _ in range(3):
            ready[name]()
        idle(b"idle", 1)
    gc.collect()
    calls = 16 if name == "matmul" else 1  # it is short
    end = time.process_time() + SECONDS
    times = []
    while time.process_time() < end:
        begun = time.process_time()
        for _ in range(calls):
            ready[name]()
        times.append(time.process_time() - begun)
    return min(times) / calls


def work() -> None:
    """Answer requests, JSON lines: the seconds of a case."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    ready: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        (name,) = json.loads(line)
        os.environ["XLSTM_COMPILE"] = "0" if name.endswith(WITHOUT) else "1"
        seconds = processor_seconds_of(name, ready) if name in ON_CUPY else seconds_of(name, ready)
        print(json.dumps(seconds), file=answers, flush=True)


def version(tree: Path) -> Worker:
    """Return a process that runs the cases on one checkout."""
    from bench.workers import Worker

    command = [sys.executable, str(Path(__file__).resolve()), "--work"]
    return Worker(command, tree, {**os.environ, "PYTHONPATH": str(tree)})


def in_turn(old: Worker, new: Worker, name: str, rounds: int) -> Iterator[tuple[float, float]]:
    """Yield the seconds of both, which go first in turn, for at most half a minute."""
    begun = time.monotonic()
    for k in range(rounds):
        order = (old, new) if k % 2 else (new, old)
        seconds = {worker: worker.ask(name) for worker in order}
        yield seconds[old], seconds[new]
        if time.monotonic() - begun > 30:
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="the older version, as Git names it")
    parser.add_argument("--host", action="store_true", help="time the host of calls on CuPy")
    parser.add_argument("--rounds", type=int, default=31, help="how often each is timed in turn")
    parser.add_argument("--only", default="", help="only cases whose name has this text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "old"
        git = functools.partial(subprocess.run, cwd=ROOT, check=True)
        git(["git", "worktree", "add", "--detach", "-q", str(tree), options.commit])
        try:
            old = version(tree)
            new = version(ROOT)
            print(f"{'':44}{'old':>12}{'new':>12}{'new / old':>12}  (medians)")
            for name in ON_CUPY if options.host else cases():
                if options.only not in name:
                    continue
                pairs = list(in_turn(old, new, name, options.rounds))
                before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
                ratio = statistics.median(b / a for a, b in pairs)
                print(
                    f"{name:44}{before * 1e3:9.3f} ms{after * 1e3:9.3f} ms{ratio:12.3f}", flush=True
                )
            old.end()
            new.end()
        finally:
            git(["git", "worktree", "remove", "--force", str(tree)])


if __name__ == "__main__":
    work() if sys.argv[1:] == ["--work"] else main()
