"""Parity: the same inputs on every pair of usable backends, forward and backward, side by side.

    python -m tests.parity [--json FILE]

Prints the largest difference for each function and dtype, relative to the largest magnitude of the
result, and exits with 1 if one is above the tolerance of its dtype.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import xlstm
from tests import layers
from xlstm import activations, losses, optim
from xlstm.backend import Backend, generator, to_numpy
from xlstm.cells import lstm
from xlstm.models import SequenceModel

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
T, B, D, H = 24, 5, 3, 16

Results = list[np.ndarray]
FUNCTIONS: dict[str, Callable[[Backend], Results]] = {}


def function(f: Callable[[Backend], Results]) -> Callable[[Backend], Results]:
    """Register a function of a backend that returns the arrays to compare."""
    FUNCTIONS[f.__name__.replace("_", " ")] = f
    return f


def draw(be: Backend, *shapes: tuple[int, ...]) -> list:
    rng = generator(11)
    return [be.asarray(rng.standard_normal(shape)) for shape in shapes]


def activation(name: str) -> Callable[[Backend], Results]:
    def run(be: Backend) -> Results:
        x, dy = draw(be, (40, 9), (40, 9))
        y = getattr(activations, name)(be.xp, 3 * x)
        return [y, getattr(activations, f"{name}_bwd")(be.xp, dy, 3 * x, y)]

    return run


for _name in ("sigmoid", "tanh", "log_sigmoid", "silu", "softmax", "log_softmax", "gelu", "square_relu"):
    FUNCTIONS[_name] = activation(_name)


@function
def lstm_cell(be: Backend) -> Results:
    z, c0, dh, dc = draw(be, (4, H, B), (H, B), (H, B), (H, B))
    h, c, saved = lstm.gates(be.xp, z, c0)
    return [h, c, *lstm.gates_bwd(be.xp, dh, dc, lstm.slopes(be.xp, c0, saved))]


def layer(kind: str, options: dict, lengths: list[int] | None = None) -> Callable[[Backend], Results]:
    def run(be: Backend) -> Results:
        model = layers.make(kind, options, D, H)
        # With larger weights a plain RNN of this width is chaotic: rounding grows from step to step.
        params, x, state = layers.inputs_of(model, be, generator(11), T, B, scale=0.2)
        results = layers.run(model, params, x, state, lengths, seed=5)
        _, _, saved = model.forward(params, x, state, lengths=lengths, seed=5)
        return [*results.values(), *(one.gates for one in saved.passes.values())]

    return run


for _kind in layers.OPTIONS:
    for _options in layers.alone(_kind):
        _name = ", ".join(f"{key}={value}" for key, value in _options.items())
        FUNCTIONS[f"{_kind} {_name}".strip()] = layer(_kind, _options)
    FUNCTIONS[f"{_kind} lengths, two layers, both directions"] = layer(
        _kind, {"num_layers": 2, "direction": "bidirectional"}, [T, 3, 0, 9, 9]
    )


def sequence(model: xlstm.mLSTM, lengths: list[int] | None = None) -> Callable[[Backend], Results]:
    def run(be: Backend) -> Results:
        rng = generator(11)
        params = {n: be.asarray(p + 0.05 * rng.standard_normal(p.shape)) for n, p in model.draw(rng).items()}
        x, dy = (be.asarray(rng.standard_normal((T, B, D))) for D in (model.input_size, model.output_size))
        y, end, saved = model.forward(params, x, lengths=lengths)
        grads, dx, start = model.backward(params, saved, dy)
        # As one vector: what all input gates have in common the normaliser takes out again, so that the gradient by
        # their biases is nearly nothing, of which rounding is a large part. For the like reason the norm below has an
        # eps that is not small beside the least h.
        gradient = np.concatenate([to_numpy(g).ravel() for g in grads.values()])
        return [y, *flat(end), gradient, dx, *flat(start)]

    return run


def flat(state: tuple) -> list:
    return [a for part in state for a in (flat(part) if isinstance(part, tuple) else [part])]


for _lengths in (None, [T, 3, 1, 9, 9]):
    _suffix = " lengths" if _lengths else ""
    FUNCTIONS[f"sLSTM, heads{_suffix}"] = sequence(xlstm.sLSTM(D, H, num_heads=4), _lengths)
    FUNCTIONS[f"mLSTM, two layers{_suffix}"] = sequence(xlstm.mLSTM(D, H, 2, num_heads=2, chunk_size=8), _lengths)
    FUNCTIONS[f"xLSTM stack{_suffix}"] = sequence(xlstm.xLSTMStack(H, 2, [1], 2, chunk_size=8), _lengths)
    FUNCTIONS[f"xLSTM large{_suffix}"] = sequence(xlstm.xLSTMLarge(H, 2, 2, chunk_size=8, norm_eps=0.1), _lengths)


@function
def linear(be: Backend) -> Results:
    model = xlstm.Linear(D, H)
    params = model.init(1, be)
    x, dy = draw(be, (T, B, D), (T, B, H))
    y, saved = model.forward(params, x)
    grads, dx = model.backward(params, saved, dy)
    return [y, dx, *grads.values()]


def regression(name: str) -> Callable[[Backend], Results]:
    def run(be: Backend) -> Results:
        y, target = draw(be, (T, B, D), (T, B, D))
        mask = be.asarray(generator(2).random((T, B)) < 0.7)
        return [*getattr(losses, name)(y, target), *getattr(losses, name)(y, target, mask)]

    return run


for _name in ("mse", "mae", "huber"):
    FUNCTIONS[_name] = regression(_name)


@function
def cross_entropy(be: Backend) -> Results:
    (logits,) = draw(be, (T, B, 7))
    labels = be.asarray(generator(2).integers(0, 7, (T, B)))
    return list(losses.cross_entropy(logits, labels))


@function
def ten_training_steps(be: Backend) -> Results:
    model = SequenceModel(xlstm.LSTM(D, H), 2, last=True)
    params, optimizer = model.init(1, be), optim.adamw(1e-2)
    state = optimizer.init(params)
    x, target = draw(be, (T, B, D), (B, 2))
    values = []
    for _ in range(10):
        y, _, saved = model.forward(params, x)
        loss, dy = losses.mse(y, target)
        grads, _, _ = model.backward(params, saved, dy)
        params, state = optimizer.update(params, optim.clip_global_norm(grads, 1.0), state)
        values.append(loss)
    return [*values, y]


def backends() -> dict[str, Backend | str]:
    """Every backend, and array-api-strict on its second device in the place of a GPU; else the reason."""
    found: dict[str, Backend | str] = dict(xlstm.usable())
    try:
        import array_api_strict as strict
    except ImportError:
        found["array-api-strict"] = "not installed"
    else:
        found["array-api-strict"] = Backend("array_api_strict", strict, strict.Device("device1"))
    return found


def difference(one: Results, other: Results) -> float:
    """Largest difference of any pair of arrays, relative to the largest magnitude in the first of the pair."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        gap = np.max(np.abs(a.astype("float64") - b.astype("float64"))) / max(
            float(np.max(np.abs(a))), np.finfo(a.dtype).tiny
        )
        worst = max(worst, float(gap) if np.isfinite(gap) else float("inf"))
    return worst


