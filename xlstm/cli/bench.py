"""`xlstm bench`: backends and `torch.nn` compared on this machine, one layer forward and backward side by side.

Time, sequences and floating-point operations a second, the share of the speed that a large matrix product of the same
library reaches, peak memory, and from which size on another backend is the faster one.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import runpy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich import box
from rich.progress import BarColumn, Progress
from typer import Argument, Option

from xlstm import plots
from xlstm.arrays import cores, probe
from xlstm.arrays.backend import Backend, backend, backend_of
from xlstm.arrays.convert import BackendError
from xlstm.arrays.random import generator
from xlstm.cli import machine, timing
from xlstm.cli.console import INTERRUPTED, err, out, table, tell
from xlstm.cli.timing import Timing, interleave
from xlstm.data import writing
from xlstm.models.sequence import layer_of
from xlstm.plots import figures

TORCH = "torch.nn"
TORCH_LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
# Rows are named for what runs in them.
WORDS = {
    **{"numpy": "this library on NumPy arrays", "cupy": "this library on CuPy arrays"},
    **{"torch": "this library on PyTorch tensors", TORCH: TORCH},
}


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
            raise typer.BadParameter(f"{text!r}, expected four whole numbers from 1 up, such as 128,64,256,256")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return ",".join(map(str, self))


SIZES = [Size(*size) for size in ((32, 1, 1, 50), (128, 1, 64, 64), (100, 32, 64, 128))]
SIZES += [Size(128, 64, 256, 256), Size(128, 64, 512, 512)]


class Case(NamedTuple):
    """A layer to time, forward and backward, or else (`train` is False) forward alone."""

    layer: str
    size: Size
    dtype: str = "float32"
    train: bool = True

    @property
    def what(self) -> str:
        """The passes that are timed, in words."""
        return "forward and backward" if self.train else "inference"

    @property
    def operations(self) -> float:
        """Operations of the matrix products: 2 for each weight and step, and twice as many again backward."""
        T, B, D, H = self.size
        shapes = layer_of("bench", self.layer, D, H).shapes.values()
        weights = sum(math.prod(n or 0 for n in dims.values()) for dims in shapes if len(dims) == 2)
        return 2.0 * weights * T * B * (3 if self.train else 1)

    def __str__(self) -> str:
        return f"{self.layer} {self.size} {self.dtype}"


class Runner(NamedTuple):
    """The subject of a row: this library on a backend, or `torch.nn` on the tensors of one."""

    name: str  # that of the backend, or "torch.nn"
    backend: Backend

    def prepared(self, case: Case) -> tuple[Callable[[], None], Backend]:
        """Return the work of a case, and the backend with its dtype; TypeError if it has no such dtype or layer."""
        chosen = backend_of(self.backend, case.dtype)
        if chosen.name == "torch":
            probe.torch().set_num_threads(cores.threads())
        return (torch_call if self.name == TORCH else call)(case, chosen), chosen


@dataclass(frozen=True)
class Row:
    """The result of one backend, or of `torch.nn`, in one case."""

    case: Case
    backend: str
    device: str
    timing: Timing
    operations: float  # floating-point operations of the matrix products
    product_speed: float  # operations a second of a large product, measured in the same run
    peak: int | None  # bytes
    ratio: float  # its median time over that of the first backend

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
        return self.operations / self.timing.median

    def as_json(self) -> str:
        """Return a line with everything."""
        values = {
            **self.case._asdict(),
            **{"size": self.case.size._asdict(), "backend": self.backend, "name": self.name, "device": self.device},
            **{"seconds": asdict(self.timing), "sequences_per_second": self.sequences, "gflops": self.speed / 1e9},
            **{"product_gflops": self.product_speed / 1e9, "share_of_product_speed": self.speed / self.product_speed},
            **{"peak_bytes": self.peak, "ratio_to_first": self.ratio, "machine": machine.describe()},
        }
        return json.dumps(values) + "\n"


def bench(
    layers: Annotated[list[str] | None, Argument(help="lstm, gru, rnn, slstm, mlstm, xlstm, or imported.")] = None,
    size: Annotated[list[Size] | None, Option(parser=Size.of, metavar="T,B,D,H", help="May be repeated.")] = None,
    dtype: Annotated[list[str] | None, Option(help="float32, float64 or float16, repeatable.")] = None,
    backends: Annotated[list[str] | None, Option("--backend", help="numpy, cupy, torch or torch.nn.")] = None,
    files: Annotated[list[Path] | None, Option("--import", help="Python file that registers cells.")] = None,
    inference: Annotated[bool, Option("--inference", help="A forward pass only, which keeps nothing.")] = False,
    rounds: Annotated[int, Option(min=1, help="How often each is timed in turn, at least 0.15 s at a time.")] = 9,
    results: Annotated[Path | None, Option("--json", help="Append results to this file, a line each.")] = None,
    plot: Annotated[Path | None, Option("--plot", help="Picture to draw; needs matplotlib.")] = None,
) -> None:
    """Compare backends and torch.nn on this machine: time, speed and memory of layers forward and backward.

    They run side by side, in turn. From which size on another backend is faster than the first is said at the end.
    Options for layers, sizes, dtypes, backends and files may be repeated.
    """
    for file in files or ():
        load(file)
    layers, dtypes = layers or ["lstm"], dtype or ["float32"]
    every = itertools.product(dict.fromkeys(layers), dict.fromkeys(dtypes), dict.fromkeys(size or SIZES))
    cases = [Case(layer, one, kind, not inference) for layer, kind, one in every]
    cases.sort(key=lambda case: (layers.index(case.layer), dtypes.index(case.dtype), case.operations))
    if plot is not None:
        figures.check(plot)
    if results is not None:
        writing.append(results, "")  # whether it can be written to, before any work is done
    runners = _runners(backends, dtypes)
    for name, home in runners:
        out.print(f"row: {WORDS[name]}, {home}")
    out.print(f"threads: {cores.threads()}, compiled loops: {machine.compiled()}")
    rows: list[Row] = []
    try:
        with Progress(BarColumn(16), "{task.completed}/{task.total} {task.description}", console=err) as bar:
            bar.disable = not err.is_terminal
            task = bar.add_task("", total=len(cases))
            for k, case in enumerate(cases):
                bar.update(task, completed=k, description=str(case))
                if bar.disable:
                    err.print(f"{k + 1}/{len(cases)} {case}")
                timed = measure(case, runners, rounds, files or ())
                rows += timed
                if results is not None:
                    writing.append(results, "".join(row.as_json() for row in timed))
    except KeyboardInterrupt:
        tell("interrupted, what was measured until then:")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if rows:
            _print_rows(rows)
    if not rows:
        raise MemoryError("nothing could be measured")
    for line in crossover(rows):
        out.print(line)
    if plot is not None:
        plots.save(plots.comparison(rows), plot)
        out.print(f"picture: {plot}")


def load(path: Path) -> None:
    """Run a Python file, which registers cells with `xlstm.register_cell`.

    Raises
    ------
    FileNotFoundError, ImportError
        There is no such file, or it fails; the message names the error.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: No such file or directory")
    try:
        runpy.run_path(str(path), run_name=f"xlstm_bench_{path.stem}")
    except (Exception, SystemExit) as error:
        raise ImportError(f"import: {path} fails, {type(error).__name__}: {error}") from error


