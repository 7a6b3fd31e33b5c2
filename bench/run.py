"""The steps of every benchmark: parse, measure side by side, print, append JSON lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import cases, peers
from bench.cases import Case
from xlstm.arrays import cores
from xlstm.cli import info
from xlstm.cli.timing import Timing, interleave
from xlstm.engines.numba import jit


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of all benchmarks."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--json", type=Path, help="append results to this file, a line each")
    found.add_argument("--rounds", type=int, default=9, help="how often each is timed in turn")
    return found


def for_layers(description: str | None) -> argparse.ArgumentParser:
    """Options of those that time layers."""
    found = parser(description)
    found.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    return found


def layers(
    bench: str, todo: Iterable[Case], options: argparse.Namespace, names: tuple[str, ...]
) -> None:
    """Time xlstm beside the peers of these names, case by case."""
    start(bench)
    for case in todo:
        call = cases.ours(case)
        calls: dict[str, Callable[[], object]] = {"xlstm": call}
        if jit.enabled():
            calls["xlstm, NumPy alone"] = cases.without_compiling(call)
        found, missing = peers.calls(case, names)
        calls |= found
        finish(
            bench,
            str(case),
            interleave(calls, options.rounds),
            options.json,
            missing,
            asdict(case),
            case.dtype,
        )


def start(bench: str) -> None:
    """Say what is measured, and in how many threads."""
    print(
        f"{bench}: median, and xlstm / peer; compiled loops: {info.compiled()}; "
        f"threads: {cores.threads()}, of JAX and Keras one for each of {cores.usable()} cores"
    )


def finish(
    bench: str,
    name: str,
    results: Mapping[str, Timing],
    path: Path | None,
    missing: Mapping[str, str] | None = None,
    case: Mapping[str, object] | None = None,
    precision: str = "float32",
) -> None:
    """Print one case, append it to the file."""
    record(
        bench,
        name,
        {k: asdict(t) for k, t in results.items()},
        "seconds",
        path,
        missing,
        case,
        precision,
    )


def record(
    bench: str,
    name: str,
    results: Mapping[str, Mapping[str, Any]],
    unit: str,
    path: Path | None,
    missing: Mapping[str, str] | None = None,
    case: Mapping[str, object] | None = None,
    precision: str = "float32",
) -> None:
    """`finish` for results in any unit, each with its median."""
    scale, short = {"seconds": (1e3, "ms"), "bytes": (1e-6, "MB")}[unit]
    mine = results["xlstm"]["median"]
    cells = [
        f"{peer} {r['median'] * scale:.4g} {short}"
        + ("" if peer == "xlstm" else f" ({mine / r['median']:.2f})")
        for peer, r in results.items()
    ]
    print(f"  {name:52s} {'   '.join(cells)}", flush=True)
    for peer, reason in (missing or {}).items():
        print(f"  {'':52s} without {peer}: {reason}")
    if path is None:
        return
    line = {
        "bench": bench,
        "name": name,
        "case": dict(case or {}),
        "precision": precision,
        "unit": unit,
        "results": results,
        "missing": dict(missing or {}),
        "machine": info.describe(),
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
