"""A language model of four xLSTM blocks on a GPU: a step of training with AdamW and clipping, and
tokens a second.

    python -m bench.language [--seconds N] [--json FILE]

It needs a CUDA machine with CuPy. A step takes a batch from the host and gives its loss. In float16
and bfloat16, weights stay float32 (`precision.Mixed`). `generate` makes the tokens, and the host
waits for each of them; times are of one token.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import xlstm
from bench import rows
from bench.events import Clock, Side
from bench.rows import OURS, OURS_CAPTURED, PRECISIONS
from xlstm import precision
from xlstm.arrays.backend import Backend
from xlstm.data import Streams
from xlstm.training import Step, optimizers
from xlstm.training.callbacks import Clip

# B, T, D and the number of tokens: the case of `bench.published`, and one that a GPU is made for.
STEPS = ((8, 256, 128, 256), (16, 512, 768, 16384))
TEXTS = ((1, 128, 256), (1, 768, 16384), (16, 768, 16384))  # B, D and the number of tokens
WRITTEN = ("fp32", "bf16")  # precisions of weights that write
BLOCKS = 4
SLSTM = (1,)
HEADS = 4
TOKENS = 32  # of a call of `generate`
RATE = 1e-3
NORM = 1.0
SCALES = 24  # steps after which the scale of float16 fits at the latest


@dataclass(frozen=True)
class Case:
    """One thing that is timed: a step of training, or with `train` False a token."""

    B: int
    T: int
    D: int
    V: int
    precision: str
    train: bool = True
    layer: str = "language"

    def __str__(self) -> str:
        what = f"step {self.B},{self.T}" if self.train else f"token {self.B}"
        return f"{self.layer} {what},{self.D},{self.V} {self.precision}"


def cases() -> list[Case]:
    """Return all cases, the most important first."""
    steps = [Case(*sizes, name) for sizes in reversed(STEPS) for name in PRECISIONS]
    return steps + [Case(B, 1, D, V, name, train=False) for name in WRITTEN for B, D, V in TEXTS]


class Model:
    """Return the model of a case, and its training data."""

    def __init__(self, case: Case, be: Backend) -> None:
        self.case = case
        self.be = be
        self.model = xlstm.xLSTMLanguageModel(
            xlstm.xLSTMStack(case.D, BLOCKS, SLSTM, HEADS), case.V
        )
        self.params = self.model.init(0, be)
        self.losses: list[float] = []
        self.tf32 = functools.partial(precision.tf32, case.precision == "TF32")

    def weights(self) -> int:
        """The number of weights in products: all matrices but the embedding."""
        return sum(
            p.size
            for name, p in self.params.items()
            if p.ndim > 1 and not name.startswith("embedding.")
        )

    def step(self, **options: Any) -> Callable[[], None]:
        """A call that takes a step, with options of `Step`; the scale of gradients fits."""
        case = self.case
        low = PRECISIONS[case.precision]
        mixed = None if low == "float32" else precision.Mixed(low)
        tokens = np.random.default_rng(0).integers(0, case.V, case.B * case.T + 1)
        batch = next(iter(Streams(tokens[:-1], tokens[1:], case.B, case.T).batches()))
        step = Step(
            self.model, optimizers.adamw(RATE), callbacks=[Clip(NORM)], precision=mixed, **options
        )
        state = step.init(self.params)

        def call() -> None:
            nonlocal state
            state, taken = step(state, batch)
            self.losses.append(taken.loss)

        with self.tf32():
            while len(self.losses) < SCALES and not state.updates:
                call()
        return call

    def text(self) -> Callable[[], None]:
        """A call that writes `TOKENS` tokens after one."""
        prompt = self.be.asarray(np.zeros((self.case.B, 1), dtype="int64"))

        def call() -> None:
            self.model.generate(self.params, prompt, TOKENS)

        return call


def measure(case: Case, clock: Clock, until: float) -> dict[str, Any]:
    """The row of a case, fit for JSON: times of a step, also as a graph, or of a token."""
    be = xlstm.backend("cupy", dtype="float32" if case.train else PRECISIONS[case.precision])
    model = Model(case, be)
    row = {**rows.head(case), "weights": model.weights(), "loops": len(SLSTM)}
    sides = {OURS: Side(model.step() if case.train else model.text(), model.tf32)}
    if case.train:
        sides[OURS_CAPTURED] = Side(Model(case, be).step(graph=True), model.tf32)
    seconds = rows.seconds_of(sides, clock, until)
    if not case.train:
        for name in ("wall", "device", "best"):
            seconds[OURS][name] /= TOKENS
    row["seconds"] = seconds
    row["tokens a second"] = case.B * case.T / min(times["wall"] for times in seconds.values())
    row["losses"] = [model.losses[0], model.losses[-1]] if model.losses else []
    return row


def main() -> int:
    return rows.main("language", __doc__, cases(), measure)


if __name__ == "__main__":
    sys.exit(main())
