"""Parity: the same inputs on every pair of usable backends, forward and backward, side by side.

    python -m tests.parity [--json FILE] [--processes N] [--seconds N] [--brief] [--paths N]

Prints the largest difference for each function and dtype, relative to the largest magnitude of the result, and exits
with 1 if one is above the tolerance of its dtype. On CuPy every recurrent layer runs once more by the paths that can do
it (`parity_paths.py`), TF32, float16 and bfloat16 included: by all of them on a card; by some, each layer by others,
where CuPy runs on the CPU (`tests/cuda_on_cpu`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import xlstm
from tests import cuda_on_cpu, layers, parity_paths
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.random import generator
from xlstm.cells import activations, lstm
from xlstm.engines import cuda
from xlstm.models.sequence import SequenceModel
from xlstm.training import losses, optimizers

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
T, B, D, H = 24, 5, 3, 16

Results = list[np.ndarray]
Row = dict[str, object]
FUNCTIONS: dict[str, Callable[[Backend], Results]] = {}
RECURRENT: dict[str, bool] = {}  # those that have paths on CuPy, and whether they are smooth
SEQUENCES: list[str] = []  # those that run in halves, by a path of their own
KINKS = ("clip", "cell_clip", "activations")


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


for _name in ("sigmoid", "tanh", "log_sigmoid", "silu", "softmax", "gelu", "square_relu"):
    FUNCTIONS[_name] = activation(_name)


@function
def lstm_cell(be: Backend) -> Results:
    zx, zh, h0, c0, dh, dc = draw(be, (4, H, B), (4, H, B), (H, B), (H, B), (H, B), (H, B))
    h, c, saved = lstm.gates(be.xp, zx, zh, h0, c0)
    dz, _, _, dc0 = lstm.gates_bwd(be.xp, lstm.derivatives(be.xp, saved, c0), dh, dc)
    return [h, c, dz, dc0]


def layer(
    kind: str, options: dict, lengths: list[int] | None = None, T: int = T, B: int = B, H: int = H, scale: float = 0.2
) -> Callable[[Backend], Results]:
    def run(be: Backend) -> Results:
        model = layers.make(kind, options, D, H)
        # With larger weights a plain RNN of this width is chaotic: rounding grows from step to step.
        params, x, state = layers.inputs_of(model, be, generator(11), T, B, scale)
        return [*layers.run(model, params, x, state, lengths, kept=True, seed=5).values()]

    return run


for _kind in layers.OPTIONS:
    for _options in layers.alone(_kind):
        _name = ", ".join(f"{key}={value}" for key, value in _options.items())
        FUNCTIONS[f"{_kind} {_name}".strip()] = layer(_kind, _options)
        RECURRENT[f"{_kind} {_name}".strip()] = not any(key in _options for key in KINKS)
    FUNCTIONS[f"{_kind} lengths, two layers, both directions"] = layer(
        _kind, {"num_layers": 2, "direction": "bidirectional"}, [T, 3, 0, 9, 9]
    )
    RECURRENT[f"{_kind} lengths, two layers, both directions"] = True


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
        return [y, *layers.flat(end), gradient, dx, *layers.flat(start)]

    return run


for _lengths in (None, [T, 3, 1, 9, 9]):
    _suffix = " lengths" if _lengths else ""
    FUNCTIONS[f"sLSTM, heads{_suffix}"] = sequence(xlstm.sLSTM(D, H, num_heads=4), _lengths)
    FUNCTIONS[f"mLSTM, two layers{_suffix}"] = sequence(xlstm.mLSTM(D, H, 2, num_heads=2, chunk_size=8), _lengths)
    FUNCTIONS[f"xLSTM stack{_suffix}"] = sequence(xlstm.xLSTMStack(H, 2, [1], 2, chunk_size=8), _lengths)
    RECURRENT[f"sLSTM, heads{_suffix}"] = True
    FUNCTIONS[f"xLSTM large{_suffix}"] = sequence(xlstm.xLSTMLarge(H, 2, 2, chunk_size=8, norm_eps=0.1), _lengths)
    SEQUENCES += [f"{_name}{_suffix}" for _name in ("mLSTM, two layers", "xLSTM stack", "xLSTM large")]


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
def steps_of_a_stream(be: Backend) -> Results:
    """Of layers that go on from their state, after a first pass."""
    found, (x,) = [], draw(be, (T, B, H))
    for model in (xlstm.LSTM(H, H), xlstm.mLSTM(H, H, num_heads=2), xlstm.xLSTMStack(H, 2, [1], 2, chunk_size=8)):
        params = {n: be.asarray(p) for n, p in model.draw(generator(1)).items()}
        _, state = model(params, x)
        for k in range(3):
            y, state = model.step(params, x[k, ...], state)
            found.append(y)
    return found


@function
def ten_training_steps(be: Backend) -> Results:
    model = SequenceModel(xlstm.LSTM(D, H), 2, last=True)
    params, optimizer = model.init(1, be), optimizers.adamw(1e-2)
    state = optimizer.init(params)
    x, target = draw(be, (T, B, D), (B, 2))
    values = []
    for _ in range(10):
        y, _, saved = model.forward(params, x)
        loss, dy = losses.mse(y, target)
        grads, _, _ = model.backward(params, saved, dy)
        params, state = optimizer.update(params, optimizers.clip_global_norm(grads, 1.0), state)
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


# Wide enough that several blocks share a layer; for the paths alone, against NumPy.
WIDE = {
    "LSTM wide": layer("LSTM", {}, [5, 1] + [6] * 18, T=6, B=20, H=500, scale=0.04),
    "GRU wide": layer("GRU", {}, T=6, B=20, H=260, scale=0.04),
    "RNN wide": layer("RNN", {}, T=6, B=20, H=260, scale=0.04),
}


def compare(usable: dict[str, Backend], name: str) -> list[Row]:
    """A row for each dtype and pair of backends."""
    rows: list[Row] = []
    run = FUNCTIONS[name]
    for dtype, tolerance in TOLERANCE.items():
        results = {b: [to_numpy(a) for a in run(Backend(be.name, be.xp, be.device, dtype))] for b, be in usable.items()}
        for one, other in itertools.combinations(usable, 2):
            rows.append(row(name, dtype, f"{one} / {other}", results[one], results[other], tolerance))
    return rows


def by_path(device: Backend, host: Backend, name: str, most: int | None = None) -> list[Row]:
    """A row for each path on the device and each precision, or with the reason why the path cannot do it.

    With `most` there are only so many, for each function others.
    """
    rows: list[Row] = []
    run = FUNCTIONS.get(name) or WIDE[name]
    chosen = parity_paths.ways(("auto",) if name in SEQUENCES else cuda.PATHS, RECURRENT.get(name, True))
    if most is not None and name not in SEQUENCES:
        begin = most * [*RECURRENT, *WIDE].index(name)
        chosen = [chosen[(begin + k) % len(chosen)] for k in range(min(most, len(chosen)))]
    for pair in parity_paths.pairs(run, device, host, chosen):
        label, both = f"{name} [{pair.path}]", f"{host.name} / {device.name}"
        if pair.why:
            rows.append({"function": label, "dtype": pair.dtype, "pair": both, "impossible": pair.why, "ok": True})
        else:
            tolerance = parity_paths.TOLERANCE[pair.dtype]
            rows.append(row(label, pair.dtype, both, pair.expected, pair.found, tolerance))
    return rows


def row(name: str, dtype: str, pair: str, expected: Results, found: Results, tolerance: float) -> Row:
    gap = difference(expected, found)
    return {"function": name, "dtype": dtype, "pair": pair, "gap": gap, "ok": gap <= tolerance}


def rows_of(name: str, most: int | None = None) -> list[Row]:
    """Everything about a function, on what is usable here; one that fails is a row with its error."""
    usable = here()
    rows: list[Row] = []
    try:
        if name in FUNCTIONS:
            rows += compare(usable, name)
        if "cupy" in usable and (name in RECURRENT or name in WIDE or name in SEQUENCES):
            rows += by_path(usable["cupy"], usable["numpy"], name, most)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        rows.append({"function": name, "dtype": "", "pair": "", "gap": float("inf"), "ok": False, "error": reason})
    return rows


@functools.cache
def here() -> dict[str, Backend]:
    return {name: be for name, be in backends().items() if isinstance(be, Backend)}


def run_all(
    names: list[str],
    processes: int,
    seconds: float,
    done: Callable[[list[Row], list[str]], object] = lambda rows, left_out: None,
    most: int | None = None,
) -> tuple[list[Row], list[str]]:
    """Rows of all functions in their order, and the names of those for which there was no time.

    `done` is given both after every function.
    """
    found: dict[str, list[Row]] = {}
    rows: list[Row] = []
    left_out = list(names)
    for name, some in _each(names, processes, time.monotonic() + seconds, most):
        found[name] = some
        rows = [row for one in names for row in found.get(one, [])]
        left_out = [one for one in names if one not in found]
        done(rows, left_out)
    return rows, left_out


def _each(names: list[str], processes: int, until: float, most: int | None) -> Iterator[tuple[str, list[Row]]]:
    if processes == 1:
        for name in names:
            if time.monotonic() > until:
                return
            yield name, rows_of(name, most)
        return
    # As a module, not as __main__, that processes find it.
    from tests import parity

    todo, running = list(names), {}
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while todo or running:
            while todo and len(running) < processes and time.monotonic() < until:
                name = todo.pop(0)
                running[pool.submit(parity.rows_of, name, most)] = name
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for task in done:
                yield running.pop(task), task.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--processes", type=int, default=1, help="functions side by side, 1 by default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so long")
    parser.add_argument("--brief", action="store_true", help="print only what is too large")
    parser.add_argument("--paths", type=int, help="of each layer on CuPy; all on a card, else 2 by default")
    options = parser.parse_args()
    found = backends()
    most = options.paths or (None if cuda_on_cpu.missing() else 2)
    for name, be in found.items():
        missing = "no usable GPU" if name == "cupy" else "not usable"
        on_cpu = name == "cupy" and not cuda_on_cpu.missing()
        where = ", which is the CPU of this machine (tests/cuda_on_cpu)" * on_cpu
        print(f"{name}: {be}{where}" if isinstance(be, Backend) else f"{name}: {missing}: {be}")
    usable = {name: be for name, be in found.items() if isinstance(be, Backend)}
    # Those with paths first: they take longest, and there are none where they are not compared.
    names = sorted([*(WIDE if "cupy" in usable else ()), *FUNCTIONS], key=lambda name: name not in WIDE)
    about = {name: str(be) for name, be in found.items()}

    def done(rows: list[Row], left_out: list[str]) -> None:
        """Keep what there is."""
        if options.json is not None:
            text = json.dumps({"backends": about, "rows": rows, "left out": left_out}, indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")

    rows, left_out = run_all(names, options.processes, options.seconds, done, most)
    print_rows([row for row in rows if not options.brief or not row["ok"]])
    bad = sum(not row["ok"] for row in rows)
    impossible = sum("impossible" in row for row in rows)
    if left_out:
        print(f"left out for want of time: {'; '.join(left_out)}")
    print(
        f"\n{len(rows) - bad - impossible} of {len(rows) - impossible} comparisons within {TOLERANCE}"
        + (f"; paths: {parity_paths.TOLERANCE}, {impossible} not possible" if "cupy" in usable else "")
        + (f"; {len(left_out)} functions left out" if left_out else "")
    )
    return 1 if bad or len(usable) < 2 else 0


def print_rows(rows: list[Row]) -> None:
    """Pairs of backends side by side; paths and errors below."""
    for row in rows:
        if "error" in row:
            print(f"{row['function']}: {row['error']}")
    rows = [row for row in rows if "gap" in row and "error" not in row]
    pairs = list(dict.fromkeys(str(row["pair"]) for row in rows))
    print(f"\n{'largest relative difference':62s}" + "".join(f"{pair:>26s}" for pair in pairs))
    for (function, dtype), group in itertools.groupby(rows, lambda row: (row["function"], row["dtype"])):
        cells = {row["pair"]: f"{row['gap']:.1e}{'' if row['ok'] else ' TOO LARGE'}" for row in group}
        print(f"{function:48.48s} {dtype:13s}" + "".join(f"{cells.get(pair, ''):>26s}" for pair in pairs).rstrip())


if __name__ == "__main__":
    sys.exit(main())
