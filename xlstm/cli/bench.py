"""`xlstm bench`: backends and `torch.nn` compared on this machine, one layer forward and backward
side by side.

Time, sequences and floating-point operations a second, the share of the speed that a large matrix
product of the same library reaches, peak memory, and from which size on another backend is the
faster one.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import runpy
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer import Argument, Option

from xlstm import plots
from xlstm.arrays import cores, optional_imports
from xlstm.arrays.backend import Backend, backend
from xlstm.arrays.convert import BackendError
from xlstm.arrays.random import generator
from xlstm.cli import info
from xlstm.cli.console import OPEN, out, table, tell
from xlstm.data import writing
from xlstm.engines.cuda.check import first_training
from xlstm.models.sequence import layer_of
from xlstm.plots import figures

WARM = 0.02  # seconds of a block that are not counted
TORCH = "torch.nn"
TORCH_LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
# Rows are named for what runs in them.
WORDS = {
    **{"numpy": "this library on NumPy arrays", "cupy": "this library on CuPy arrays"},
    **{"torch": "this library on PyTorch tensors", TORCH: TORCH},
}


@dataclass(frozen=True)
class Timing:
    """Seconds a call, the fastest and the median of many."""

    best: float
    median: float
    calls: int


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int = 9, block: float = 0.15
) -> dict[str, Timing]:
    """Time callables in blocks in turn, A B C, B C A, ..., so that a noisy machine is noisy for all
    of them alike.

    Each callable must have finished its work when it returns, on a GPU too. A block lasts `block`
    seconds, at least one call. Its first calls, for `WARM` seconds, are not counted: the worker
    threads of another library may still be spinning, and a device may have to wake up.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _repeat(calls[name], min(WARM, block))
            samples[name] += _repeat(calls[name], block)
    return {name: Timing(min(s), statistics.median(s), len(s)) for name, s in samples.items()}


def _repeat(call: Callable[[], object], duration: float) -> list[float]:
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


SIZES = [Size(*size) for size in ((32, 1, 1, 50), (128, 1, 64, 64), (100, 32, 64, 128))]
SIZES += [Size(128, 64, 256, 256), Size(128, 64, 512, 512)]


class Case(NamedTuple):
    """A layer to time, forward and backward."""

    layer: str
    size: Size
    dtype: str = "float32"

    @property
    def operations(self) -> float:
        """Floating-point operations of the matrix products: 2 for each weight and step, and 4
        backward.
        """
        T, B, D, H = self.size
        shapes = layer_of("bench", self.layer, D, H).shapes.values()
        weights = sum(math.prod(n or 0 for n in dims.values()) for dims in shapes if len(dims) == 2)
        return 6.0 * weights * T * B

    def __str__(self) -> str:
        return f"{self.layer} {self.size} {self.dtype}"


class Row(NamedTuple):
    """The result of one backend, or of `torch.nn`, in one case."""

    case: Case
    backend: str
    timing: Timing
    ratio: float  # its median time over that of the first backend
    device: str
    product_speed: float  # operations a second of a large product, measured in the same run
    peak: int | None  # bytes

    @property
    def kind(self) -> str:
        """The layer with its dtype."""
        return f"{self.case.layer} {self.case.dtype}"

    @property
    def name(self) -> str:
        """The thing that was timed, in words."""
        return WORDS[self.backend]

    @property
    def sequences(self) -> float:
        """Sequences a second."""
        return self.case.size.B / self.timing.median

    @property
    def speed(self) -> float:
        """Operations a second."""
        return self.case.operations / self.timing.median

    def as_json(self) -> str:
        """Return a line with everything."""
        values = {
            **self.case._asdict(),
            **{
                "size": self.case.size._asdict(),
                "backend": self.backend,
                "name": self.name,
                "device": self.device,
            },
            **{
                "seconds": asdict(self.timing),
                "sequences_per_second": self.sequences,
                "gflops": self.speed / 1e9,
            },
            **{
                "product_gflops": self.product_speed / 1e9,
                "share_of_product_speed": self.speed / self.product_speed,
            },
            **{"peak_bytes": self.peak, "ratio_to_first": self.ratio, "machine": info.describe()},
        }
        return json.dumps(values) + "\n"


