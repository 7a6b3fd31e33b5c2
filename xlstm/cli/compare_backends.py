"""`xlstm compare`: the same training steps on every backend, their numbers beside float64 NumPy's,
and their costs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from typer import Option

import xlstm
from xlstm import losses, plots
from xlstm.arrays import checks, cores, optional_imports
from xlstm.arrays.backend import Backend, backend
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.random import generator
from xlstm.cells.lstm import Cell
from xlstm.cli import info
from xlstm.cli.bench import Case, Size, Timing, interleave, peak_memory, simulated
from xlstm.cli.console import OPEN, out, table, to_json
from xlstm.data import writing
from xlstm.engines.cuda.check import first_training
from xlstm.engines.engine import use
from xlstm.engines.numba import jit
from xlstm.examples import gate_by_gate
from xlstm.models.sequence import SequenceModel
from xlstm.plots import figures
from xlstm.training import optimizers

RATE = 0.05
PAGES = (".html", ".txt")  # endings of a report
# of differences relative to the largest magnitude of an array
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


class Row(NamedTuple):
    """A way to run a program."""

    words: str
    backend: str
    engine: str | None = None  # as for `engines.use`
    compile: str | None = None  # XLSTM_COMPILE meanwhile


NOTEBOOK = "notebook"
REFERENCE = "numpy"
ROWS = {
    NOTEBOOK: Row("NumPy as the notebook wrote it, gate by gate", "numpy"),
    REFERENCE: Row("this library on NumPy arrays, with NumPy alone", "numpy", "array_api", "0"),
    "compiled": Row(
        "this library on NumPy arrays, with loops that Numba compiled", "numpy", compile="1"
    ),
    "torch": Row("this library on PyTorch tensors", "torch", "array_api"),
    "cupy": Row("this library on CuPy arrays", "cupy"),
}


class Result(NamedTuple):
    """The arrays that a training step computes; `gates` makes a dict of gates (T, B, H)."""

    y: Any
    gates: Callable[[], Mapping[str, Any]]
    dx: Any
    grads: dict[str, Any]
    after: dict[str, Any]

    def values(self) -> dict[str, Any]:
        """Return all arrays on the host, by the headings of their columns."""
        of_notebook = "Uf" in self.grads  # whose weights are apart for each gate
        grads = gate_by_gate.stacked(self.grads) if of_notebook else self.grads
        after = gate_by_gate.stacked(self.after) if of_notebook else self.after
        short = {name: name.removeprefix("recurrent.").removeprefix("0.") for name in grads}
        named = {"y": self.y, **self.gates(), "dx": self.dx}
        named |= {f"d{short[name]}": grad for name, grad in grads.items()}
        named |= {short[name]: p for name, p in after.items()}
        return {name: to_numpy(a) for name, a in named.items()}


@dataclass(frozen=True)
class Program:
    """A training step: forward, backward and an update, of an LSTM or of a model that has one."""

    words: str
    size: Size
    dtype: str
    is_model: bool = False

    def step(self, row: str, home: Backend) -> Callable[[], Result] | None:
        """Return the step of a row, finished when it returns; None where the notebook has no such
        program.
        """
        T, B, D, H = self.size
        if row == NOTEBOOK and (self.is_model or B > 1):
            return None
        rng = generator(0)
        layer = xlstm.LSTM(D, H, initializer="notebook")
        model: Any = SequenceModel(layer, 1, last=True) if self.is_model else layer
        drawn = {
            name: p.astype(self.dtype) for name, p in model.init(rng, "numpy", "float64").items()
        }
        x = rng.standard_normal((T, B, D)).astype(self.dtype)
        target = rng.standard_normal((B, 1) if self.is_model else (T, B, H)).astype(self.dtype)
        if row == NOTEBOOK:
            step = _notebook_step(drawn, x[:, 0], target[:, 0])
        else:
            params = {name: home.asarray(p) for name, p in drawn.items()}
            step = _step(model, params, home.asarray(x), home.asarray(target), home)
        return _in_its_way(ROWS[row])(step)

    def __str__(self) -> str:
        return f"{self.words}, T,B,D,H = {self.size}, {self.dtype}"


PROGRAMS = (
    Program("the notebook's program", Size(20, 1, 1, 50), "float64"),
    Program("the notebook's program", Size(20, 1, 5, 12), "float64"),
    Program("a layer", Size(100, 32, 64, 128), "float32"),
    Program("a model of series, with Adam", Size(50, 32, 8, 32), "float32", is_model=True),
)


def _notebook_step(params: dict[str, Any], x: Any, target: Any) -> Callable[[], Result]:
    p = gate_by_gate.by_gate(params)

    def step() -> Result:
        h, c, gates = gate_by_gate.forward(p, x)
        y = h[1:, 0]
        grads, dx = gate_by_gate.backward(p, x, h, c, gates, 2 * (y - target) / y.size)
        after = gate_by_gate.update(p, grads, RATE)
        return Result(y, lambda: {k: gates[k] for k in Cell.GATES}, dx, grads, after)

    return step


def _step(
    model: Any, params: dict[str, Any], x: Any, target: Any, home: Backend
) -> Callable[[], Result]:
    is_layer = isinstance(model, xlstm.LSTM)
    optimizer = optimizers.sgd(RATE) if is_layer else optimizers.adam(1e-3)
    state = optimizer.init(params)

    def step() -> Result:
        y, _, saved = model.forward(params, x, train=True)
        _, dy = losses.mse(y, target)
        grads, dx, _ = model.backward(params, saved, dy)
        after, _ = optimizer.update(params, grads, state)
        home.synchronize()
        gates = Cell.GATES if is_layer else ()
        return Result(
            y, lambda: {k: saved.gates[:, n, ...] for n, k in enumerate(gates)}, dx, grads, after
        )

    return step


class Measured(NamedTuple):
    """A program in one row; `seconds` is None where CuPy has no card, and `peak_bytes` on PyTorch
    tensors.
    """

    program: Program
    row: str
    device: str
    differences: dict[str, float]
    seconds: Timing | None
    peak_bytes: int | None

    @property
    def agrees(self) -> bool:
        """Whether each difference is within the tolerance of the dtype."""
        return max(self.differences.values()) <= TOLERANCE[self.program.dtype]

    def as_json(self) -> str:
        """Return a line with everything."""
        about = {
            **self._asdict(),
            "program": str(self.program),
            "words": ROWS[self.row].words,
            "agrees": self.agrees,
            "seconds": None if self.seconds is None else asdict(self.seconds),
            "machine": info.describe(),
        }
        return to_json(about) + "\n"


def compare(
    require: Annotated[
        list[str] | None, Option(help="Row that must run, such as cupy; repeatable.")
    ] = None,
    rounds: Annotated[
        int, Option(min=1, help="How often each is timed in turn, at least 0.15 s at a time.")
    ] = 5,
    results: Annotated[
        Path | None, Option("--json", help="Append results to this file, a line each.")
    ] = None,
    report: Annotated[
        Path | None, Option(help="Page to write, .html or .txt: what is printed, and this machine.")
    ] = None,
    plot: Annotated[
        Path | None, Option("--plot", help="Picture of the times to draw; needs matplotlib.")
    ] = None,
) -> None:
    """Run the same programs on every backend here: the differences of all numbers, times and
    memory.

    The programs are that of the NumPy notebook this library began as, a layer, and a model with its
    optimiser. The differences are those from float64 NumPy, of y, every gate, every gradient and
    every new weight, relative to the largest magnitude of the array. The exit code is 1 if one is
    too large.
    """
    for name in require or ():
        checks.choice([*ROWS])("compare", "--require", name)
    if plot is not None:
        figures.check(plot)
    if report is not None:
        checks.choice(PAGES)(str(report), "the ending", report.suffix)
        writing.check(report)
    if results is not None:
        writing.append(results, "")  # whether it can be written to, before any work is done
    out.record = report is not None
    if out.record:
        info.show(info.describe())
    usable = _usable(require or ())
    measured: list[Measured] = []
    for program in PROGRAMS:
        rows = measure(program, usable, rounds)
        measured += rows
        if results is not None:
            writing.append(results, "".join(one.as_json() for one in rows))
        names = [*rows[0].differences]
        cells = [
            (one.row, *(f"{gap:.0e}" if gap else "0" for gap in one.differences.values()))
            for one in rows
        ]
        out.print(table(f"{program}: differences", ("", *names), cells, **OPEN))
    out.print(
        table(
            "Median time of a step",
            HEADINGS,
            [_costs(one, measured) for one in measured],
            left=2,
            **OPEN,
        )
    )
    wrong = [one for one in measured if not one.agrees]
    for one in wrong:
        name = max(one.differences, key=one.differences.__getitem__)
        out.print(f"wrong: {one.program}, {one.row}: {name} differs by {one.differences[name]:.1e}")
    limits = " and ".join(f"{limit:g} in {dtype}" for dtype, limit in TOLERANCE.items())
    out.print(
        f"{len(measured) - len(wrong)} of {len(measured)} rows agree with float64 NumPy, within"
        f" {limits}"
    )
    if plot is not None:
        plots.save(drawn(measured), plot)
        out.print(f"picture: {plot}")
    if report is not None:
        text = out.export_html() if report.suffix == ".html" else out.export_text()
        out.record = False
        writing.write(report, text.encode())
    raise typer.Exit(bool(wrong))


def _usable(required: Sequence[str]) -> dict[str, Backend]:
    """Return the rows that run here with their backends, and print the reason of each that does
    not.

    Raises
    ------
    BackendError
        A required one does not run.
    """
    usable: dict[str, Backend] = {}
    for name, row in ROWS.items():
        try:
            if row.compile == "1" and jit.failure():
                raise BackendError(f"{name}: {jit.failure()}")
            home = backend(row.backend)
        except BackendError as error:
            if name in required:
                raise
            out.print(f"without {error}")
        else:
            usable[name] = home
            if name == "cupy" and not simulated(home):
                # which checks the kernels, where that was not done on this card
                first_training(*TOLERANCE)
            out.print(
                f"{name}: {row.words}: {home}{', counted, not timed' if simulated(home) else ''}"
            )
    if "torch" in usable:
        optional_imports.torch().set_num_threads(cores.threads())
    return usable


def measure(program: Program, usable: Mapping[str, Backend], rounds: int) -> list[Measured]:
    """Return the rows of a program, timed in turn."""
    reference = program.step(REFERENCE, replace(usable[REFERENCE], dtype="float64"))
    assert reference is not None
    expected = reference().values()
    measured: list[Measured] = []
    timed: dict[str, Callable[[], Result]] = {}
    for name, home in usable.items():
        step = program.step(name, replace(home, dtype=program.dtype))
        if step is None:
            continue
        try:
            gaps = differences(step().values(), expected)
            peak = peak_memory(step, home)
        except (MemoryError, RuntimeError) as error:  # those of CUDA
            out.print(f"{program}: {name} fails: {error}")
            gaps = dict.fromkeys(expected, float("inf"))
            peak = None
        else:
            if not simulated(home):
                timed[name] = step
        measured.append(Measured(program, name, str(home), gaps, None, peak))
    times = interleave(timed, rounds)
    return [one._replace(seconds=times.get(one.row)) for one in measured]


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest difference of each array, relative to the largest magnitude that is
    expected in it.
    """
    gaps = {}
    for name, a in expected.items():
        gap = float(np.max(np.abs(found[name].reshape(a.shape) - a)) / np.max(np.abs(a)))
        gaps[name] = gap if np.isfinite(gap) else float("inf")
    return gaps


