"""Abilities of each cell: parity, modular arithmetic and associative recall, as in the xLSTM paper
(Beck et al. 2024).

    python -m bench.tasks [--seed 0] [--json FILE]

Two layers of LSTM, or two blocks: sLSTM, mLSTM, and mLSTM below sLSTM ("mixed"). Parity and
arithmetic are trained on lengths 3 to 40 and tested up to 256; targets are the answers after every
prefix, which trains sooner than the last one alone. Arithmetic begins with short sequences, and
longer ones come in step by step. Recall is trained with 4 queries of each key and tested with one.
Every model sees the same batches; training ends early once a task is solved.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import xlstm
from bench import run
from bench.options import parser_of
from bench.tasks_data import TASKS, Task
from xlstm.arrays import cores
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.training import optimizers

MODELS = ("LSTM", "sLSTM", "mLSTM", "mixed")
SOLVED = 0.999
CHECKS = 3  # accuracy at trained lengths, so many checks in a row
TRAINING, VALIDATION, TEST = range(3)  # streams of a seed
CHUNK = 128  # sequences tested at once, which bounds memory


@dataclass(frozen=True)
class Recipe:
    """How the models of a task are made and trained."""

    size: int
    lstm_size: int
    num_heads: int  # of mLSTM blocks; sLSTM blocks have one head, and no convolution
    lr: float
    lstm_lr: float
    weight_decay: float
    batch_size: int
    steps: int
    growth: float = 0.0  # share of the steps in which lengths grow to those of the task
    warmup: int = 50
    clip: float = 1.0
    check: int = 50  # steps between validations
    sequences: int = 512  # of validation, and of a test


RECIPES = {
    "parity": Recipe(32, 32, 2, 1e-2, 1e-2, 0.0, 128, 600, warmup=20),
    "arithmetic": Recipe(32, 64, 2, 1e-2, 5e-3, 0.1, 256, 2500, growth=0.5),
    "recall": Recipe(64, 64, 2, 7e-3, 7e-3, 0.0, 64, 1000),
}


def model_of(name: str, task: Task, recipe: Recipe) -> xlstm.xLSTMLanguageModel:
    """Embedding, two layers or blocks, and head."""
    if name == "LSTM":
        backbone: Any = xlstm.LSTM(recipe.lstm_size, recipe.lstm_size, num_layers=2)
    else:
        backbone = xlstm.xLSTMStack(
            recipe.size,
            2,
            slstm_at={"sLSTM": (0, 1), "mLSTM": (), "mixed": (1,)}[name],
            num_heads=recipe.num_heads,
            slstm_num_heads=1,
            slstm_conv_kernel_size=0,
            recurrent_init="uniform",
        )
    return xlstm.xLSTMLanguageModel(backbone, task.vocab_size, batch_first=False)


def limit_at(step: int, task: Task, recipe: Recipe) -> int:
    """The longest sequences of a step."""
    grown = 1.0 if recipe.growth == 0 else min(1.0, step / (recipe.growth * recipe.steps))
    return task.shortest + int(grown * (task.longest - task.shortest))


def train(
    name: str, task: Task, recipe: Recipe, seed: int, backend: Backend
) -> tuple[xlstm.xLSTMLanguageModel, Params, dict[str, Any]]:
    """Train until solved, or for all steps.

    `xlstm.training.train` stops when a validation loss no longer falls; here accuracy decides, amid
    a schedule of lengths, so the loop is written out.

    Raises
    ------
    FloatingPointError
        Loss or gradient is not finite; names the step.
    """
    model = model_of(name, task, recipe)
    params = model.init(seed, backend)
    rate = recipe.lstm_lr if name == "LSTM" else recipe.lr
    schedule = optimizers.warmup(
        recipe.warmup, optimizers.cosine(rate, max(1, recipe.steps - recipe.warmup), 0.05 * rate)
    )
    optimizer = optimizers.adamw(schedule, weight_decay=recipe.weight_decay)
    state = optimizer.init(params)
    rng = np.random.default_rng((seed, TRAINING))
    start = time.perf_counter()
    losses = []
    solved = 0
    for step in range(1, recipe.steps + 1):
        batch = task.batch(rng, recipe.batch_size, limit_at(step, task, recipe))
        logits, _, saved = model.forward(
            params, backend.asarray(batch.x), train=True, lengths=batch.lengths
        )
        loss, dlogits = model.loss(
            logits, backend.asarray(batch.target), backend.asarray(batch.mask)
        )
        grads, _, _ = model.backward(params, saved, dlogits)
        norm = optimizers.global_norm(grads)
        losses.append(float(loss))
        if not (math.isfinite(losses[-1]) and math.isfinite(float(norm))):
            raise FloatingPointError(
                f"{task.name}, {name}: step {step}: loss is {losses[-1]:g}, norm of the gradient"
                f" {float(norm):g}"
            )
        params, state = optimizer.update(
            params, optimizers.clip_global_norm(grads, recipe.clip, norm), state
        )
        if step % recipe.check == 0:
            right, count = tested(
                model, params, task, task.longest, recipe.sequences, (seed, VALIDATION), backend
            )
            accuracy = float(right.sum() / count.sum())
            solved = solved + 1 if accuracy >= SOLVED else 0
        if solved == CHECKS:
            break
    seconds = time.perf_counter() - start
    recent = float(np.mean(losses[-recipe.check :]))
    how = {"steps": step, "seconds": seconds, "ended early": solved == CHECKS, "loss": recent}
    return model, params, how


def tested(
    model: xlstm.xLSTMLanguageModel,
    params: Params,
    task: Task,
    T: int,
    sequences: int,
    seed: tuple[int, ...],
    backend: Backend,
) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and all answers after each prefix, from the shortest sequence on: (T - shortest
    + 1,) each.
    """
    rng = np.random.default_rng(seed)
    first = task.shortest - 1 if task.prefixes else 0
    right = np.zeros(T, dtype=int)
    count = np.zeros(T, dtype=int)
    for begin in range(0, sequences, CHUNK):
        x, y, mask = task.draw_test(rng, min(CHUNK, sequences - begin), T)
        logits, _, _ = model.forward(params, backend.asarray(x), train=False)
        right += np.sum((to_numpy(logits).argmax(axis=-1) == y) & mask, axis=1)
        count += np.sum(mask, axis=1)
    return right[first:], count[first:]


