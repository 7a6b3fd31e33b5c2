"""A model of characters trained as `xlstm train text` does by default, beside the same model in PyTorch.

python -m bench.text FILE [--steps 800] [--json FILE]

One LSTM of 256 units, embeddings of 64, 64 streams of 128 characters with carried state, Adam at 2e-3, the gradient's
norm clipped at 1, the last tenth of the text held out. Both train in turn, 50 steps at a time, so that other work on
the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from xlstm.arrays import cores
from xlstm.cli import info
from xlstm.data import Streams
from xlstm.data.text import Characters
from xlstm.estimators import TextModel
from xlstm.training import Callback, Step, evaluate, optimizers
from xlstm.training.callbacks import Clip

TURN = 50  # steps of one library before the other's


def ours(fitted: np.ndarray, size: int):
    """A function that trains for some steps, and one that judges."""
    given = TextModel(backend="numpy")
    model = given._model(size)
    callbacks: list[Callback] = [Clip(given.clip)]
    step = Step(model, optimizers.adamw(given.learning_rate, weight_decay=given.weight_decay), callbacks=callbacks)
    state = step.init(model.init(0, "numpy"))
    batches = forever(Streams(fitted[:-1], fitted[1:], given.batch_size, given.length))

    def train(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, next(batches))

    def judge(kept: np.ndarray) -> float:
        return evaluate(model, state.params, Streams(kept[:-1], kept[1:], given.batch_size, given.length))

    return train, judge


def theirs(fitted: np.ndarray, size: int):
    """The same with PyTorch."""
    import torch

    torch.set_num_threads(cores.threads())
    torch.manual_seed(0)
    given = TextModel()
    embedding, head = torch.nn.Embedding(size, given.embedding_size), torch.nn.Linear(given.hidden_size, size)
    lstm = torch.nn.LSTM(given.embedding_size, given.hidden_size)
    parameters = [*embedding.parameters(), *lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=given.learning_rate)
    batches = forever(Streams(fitted[:-1], fitted[1:], given.batch_size, given.length))
    carried = None

    def forward(batch, state):
        y, state = lstm(embedding(torch.from_numpy(np.ascontiguousarray(batch.x))), state)
        target = torch.from_numpy(np.ascontiguousarray(batch.target)).reshape(-1)
        return torch.nn.functional.cross_entropy(head(y).reshape(-1, size), target), state

    def train(steps: int) -> None:
        nonlocal carried
        for _ in range(steps):
            batch = next(batches)
            loss, after = forward(batch, None if batch.fresh else carried)
            carried = tuple(s.detach() for s in after)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, given.clip)
            optimizer.step()

    def judge(kept: np.ndarray) -> float:
        losses, state = [], None
        with torch.no_grad():
            for batch in Streams(kept[:-1], kept[1:], given.batch_size, given.length).batches():
                loss, state = forward(batch, state)
                losses.append(float(loss))
        return float(np.mean(losses))

    return train, judge


def forever(data: Streams):
    """The batches of epoch after epoch."""
    while True:
        yield from data.batches()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a text of a million characters or so")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--json", type=Path, help="add the results to this file")
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8")
    codec = Characters.of(text)
    tokens = np.array(codec.encode(text))
    fitted, kept = np.split(tokens, [len(tokens) - len(tokens) // 10])
    sides = {"xlstm": ours(fitted, len(codec.alphabet)), "torch": theirs(fitted, len(codec.alphabet))}
    seconds = dict.fromkeys(sides, 0.0)
    sides["xlstm"][0](1)  # loops are compiled
    for done in range(0, options.steps, TURN):
        for name, (train, _) in sides.items():
            start = time.perf_counter()
            train(min(TURN, options.steps - done))
            seconds[name] += time.perf_counter() - start
    nats = {name: judge(kept) for name, (_, judge) in sides.items()}
    for name in sides:
        print(f"{name}: {nats[name]:.3f} nats a character held out after {options.steps} steps, {seconds[name]:.0f} s")
    print(f"time, xlstm / torch: {seconds['xlstm'] / seconds['torch']:.2f}; goals: 1.60 nats or less, 0.9 or less")
    if options.json is not None:
        line = {"bench": "text", "steps": options.steps, "nats": nats, "seconds": seconds, **info.describe()}
        with options.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
