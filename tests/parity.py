"""Parity: the same inputs on every pair of usable backends, forward, backward, step and training, side by side.

    python -m tests.parity [--require NAME] [--json FILE] [--processes N] [--seconds N] [--brief] [--paths N]

Prints the largest difference for each case and dtype, relative to the largest magnitude of the result, and exits with 1
if one is above the tolerance of its dtype. On CuPy every recurrent layer runs once more by the paths that can do it,
TF32, float16 and bfloat16 included: by all of them on a card; by one, each layer by another, where CuPy runs on the CPU
(`cuda_on_cpu`). A backend that `--require` names, and that does not work, ends it with 1 before anything is
compared; the last line names those that were not compared.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import cuda_on_cpu
import xlstm
from tests import registry
from tests.gpu import half
from xlstm import losses, optim
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.namespace import HALVES
from xlstm.arrays.random import generator
from xlstm.engines import cuda
from xlstm.models.sequence import SequenceModel

T, B, D, H = 24, 5, 3, 16
# Relative to the largest value. TF32 has 11 bits of each factor of the products of h; float16 has 11 and bfloat16 8 of
# everything that is kept, h and gradients of gates among it, over all steps. Of 24 steps of an RNN with recurrent
# dropout, whose masks enlarge h, TF32 leaves 6e-3 by every path, and float16 4e-3.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float32 tf32": 1e-2, "float16": 1e-2, "bfloat16": 8e-2}
EVERYWHERE, LOW = ("float64", "float32"), ("float32 tf32", "float16", "bfloat16")
DTYPES = {
    "auto": HALVES,  # the path that the layer chooses, of those that have no other name
    "loop": ("float64", "float32", "float16"),
    "pointwise": ("float64", "float32", "float16", "bfloat16"),
    "plain": ("float64", "float32"),
    "grid": ("float32", "float32 tf32", "float16", "bfloat16"),
    "cluster": ("float32", "float32 tf32", "float16", "bfloat16"),
}
KINKS = {"clip", "cell_clip", "activations"}  # a difference in the last bit decides on which side a value lies

Results = list[np.ndarray]
Run = Callable[[Backend], Results]
Row = dict[str, object]


class Case(NamedTuple):
    """A function of a backend that returns the arrays to compare, and its paths on CuPy."""

    run: Run
    paths: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = EVERYWHERE  # of the pairs of backends
    smooth: bool = True

    def ways(self) -> list[tuple[str, str]]:
        """The paths with the dtypes of each."""
        return [(path, dtype) for path in self.paths for dtype in DTYPES[path] if self.smooth or dtype not in LOW]


def recurrent(
    kind: str, options: dict, lengths: list[int] | None = None, T: int = T, B: int = B, H: int = H, scale: float = 0.2
) -> Run:
    def run(be: Backend) -> Results:
        model = registry.make(kind, options, D, H)
        # With larger weights a plain RNN of this width is chaotic: rounding grows from step to step.
        params, x, state = registry.inputs_of(model, be, generator(11), T, B, scale)
        return [*registry.run(model, params, x, state, lengths, kept=True, seed=5).values()]

    return run


def sequence(model: xlstm.mLSTM, lengths: list[int] | None = None) -> Run:
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
        return [y, *registry.flat(end), gradient, dx, *registry.flat(start)]

    return run


def steps_of_a_stream(be: Backend) -> Results:
    """Layers go on from their state, after a first pass."""
    found, x = [], be.asarray(generator(11).standard_normal((T, B, H)))
    for model in (xlstm.LSTM(H, H), xlstm.mLSTM(H, H, num_heads=2), xlstm.xLSTMStack(H, 2, [1], 2, chunk_size=8)):
        params = {n: be.asarray(p) for n, p in model.draw(generator(1)).items()}
        _, state = model(params, x)
        for k in range(3):
            y, state = model.step(params, x[k, ...], state)
            found.append(y)
    return found


def ten_training_steps(be: Backend) -> Results:
    model, rng, values = SequenceModel(xlstm.LSTM(D, H), 2, last=True), generator(11), []
    params, optimizer = model.init(1, be), optim.adamw(1e-2)
    state = optimizer.init(params)
    x, target = (be.asarray(rng.standard_normal(shape)) for shape in ((T, B, D), (B, 2)))
    for _ in range(10):
        y, _, saved = model.forward(params, x)
        loss, dy = losses.mse(y, target)
        grads, _, _ = model.backward(params, saved, dy)
        params, state = optimizer.update(params, optim.clip_global_norm(grads, 1.0), state)
        values.append(loss)
    return [*values, y]


# Wide enough that several blocks share a layer; by paths alone.
CASES = {
    "LSTM wide": Case(recurrent("LSTM", {}, [5, 1] + [6] * 18, T=6, B=20, H=500, scale=0.04), cuda.PATHS, ()),
    "GRU wide": Case(recurrent("GRU", {}, T=6, B=20, H=260, scale=0.04), cuda.PATHS, ()),
    "RNN wide": Case(recurrent("RNN", {}, T=6, B=20, H=260, scale=0.04), cuda.PATHS, ()),
}
for _kind in registry.OPTIONS:
    for _options in registry.alone(_kind):
        _name = ", ".join(f"{key}={value}" for key, value in _options.items())
        _smooth = not KINKS & _options.keys()
        CASES[f"{_kind} {_name}".strip()] = Case(recurrent(_kind, _options), cuda.PATHS, smooth=_smooth)
    _both = {"num_layers": 2, "direction": "bidirectional"}
    CASES[f"{_kind} lengths, two layers, both directions"] = Case(recurrent(_kind, _both, [T, 3, 0, 9, 9]), cuda.PATHS)
for _lengths in (None, [T, 3, 1, 9, 9]):
    _suffix = " lengths" if _lengths else ""
    CASES[f"sLSTM, heads{_suffix}"] = Case(sequence(xlstm.sLSTM(D, H, num_heads=4), _lengths), cuda.PATHS)
    for _name, _model in {
        "mLSTM, two layers": xlstm.mLSTM(D, H, 2, num_heads=2, chunk_size=8),
        "xLSTM stack": xlstm.xLSTMStack(H, 2, [1], 2, chunk_size=8),
        "xLSTM large": xlstm.xLSTMLarge(H, 2, 2, chunk_size=8, norm_eps=0.1),
    }.items():
        CASES[f"{_name}{_suffix}"] = Case(sequence(_model, _lengths), ("auto",))
CASES |= {"steps of a stream": Case(steps_of_a_stream), "ten training steps": Case(ten_training_steps)}


@dataclass(frozen=True)
class Rounded(Backend):
    """float32 with values that a lower dtype has, so that only what is computed differs."""

    low: str = "float16"

    def asarray(self, values: object, dtype: str | None = None) -> np.ndarray:
        array = super().asarray(values, dtype)
        return array.astype(half(self.low)).astype(array.dtype) if array.dtype.kind == "f" else array


def backends() -> dict[str, Backend | str]:
    """Every backend, and array-api-strict on its second device in the place of a GPU; else the reason."""
    found: dict[str, Backend | str] = dict(xlstm.available_backends())
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
        size = max(float(np.max(np.abs(a))), np.finfo(a.dtype).tiny)
        gap = float(np.max(np.abs(a.astype("float64") - b.astype("float64")))) / size
        worst = max(worst, gap if np.isfinite(gap) else float("inf"))
    return worst


def row(name: str, dtype: str, pair: str, expected: Results, found: Results) -> Row:
    gap = difference(expected, found)
    return {"case": name, "dtype": dtype, "pair": pair, "gap": gap, "ok": gap <= TOLERANCE[dtype]}


def by_path(device: Backend, host: Backend, name: str, most: int | None = None) -> list[Row]:
    """A row for each path on the device and each dtype, or with the reason why the path cannot do it.

    With `most` there are only so many, for each case others.
    """
    rows: list[Row] = []
    run, ways, pair = CASES[name].run, CASES[name].ways(), f"{host.name} / {device.name}"
    begin = list(CASES).index(name)
    for k in range(len(ways) if most is None else min(most, len(ways))):
        path, dtype = ways[(begin + k) % len(ways)]
        kind, _, products = dtype.partition(" ")
        try:
            with cuda.use(path, products or "float32"):
                found = [to_numpy(a) for a in run(Backend(device.name, device.xp, device.device, kind))]
        except (ValueError, TypeError, BackendError, ImportError) as error:
            if isinstance(error, ValueError | TypeError) and "was asked for" not in str(error):
                raise
            why = {"impossible": str(error), "ok": True}
            rows.append({"case": f"{name} [{path}]", "dtype": dtype, "pair": pair, **why})
            continue
        reference = Backend(host.name, host.xp, host.device, kind)
        if kind in HALVES:
            found = [a.astype("float32") for a in found]
            reference = Rounded(host.name, host.xp, host.device, "float32", low=kind)
        rows.append(row(f"{name} [{path}]", dtype, pair, [to_numpy(a) for a in run(reference)], found))
    return rows


def rows_of(name: str, most: int | None = None, until: float = float("inf")) -> list[Row] | None:
    """Everything about a case, on what is usable here; None after a time. A case that fails is a row with its error."""
    if time.time() > until:
        return None
    usable = {name: be for name, be in backends().items() if isinstance(be, Backend)}
    rows: list[Row] = []
    try:
        for dtype in CASES[name].dtypes:
            every = {b: CASES[name].run(Backend(be.name, be.xp, be.device, dtype)) for b, be in usable.items()}
            arrays = {b: [to_numpy(a) for a in found] for b, found in every.items()}
            pairs = itertools.combinations(usable, 2)
            rows += [row(name, dtype, f"{one} / {two}", arrays[one], arrays[two]) for one, two in pairs]
        if "cupy" in usable:
            rows += by_path(usable["cupy"], usable["numpy"], name, most)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        rows.append({"case": name, "dtype": "", "pair": "", "ok": False, "error": reason})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", action="append", default=[], metavar="NAME", help="a backend that must work")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--processes", type=int, default=1, help="cases side by side, 1 by default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so long")
    parser.add_argument("--brief", action="store_true", help="print only what is too large")
    parser.add_argument("--paths", type=int, help="of each layer on CuPy; all on a card, else 1 by default")
    options = parser.parse_args()
    on_cpu, about = not cuda_on_cpu.missing(), backends()
    for name, be in about.items():
        missing = "no usable GPU" if name == "cupy" else "not usable"
        where = ", which is the CPU of this machine (cuda_on_cpu)" * (name == "cupy" and on_cpu)
        print(f"{name}: {be}{where}" if isinstance(be, Backend) else f"{name}: {missing}: {be}")
    absent = {name: be for name, be in about.items() if isinstance(be, str)}
    for name in options.require:
        if name in absent or name not in about:
            print(f"{name} is required and was not compared: {absent.get(name, 'there is no such backend')}")
            return 1
    most = options.paths or (1 if on_cpu else None)
    rows: list[Row] = []
    left_out: list[str] = []
    # As a module, not as __main__, that processes find it.
    from tests import parity

    work = functools.partial(parity.rows_of, most=most, until=time.time() + options.seconds)
    with concurrent.futures.ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        each = pool.map(work, CASES) if options.processes > 1 else map(work, CASES)
        for name, some in zip(CASES, each, strict=True):
            rows += some or []
            left_out += [name] * (some is None)
            if options.json is not None:  # with what there is, after every case
                kept = {"backends": {b: str(be) for b, be in about.items()}, "rows": rows, "left out": left_out}
                options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print_rows([row for row in rows if not options.brief or not row["ok"]])
    bad, impossible = sum(not row["ok"] for row in rows), sum("impossible" in row for row in rows)
    if left_out:
        print(f"left out for want of time: {'; '.join(left_out)}")
    compared = len(rows) - impossible
    print(f"\n{compared - bad} of {compared} comparisons within {TOLERANCE}; {impossible} paths not possible")
    if absent:
        print("not compared: " + "; ".join(f"{name}, {why}" for name, why in absent.items()))
    return 1 if bad or len(about) - len(absent) < 2 else 0


def print_rows(rows: list[Row]) -> None:
    """Pairs of backends side by side; errors above."""
    for row in rows:
        if "error" in row:
            print(f"{row['case']}: {row['error']}")
    rows = [row for row in rows if "gap" in row]
    pairs = list(dict.fromkeys(str(row["pair"]) for row in rows))
    print(f"\n{'largest relative difference':62s}" + "".join(f"{pair:>26s}" for pair in pairs))
    for (name, dtype), group in itertools.groupby(rows, lambda row: (row["case"], row["dtype"])):
        cells = {row["pair"]: f"{row['gap']:.1e}{'' if row['ok'] else ' TOO LARGE'}" for row in group}
        print(f"{name:48.48s} {dtype:13s}" + "".join(f"{cells.get(pair, ''):>26s}" for pair in pairs).rstrip())


if __name__ == "__main__":
    sys.exit(main())
