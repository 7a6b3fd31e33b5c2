"""Time and memory of calls on several backends, side by side, for `xlstm bench` and `xlstm
compare`.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer import Option

from xlstm import plots
from xlstm.arrays import cores, optional_imports
from xlstm.arrays.backend import Backend, backend
from xlstm.arrays.convert import BackendError
from xlstm.cli import info
from xlstm.cli.console import out, to_json
from xlstm.data import writing
from xlstm.engines.cuda.check import first_training
from xlstm.plots import figures

WARM = 0.02  # seconds of a block that are not counted
HEADS = ("ms", "ratio", "GFLOP/s", "peak MB")
Call = Callable[[], Any]
RoundsOption = Annotated[
    int, Option(min=1, help="Rounds in which each is timed, at least 0.15 s a round.")
]


@dataclass(frozen=True)
class Timing:
    """Seconds a call, the fastest and the median of many."""

    best: float
    median: float
    calls: int


def interleave(
    calls: Mapping[str, Call], rounds: int = 9, block: float = 0.15
) -> dict[str, Timing]:
    """Time callables in blocks in turn, A B C, B C A, ..., so that noise of the machine affects all
    of them alike.

    Each callable must have finished its work when it returns, on a GPU too. A block lasts `block`
    seconds, at least one call. Its first calls, for `WARM` seconds, are not counted: the worker
    threads of another library may still be spinning, and a device may have to wake up.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds if names else 0):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _repeat(calls[name], min(WARM, block))
            samples[name] += _repeat(calls[name], block)
    return {name: Timing(min(s), statistics.median(s), len(s)) for name, s in samples.items()}


def _repeat(call: Call, duration: float) -> list[float]:
    """Call for so many seconds, at least once, and return the seconds of each call."""
    seconds: list[float] = []
    now = time.perf_counter()
    end = now + duration
    while not seconds or now <= end:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        seconds.append(now - start)
    return seconds