def bench(
    layers: Annotated[
        list[str] | None, Argument(help="lstm, gru, rnn, slstm, mlstm, xlstm, or imported.")
    ] = None,
    size: Annotated[
        list[Size] | None, Option(parser=Size.of, metavar="T,B,D,H", help="May be repeated.")
    ] = None,
    dtype: Annotated[
        list[str] | None, Option(help="float32, float64 or float16, repeatable.")
    ] = None,
    backends: Annotated[
        list[str] | None, Option("--backend", help="numpy, cupy, torch or torch.nn.")
    ] = None,
    files: Annotated[
        list[Path] | None, Option("--import", help="Python file that registers cells.")
    ] = None,
    rounds: Annotated[
        int, Option(min=1, help="How often each is timed in turn, at least 0.15 s at a time.")
    ] = 9,
    results: Annotated[
        Path | None, Option("--json", help="Append results to this file, a line each.")
    ] = None,
    plot: Annotated[
        Path | None, Option("--plot", help="Picture to draw; needs matplotlib.")
    ] = None,
) -> None:
    """Compare backends and torch.nn on this machine: time, speed and memory of layers forward and
    backward.

    They run side by side, in turn. From which size on another backend is faster than the first is
    said at the end. Options for layers, sizes, dtypes, backends and files may be repeated.
    """
    for file in files or ():
        load(file)
    layers = [*dict.fromkeys(layers or ["lstm"])]
    dtypes = [*dict.fromkeys(dtype or ["float32"])]
    every = itertools.product(layers, dtypes, dict.fromkeys(size or SIZES))
    cases = [Case(layer, one, kind) for layer, kind, one in every]
    cases.sort(
        key=lambda case: (layers.index(case.layer), dtypes.index(case.dtype), case.operations)
    )
    if plot is not None:
        figures.check(plot)
    if results is not None:
        writing.append(results, "")  # whether it can be written to, before any work is done
    usable = _usable(backends, dtypes)
    for name, home in usable.items():
        out.print(f"row: {WORDS[name]}, {home}")
    out.print(f"threads: {cores.threads()}, compiled loops: {info.compiled()}")
    rows: list[Row] = []
    try:
        for k, case in enumerate(cases, 1):
            tell(f"{k}/{len(cases)} {case}")
            timed = measure(case, [*usable], rounds)
            rows += timed
            if results is not None:
                writing.append(results, "".join(row.as_json() for row in timed))
    finally:  # also after an interrupt
        if rows:
            _print_rows(rows)
    if not rows:
        raise MemoryError("nothing could be measured")
    for line in crossover(rows):
        out.print(line)
    if plot is not None:
        plots.save(drawn(rows), plot)
        out.print(f"picture: {plot}")


def load(path: Path) -> None:
    """Run a Python file, which registers cells with `xlstm.register_cell`.

    Raises
    ------
    ImportError
        There is no such file, or it fails; the message names the error.
    """
    try:
        runpy.run_path(str(path), run_name=f"xlstm_bench_{path.stem}")
    except (Exception, SystemExit) as error:
        raise ImportError(f"import: {path} fails, {type(error).__name__}: {error}") from error


def home_of(name: str, dtype: str) -> Backend:
    """Return the backend of a row; raises as `backend` does, and where CuPy has no card to time."""
    home = backend("torch" if name == TORCH else name, dtype=dtype)
    if simulated(home):
        raise BackendError(f"cupy: {home}, whose times are not those of a GPU")
    if name == "cupy":
        first_training(dtype)  # which checks the kernels, where that was not done on this card
    return home


def simulated(home: Backend) -> bool:
    """Tell whether CuPy runs on the CPU, where its times say nothing."""
    return home.name == "cupy" and "CPU" in str(home)


def _usable(names: Sequence[str] | None, dtypes: Sequence[str]) -> dict[str, Backend]:
    """Return the rows named, or all that work here, with their backends; those left out are said
    with the reason.
    """
    usable: dict[str, Backend] = {}
    reasons: dict[str, None] = {}
    for name, dtype in itertools.product(names or WORDS, dtypes):
        try:
            usable.setdefault(name, home_of(name, dtype))
        except (TypeError, BackendError) as error:
            if names:
                raise
            reasons[f"without {error}"] = None
    for reason in reasons:
        out.print(reason)
    return usable


def prepared(name: str, case: Case) -> tuple[Callable[[], None], Backend]:
    """Return the work of a row, and the backend with its dtype; TypeError if it has no such dtype
    or layer.
    """
    home = home_of(name, case.dtype)
    if home.name == "torch":
        optional_imports.torch().set_num_threads(cores.threads())
    rng = generator(0)
    T, B, D, H = case.size
    x, dy = (home.asarray(rng.standard_normal((T, B, n))) for n in (D, H))
    return (torch_call if name == TORCH else call)(case, home, x, dy), home


def measure(case: Case, names: Sequence[str], rounds: int) -> list[Row]:
    """Return the rows of a case, without those that have no such dtype or layer, and those that
    fail, with a note.
    """
    calls: dict[str, Callable[[], None]] = {}
    devices: dict[str, tuple[str, float, int | None]] = {}
    for name in names:
        try:
            work, home = prepared(name, case)
            work()
            devices[name] = str(home), product_speed(home), peak_memory(work, home)
        except TypeError:
            continue
        except (MemoryError, RuntimeError) as error:
            tell(f"note: {case}: without {name}, {error}")
            continue
        calls[name] = work
    rows: list[Row] = []
    for name, times in interleave(calls, rounds).items() if calls else ():
        ratio = times.median / (rows[0].timing if rows else times).median
        rows.append(Row(case, name, times, ratio, *devices[name]))
    return rows


