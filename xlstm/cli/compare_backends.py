"""`xlstm compare`: the same training steps on every backend, their numbers beside float64 NumPy's,
and their costs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from typer import Option

import xlstm
from xlstm import losses
from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.compiled import VARIABLE
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import generator
from xlstm.cells.lstm import Cell
from xlstm.cli import info
from xlstm.cli.bench import Case
from xlstm.cli.console import OPEN, out, table
from xlstm.cli.options import command
from xlstm.cli.timing import (
    HEADS,
    Measurement,
    Outputs,
    RoundsOption,
    Size,
    backend_to_time,
    measure,
    usable,
)
from xlstm.data import writing
from xlstm.engines.engine import use
from xlstm.engines.numba import jit
from xlstm.examples import gate_by_gate
from xlstm.models.sequence import SequenceModel
from xlstm.training import optimizers

RATE = 0.05
# A training step returns a function that returns its arrays on the host.
Arrays = Callable[[], dict[str, Any]]
Step = Callable[[], Arrays]
PAGES = (".html", ".txt")  # endings of a report
# The largest difference, relative to the largest magnitude of an array.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


class Variant(NamedTuple):
    """A way to run a program."""

    words: str
    backend: str
    engine: str | None = None  # as for `engines.use`
    compile: str | None = None  # XLSTM_COMPILE meanwhile


NOTEBOOK = "notebook"
REFERENCE = "numpy"
VARIANTS = {
    NOTEBOOK: Variant("NumPy as the notebook wrote it, gate by gate", "numpy"),
    REFERENCE: Variant("this library on NumPy arrays, with NumPy alone", "numpy", "array_api", "0"),
    "compiled": Variant(
        "this library on NumPy arrays, with loops that Numba compiled", "numpy", compile="1"
    ),
    "torch": Variant("this library on PyTorch tensors", "torch", "array_api"),
    "cupy": Variant("this library on CuPy arrays", "cupy"),
}
WORDS = {name: variant.words for name, variant in VARIANTS.items()}


def arrays_of(
    y: Any, gates: Mapping[str, Any], dx: Any, grads: Params, params: Params
) -> dict[str, Any]:
    """Return the arrays of a training step on the host, by the headings of their columns; gates are
    (T, B, H).
    """
    arrays = {"y": y, **gates, "dx": dx}
    for prefix, by_name in (("d", grads), ("", params)):
        for name, array in by_name.items():
            arrays[prefix + name.removeprefix("recurrent.").removeprefix("0.")] = array
    return {name: to_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class Program:
    """A training step: forward, backward and an update, of an LSTM or of a model that has one."""

    words: str
    size: Size
    dtype: str
    is_model: bool = False

    def step(self, name: str, home: Backend) -> Step:
        """Return the step of a variant, finished when it returns."""
        T, B, D, H = self.size
        rng = generator(0)
        layer = xlstm.LSTM(D, H, initializer="notebook")
        model: Any = SequenceModel(layer, 1, last=True) if self.is_model else layer
        initial = {
            name: p.astype(self.dtype) for name, p in model.init(rng, "numpy", "float64").items()
        }
        x = rng.standard_normal((T, B, D)).astype(self.dtype)
        target = rng.standard_normal((B, 1) if self.is_model else (T, B, H)).astype(self.dtype)
        if name == NOTEBOOK:
            step = _notebook_step(initial, x[:, 0], target[:, 0])
        else:
            params = {name: home.asarray(p) for name, p in initial.items()}
            step = _step(model, params, home.asarray(x), home.asarray(target), home)
        return _running(VARIANTS[name])(step)

    @property
    def operations(self) -> float:
        """Floating-point operations of a step, without the head."""
        return Case("lstm", self.size).operations

    def __str__(self) -> str:
        return f"{self.words}, T,B,D,H = {self.size}, {self.dtype}"


PROGRAMS = (
    Program("the notebook's program", Size(20, 1, 1, 50), "float64"),
    Program("the notebook's program", Size(20, 1, 5, 12), "float64"),
    Program("a layer", Size(100, 32, 64, 128), "float32"),
    Program("a model of series, with Adam", Size(50, 32, 8, 32), "float32", is_model=True),
)


def _notebook_step(params: dict[str, Any], x: Any, target: Any) -> Step:
    p = gate_by_gate.by_gate(params)

    def step() -> Arrays:
        h, c, gates = gate_by_gate.forward(p, x)
        y = h[1:, 0]
        grads, dx = gate_by_gate.backward(p, x, h, c, gates, 2 * (y - target) / y.size)
        after = gate_by_gate.update(p, grads, RATE)
        return lambda: arrays_of(
            y,
            {name: gates[name] for name in Cell.GATES},
            dx,
            gate_by_gate.stacked(grads),
            gate_by_gate.stacked(after),
        )

    return step


def _step(model: Any, params: dict[str, Any], x: Any, target: Any, home: Backend) -> Step:
    is_layer = isinstance(model, xlstm.LSTM)
    optimizer = optimizers.sgd(RATE) if is_layer else optimizers.adam(1e-3)
    state = optimizer.init(params)
    names = Cell.GATES if is_layer else ()

    def step() -> Arrays:
        y, _, saved = model.forward(params, x, train=True)
        _, dy = losses.mse(y, target)
        grads, dx, _ = model.backward(params, saved, dy)
        after, _ = optimizer.update(params, grads, state)
        home.synchronize()
        return lambda: arrays_of(
            y, {name: saved.gates[:, n, ...] for n, name in enumerate(names)}, dx, grads, after
        )

    return step


@command()
def compare(
    require: Annotated[
        list[str] | None, Option(help="Row that must run, such as cupy; may be repeated.")
    ] = None,
    rounds: RoundsOption = 5,
    report: Annotated[
        Path | None, Option(help="Page to write, .html or .txt: the printed text and this machine.")
    ] = None,
    *,
    outputs: Outputs,
) -> None:
    """Run the same programs on every backend here, and show differences of all numbers, times and
    memory.

    The programs are training steps: of the NumPy notebook that this library began as, of a layer,
    and of a model with its optimiser. The tables show how far y, every gate, every gradient and
    every new weight differ from float64 NumPy, relative to the largest magnitude of the array. The
    exit code is 1 if a difference is too large.
    """
    for name in require or ():
        checks.choice(VARIANTS)("compare", "--require", name)
    if report is not None:
        checks.choice(PAGES)(str(report), "the ending", report.suffix)
        writing.check(report)
        out.record = True
        info.show(info.describe())
    homes = usable(WORDS, _backend_of, require or ())
    rows: list[Measurement] = []
    for program in PROGRAMS:
        compared = rows_of(program, homes, rounds)
        rows += compared
        outputs.append(map(as_dict, compared))
        _print_rows(program, compared)
    wrong = [row for row in rows if not agrees(row)]
    for row in wrong:
        name, gap = largest(row)
        out.print(f"wrong: {row.case}, {row.name}: {name} differs by {gap:.1e}")
    limits = " and ".join(f"{limit:g} in {dtype}" for dtype, limit in TOLERANCE.items())
    agreeing = f"{len(rows) - len(wrong)} of {len(rows)} rows agree with float64 NumPy"
    out.print(f"{agreeing}, within {limits}")
    outputs.draw(rows)
    if report is not None:
        text = out.export_html() if report.suffix == ".html" else out.export_text()
        out.record = False
        writing.write(report, text.encode())
    raise typer.Exit(bool(wrong))


def _backend_of(name: str) -> Backend:
    """Return the backend of a variant; BackendError if it does not run here."""
    variant = VARIANTS[name]
    if variant.compile == "1" and jit.failure():
        raise BackendError(f"{name}: {jit.failure()}")
    return backend_to_time(variant.backend, *TOLERANCE)


def rows_of(program: Program, homes: Mapping[str, Backend], rounds: int) -> list[Measurement]:
    """Return the rows of a program, timed in turn. Their results are differences from float64
    NumPy, infinite if a row fails.
    """
    expected = program.step(REFERENCE, replace(homes[REFERENCE], dtype="float64"))()()
    ready = {name: replace(home, dtype=program.dtype) for name, home in homes.items()}
    if program.is_model or program.size.B > 1:
        del ready[NOTEBOOK]  # it has no such program
    rows = measure(
        program, ready, program.step, rounds, lambda arrays, home: differences(arrays(), expected)
    )
    failed = dict.fromkeys(expected, float("inf"))
    return [row._replace(result=row.result or failed) for row in rows]


def largest(row: Measurement) -> tuple[str, float]:
    """Return the array of a row that differs most, and its difference."""
    name = max(row.result, key=row.result.__getitem__)
    return name, row.result[name]


def agrees(row: Measurement) -> bool:
    """Return whether each difference of a row is within the tolerance of its dtype."""
    return largest(row)[1] <= TOLERANCE[row.case.dtype]


def as_dict(row: Measurement) -> dict[str, Any]:
    """Return a row as a line of results has it."""
    about = {"program": str(row.case), "row": row.name, "words": WORDS[row.name]}
    return {**about, "differences": row.result, "agrees": agrees(row), **row.as_dict()}


def differences(arrays: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest difference of each array, relative to the largest magnitude that is
    expected in it.
    """
    gaps = {}
    for name, a in expected.items():
        gap = float(np.max(np.abs(arrays[name].reshape(a.shape) - a)) / np.max(np.abs(a)))
        gaps[name] = gap if np.isfinite(gap) else float("inf")
    return gaps


@contextlib.contextmanager
def _running(variant: Variant) -> Iterator[None]:
    """Run layers as a variant does."""
    before = os.environ.get(VARIABLE)
    try:
        if variant.compile is not None:
            os.environ[VARIABLE] = variant.compile
        # The numbers show which are not finite. BLAS may warn of invalid numbers even if all are
        # finite.
        with (
            np.errstate(over="ignore", invalid="ignore"),
            use(variant.engine) if variant.engine else contextlib.nullcontext(),
        ):
            yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def _print_rows(program: Program, rows: Sequence[Measurement]) -> None:
    """Print the differences of a program, and its costs."""
    gaps = [
        (row.name, *(f"{gap:.0e}" if gap else "0" for gap in row.result.values())) for row in rows
    ]
    out.print(table(f"{program}: differences", ("", *rows[0].result), gaps, **OPEN))
    costs = [(row.name, *row.cells) for row in rows]
    out.print(table(f"{program}: median time of a step", ("", *HEADS), costs, **OPEN))