def runner(name: str, dtype: str) -> Runner:
    """Return a runner by its name; raises as `backend` does, and where CuPy has no card to time."""
    home = backend("torch" if name == TORCH else name, dtype=dtype)
    if name == "cupy" and "CPU" in str(home):
        raise BackendError(f"cupy: {home}, whose times are not those of a GPU")
    return Runner(name, home)


def _runners(names: list[str] | None, dtypes: list[str]) -> list[Runner]:
    """Return the runners named, or all that work here; each has at least one of the dtypes."""
    found: dict[str, Runner] = {}
    refused: list[Exception] = []
    for name, dtype in itertools.product(dict.fromkeys(names or WORDS), dtypes):
        try:
            found.setdefault(name, runner(name, dtype))
        except TypeError as error:
            refused.append(TypeError(f"{name}: {error}"))
        except BackendError as error:
            if names:
                raise
            refused.append(error)
    if not found:
        raise refused[0]
    for reason in dict.fromkeys(map(str, refused)):
        out.print(f"without {reason}")
    return list(found.values())


def measure(case: Case, runners: Sequence[Runner], rounds: int, files: Sequence[Path]) -> list[Row]:
    """Return the rows of a case, one a runner.

    A runner that does not have the dtype or the layer is left out, and so is one that fails, with a note. `files` are
    loaded again in the process that measures memory.
    """
    calls: dict[str, Callable[[], None]] = {}
    homes: dict[str, Backend] = {}
    for one in runners:
        try:
            work, home = one.prepared(case)
            work()
            product_speed(home)
        except TypeError:
            continue
        except (MemoryError, RuntimeError) as error:
            err.print(f"note: {case}: without {one.name}, {error}")
            continue
        calls[one.name], homes[one.name] = work, home
    if not calls:
        return []
    times = interleave(calls, rounds)
    del work
    calls.clear()
    timing.release()
    rows, first = [], next(iter(times.values()))
    for name, home in homes.items():
        try:
            peak = timing.peak_memory("xlstm.cli.bench:prepare", case, name, [str(file) for file in files])
        except RuntimeError as error:
            err.print(f"note: {case}: memory of {name} was not measured, {error}")
            peak = None
        ratio = times[name].median / first.median
        rows.append(Row(case, name, str(home), times[name], case.operations, product_speed(home), peak, ratio))
    return rows


