"""The steps of every benchmark: parse, measure side by side, print, append JSON lines."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import cases
from bench.options import parser_of
from bench.peers import Call, MissingError
from xlstm.arrays import cores
from xlstm.cli import info
from xlstm.cli.timing import Timing, interleave
from xlstm.engines.numba import jit

UNITS = {"seconds": (1e3, "ms"), "bytes": (1e-6, "MB")}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of all benchmarks."""
    options = parser_of(description)
    options.add_argument("--json", type=Path, help="append results to this file, a line each")
    options.add_argument("--rounds", type=int, default=9, help="how often each is timed in turn")
    return options


def for_packages(description: str | None, variable: str) -> argparse.ArgumentParser:
    """Options of those that time published packages, whose folder an environment variable may
    name.
    """
    options = parser(description)
    options.add_argument(
        "--peer", type=Path, default=os.environ.get(variable), help="where theirs is installed"
    )
    return options


def without_packages(description: str | None) -> dict[str, str]:
    """Return why the published packages are missing: how the docstring of a program has them
    installed.
    """
    install = (description or "").split("\n\n")[3]
    return {"published": f"--peer is not given; {' '.join(install.split())}"}


def beside(
    bench: str,
    name: str,
    ours: Call,
    theirs: Mapping[str, Callable[[], Call]],
    options: argparse.Namespace,
    **about: Any,
) -> None:
    """Time xlstm beside peers, each made by a function that raises MissingError where it is not
    there. `about` are options of `record`.
    """
    calls = {"xlstm": ours}
    missing = {}
    if jit.enabled():
        calls["xlstm, NumPy alone"] = cases.without_compiling(ours)
    for peer, make in theirs.items():
        try:
            calls[peer] = make()
        except MissingError as reason:
            missing[peer] = str(reason)
    timings = interleave(calls, options.rounds)
    record(bench, name, timings, options.json, missing=missing, **about)


def start(bench: str) -> None:
    """Print the name of the benchmark, and the number of threads."""
    print(
        f"{bench}: median, and xlstm / peer; compiled loops: {info.compiled()}; "
        f"threads: {cores.threads()}, of JAX and Keras one for each of {cores.usable()} cores"
    )


def record(
    bench: str,
    name: str,
    results: Mapping[str, Timing | float],
    path: Path | None,
    *,
    missing: Mapping[str, str],
    case: Mapping[str, object],
    unit: str = "seconds",
    precision: str = "float32",
) -> None:
    """Print one case, and append it to a file: timings, or numbers in another unit."""
    scale, short = UNITS[unit]
    numbers: dict[str, dict[str, float]] = {
        peer: asdict(result) if isinstance(result, Timing) else {"median": result}
        for peer, result in results.items()
    }
    mine = numbers["xlstm"]["median"]
    cells = [
        f"{peer} {r['median'] * scale:.4g} {short}"
        + ("" if peer == "xlstm" else f" ({mine / r['median']:.2f})")
        for peer, r in numbers.items()
    ]
    print(f"  {name:52s} {'   '.join(cells)}", flush=True)
    for peer, reason in missing.items():
        print(f"  {'':52s} without {peer}: {reason}")
    line = {
        "bench": bench,
        "name": name,
        "case": dict(case),
        "precision": precision,
        "unit": unit,
        "results": numbers,
        "missing": dict(missing),
    }
    append(path, line)


def append(path: Path | None, line: Mapping[str, Any]) -> None:
    """Append a line of JSON to a file, if there is one, with machine and versions."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "machine": info.describe()}) + "\n")