def peak_memory(call: Call, home: Backend) -> int | None:
    """Return the peak bytes of arrays that a call adds to those before; None on PyTorch tensors."""
    if home.name == "cupy":
        pool = home.xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        call()
        return int(pool.total_bytes() - before)
    if home.name != "numpy":
        return None
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Measurement(NamedTuple):
    """The costs of a call on a backend.

    If the call failed, `timing`, `ratio`, `peak` and `result` are None. If CuPy has no card,
    `timing` and `ratio` are None. On PyTorch tensors `peak` (bytes) is None.
    """

    case: Any  # with `operations`, the floating-point operations of a call
    name: str
    device: str
    timing: Timing | None = None
    ratio: float | None = None  # its median time divided by that of the first timed call
    peak: int | None = None
    result: Any = None

    @property
    def speed(self) -> float:
        """Operations a second."""
        return float(self.case.operations / self.timing.median)  # type: ignore[union-attr]

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of a table below `HEADS`."""
        peak = "-" if self.peak is None else f"{self.peak / 1e6:.2f}"
        if self.timing is None:
            return "-", "-", "-", peak
        median = f"{self.timing.median * 1e3:.4g}"
        return median, f"{self.ratio:.2f}", f"{self.speed / 1e9:.3g}", peak

    def as_dict(self) -> dict[str, Any]:
        """Return the values that every line of results has."""
        return {
            "device": self.device,
            "seconds": None if self.timing is None else asdict(self.timing),
            "ratio_to_first": self.ratio,
            "peak_bytes": self.peak,
        }


def measure(
    case: Any,
    homes: Mapping[str, Backend],
    prepare: Callable[[str, Backend], Call],
    rounds: int,
    inspect: Callable[[Any, Backend], Any],
) -> list[Measurement]:
    """Return the costs of a call on each backend, timed in turn.

    Parameters
    ----------
    case : object
        The work; a line that begins with it says why a call failed.
    homes : dict of str to Backend
    prepare : callable
        Returns the call of a name on its backend, finished when it returns.
    rounds : int
    inspect : callable
        Makes `Measurement.result` of the result of a call.
    """
    measured: dict[str, Measurement] = {}
    calls: dict[str, Call] = {}
    for name, home in homes.items():
        row = Measurement(case, name, str(home))
        try:
            call = prepare(name, home)
            row = row._replace(result=inspect(call(), home), peak=peak_memory(call, home))
        except (MemoryError, RuntimeError) as error:  # those of CUDA
            out.print(f"note: {case}: {name} fails: {error}")
        else:
            if not simulated(home):
                calls[name] = call
        measured[name] = row
    timings = interleave(calls, rounds)
    for name, timing in timings.items():
        ratio = timing.median / next(iter(timings.values())).median
        measured[name] = measured[name]._replace(timing=timing, ratio=ratio)
    return [*measured.values()]


def simulated(home: Backend) -> bool:
    """Tell whether CuPy runs on the CPU; its times say nothing there."""
    return home.name == "cupy" and "CPU" in str(home)


def backend_to_time(name: str, *dtypes: str) -> Backend:
    """Return a backend of the first dtype, ready to be timed: the kernels of a card are checked for
    all dtypes, and PyTorch has as many threads as xlstm. Raises as `backend` does.
    """
    home = backend(name, dtype=dtypes[0])
    if name == "torch":
        optional_imports.torch().set_num_threads(cores.threads())
    if name == "cupy" and not simulated(home):
        first_training(*dtypes)
    return home


def usable(
    words: Mapping[str, str], opener: Callable[[str], Backend], required: Container[str]
) -> dict[str, Backend]:
    """Open the backend of each name, print where it runs or why it does not work, and return those
    that work.

    Raises
    ------
    TypeError, BackendError
        A required one does not work.
    """
    homes: dict[str, Backend] = {}
    for name, text in words.items():
        try:
            homes[name] = opener(name)
        except (TypeError, BackendError) as error:
            if name in required:
                raise
            out.print(f"without {error}")
        else:
            note = ", counted, not timed" if simulated(homes[name]) else ""
            out.print(f"{name}: {text}: {homes[name]}{note}")
    return homes


class Size(NamedTuple):
    """Steps, sequences, width of the input, hidden units."""

    T: int
    B: int
    D: int
    H: int

    @classmethod
    def of(cls, text: str) -> Size:
        """Read "T,B,D,H"."""
        parts = text.split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() and int(part) for part in parts):
            raise typer.BadParameter(
                f"{text!r}, expected four whole numbers from 1 up, such as 128,64,256,256"
            )
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return ",".join(map(str, self))


@dataclass(frozen=True)
class Outputs:
    """The files of results. The constructor checks that they can be written, before any work."""

    results: Annotated[
        Path | None, Option("--json", help="File to append results to, one JSON object a line.")
    ] = None
    plot: Annotated[Path | None, Option("--plot", help="Picture to draw; needs matplotlib.")] = None

    def __post_init__(self) -> None:
        if self.plot is not None:
            figures.check(self.plot)
        if self.results is not None:
            writing.append(self.results, "")

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, each with the facts that its times depend on."""
        if self.results is not None:
            machine = info.describe()
            lines = [to_json({**row, "machine": machine}) + "\n" for row in rows]
            writing.append(self.results, "".join(lines))

    def draw(self, rows: Sequence[Measurement]) -> None:
        """Write a picture of the median times, a panel for each case."""
        if self.plot is None:
            return
        cases = dict.fromkeys(row.case for row in rows)
        figure, panels = figures.panels(len(cases), 1, 1.4)
        for case, axes in zip(cases, panels, strict=True):
            times = {
                row.name: row.timing.median * 1e3
                for row in rows
                if row.case == case and row.timing is not None
            }
            bars = axes.barh([*times], [*times.values()], color=figures.DARK)
            axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=figures.SMALL)
            axes.margins(x=0.1)
            axes.invert_yaxis()
            figures.label(axes, str(case), "milliseconds", size=figures.SMALL)
        plots.save(figure, self.plot)
        out.print(f"picture: {self.plot}")