def by_length(
    model: xlstm.xLSTMLanguageModel,
    params: Params,
    task: Task,
    sequences: int,
    seed: int,
    backend: Backend,
) -> dict[int, float]:
    """Accuracy at every length tested."""
    accuracy: dict[int, float] = {}
    for T in task.tests:
        right, count = tested(model, params, task, T, sequences, (seed, TEST), backend)
        if task.prefixes:
            accuracy |= {
                task.shortest + k: float(right[k] / count[k])
                for k in np.flatnonzero(count).tolist()
            }
        else:
            accuracy[T] = float(right.sum() / count.sum())
    return accuracy


def summary(lengths: dict[int, float], task: Task) -> dict[str, float]:
    """Mean accuracy at trained lengths and at longer ones, and these scaled: 0 for guessing, 1 for
    all right.
    """
    trained = np.array([*lengths]) <= task.longest
    accuracy = np.array([*lengths.values()])
    results = {}
    for name, some in (("trained", trained), ("longer", ~trained)):
        mean = float(np.mean(accuracy[some]))
        results[name] = mean
        results[f"{name}, scaled"] = (mean - task.chance) / (1 - task.chance)
    return results


def measure(name: str, task: Task, recipe: Recipe, seed: int, backend: Backend) -> dict[str, Any]:
    """Train and test one model."""
    model, params, how = train(name, task, recipe, seed, backend)
    lengths = by_length(model, params, task, recipe.sequences, seed, backend)
    results = summary(lengths, task) | how
    results["by length"] = {str(T): round(a, 4) for T, a in lengths.items()}
    print(
        f"{task.name}, {name}: accuracy {results['trained']:.4f} at trained lengths,"
        f" {results['longer']:.4f} at longer ones ({results['longer, scaled']:.3f} scaled);"
        f" {how['steps']} steps{', ended early' if how['ended early'] else ''},"
        f" {how['seconds']:.0f} s",
        flush=True,
    )
    return {
        "bench": "tasks",
        "name": f"{task.name} {name}",
        "task": task.name,
        "model": name,
        "case": {
            **asdict(recipe),
            "model": repr(model),
            "parameters": sum(p.size for p in params.values()),
            "chance": task.chance,
            "trained lengths": [task.shortest, task.longest],
        },
        "seed": seed,
        "precision": backend.dtype,
        "results": results,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="append results to this file, a line each")
    options = parser.parse_args()
    backend = xlstm.backend("numpy")
    start = time.perf_counter()
    for task, recipe in RECIPES.items():
        for name in MODELS:
            row = measure(name, TASKS[task], recipe, options.seed, backend)
            run.append(options.json, row)
    print(f"{time.perf_counter() - start:.0f} s in all, {cores.threads()} threads")


if __name__ == "__main__":
    main()