def peak_memory(work: Callable[[], object], home: Backend) -> int | None:
    """Return the bytes of arrays that a call takes at most, beyond those before it; None on PyTorch
    tensors.
    """
    if home.name == "cupy":
        pool = home.xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        work()
        return int(pool.total_bytes() - before)
    if home.name != "numpy":
        return None
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def call(case: Case, home: Backend, x: Any, dy: Any) -> Callable[[], None]:
    """Return the work of a case, finished when it returns; on a CPU, in as many threads as xlstm
    may use.
    """
    layer: Any = layer_of("bench", case.layer, case.size.D, case.size.H)
    params = layer.init(0, home)

    def work() -> None:
        _, _, saved = layer.forward(params, x, train=True)
        layer.backward(params, saved, dy)
        home.synchronize()

    return work


def torch_call(case: Case, home: Backend, x: Any, dy: Any) -> Callable[[], None]:
    """Return the work of a case in `torch.nn`, with the gradients that xlstm gives; TypeError
    without such a layer.
    """
    if case.layer not in TORCH_LAYERS:
        raise TypeError(f"{TORCH}: has no {case.layer}")
    layer = getattr(optional_imports.torch().nn, TORCH_LAYERS[case.layer])(
        case.size.D, case.size.H
    ).to(x)
    x.requires_grad_()

    def work() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x)[0].backward(dy)
        home.synchronize()

    return work


@functools.cache
def product_speed(home: Backend) -> float:
    """Return the operations a second of a large square matrix product, in as many threads; the
    median of many.
    """
    n = 1024 if str(home).endswith("CPU") else 4096
    a, b = (home.asarray(generator(seed).standard_normal((n, n))) for seed in (0, 1))

    def product() -> None:
        home.xp.matmul(a, b)
        home.synchronize()

    return 2.0 * n**3 / interleave({"product": product}, rounds=3)["product"].median


def _print_rows(rows: list[Row]) -> None:
    """Print times, a table for each layer and dtype with a row for each size and backend."""
    names = ("T,B,D,H", "timed", "ms", "seq/s", "GFLOP/s", "share", "peak MB", "ratio")
    for kind in dict.fromkeys(row.kind for row in rows):
        title = f"{kind}, forward and backward: median time of a call, ratio to {rows[0].name}"
        cells = []
        for row in rows:
            if row.kind == kind:
                speed = (
                    f"{row.timing.median * 1e3:.4g}",
                    f"{row.sequences:.4g}",
                    f"{row.speed / 1e9:.3g}",
                )
                memory = "-" if row.peak is None else f"{row.peak / 1e6:.1f}"
                share = f"{row.speed / row.product_speed:.0%}"
                cells.append(
                    (str(row.case.size), row.name, *speed, share, memory, f"{row.ratio:.2f}")
                )
        out.print(table(title, names, cells, left=2, **OPEN))
    speeds = {f"{r.device} {r.case.dtype}: {r.product_speed / 1e9:.4g} GFLOP/s": None for r in rows}
    out.print(f"share is that of the speed of a large matrix product: {', '.join(speeds)}")


def crossover(rows: Sequence[Row]) -> list[str]:
    """Say from which size on each other row is faster than the first one.

    Times within 5 % of each other are equal. A backend that wins at some size and does not at a
    larger one wins only from beyond that.
    """
    lines = []
    first = rows[0].backend
    for kind, name in dict.fromkeys((r.kind, r.backend) for r in rows if r.backend != first):
        some = [r for r in rows if (r.kind, r.backend) == (kind, name)]
        some.sort(key=lambda r: r.case.operations)
        wins = [r.ratio < 0.95 for r in some]
        since = next((k for k in range(len(some)) if all(wins[k:])), None)
        sizes = " and ".join(str(r.case.size) for r, won in zip(some, wins, strict=True) if won)
        where = (
            f"at T,B,D,H = {sizes}, but not at the largest size" if sizes else "at no size measured"
        )
        if since is not None:
            where = (
                f"from T,B,D,H = {some[since].case.size} on" if since else "at every size measured"
            )
        lines.append(f"{kind}: {WORDS[name]} is faster than {WORDS[first]} {where}")
    return lines


def drawn(rows: Sequence[Row]) -> Any:
    """Draw sequences a second by the operations of a call, with sizes as marks, a panel for each
    layer and dtype.
    """
    kinds = list(dict.fromkeys(row.kind for row in rows))
    figure, panels = figures.panels(len(kinds), 1, 3.0)
    for kind, axes in zip(kinds, panels, strict=True):
        some = [row for row in rows if row.kind == kind]
        for k, name in enumerate(dict.fromkeys((row.name, row.device) for row in some)):
            line = sorted(
                (row.case.operations, row.sequences)
                for row in some
                if (row.name, row.device) == name
            )
            axes.plot(*zip(*line, strict=True), label=", ".join(name), **figures.line(k))
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = {row.case.operations: ",".join(map(str, row.case.size)) for row in some}
        axes.set_xticks(
            [*sizes], labels=[*sizes.values()], rotation=20, ha="right", fontsize=figures.SMALL
        )
        axes.set_xticks([], minor=True)
        x = "T,B,D,H, placed by the floating-point operations of a call"
        figures.label(axes, f"{kind}, forward and backward", x, "sequences a second")
        figures.legend(axes)
    return figure
