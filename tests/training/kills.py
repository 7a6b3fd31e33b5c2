"""Kills training after random batches and resumes it until it is done: the weights are those of a
run left alone.

`python -m tests.training.kills --kills 200` does so with SIGKILL, SIGTERM, SIGINT, and disks
without room for a checkpoint.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import xlstm
from xlstm.data import Windows
from xlstm.models.sequence import SequenceModel
from xlstm.training import Interrupted, Terminated, optimizers, train
from xlstm.training import folder as folders

KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "full disk")
LATEST = 80  # batches before a signal
EVERY = 5  # batches between two checkpoints


def fit(folder: Path | None, progress=None):
    """Train a small model with everything that has a state."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8, 1))
    data = Windows(x, x.sum(axis=1), batch_size=10)
    layer = xlstm.LSTM(1, 8, num_layers=2, dropout=0.2)
    model = SequenceModel(layer, 1, last=True)
    return train(
        model,
        model.init(0, "numpy"),
        data,
        optimizers.adam(0.01),
        epochs=12,
        validation=Windows(x[:40], x[:40].sum(axis=1)),
        averaging=0.9,
        clip=1.0,
        checkpoints=folder,
        every=EVERY,
        resume=folder is not None,
        progress=progress,
    )


def child(folder: Path) -> None:
    """Train in this process, and report every batch."""
    try:
        fit(folder, lambda now: print(now.total, flush=True))
    except (Interrupted, Terminated) as error:
        sys.exit(128 + error.signal)
    print("done", flush=True)


def attempt(folder: Path, kind: str, batches: int) -> tuple[int, bool]:
    """Run a child and kill it once it has reported so many batches, while it does the next ones.

    Return the last batch that it reported, and whether it came to its end.
    """

    def limit() -> None:
        if kind == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [sys.executable, "-m", "tests.training.kills", "--child", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit
    )
    assert process.stdout is not None
    # nothing once the child has ended
    reported = [process.stdout.readline() for _ in range(batches)]
    process.send_signal(signal.SIGKILL if kind == "full disk" else getattr(signal, kind))
    rest, errors = process.communicate(timeout=600)
    lines = ("".join(reported) + rest).split("\n")[:-1]
    # A signal before or after training has its usual effect.
    usual = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
    refused = kind == "full disk" and "File too large" in errors  # before training began
    if not refused and process.returncode not in (
        0,
        128 + signal.SIGTERM,
        128 + signal.SIGINT,
        *usual,
    ):
        raise AssertionError(f"{kind}: exit code {process.returncode}\n{errors}")
    return max([int(line) for line in lines if line != "done"], default=0), "done" in lines


def on_disk(folder: Path) -> int:
    """Return the batches done at the newest checkpoint."""
    return (
        folders.Folder(folder, 1).newest().about["total"]
        if folders.Folder(folder, 1).checkpoints()
        else 0
    )


def check(kills: int, seed: int = 0) -> str:
    """Kill so many times; return a summary. Raises AssertionError where something is lost or
    differs.
    """
    draw = random.Random(seed)
    whole = fit(None)
    counts = dict.fromkeys(KINDS, 0)
    ends = 0
    while sum(counts.values()) < kills:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "run"
            while True:
                kind = draw.choice(KINDS)
                before = on_disk(folder)
                reached, done = attempt(folder, kind, draw.randint(1, LATEST))
                saved = on_disk(folder)
                counts[kind] += 1
                assert saved >= before, f"{kind}: step {before} was on disk, now {saved}"
                # the last step may be under way: it is not reported, or not saved
                if kind != "full disk":
                    assert reached - saved <= (EVERY if kind == "SIGKILL" else 0), (
                        f"{kind}: {reached}, saved {saved}"
                    )
                if (done and kind != "full disk") or sum(counts.values()) >= kills:
                    break
            result = fit(folder)
            assert result.losses == whole.losses
            assert result.validations == whole.validations
            for parameter, p in whole.params.items():
                assert p.tobytes() == result.params[parameter].tobytes(), parameter
            ends += 1
    return (
        f"{sum(counts.values())} kills ({counts}), {ends} runs with the weights of one that was"
        " left alone"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child)
    else:
        print(check(given.kills, given.seed))
