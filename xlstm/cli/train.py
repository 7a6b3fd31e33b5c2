"""`xlstm train`: models of a series, a text, sequences with labels, or any series, and the folders they are kept in."""

from __future__ import annotations

import contextlib
import errno
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer import Argument, Option

from xlstm import plots
from xlstm.arrays.backend import backend_of
from xlstm.cli.configuration import BackendOption, ColumnOption, JsonOption, as_toml, with_options
from xlstm.cli.console import Report, accounted, progress, tell
from xlstm.cli.evaluate import of_forecasts, of_labels, of_text
from xlstm.cli.sources import MODEL, Layout, dated, held_out, read_text
from xlstm.data import writing
from xlstm.data.csv_file import Dialect
from xlstm.data.series import bundled, read_series
from xlstm.estimators import Forecaster, SequenceClassifier, Settings, TextModel, TiRexTrainer
from xlstm.models.tirex import SyntheticPatches
from xlstm.plots import figures
from xlstm.training import Interrupted, Progress, Terminated, evaluate
from xlstm.training.callbacks import Each
from xlstm.training.folder import Folder

OPTIONS, PICTURE = "options.toml", "forecast.png"
HORIZON, SHORT = 12, 20  # steps ahead by default, of which a series is to be so many times as long
OutputOption = Annotated[Path, Option("--output", "-o", help="Folder for the model and the run.")]
ResumeOption = Annotated[bool, Option("--resume", help="Go on with the run in the folder.")]


