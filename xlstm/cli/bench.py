"""`xlstm bench`: backends and `torch.nn` compared on this machine."""

from __future__ import annotations

import itertools
from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.progress import BarColumn, Progress
from rich.table import Table

from xlstm import plots
from xlstm.arrays import cores
from xlstm.arrays.convert import BackendError
from xlstm.cli import benchmark, machine
from xlstm.cli.console import INTERRUPTED, err, out, tell, uncut
from xlstm.data import writing
from xlstm.plots import figures


def bench(
    layers: Annotated[
        list[str] | None,
        typer.Argument(help="lstm, gru, rnn, slstm, mlstm, or a layer of --import; lstm if left out."),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option("--size", help="T,B,D,H; may be given several times. Five sizes if left out.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, float64 or float16; may be given several times. float32.")
    ] = None,
    backends: Annotated[
        list[str] | None,
        typer.Option("--backend", help="numpy, cupy, torch or torch.nn, the first as the measure; all if left out."),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE", help="Python file that registers cells; may be given several times."),
    ] = None,
    inference: Annotated[bool, typer.Option("--inference", help="A forward pass only, which keeps nothing.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed in turn, at least 0.15 s at a time.")] = 9,
    json: Annotated[Path | None, typer.Option("--json", help="Append results to this file, a line each.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Picture to draw; needs matplotlib.")] = None,
) -> None:
    """Compare backends and torch.nn on this machine: time, speed and memory of layers forward and backward.

    They run side by side, in turn. From which size on another backend is faster than the first is said at the end.
    """
    for file in files or ():
        benchmark.load(file)
    sizes = [benchmark.Size.of(text) for text in size] if size else [benchmark.Size(*s) for s in benchmark.SIZES]
    dtypes = dtype or ["float32"]
    todo = benchmark.cases(layers or ["lstm"], sizes, dtypes, not inference)
    if plot is not None:
        figures.check(plot)
    if json is not None:
        writing.append(json, "")  # whether it can be written to, before any work is done
    chosen = _chosen(backends, dtypes)
    for name, be in chosen:
        out.print(f"row: {benchmark.WORDS[name]}, {be}")
    out.print(f"threads: {cores.threads()}, compiled loops: {machine.compiled()}")
    rows: list[benchmark.Row] = []
    try:
        with Progress(BarColumn(16), "{task.completed}/{task.total} {task.description}", console=err) as bar:
            bar.disable = not err.is_terminal
            task = bar.add_task("", total=len(todo))

            case = 0

            def show(now: str) -> None:
                nonlocal case
                bar.update(task, description=now)
                done = int(bar.tasks[0].completed)
                if bar.disable and done == case:
                    case += 1
                    err.print(f"{case}/{len(todo)} {todo[case - 1]}")

            for done in benchmark.run(todo, chosen, rounds, show, _note, files or ()):
                rows += done
                bar.advance(task)
                if json is not None:
                    about = machine.describe()
                    writing.append(json, "".join(dumps({**row.as_dict(), "machine": about}) + "\n" for row in done))
    except KeyboardInterrupt:
        tell("interrupted, what was measured until then:")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if rows:
            _print_rows(rows)
    if not rows:
        raise MemoryError("nothing could be measured")
    for line in benchmark.crossover(rows):
        out.print(line)
    if plot is not None:
        plots.save(plots.comparison(rows), plot)
        out.print(f"picture: {plot}")


def _note(reason: str) -> None:
    err.print(f"note: {reason}")


def _chosen(names: list[str] | None, dtypes: list[str]) -> list[benchmark.Runner]:
    """Return the runners named, or all that work here; each has at least one of the dtypes."""
    found: dict[str, benchmark.Runner] = {}
    refused: list[Exception] = []
    for name, dtype in itertools.product(dict.fromkeys(names or benchmark.WORDS), dtypes):
        try:
            found.setdefault(name, benchmark.runner(name, dtype))
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


def _print_rows(rows: list[benchmark.Row]) -> None:
    """Print times, a table for each layer and dtype with a row for each size and backend."""
    for (layer, dtype), some in benchmark.groups(rows, lambda r: (r.case.layer, r.case.dtype)).items():
        title = f"{layer} {dtype}, {rows[0].case.what}: median time of a call, ratio to {rows[0].name}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for heading in ("T,B,D,H", "timed"):
            table.add_column(heading, no_wrap=True)
        for heading in ("ms", "seq/s", "GFLOP/s", "share", "peak MB", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in some:
            speed = (f"{row.timing.median * 1e3:.4g}", f"{row.sequences:.4g}", f"{row.speed / 1e9:.3g}")
            memory = "-" if row.peak is None else f"{row.peak / 1e6:.1f}"
            table.add_row(str(row.case.size), row.name, *speed, f"{row.share:.0%}", memory, f"{row.ratio:.2f}")
        out.print(uncut(table))
    speeds = {f"{r.device} {r.case.dtype}: {r.product_speed / 1e9:.4g} GFLOP/s": None for r in rows}
    out.print(f"share is that of the speed of a large matrix product: {', '.join(speeds)}")
