"""The command line: parses, calls, prints."""

from __future__ import annotations

import contextlib
import csv as csvlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import xlstm
from xlstm.arrays import threads
from xlstm.arrays.backend import NAMES, Backend, usable
from xlstm.arrays.backend import backend as choose_backend
from xlstm.arrays.convert import BackendError
from xlstm.cli import benchmark, convert, explain, interrupts, machine
from xlstm.data import text, writing
from xlstm.data.series import Series, bundled, read_csv
from xlstm.estimators import plots
from xlstm.estimators.forecaster import Forecaster, Score, SeriesError, Settings
from xlstm.training import loop

app = typer.Typer(
    help="The LSTM family with hand-written gradients, on NumPy and CuPy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class _Console(Console):
    """One that leaves it to the command what happens when nobody reads its output any more."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this where it has caught the error


# Names from files are printed as they are: nothing in them is markup.
out = _Console(highlight=False, markup=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

MODEL, PICTURE = "model.safetensors", "forecast.png"
# Errors whose message says enough; others show a traceback.
ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError, BackendError)
INTERRUPTED, CLOSED = 130, 141  # exit codes, those of a shell for SIGINT and SIGPIPE
BackendOption = Annotated[str, typer.Option("--backend", help="auto, numpy, cupy or torch.")]
ColumnOption = Annotated[str | None, typer.Option("--column", help="Column to forecast, if several hold numbers.")]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input ends with one line on standard error and exit code 2; signals and closed pipes end it quietly."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has had enough
            raise typer.Exit(CLOSED) from None
        except (*ERRORS, KeyboardInterrupt) as error:
            if _interrupted(error):
                _tell("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            _tell(f"error: {error}")
            raise typer.Exit(2) from None

    return run


@app.command()
@one_line_errors
def train(
    csv: Annotated[Path | None, typer.Argument(help="CSV file with a header; monthly sunspots if left out.")] = None,
    column: ColumnOption = None,
    window: Annotated[int, typer.Option(help="Steps the model looks back.")] = Settings.window,
    horizon: Annotated[int, typer.Option(help="Steps ahead it forecasts at once.")] = Settings.horizon,
    hidden_size: Annotated[int, typer.Option("--hidden-size", help="LSTM units.")] = Settings.hidden_size,
    epochs: Annotated[int, typer.Option(help="Passes over the training part, at most.")] = Settings.epochs,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr", help="Of AdamW.")] = Settings.learning_rate,
    seed: Annotated[int, typer.Option(help="Initial weights and order of batches.")] = Settings.seed,
    backend: BackendOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    precision: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or tf32 while training, on a GPU; weights stay as they are.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model and the picture; older ones are replaced.")
    ] = Path("xlstm-output"),
) -> None:
    """Train an LSTM to forecast a series, and compare it with persistence and a linear autoregression.

    The first 60 % of the series are fitted, the next 20 % decide when to stop, the last 20 % are the test.
    """
    settings = Settings(
        window, horizon, hidden_size, epochs, learning_rate=learning_rate, seed=seed, precision=precision
    )
    series = read_csv(csv or bundled("sunspots"), column)
    forecaster = Forecaster(settings, backend, dtype, series.name)
    with _dated(series):
        forecaster.examples(series.values)  # before anything is made or printed: can this be trained on?
    files = [output / MODEL] + [output / PICTURE] * plots.available()
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        writing.check(file)
    report = _Report()
    narrow = "" if precision is None else f", training in {precision}"
    report.print(f"backend: {forecaster.backend}, {dtype}{narrow} ({forecaster.backend.reason})")
    report.print(f"series:  {series.name}, {_extent(series)}")
    with _accounted(files):
        with _Bar() as bar:
            forecaster.fit(series.values, bar.show)
            forecaster.save(files[0])  # before anything else can go wrong
        trained = forecaster.trained
        assert trained is not None
        early = ", stopped early" if trained.stopped_early else ""
        early += f", {trained.skipped} steps left out" if trained.skipped else ""
        epochs_done, seconds = len(trained.validations), trained.seconds
        report.print(f"trained: {epochs_done} epochs in {seconds:.1f} s, best after epoch {trained.best_epoch}{early}")
        report.print(f"model:   {files[0]}")
        score = forecaster.score(series.values)
        report.print(_table_of(score, series.step), width=max(80, out.width))  # numbers are never cut short
        for picture in files[1:]:
            plots.forecast(picture, series, score.at, score.forecasts[:, 0])
            report.print(f"picture: {picture}")
        if len(files) == 1:
            report.print("picture: none, matplotlib is not installed (pip install matplotlib)")
        report.finish()


@app.command()
@one_line_errors
def predict(
    model: Annotated[Path, typer.Argument(help="Model file that train wrote.")],
    csv: Annotated[Path, typer.Argument(help="CSV file with the series so far.")],
    column: ColumnOption = None,
    steps: Annotated[int | None, typer.Option(help="Steps to forecast; beyond the horizon by feeding back.")] = None,
    backend: BackendOption = "auto",
) -> None:
    """Forecast what comes after the last value of a series; prints CSV."""
    _printable("predict")
    forecaster = Forecaster.load(model, backend)
    series = read_csv(csv, column, usual=forecaster.name)
    with _dated(series):
        values = forecaster.predict(series.values, steps)
    if series.name != forecaster.name:
        err.print(f"note: the model was trained on {forecaster.name}, this is {series.name}")
    writer = csvlib.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["time", series.name])
    for label, value in zip(series.after(len(values)), values, strict=True):
        writer.writerow([label, f"{value:.9g}"])


@app.command("export")
@one_line_errors
def export_(
    model: Annotated[Path, typer.Argument(help="Model file of train, import or models.save.")],
    to: Annotated[str, typer.Option("--to", help="onnx, torch or keras.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; beside the model if left out.")
    ] = None,
    lengths: Annotated[bool, typer.Option("--lengths", help="ONNX: lengths of sequences are an input.")] = False,
    state: Annotated[bool, typer.Option("--state", help="ONNX: initial states are inputs.")] = False,
) -> None:
    """Write the network of a model for onnxruntime, PyTorch or Keras."""
    out.print(f"wrote: {convert.export_file(model, to, output, lengths=lengths, state=state)}")
    network, _ = convert.read(model)
    out.print(f"holds: {network}")
    if units := convert.units(model):
        out.print(f"units: {units}")


@app.command("import")
@one_line_errors
def import_(
    file: Annotated[Path, typer.Argument(help=".onnx, .keras, .weights.h5, or .safetensors of a PyTorch state dict.")],
    kind: Annotated[str | None, typer.Option(help="lstm, gru or rnn; what the file shows if left out.")] = None,
    name: Annotated[str, typer.Option(help="Node, layer, or prefix of names, where the file holds others too.")] = "",
    activation: Annotated[
        str | None, typer.Option(help="Of a plain RNN whose file does not say it; tanh if left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Model file to write; beside FILE if left out.")
    ] = None,
) -> None:
    """Read an LSTM, GRU or RNN from a file of another library and write it as a model file."""
    path, layer = convert.import_file(file, output, kind=kind, name=name, activation=activation)
    out.print(f"wrote: {path}")
    out.print(f"holds: {layer}")


@app.command()
@one_line_errors
def generate(
    model: Annotated[Path, typer.Argument(help="Model file, or folder or file of a published xLSTM checkpoint.")],
    prompt: Annotated[str, typer.Option(help="Text, or tokens such as '3 1 4' if there is no tokenizer.json.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens to add, at most.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token always.")] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from so many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from the likeliest, so probable together.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    stop: Annotated[int | None, typer.Option(help="Token that ends the text.")] = None,
    as_bytes: Annotated[bool, typer.Option("--bytes", help="Tokens are bytes of UTF-8.")] = False,
    backend: BackendOption = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; that of the checkpoint if left out.")] = None,
) -> None:
    """Go on from a prompt with a language model, token by token."""
    _printable("generate")
    codec = text.codec(model, as_bytes)
    tokens = codec.encode(prompt)
    network, params = convert.language(model, backend, dtype)
    drawn = network.stream(
        params, [tokens], max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop
    )
    typer.echo(f"{prompt}{codec.GAP}", nl=False)  # as it is: not everything that looks like markup is
    shown = text.Stream(codec)
    for token, _ in drawn:
        typer.echo(shown.push(int(token[0])), nl=False)
    typer.echo(shown.rest())


@app.command()
@one_line_errors
def bench(
    layers: Annotated[list[str] | None, typer.Argument(help="lstm, gru, rnn, slstm, mlstm; lstm if left out.")] = None,
    size: Annotated[
        list[str] | None, typer.Option("--size", help="T,B,D,H; may be given several times. Five sizes if left out.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, float64 or float16; may be given several times. float32.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", help="numpy, cupy or torch, the first to be compared with; all usable if left out."),
    ] = None,
    inference: Annotated[bool, typer.Option("--inference", help="A forward pass only, which keeps nothing.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed in turn, at least 0.15 s at a time.")] = 9,
    json: Annotated[Path | None, typer.Option("--json", help="Append results to this file, a line each.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Picture to draw; needs matplotlib.")] = None,
) -> None:
    """Compare backends on this machine: time, speed and memory of layers forward and backward.

    They run side by side, in turn. From which size on another backend is faster than the first is said at the end.
    """
    sizes = [benchmark.Size.of(text) for text in size] if size else [benchmark.Size(*s) for s in benchmark.SIZES]
    dtypes = dtype or ["float32"]
    todo = benchmark.cases(layers or ["lstm"], sizes, dtypes, not inference)
    if plot is not None:
        plots.check(plot)
    if json is not None:
        writing.append(json, "")  # before any work is done: can it be written to?
    chosen = _backends(backend, dtypes)
    for be in chosen:
        out.print(f"backend: {be}")
    out.print(f"threads: {threads.available()}, compiled loops: {machine.compiled()}")
    rows: list[benchmark.Row] = []
    try:
        with Progress(BarColumn(16), "{task.completed}/{task.total} {task.description}", console=err) as bar:
            bar.disable = not err.is_terminal
            task = bar.add_task("", total=len(todo))

            def show(now: str) -> None:
                bar.update(task, description=now)

            for done in benchmark.run(todo, chosen, rounds, show, lambda reason: err.print(f"note: {reason}")):
                rows += done
                bar.advance(task)
                if json is not None:
                    about = machine.describe()
                    writing.append(json, "".join(dumps({**row.as_dict(), "machine": about}) + "\n" for row in done))
    except KeyboardInterrupt:
        _tell("interrupted, what was measured until then:")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if rows:
            _print_rows(rows)
    if not rows:
        raise MemoryError("nothing could be measured")
    for line in benchmark.crossover(rows):
        out.print(line)
    if plot is not None:
        plots.comparison(plot, rows)
        out.print(f"picture: {plot}")


@app.command()
@one_line_errors
def info(
    layer: Annotated[
        tuple[str, int, int, int, str] | None,
        typer.Option("--explain", metavar="LAYER T B H DTYPE", help="How it runs on a GPU: lstm 512 64 512 float16."),
    ] = None,
    card: Annotated[str | None, typer.Option(help="For --explain: a100, h100 or h200 instead of the GPU here.")] = None,
) -> None:
    """Show versions, devices, threads, and which backend is chosen and why."""
    if layer is not None:
        for name, value in explain.explain(*layer, card):
            out.print(f"{name:14s}{value}")
        return
    if card is not None:
        raise ValueError("info: --card goes with --explain")
    found = machine.describe()
    rows = {key: found[key] for key in ("xlstm", "python", "processor", "cores")}
    rows |= {package: machine.version_of(package) or "not installed" for package in machine.PACKAGES}
    rows |= {"threads": found["threads"], "blas": "; ".join(found["blas"]), "compiled loops": found["compiled loops"]}
    for name, backend in usable().items():
        rows[f"backend {name}"] = str(backend) if isinstance(backend, Backend) else f"not usable: {backend}"
    try:
        chosen = choose_backend("auto")
        rows["auto chooses"] = f"{chosen} ({chosen.reason})"
    except (ValueError, BackendError) as error:
        rows["auto chooses"] = f"nothing: {error}"
    for name, value in rows.items():
        out.print(f"{name:18s}{value}")


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """The LSTM family with hand-written gradients, on NumPy and CuPy."""
    if version:
        out.print(f"xlstm {xlstm.__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point."""
    interrupts.interrupt()
    try:
        typer.main.get_command(app)()  # not app(), which would have Python show tracebacks in another way
    except SystemExit as end:
        code = interrupts.received() or end.code
    interrupts.done()
    _drop_unprinted()
    sys.exit(code)


def _drop_unprinted() -> None:
    """Forget output that cannot be printed, about which Python would complain at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(command: str) -> None:
    """Refuse a command of which nothing would be left."""
    if sys.stdout is None:
        raise OSError(f"{command}: standard output is closed, there is nowhere to print to")


def _tell(message: str) -> None:
    """Print a line on standard error, if that can still be done."""
    with contextlib.suppress(OSError):
        err.print(message)


class _Report:
    """Lines on standard output; where they cannot be printed, the work goes on, and `finish` raises the error."""

    def __init__(self) -> None:
        self.error: OSError | ValueError | None = None

    def print(self, what: Any, **options: Any) -> None:
        """Print a line, unless an earlier one could not be printed."""
        if self.error is None:
            try:
                out.print(what, **options)
            except (OSError, ValueError) as error:  # of these, letters that the terminal does not have
                self.error = error

    def finish(self) -> None:
        """Raise the error of the first line that could not be printed."""
        if isinstance(self.error, OSError):
            raise OSError(self.error.errno, f"the results could not be printed, {self.error.strerror}")
        if self.error is not None:
            raise ValueError(f"the results could not be printed, {self.error}")


@contextlib.contextmanager
def _accounted(files: list[Path]) -> Iterator[None]:
    """Where a command fails or is interrupted, say which of its files it has written: exit code 1 if any."""
    before = [_stamp(file) for file in files]
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        written = [_stamp(file) != stamp for file, stamp in zip(files, before, strict=True)]
        interrupted = _interrupted(error)
        if isinstance(error, BrokenPipeError) or not (interrupted or any(written)):
            raise
        account = "nothing was saved"
        if any(written):
            words = {True: "is saved", False: "is not saved"}
            account = ", ".join(f"{file} {words[new]}" for file, new in zip(files, written, strict=True))
        what = f"error: {error}" if isinstance(error, ERRORS) else f"error: {type(error).__name__}: {error}"
        _tell(f"{'interrupted' if interrupted else what}; {account}")
        raise typer.Exit(INTERRUPTED if interrupted else 1) from None


def _interrupted(error: BaseException) -> bool:
    """Whether a signal is the cause of an error, which some libraries turn into one of their own."""
    return isinstance(error, KeyboardInterrupt) or interrupts.received() is not None


def _stamp(file: Path) -> tuple[int, int] | None:
    """The marks by which two files at one path differ, None where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _backends(names: list[str] | None, dtypes: list[str]) -> list[Backend]:
    """Those named, or all that work here, and why the others do not; each has one of the dtypes at least."""
    found: list[Backend] = []
    refused: list[Exception] = []
    for name in dict.fromkeys(names or NAMES):
        have = []
        for dtype in dtypes:
            try:
                have.append(choose_backend(name, dtype=dtype))
            except TypeError as error:
                refused.append(TypeError(f"{name}: {error}"))
            except BackendError as error:
                if names:
                    raise
                refused.append(error)
                break
        found += have[:1]
    if not found:
        raise refused[0]
    for reason in refused:
        out.print(f"without {reason}")
    return found


@contextlib.contextmanager
def _dated(series: Series) -> Iterator[None]:
    """Name the row of a value that cannot be used by its date."""
    try:
        yield
    except SeriesError as error:
        raise ValueError(f"{series.name}, {series.step} {series.labels[error.row]}: {error}") from error


def _extent(series: Series) -> str:
    gaps = f", {series.gaps} of them gaps" if series.gaps else ""
    note = f" ({series.note})" if series.note else ""
    return f"{len(series.values)} {series.step}s from {series.labels[0]} to {series.labels[-1]}{gaps}{note}"


class _Bar:
    """A live progress bar on a terminal, from the first training step on; nothing elsewhere."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=16),
            TextColumn("loss {task.fields[loss]:.4f}  validation {task.fields[validation]}  left"),
            TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.bar.disable:
            self.bar.stop()

    def show(self, now: loop.Progress) -> None:
        """Move the bar; the time left is until the last epoch, so at most that."""
        if self.bar.disable:
            return
        total, done = now.epochs * now.steps, (now.epoch - 1) * now.steps + now.step
        validation = "-" if now.validation is None else f"{now.validation:.4f}"
        values: dict[str, Any] = {"epoch": now.epoch, "epochs": now.epochs, "loss": now.loss, "validation": validation}
        if self.task is None:
            self.bar.start()
            self.task = self.bar.add_task("", total=total, **values)
        self.bar.update(self.task, completed=done, **values)


def _table_of(score: Score, step: str) -> Table:
    """RMSE on the test part by method, a row for each of some steps ahead."""
    table = Table(title=f"test RMSE on the last 20 %, {score.points} forecasts", title_justify="left")
    table.add_column("", no_wrap=True)
    for method in ("LSTM", "persistence", f"autoregression of {score.order}"):
        table.add_column(method, justify="right")
    horizon = len(score.model)
    for h in sorted({1, 2, 3, horizon // 2, horizon} & set(range(1, horizon + 1))):
        errors = (score.model, score.persistence, score.autoregression)
        table.add_row(f"{h} {step}{'s' if h > 1 else ''} ahead", *(f"{e[h - 1]:.4g}" for e in errors))
    return table


def _print_rows(rows: list[benchmark.Row]) -> None:
    """Times of a benchmark, a table for each layer and dtype with a row for each size and backend."""
    first = rows[0].backend
    for layer, dtype in dict.fromkeys((r.case.layer, r.case.dtype) for r in rows):
        title = f"{layer} {dtype}, {rows[0].case.what}: median time of a call, ratio to {first}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("T,B,D,H", no_wrap=True)
        table.add_column("backend", no_wrap=True)
        for heading in ("ms", "seq/s", "GFLOP/s", "share", "peak MB", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in (r for r in rows if (r.case.layer, r.case.dtype) == (layer, dtype)):
            size, ms = ",".join(map(str, row.case.size)), row.timing.median * 1e3
            memory = "-" if row.peak is None else f"{row.peak / 1e6:.1f}"
            numbers = (f"{ms:.4g}", f"{row.sequences:.4g}", f"{row.speed / 1e9:.3g}", f"{row.share:.0%}", memory)
            table.add_row(size, row.backend, *numbers, f"{row.ratio:.2f}")
        out.print(table)
    speeds = {f"{r.device} {r.case.dtype}: {r.product_speed / 1e9:.4g} GFLOP/s": None for r in rows}
    out.print(f"share is that of the speed of a large matrix product: {', '.join(speeds)}")