def compare(usable: dict[str, Backend]) -> list[dict[str, object]]:
    """A row for each function, dtype and pair of backends."""
    rows: list[dict[str, object]] = []
    for name, run in FUNCTIONS.items():
        for dtype, tolerance in TOLERANCE.items():
            results = {
                b: [to_numpy(a) for a in run(Backend(be.name, be.xp, be.device, dtype))] for b, be in usable.items()
            }
            for one, other in itertools.combinations(usable, 2):
                gap = difference(results[one], results[other])
                rows.append(
                    {"function": name, "dtype": dtype, "pair": f"{one} / {other}", "gap": gap, "ok": gap <= tolerance}
                )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    found = backends()
    for name, be in found.items():
        missing = "no usable GPU" if name == "cupy" else "not usable"
        print(f"{name}: {be}" if isinstance(be, Backend) else f"{name}: {missing}: {be}")
    usable = {name: be for name, be in found.items() if isinstance(be, Backend)}
    rows = compare(usable)
    pairs = list(dict.fromkeys(str(row["pair"]) for row in rows))
    print(f"\n{'largest relative difference':54s}" + "".join(f"{pair:>28s}" for pair in pairs))
    for key, group in itertools.groupby(rows, lambda row: (row["function"], row["dtype"])):
        cells = [f"{row['gap']:.1e}{'' if row['ok'] else ' TOO LARGE'}" for row in group]
        print(f"{key[0]:44.44s} {key[1]:9s}" + "".join(f"{cell:>28s}" for cell in cells))
    bad = sum(not row["ok"] for row in rows)
    print(f"\n{len(rows) - bad} of {len(rows)} comparisons within {TOLERANCE}")
    if options.json is not None:
        about = {name: str(be) for name, be in found.items()}
        options.json.write_text(json.dumps({"backends": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 1 if bad or len(usable) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
