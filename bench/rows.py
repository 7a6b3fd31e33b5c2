"""Rows of a table: cases measured on a GPU one after the other, within a time, and kept in a file
after each.

A case is a frozen dataclass with a `precision`; its `str` is its name.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import xlstm
from bench.events import Clock, Side, side_by_side
from bench.options import parser_of
from bench.peers import MissingError
from xlstm.arrays import optional_imports
from xlstm.arrays.backend import Backend
from xlstm.cli.bench import home_of

PRECISIONS = {"TF32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
OURS = "xlstm"
OURS_CAPTURED = "xlstm captured"  # as it is called, and as a CUDA graph
# Largest difference of a result to a peer's, relative to its largest value, beyond which something
# is wrong.
AGREE = {"fp32": 1e-3, "TF32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}
LONGEST = 4.0  # seconds of rounds of a case, beyond the first

Record = dict[str, Any]


def card() -> Backend:
    """Return CuPy on a card; raises BackendError where there is none, or where CuPy runs on the
    CPU.
    """
    return home_of("cupy", "float32")


def keep(path: Path | None, record: Record) -> None:
    """Write a record, if there is a path; a process that is stopped meanwhile leaves the one
    before.
    """
    if path is None:
        return
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def read(path: Path) -> Record | None:
    """Return a record that was kept, or None if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None


def head(case: Any) -> Record:
    """Return the beginning of a row."""
    return {"case": asdict(case), "name": str(case), "missing": {}}


def seconds_of(sides: Mapping[str, Side], clock: Clock, until: float) -> dict[str, Any]:
    """Return the times of the sides of a row, until a time of the clock, fit for JSON."""
    times = side_by_side(sides, clock, min(until, clock.now() + LONGEST))
    return {name: asdict(side) for name, side in times.items()}


def agreement(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest difference of a result, relative to the largest value of the peer's.

    PyTorch's bias of the product of h has a gradient where xlstm's layer has no such bias, so zeros
    are left out.
    """
    worst = 0.0
    for name, a in ours.items():
        if name.startswith("dbias") and not a.any():
            continue
        gap = np.max(np.abs(a - theirs[name])) / max(float(np.max(np.abs(theirs[name]))), 1e-30)
        worst = max(worst, float(gap) if np.isfinite(gap) else float("inf"))
    return worst


def agrees(row: Record) -> bool:
    """Return whether both sides gave the same, but for rounding; so it is where there is no other
    side.
    """
    return bool(row.get("difference", 0.0) <= AGREE[row["case"]["precision"]])


def run(
    todo: Sequence[Any],
    measured: Callable[[Any], Record],
    end: float,
    done: Callable[[Record], object],
    now: Callable[[], float] = time.monotonic,
) -> Record:
    """Rows of the cases that fit the time until `end`, and the names of those that do not.

    A case is begun if one like the slowest so far would fit. One that fails is a row with its
    error; `done` gets the record after every case.
    """
    slowest = 0.0
    record: Record = {"rows": [], "left out": [str(case) for case in todo]}
    for case in todo:
        begun = now()
        if begun + slowest > end:
            break
        try:
            row = measured(case)
        except Exception as error:  # whatever it is, the other cases are measured
            traceback.print_exc()
            row = {**head(case), "error": optional_imports.first_line(error)}
        record["rows"].append(row)
        record["left out"].remove(str(case))
        slowest = max(slowest, now() - begun)
        done(record)
    return record


def show(row: Record) -> str:
    """A row in a line."""
    if "error" in row:
        return f"  {row['name']:42s} failed: {row['error']}"
    times = [
        f"{name} {t['wall'] * 1e3:.3g} ms (device {t['device'] * 1e3:.3g})"
        for name, t in row["seconds"].items()
    ]
    path = f"{row['choice']['path']}: " if "choice" in row else ""
    difference = f"; difference {row['difference']:.1e}" if "difference" in row else ""
    return f"  {row['name']:42s} {path}{', '.join(times)}{difference}"


def main(
    name: str,
    description: str | None,
    todo: Sequence[Any],
    measure: Callable[[Any, Clock, float], Record],
    needs: Callable[[], object] = lambda: None,
) -> int:
    """Measure cases as the command line says; return the exit status.

    Parameters
    ----------
    name : str
        The name that an error begins with.
    description : str
    todo : list of cases
    measure : callable
        The row of a case, by a clock, on which it has until a time.
    needs : callable
        It raises MissingError for something that has to be there.
    """
    parser = parser_of(description)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="when to stop; all cases by default"
    )
    parser.add_argument("--json", type=Path, help="write the record to this file, after every case")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    try:
        card()
        needs()
    except (xlstm.BackendError, MissingError) as reason:
        raise SystemExit(f"{name}: {reason}") from None
    clock = Clock()

    def done(record: Record) -> None:
        print(show(record["rows"][-1]), flush=True)
        keep(options.json, record)

    def measured(case: Any) -> Record:
        try:
            return measure(case, clock, clock.now() + end - time.monotonic())
        finally:  # return to the device the memory that neither library uses
            optional_imports.cupy().get_default_memory_pool().free_all_blocks()
            if (torch := sys.modules.get("torch")) is not None:
                torch.cuda.empty_cache()

    record = run(todo, measured, end, done)
    keep(options.json, record)
    if record["left out"]:
        print(f"  left out for want of time: {'; '.join(record['left out'])}")
    wrong = [row["name"] for row in record["rows"] if "error" in row or not agrees(row)]
    if wrong:
        print(f"  failed, or other results than the peer's: {'; '.join(wrong)}")
    return int(bool(wrong))