@contextlib.contextmanager
def _in_its_way(row: Row) -> Iterator[None]:
    """Run layers as a row does."""
    before = os.environ.get(jit.VARIABLE)
    try:
        if row.compile is not None:
            os.environ[jit.VARIABLE] = row.compile
        # The numbers show which are not finite. BLAS may tell of invalid ones, too, where all are
        # finite.
        with (
            np.errstate(over="ignore", invalid="ignore"),
            use(row.engine) if row.engine else contextlib.nullcontext(),
        ):
            yield
    finally:
        os.environ.pop(jit.VARIABLE, None)
        if before is not None:
            os.environ[jit.VARIABLE] = before


HEADINGS = ("program", "row", "ms", "ratio", "GFLOP/s", "peak MB")


def _costs(one: Measured, measured: list[Measured]) -> tuple[str, ...]:
    """Return the cells of a row of the table of costs; ratios are those to the first row of the
    program.
    """
    peak = "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.2f}"
    times = "-", "-", "-"
    if one.seconds is not None:
        first = next(
            other.seconds
            for other in measured
            if other.program == one.program and other.seconds is not None
        )
        median = one.seconds.median
        speed = Case("lstm", one.program.size).operations / median
        times = f"{median * 1e3:.3f}", f"{median / first.median:.2f}", f"{speed / 1e9:.2f}"
    return str(one.program), one.row, *times, peak


def drawn(measured: list[Measured]) -> Any:
    """Draw the median times of all rows, a panel for each program."""
    figure, panels = figures.panels(len(PROGRAMS), 1, 1.4)
    for program, axes in zip(PROGRAMS, panels, strict=True):
        some = [one for one in measured if one.program == program]
        times = {one.row: one.seconds.median * 1e3 for one in some if one.seconds is not None}
        bars = axes.barh([*times], [*times.values()], color=figures.DARK)
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=figures.SMALL)
        axes.margins(x=0.1)
        axes.invert_yaxis()
        figures.label(axes, str(program), "milliseconds a step", size=figures.SMALL)
    return figure
