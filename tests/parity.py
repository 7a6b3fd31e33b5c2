"""Parity: the same inputs on NumPy and on every other usable backend, forward and backward, side by
side.

    python -m tests.parity [--require NAME] [--json FILE] [--processes N] [--seconds N] [--brief]
    [--paths N]

Prints the largest difference for each case and dtype, relative to the largest magnitude of the
result, and exits with 1 if one is above the tolerance of its dtype. Sizes are larger than those of
`tests/engines/test_batch_sizes.py`. On CuPy every recurrent layer runs once more by the paths that
can do it, TF32, float16 and bfloat16 included: by all of them on a card; by one, each layer by
another, where CuPy runs on the CPU (`cuda_on_cpu`). A backend that `--require` names, and that does
not work, ends it with 1 before anything is compared; the last line names those that were not
compared.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cuda_on_cpu
import xlstm
from tests import registry
from tests.gpu import half
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError
from xlstm.arrays.namespace import HALVES
from xlstm.arrays.random import generator
from xlstm.engines import cuda

T = 24
B = 5
D = 3
H = 16
# Relative to the largest value. TF32 has 11 bits of each factor of the products of h; float16 has
# 11 and bfloat16 8 of everything that is kept, h and gradients of gates among it, over all steps.
# After 24 steps of an RNN with recurrent dropout, whose masks enlarge h, TF32 leaves 6e-3 by every
# path, and float16 4e-3.
TOLERANCE = {
    "float64": 1e-12,
    "float32": 1e-5,
    "float32 tf32": 1e-2,
    "float16": 1e-2,
    "bfloat16": 8e-2,
}
EVERYWHERE = ("float64", "float32")
LOW = ("float32 tf32", "float16", "bfloat16")
DTYPES = {
    "auto": HALVES,  # the path that the layer chooses, of those that have no other name
    "loop": ("float64", "float32", "float16"),
    "pointwise": ("float64", "float32", "float16", "bfloat16"),
    "plain": ("float64", "float32"),
    "grid": ("float32", "float32 tf32", "float16", "bfloat16"),
    "cluster": ("float32", "float32 tf32", "float16", "bfloat16"),
}
# a difference in the last bit decides on which side a value lies
KINKS = {"clip", "cell_clip", "activations"}

Results = list[np.ndarray]
Row = dict[str, object]


class Case(NamedTuple):
    """A layer, the lengths of its sequences, and its paths on CuPy."""

    layer: Any
    lengths: list[int] | None = None
    paths: tuple[str, ...] = cuda.PATHS
    dtypes: tuple[str, ...] = EVERYWHERE  # of the pairs of backends
    smooth: bool = True
    T: int = T
    B: int = B

    def ways(self) -> list[tuple[str, str]]:
        """The paths with the dtypes of each."""
        return [
            (path, dtype)
            for path in self.paths
            for dtype in DTYPES[path]
            if self.smooth or dtype not in LOW
        ]

    def run(self, be: Backend) -> Results:
        """Everything that forward and backward give, on the host."""
        rng = generator(11)
        layer = self.layer
        lengths = self.lengths
        if type(layer).__name__ in registry.OPTIONS:
            # With larger weights a plain RNN of this width is chaotic: rounding grows from step to
            # step.
            scale = 0.04 if layer.hidden_size > H else 0.2
            params, x, state = registry.inputs_of(layer, be, rng, self.T, self.B, scale)
            return [*registry.run(layer, params, x, state, lengths, kept=True, seed=5).values()]
        params = {
            name: be.asarray(p + 0.05 * rng.standard_normal(p.shape))
            for name, p in layer.draw(rng).items()
        }
        x, dy = (
            be.asarray(rng.standard_normal((T, B, size)))
            for size in (layer.input_size, layer.output_size)
        )
        found = registry.run(layer, params, x, None, lengths, dy, [None] * len(layer.states))
        # As one vector: what all input gates have in common the normaliser takes out again, so that
        # the gradient with respect to their biases is nearly nothing, of which rounding is a large
        # part. For the like reason the norm below has an eps that is not small beside the least h.
        grads = np.concatenate([found.pop(f"d{name}").ravel() for name in params])
        return [*found.values(), grads]


# Wide enough that several blocks share a layer; by paths alone.
CASES = {
    "LSTM wide": Case(xlstm.LSTM(D, 500), [5, 1] + [6] * 18, dtypes=(), T=6, B=20),
    "GRU wide": Case(xlstm.GRU(D, 260), dtypes=(), T=6, B=20),
    "RNN wide": Case(xlstm.RNN(D, 260), dtypes=(), T=6, B=20),
}
for _kind in registry.OPTIONS:
    for _options in registry.alone(_kind):
        _name = ", ".join(f"{key}={value}" for key, value in _options.items())
        _layer = registry.make(_kind, _options, D, H)
        # g of the log-space form has one, too
        _smooth = not KINKS & _options.keys() and not getattr(_layer, "log_space", False)
        CASES[f"{_kind} {_name}".strip()] = Case(_layer, smooth=_smooth)
    _both = registry.make(_kind, registry.TWO_WAYS, D, H)
    _smooth = not hasattr(_both, "log_space")
    CASES[f"{_kind} lengths, two layers, both directions"] = Case(
        _both, [T, 3, 0, 9, 9], smooth=_smooth
    )
for _lengths in (None, [T, 3, 1, 9, 9]):
    _suffix = " lengths" if _lengths else ""
    CASES[f"sLSTM, heads{_suffix}"] = Case(xlstm.sLSTM(D, H, num_heads=4), _lengths)
    for _name, _layer in {
        "mLSTM, two layers": xlstm.mLSTM(D, H, 2, num_heads=2, chunk_size=8),
        "xLSTM stack": xlstm.xLSTMStack(H, 2, [1], 2, chunk_size=8),
        "xLSTM large": xlstm.xLSTMLarge(H, 2, 2, chunk_size=8, norm_eps=0.1),
    }.items():
        CASES[f"{_name}{_suffix}"] = Case(_layer, _lengths, ("auto",))


@dataclass(frozen=True)
class Rounded(Backend):
    """float32 with values that a lower dtype has, so that only what is computed differs."""

    low: str = "float16"

    def asarray(self, values: object, dtype: str | None = None) -> np.ndarray:
        array = super().asarray(values, dtype)
        return (
            array.astype(half(self.low)).astype(array.dtype) if array.dtype.kind == "f" else array
        )


def backends() -> dict[str, Backend | str]:
    """Every backend, and array-api-strict on its second device in the place of a GPU; else the
    reason.
    """
    found: dict[str, Backend | str] = dict(xlstm.available_backends())
    try:
        import array_api_strict as strict
    except ImportError:
        found["array-api-strict"] = "not installed"
    else:
        found["array-api-strict"] = Backend("array_api_strict", strict, strict.Device("device1"))
    return found


def difference(one: Results, other: Results) -> float:
    """Largest difference of any pair of arrays, relative to the largest magnitude in the first of
    the pair.
    """
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
    """A row for each path on the device and each dtype, or with the reason why the path cannot do
    it.

    With `most` there are only so many, for each case others.
    """
    rows: list[Row] = []
    case = CASES[name]
    begin = list(CASES).index(name)
    ways = case.ways()
    for k in range(len(ways) if most is None else min(most, len(ways))):
        path, dtype = ways[(begin + k) % len(ways)]
        kind, _, products = dtype.partition(" ")
        about = (f"{name} [{path}]", dtype, f"{host.name} / {device.name}")
        try:
            with cuda.use(path, products or "float32"):
                found = case.run(replace(device, dtype=kind))
        except (ValueError, TypeError, BackendError, ImportError) as error:
            if isinstance(error, ValueError | TypeError) and "was asked for" not in str(error):
                raise
            rows.append({**row(*about, [], []), "impossible": str(error)})
            continue
        reference = replace(host, dtype=kind)
        if kind in HALVES:
            found = [a.astype("float32") for a in found]
            reference = Rounded(host.name, host.xp, host.device, "float32", low=kind)
        rows.append(row(*about, case.run(reference), found))
    return rows


def rows_of(name: str, most: int | None = None, until: float = float("inf")) -> list[Row] | None:
    """Everything about a case, on what is usable here; None after a time. A case that fails is a
    row with its error.
    """
    if time.time() > until:
        return None
    usable = {name: be for name, be in backends().items() if isinstance(be, Backend)}
    rows: list[Row] = []
    try:
        for dtype in CASES[name].dtypes:
            expected, *others = (
                CASES[name].run(replace(be, dtype=dtype)) for be in usable.values()
            )
            host, *names = usable
            pairs = [f"{host} / {other}" for other in names]
            rows += [
                row(name, dtype, pair, expected, found)
                for pair, found in zip(pairs, others, strict=True)
            ]
        if "cupy" in usable:
            rows += by_path(usable["cupy"], usable["numpy"], name, most)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        rows.append({"case": name, "dtype": "", "pair": "", "ok": False, "error": reason})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--require", action="append", default=[], metavar="NAME", help="a backend that must work"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--processes", type=int, default=1, help="cases side by side, 1 by default")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin nothing after so long"
    )
    parser.add_argument("--brief", action="store_true", help="print only what is too large")
    parser.add_argument(
        "--paths", type=int, help="of each layer on CuPy; all on a card, else 1 by default"
    )
    options = parser.parse_args()
    on_cpu = not cuda_on_cpu.missing()
    about = backends()
    for name, be in about.items():
        missing = "no usable GPU" if name == "cupy" else "not usable"
        where = ", which is the CPU of this machine (cuda_on_cpu)" * (name == "cupy" and on_cpu)
        print(f"{name}: {be}{where}" if isinstance(be, Backend) else f"{name}: {missing}: {be}")
    absent = {name: be for name, be in about.items() if isinstance(be, str)}
    for name in options.require:
        if name in absent or name not in about:
            print(
                f"{name} is required and was not compared:"
                f" {absent.get(name, 'there is no such backend')}"
            )
            return 1
    most = options.paths or (1 if on_cpu else None)
    rows: list[Row] = []
    left_out: list[str] = []
    # As a module, not as __main__, that processes find it.
    from tests import parity

    work = functools.partial(parity.rows_of, most=most, until=time.time() + options.seconds)
    with concurrent.futures.ProcessPoolExecutor(
        options.processes, multiprocessing.get_context("spawn")
    ) as pool:
        each = pool.map(work, CASES) if options.processes > 1 else map(work, CASES)
        for name, some in zip(CASES, each, strict=True):
            rows += some or []
            left_out += [name] * (some is None)
            if options.json is not None:  # with what there is, after every case
                kept = {
                    "backends": {b: str(be) for b, be in about.items()},
                    "rows": rows,
                    "left out": left_out,
                }
                options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print_rows([row for row in rows if not options.brief or not row["ok"]])
    bad = sum(not row["ok"] for row in rows)
    impossible = sum("impossible" in row for row in rows)
    if left_out:
        print(f"left out for want of time: {'; '.join(left_out)}")
    compared = len(rows) - impossible
    print(
        f"\n{compared - bad} of {compared} comparisons within {TOLERANCE}; {impossible} paths not"
        " possible"
    )
    if absent:
        print("not compared: " + "; ".join(f"{name}, {why}" for name, why in absent.items()))
    return 1 if bad or len(about) - len(absent) < 2 else 0


def print_rows(rows: list[Row]) -> None:
    """A line for each comparison; where one failed, its error."""
    print(f"\n{'case':48s} {'dtype':13s} {'backends':26s} largest relative difference")
    for row in rows:
        if "impossible" not in row:
            found = row.get("error") or f"{row['gap']:.1e}{'' if row['ok'] else ' TOO LARGE'}"
            print(f"{row['case']:48.48s} {row['dtype']:13s} {row['pair']:26s} {found}")


if __name__ == "__main__":
    sys.exit(main())