@with_options(Settings)
def train_forecast(
    context: typer.Context,
    table: Annotated[Path | None, Argument(help="CSV or Parquet file; monthly sunspots if left out.")] = None,
    column: ColumnOption = None,
    horizon: Annotated[int | None, Option(help="Steps ahead; 12, or fewer in a short series.")] = None,
    window: Annotated[int | None, Option(help="Steps back; 48, or fewer in a short series.")] = None,
    backend: BackendOption = "auto",
    dtype: Annotated[str, Option(help="float32 or float64.")] = "float32",
    output: Annotated[Path | None, Option("--output", "-o", help="xlstm-output, or xlstm-forecast.")] = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
    **settings: Any,
) -> None:
    """Train a network to forecast a series, and compare it with persistence and a linear autoregression.

    The first 60 % of the series are fitted, the next 20 % decide when to stop, the last 20 % are the test. Then the
    model is trained once more on all of it. `train forecast` keeps checkpoints and the history, too.
    """
    output = output or Path("xlstm-output" if context.command.hidden else "xlstm-forecast")
    series = read_series(table or bundled("sunspots"), column, dialect=dialect)
    if horizon is None:
        horizon = max(1, min(HORIZON, len(series.values) // SHORT))
    for name in ("linear_baseline", "season"):
        if settings[name].isdigit():
            settings[name] = int(settings[name])
    if settings["least"] is None and np.nanmin(series.values) >= 0:
        settings["least"] = 0.0  # what never was below 0 will not be
    home = backend_of(backend, dtype)
    model = Forecaster(horizon=horizon, window=window, backend=home, name=series.name, **settings)
    with dated(series) as dates:
        model.examples(series.values, **dates)  # raises where the series cannot be trained on
    pictures = [output / PICTURE] * figures.available()
    report, start = Report(as_json), time.perf_counter()
    with _run(context, output, resume, pictures) as fit:
        narrow = "" if model.precision is None else f", training in {model.precision}"
        gaps = f", {series.gaps} of them gaps" if series.gaps else ""
        note = f" ({series.note})" if series.note else ""
        report.print(f"backend: {home}, {home.dtype}{narrow} ({home.reason})")
        extent = f"{len(series.values)} {series.step}s from {series.labels[0]} to {series.labels[-1]}"
        report.print(f"series:  {series.name}, {extent}{gaps}{note}")
        trained = fit(model, series.values, **dates).trained_
        seconds = time.perf_counter() - start
        early = ", stopped early" if trained.stopped_early else ""
        skipped = f", {trained.skipped} steps left out" if trained.skipped else ""
        epochs = f"{len(trained.validations)} epochs in {trained.seconds:.1f} s, best after epoch {trained.best_epoch}"
        report.print(f"trained: {epochs}{early}{skipped}; {seconds:.1f} s in all, with a window of {model.window_}")
        report.print(f"model:   {output / MODEL}")
        score, values = of_forecasts(report, model, series)
        for picture in pictures:
            fan = plots.Fan(model.predict_quantiles(series.values, **dates), model.quantiles)
            plots.save(plots.forecast(series, score.at, score.forecasts[:, 0], fan), picture)
            report.print(f"picture: {picture}")
        if not pictures:
            report.print("picture: none, matplotlib is not installed (pip install matplotlib)")
        about = {"model": str(output / MODEL), "seconds": seconds, "window": model.window_}
        report.finish(**about, unsaved=trained.unsaved, **values)


@with_options(TextModel)
def train_text(
    context: typer.Context,
    file: Annotated[Path, Argument(help="Text in UTF-8.")],
    output: OutputOption = Path("xlstm-text"),
    resume: ResumeOption = False,
    sample: Annotated[int, Option(min=0, help="Tokens of the sample that is shown at the end.")] = 200,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Train a language model on a text, and show the loss on its held-out end and a sample."""
    whole, report = read_text(file), Report(as_json)
    with _run(context, output, resume) as fit:
        model = fit(TextModel(**settings), whole)
        values = _batches(report, model.trained_)
        judged = {} if model.held_out_ is None else of_text(report, model, model.held_out_, "held out")
        report.print(f"model: {output / MODEL}")
        text = model.generate(whole[:1], sample, seed=model.seed) if sample else ""
        if text:
            report.print(f"sample:\n{text}")
        report.finish(model=str(output / MODEL), **values, **judged, sample=text)


@with_options(SequenceClassifier)
def train_classify(
    context: typer.Context,
    table: Annotated[Path, Argument(help="CSV or Parquet file.")],
    label: Annotated[str, Option(help="Column of labels.")],
    sequence: Annotated[str | None, Option(help="Column of names of sequences, if a row is a step.")] = None,
    columns: Annotated[str | None, Option(help="Columns of features, A,B,C; all others if left out.")] = None,
    test_fraction: Annotated[float, Option(min=0, max=0.9, help="Share of sequences to hold out.")] = 0.2,
    output: OutputOption = Path("xlstm-classify"),
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
    **settings: Any,
) -> None:
    """Train a classifier of sequences, and show its accuracy on sequences that were held out.

    With --sequence each row is a step of a sequence, in order of time. Without it each row is a sequence of numbers.
    """
    layout = Layout.of(table, label, sequence, columns, dialect)
    data = layout.read(table, dialect)
    rows, test = held_out(data.labels, test_fraction, settings["seed"])
    report = Report(as_json)
    with _run(context, output, resume) as fit:
        model = fit(SequenceClassifier(**settings), data.part(rows), data.labels[rows], note=asdict(layout))
        trained, epochs = model.trained_, model.n_iter_
        report.print(f"trained: {epochs} epochs on {len(rows)} sequences in {trained.seconds:.1f} s")
        report.print(f"model: {output / MODEL}")
        judged = of_labels(report, model, data.part(test), data.labels[test]) if len(test) else {}
        values = {"model": str(output / MODEL), "epochs": epochs, "seconds": trained.seconds}
        report.finish(**values, **judged, unsaved=trained.unsaved)


@with_options(TiRexTrainer)
def train_tirex(
    context: typer.Context,
    output: OutputOption = Path("xlstm-tirex"),
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Train a small TiRex on synthetic series, from random weights to a checkpoint that forecasts any series.

    The series have trends, seasons, steps, random walks, noise and gaps. At the end the loss on others of their kind is
    shown. `xlstm forecast` takes the model.
    """
    report = Report(as_json)
    with _run(context, output, resume) as fit:
        model = fit(TiRexTrainer(**settings))
        values = _batches(report, model.trained_)
        data = SyntheticPatches(model.model_, 8, model.horizon, model.batch_size)
        loss = evaluate(model.model_, model.params_, data)
        first = evaluate(model.model_, model.model_.init(model.seed, model.backend, model.dtype), data)
        report.print(f"pinball loss on other series: {loss:.4f} in their scaled units; with random weights {first:.4f}")
        report.print(f"model: {output / MODEL}")
        report.finish(model=str(output / MODEL), **values, loss=loss, random_loss=first)


def _batches(report: Report, trained: Any) -> dict[str, Any]:
    """Print how many batches were trained on, and return that."""
    report.print(f"trained: {len(trained.losses)} batches in {trained.seconds:.1f} s")
    return {"steps": len(trained.losses), "seconds": trained.seconds, "unsaved": trained.unsaved}


@contextlib.contextmanager
def _run(context: typer.Context, output: Path, resume: bool, more: Sequence[Path] = ()) -> Iterator[Callable[..., Any]]:
    """Give the function that trains an estimator into a folder; where that or more fails, say what is saved.

    The function is given an estimator, the data, and a note for its file. It saves the model also where a signal ends
    training. `xlstm train` without a kind keeps the model alone. All others keep a run: options, checkpoints and the
    history. `more` are further files that the command writes.
    """
    saved, keeps = output / MODEL, not context.command.hidden
    _check_folder(output, resume, keeps, [saved, *more])

    def fit(model: Any, *data: Any, note: dict[str, Any] | None = None, **beside: Any) -> Any:
        about = {} if note is None else {"note": note}
        options = as_toml(context) if keeps else ""
        with progress() as show:

            def step(now: Progress) -> None:
                nonlocal options
                if options:  # once it is certain that the run begins
                    try:
                        writing.write(output / OPTIONS, options.encode())
                    except OSError as error:  # training goes on without it, as without a checkpoint
                        tell(f"warning: {error}")
                    options = ""

            model.set_params(callbacks=[Each(step)])
            if keeps:
                model.set_params(checkpoints=output, resume=resume)
            if isinstance(model, Forecaster):
                beside["progress"] = show  # which also sees the training on all of the series
            else:
                model.set_params(callbacks=[Each(step), Each(show)])
            try:
                model.fit(*data, **beside)
            except (Interrupted, Terminated):
                model.save(saved, **about)  # the best so far
                raise
        model.save(saved, **about)  # before anything else can go wrong
        return model

    def how_to_go_on() -> str:
        words = ["xlstm", *context.obj]
        there = keeps and Folder(output, 1).checkpoints()
        return shlex.join(words if "--resume" in words else [*words, "--resume"]) if there else ""

    with accounted([saved, *more], how_to_go_on):
        yield fit


def _check_folder(output: Path, resume: bool, keeps: bool, files: Sequence[Path]) -> None:
    """Raise unless a run can begin in a folder, or go on there: ValueError or OSError."""
    if resume and not keeps:
        raise ValueError("train: --resume goes with `xlstm train forecast`; `xlstm train` keeps no run to go on with")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, expected a folder", str(output))
    if not keeps:
        output.mkdir(parents=True, exist_ok=True)
    if output.is_dir():
        for file in files:
            writing.check(file)
    runs = Folder(output, 1).checkpoints()
    if resume and not runs:
        raise ValueError(f"{output}: holds no run to resume; without --resume one begins")
    if runs and keeps and not resume:
        raise ValueError(f"{output}: holds a run already; --resume goes on with it, and --output names another folder")