def prepare(case: Sequence[Any], name: str, files: Sequence[str] = ()) -> Callable[[], None]:
    """Return the work of a case, given as a list, for a process of its own, which loads the files first."""
    for file in files:
        load(Path(file))
    layer, size, dtype, train = case
    whole, chosen = Case(layer, Size(*size), dtype, bool(train)), runner(name, dtype)
    chosen.prepared(whole._replace(size=Size(2, whole.size.B, 4, 4)))[0]()
    return chosen.prepared(whole)[0]


def call(case: Case, home: Backend) -> Callable[[], None]:
    """Return the work of a case, finished when it returns; on a CPU, in as many threads as xlstm may use."""
    T, B, D, H = case.size
    layer: Any = layer_of("bench", case.layer, D, H)
    params, rng = layer.init(0, home), generator(0)
    x, dy = (home.asarray(rng.standard_normal((T, B, n))) for n in (D, H))

    def work() -> None:
        _, _, saved = layer.forward(params, x, train=case.train)
        if saved is not None:
            layer.backward(params, saved, dy)
        home.synchronize()

    return work


def torch_call(case: Case, home: Backend) -> Callable[[], None]:
    """Return the work of a case in `torch.nn`, with the gradients that xlstm gives; TypeError without such a layer."""
    if case.layer not in TORCH_LAYERS:
        raise TypeError(f"{TORCH}: has no {case.layer}")
    torch = probe.torch()
    T, B, D, H = case.size
    rng = generator(0)
    x, dy = (home.asarray(rng.standard_normal((T, B, n))) for n in (D, H))
    layer = getattr(torch.nn, TORCH_LAYERS[case.layer])(D, H).to(x)
    x.requires_grad_(case.train)

    def work() -> None:
        with torch.set_grad_enabled(case.train):
            y, _ = layer(x)
        if case.train:
            layer.zero_grad(set_to_none=True)
            x.grad = None
            y.backward(dy)
        home.synchronize()

    return work


@functools.cache
def product_speed(home: Backend) -> float:
    """Return the operations a second of a large square matrix product, in as many threads; the median of many."""
    n = 1024 if str(home).endswith("CPU") else 4096
    a, b = (home.asarray(generator(seed).standard_normal((n, n))) for seed in (0, 1))

    def product() -> None:
        home.xp.matmul(a, b)
        home.synchronize()

    return 2.0 * n**3 / interleave({"product": product}, rounds=3)["product"].median


def _print_rows(rows: list[Row]) -> None:
    """Print times, a table for each layer and dtype with a row for each size and backend."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    names = ("T,B,D,H", "timed", "ms", "seq/s", "GFLOP/s", "share", "peak MB", "ratio")
    for layer, dtype in dict.fromkeys((row.case.layer, row.case.dtype) for row in rows):
        title = f"{layer} {dtype}, {rows[0].case.what}: median time of a call, ratio to {rows[0].name}"
        cells = []
        for row in rows:
            if (row.case.layer, row.case.dtype) == (layer, dtype):
                speed = (f"{row.timing.median * 1e3:.4g}", f"{row.sequences:.4g}", f"{row.speed / 1e9:.3g}")
                memory = "-" if row.peak is None else f"{row.peak / 1e6:.1f}"
                share = f"{row.speed / row.product_speed:.0%}"
                cells.append((str(row.case.size), row.name, *speed, share, memory, f"{row.ratio:.2f}"))
        out.print(table(title, names, cells, left=2, **style))
    speeds = {f"{r.device} {r.case.dtype}: {r.product_speed / 1e9:.4g} GFLOP/s": None for r in rows}
    out.print(f"share is that of the speed of a large matrix product: {', '.join(speeds)}")


def crossover(rows: Sequence[Row]) -> list[str]:
    """Say from which size on each other row is faster than the first one.

    Times within 5 % of each other are equal. A backend that wins at some size and does not at a larger one wins only
    from beyond that.
    """
    lines, first = [], rows[0].backend
    others = dict.fromkeys((r.case.layer, r.case.dtype, r.backend) for r in rows if r.backend != first)
    for layer, dtype, name in others:
        some = [r for r in rows if (r.case.layer, r.case.dtype, r.backend) == (layer, dtype, name)]
        some.sort(key=lambda r: r.operations)
        wins = [r.ratio < 0.95 for r in some]
        since = next((k for k in range(len(some)) if all(wins[k:])), None)
        if since is not None:
            where = f"from T,B,D,H = {some[since].case.size} on" if since else "at every size measured"
        elif any(wins):
            sizes = " and ".join(str(r.case.size) for r, won in zip(some, wins, strict=True) if won)
            where = f"at T,B,D,H = {sizes}, but not at the largest size"
        else:
            where = "at no size measured"
        lines.append(f"{layer} {dtype}: {WORDS[name]} is faster than {WORDS[first]} {where}")
    return lines
