"""`xlstm bench`: backends and `torch.nn` compared on this machine, one layer forward and backward
side by side.

Time, sequences and floating-point operations a second, the share of the speed that a large matrix
product of the same library reaches, peak memory, and the sizes at which another backend is faster.
"""

from __future__ import annotations

import functools
import itertools
import math
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from typer import Argument, Option

from xlstm.arrays import cores, optional_imports
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError
from xlstm.arrays.random import generator
from xlstm.cli import info
from xlstm.cli.console import OPEN, out, table, tell
from xlstm.cli.options import command
from xlstm.cli.timing import (
    HEADS,
    Call,
    Measurement,
    Outputs,
    RoundsOption,
    Size,
    backend_to_time,
    interleave,
    measure,
    simulated,
    usable,
)
from xlstm.layers.recurrent import CELLS
from xlstm.models.sequence import layer_of

FASTER = 0.95  # the ratio below which times are not equal
TORCH = "torch.nn"
TORCH_LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
# The names of rows, in words.
WORDS = {
    "numpy": "this library on NumPy arrays",
    "cupy": "this library on CuPy arrays",
    "torch": "this library on PyTorch tensors",
    TORCH: TORCH,
}
SIZES = (
    Size(32, 1, 1, 50),
    Size(128, 1, 64, 64),
    Size(100, 32, 64, 128),
    Size(128, 64, 256, 256),
    Size(128, 64, 512, 512),
)


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

    @property
    def kind(self) -> str:
        """The layer with its dtype."""
        return f"{self.layer} {self.dtype}"

    def call(self, name: str, home: Backend) -> Call:
        """Return the work of a row, finished when it returns."""
        rng = generator(0)
        T, B, D, H = self.size
        x, dy = (home.asarray(rng.standard_normal((T, B, n))) for n in (D, H))
        return (torch_call if name == TORCH else layer_call)(self, home, x, dy)

    def __str__(self) -> str:
        return f"{self.layer} {self.size} {self.dtype}"


@command()
def bench(
    layers: Annotated[
        list[str] | None, Argument(help=f"{', '.join(CELLS)}, or a name that --import registers.")
    ] = None,
    size: Annotated[
        list[Size] | None, Option(parser=Size.of, metavar="T,B,D,H", help="May be repeated.")
    ] = None,
    dtype: Annotated[
        list[str] | None, Option(help="float32, float64 or float16; may be repeated.")
    ] = None,
    backends: Annotated[
        list[str] | None, Option("--backend", help="numpy, cupy, torch or torch.nn.")
    ] = None,
    files: Annotated[
        list[Path] | None, Option("--import", help="Python file that registers cells.")
    ] = None,
    rounds: RoundsOption = 9,
    *,
    outputs: Outputs,
) -> None:
    """Compare backends and torch.nn on this machine: time, speed and memory of layers forward and
    backward.

    All are timed in turn, side by side. The last lines say at which sizes another backend is
    faster than the first. You may name several layers, and repeat the options for sizes, dtypes,
    backends and files. A size has T steps, B sequences, an input of width D, and H hidden units.
    """
    for file in files or ():
        load(file)
    dtypes = [*dict.fromkeys(dtype or ["float32"])]
    cases: list[Case] = []
    for layer, name in itertools.product(dict.fromkeys(layers or ["lstm"]), dtypes):
        by_size = [Case(layer, each, name) for each in dict.fromkeys(size or SIZES)]
        cases += sorted(by_size, key=lambda case: case.operations)
    words = {name: WORDS.get(name, name) for name in backends or WORDS}
    homes = {
        name: usable(words, functools.partial(home_of, dtype=name), backends or ())
        for name in dtypes
    }
    out.print(f"threads: {cores.threads()}, compiled loops: {info.compiled()}")
    rows: list[Measurement] = []
    try:
        for k, case in enumerate(cases, 1):
            tell(f"{k}/{len(cases)} {case}")
            timed = rows_of(case, homes[case.dtype], rounds)
            rows += timed
            outputs.append(map(as_dict, timed))
    finally:  # also after an interrupt
        _print_rows(rows)
    if not rows:
        raise MemoryError("nothing could be measured")
    for line in faster(rows):
        out.print(line)
    outputs.draw(rows)


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
    """Return the backend of a row; raises as `backend` does, and if CuPy has no card to time."""
    home = backend_to_time("torch" if name == TORCH else name, dtype)
    if simulated(home):
        raise BackendError(f"cupy: {home}, whose times are not those of a GPU")
    return home


def rows_of(case: Case, homes: dict[str, Backend], rounds: int) -> list[Measurement]:
    """Return the rows of a case, without rows that fail or have no such layer. Their results are
    the speeds of a large product, measured in the same run.
    """
    if case.layer not in TORCH_LAYERS:
        homes = {name: home for name, home in homes.items() if name != TORCH}
    rows = measure(case, homes, case.call, rounds, lambda result, home: product_speed(home))
    return [row for row in rows if row.timing is not None]


def as_dict(row: Measurement) -> dict[str, Any]:
    """Return a row as a line of results has it."""
    case = row.case
    return {
        **case._asdict(),
        "size": case.size._asdict(),
        "backend": row.name,
        "name": WORDS[row.name],
        "sequences_per_second": sequences(row),
        "gflops": row.speed / 1e9,
        "product_gflops": row.result / 1e9,
        "share_of_product_speed": row.speed / row.result,
        **row.as_dict(),
    }


def sequences(row: Measurement) -> float:
    """Return sequences a second."""
    return row.case.size.B / row.timing.median  # type: ignore[no-any-return, union-attr]


def layer_call(case: Case, home: Backend, x: Any, dy: Any) -> Call:
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


def torch_call(case: Case, home: Backend, x: Any, dy: Any) -> Call:
    """Return the work of a case in `torch.nn`, with the gradients that xlstm gives."""
    kind = getattr(optional_imports.torch().nn, TORCH_LAYERS[case.layer])
    layer = kind(case.size.D, case.size.H).to(x)
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


def _print_rows(rows: Sequence[Measurement]) -> None:
    """Print times, a table for each layer and dtype with a row for each size and backend."""
    for kind in dict.fromkeys(row.case.kind for row in rows):
        title = (
            f"{kind}, forward and backward: median time of a call, ratio to {WORDS[rows[0].name]}"
        )
        cells = [
            (
                str(row.case.size),
                WORDS[row.name],
                *row.cells,
                f"{sequences(row):.4g}",
                f"{row.speed / row.result:.0%}",
            )
            for row in rows
            if row.case.kind == kind
        ]
        heads = ("T,B,D,H", "timed", *HEADS, "seq/s", "share")
        out.print(table(title, heads, cells, left=2, **OPEN))
    speeds = [f"{row.device} {row.case.dtype}: {row.result / 1e9:.4g} GFLOP/s" for row in rows]
    if speeds:
        each = ", ".join(dict.fromkeys(speeds))
        out.print(f"share is relative to the speed of a large matrix product: {each}")


def faster(rows: Sequence[Measurement]) -> list[str]:
    """Say at which sizes each other row is more than 5 % faster than the first row."""
    first = rows[0].name
    sizes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.name != first:
            places = sizes.setdefault((row.case.kind, row.name), [])
            places += [str(row.case.size)] * ((row.ratio or 1) < FASTER)
    lines = []
    for (kind, name), places in sizes.items():
        where = f"at T,B,D,H = {' and '.join(places)}" if places else "at no size measured"
        lines.append(f"{kind}: {WORDS[name]} is faster than {WORDS[first]} {where}")
    return lines
