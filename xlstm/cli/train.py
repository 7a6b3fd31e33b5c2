"""`xlstm train`: models of a series, a text, sequences with labels, or any series, and the folders they are kept in."""

from __future__ import annotations

import contextlib
import errno
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer import Argument, Option

from xlstm import plots
from xlstm.arrays.backend import backend_of
from xlstm.cli.configuration import BackendOption, ColumnOption, JsonOption, as_toml, with_options
from xlstm.cli.console import Report, code, interrupted, message_of, progress, tell
from xlstm.cli.evaluate import of_forecasts, of_labels, of_text
from xlstm.cli.sources import MODEL, Layout, dated, held_out, read_text
from xlstm.data import writing
from xlstm.data.csv_file import Dialect
from xlstm.data.series import bundled, read_series
from xlstm.estimators import Forecaster, SequenceClassifier, Settings, TextModel, TiRexTrainer
from xlstm.models.tirex import SyntheticPatches
from xlstm.plots import figures
from xlstm.training import Interrupted, Terminated, evaluate
from xlstm.training.callbacks import Each
from xlstm.training.folder import Folder

OPTIONS, PICTURE = "options.toml", "forecast.png"
HORIZON, SHORT = 12, 20  # steps ahead by default, of which a series is to be so many times as long
OutputOption = Annotated[Path, Option("--output", "-o", help="Folder for the model and the run.")]
ResumeOption = Annotated[bool, Option("--resume", help="Go on with the run in the folder.")]


class Run(Report):
    """The training of a model into a folder, and what is printed about it.

    `xlstm train` without a kind keeps the model alone. All others keep a run: options, checkpoints and the history.

    Parameters
    ----------
    context : typer.Context
    output : Path
        The folder. A run cannot begin where there is one already, or go on where there is none: ValueError or OSError.
    resume, as_json : bool
    pictures : list of Path
        Further files that the command writes.
    """

    def __init__(
        self, context: typer.Context, output: Path, resume: bool, as_json: bool, pictures: Sequence[Path] = ()
    ) -> None:
        super().__init__(as_json)
        self.context, self.output, self.resume, self.start = context, output, resume, time.perf_counter()
        self.file, self.pictures, self.keeps = output / MODEL, [*pictures], not context.command.hidden
        self.saved: list[Path] = []
        if resume and not self.keeps:
            raise ValueError("train: --resume goes with `xlstm train forecast`; `xlstm train` keeps no run")
        if output.exists() and not output.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, expected a folder", str(output))
        if not self.keeps:
            output.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            for path in (self.file, *pictures):
                writing.check(path)
        there = self.keeps and Folder(output, 1).checkpoints()
        if resume and not there:
            raise ValueError(f"{output}: holds no run to resume; without --resume one begins")
        if there and not resume:
            problem = "holds a run already; --resume goes on with it, and --output names another folder"
            raise ValueError(f"{output}: {problem}")

    def fit(self, model: Any, *data: Any, note: dict[str, Any] | None = None, **beside: Any) -> Any:
        """Train an estimator on data, and save it with a note, also where a signal ends training."""
        if self.keeps:
            model.set_params(checkpoints=self.output, resume=self.resume)
        with progress() as show:
            if isinstance(model, Forecaster):
                beside["progress"] = show  # which also sees the training on all of the series
            else:
                model.set_params(callbacks=[Each(show)])
            try:
                model.fit(*data, **beside)
            except (Interrupted, Terminated):
                self._save(model, note)  # the best so far
                raise
        self._save(model, note)  # before anything else can go wrong
        return model

    def _save(self, model: Any, note: dict[str, Any] | None) -> None:
        model.save(self.file, **({} if note is None else {"note": note}))
        self.saved.append(self.file)
        if self.keeps:
            writing.write(self.output / OPTIONS, as_toml(self.context).encode())

    def draw(self, figure: Any, picture: Path) -> None:
        """Save a picture."""
        plots.save(figure, picture)
        self.saved.append(picture)
        self.print(f"picture: {picture}")

    def end(self, trained: Any, **values: Any) -> None:
        """Print where the model is, or as JSON the values with what is said of any training."""
        self.print(f"model: {self.file}")
        seconds = time.perf_counter() - self.start
        self.finish(model=str(self.file), seconds=seconds, unsaved=trained.unsaved, **values)

    @contextlib.contextmanager
    def accounted(self) -> Iterator[None]:
        """Where training or what follows fails or is interrupted, say which files are saved: exit code 1 if any."""
        try:
            yield
        except (Exception, KeyboardInterrupt, Terminated) as error:
            if isinstance(error, BrokenPipeError) or not (interrupted(error) or self.saved):
                raise
            words = [f"{path} is{'' if path in self.saved else ' not'} saved" for path in (self.file, *self.pictures)]
            account = ", ".join(words) if self.saved else "nothing was saved"
            if not interrupted(error):
                tell(f"error: {message_of(error)}; {account}")
                raise typer.Exit(1) from None
            parts = ["terminated" if isinstance(error, Terminated) else "interrupted"]
            can_go_on = self.keeps and Folder(self.output, 1).checkpoints()
            if self.saved or not can_go_on:
                parts.append(account)
            if can_go_on:
                arguments = [*sys.argv[1:], *["--resume"] * ("--resume" not in sys.argv)]
                parts.append(f"go on with: {shlex.join(['xlstm', *arguments])}")
            tell("; ".join(parts))
            raise typer.Exit(code(error)) from None


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
    run = Run(context, output, resume, as_json, [output / PICTURE] * figures.available())
    with run.accounted():
        narrow = "" if model.precision is None else f", training in {model.precision}"
        gaps = f", {series.gaps} of them gaps" if series.gaps else ""
        note = f" ({series.note})" if series.note else ""
        run.print(f"backend: {home}, {home.dtype}{narrow} ({home.reason})")
        extent = f"{len(series.values)} {series.step}s from {series.labels[0]} to {series.labels[-1]}"
        run.print(f"series: {series.name}, {extent}{gaps}{note}")
        trained = run.fit(model, series.values, **dates).trained_
        early = ", stopped early" if trained.stopped_early else ""
        skipped = f", {trained.skipped} steps left out" if trained.skipped else ""
        epochs = f"{len(trained.validations)} epochs in {trained.seconds:.1f} s, best after epoch {trained.best_epoch}"
        run.print(f"trained: {epochs}{early}{skipped}; with a window of {model.window_}")
        score, values = of_forecasts(run, model, series)
        for picture in run.pictures:
            fan = plots.Fan(model.predict_quantiles(series.values, **dates), model.quantiles)
            run.draw(plots.forecast(series, score.at, score.forecasts[:, 0], fan), picture)
        if not run.pictures:
            run.print("picture: none, matplotlib is not installed (pip install matplotlib)")
        run.end(trained, window=model.window_, **values)


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
    whole, run = read_text(file), Run(context, output, resume, as_json)
    with run.accounted():
        model = run.fit(TextModel(**settings), whole)
        steps = _batches(run, model.trained_)
        judged = {} if model.held_out_ is None else of_text(run, model, model.held_out_, "held out")
        text = model.generate(whole[:1], sample, seed=model.seed) if sample else ""
        if text:
            run.print(f"sample:\n{text}")
        run.end(model.trained_, steps=steps, **judged, sample=text)


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
    run = Run(context, output, resume, as_json)
    with run.accounted():
        model = run.fit(SequenceClassifier(**settings), data.part(rows), data.labels[rows], note=asdict(layout))
        epochs = model.n_iter_
        run.print(f"trained: {epochs} epochs on {len(rows)} sequences in {model.trained_.seconds:.1f} s")
        judged = of_labels(run, model, data.part(test), data.labels[test]) if len(test) else {}
        run.end(model.trained_, epochs=epochs, **judged)


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
    run = Run(context, output, resume, as_json)
    with run.accounted():
        model = run.fit(TiRexTrainer(**settings))
        steps = _batches(run, model.trained_)
        data = SyntheticPatches(model.model_, 8, model.horizon, model.batch_size)
        loss = evaluate(model.model_, model.params_, data)
        first = evaluate(model.model_, model.model_.init(model.seed, model.backend, model.dtype), data)
        run.print(f"pinball loss on other series: {loss:.4f} in their scaled units; with random weights {first:.4f}")
        run.end(model.trained_, steps=steps, loss=loss, random_loss=first)


def _batches(run: Run, trained: Any) -> int:
    """Print how many batches were trained on, and return the number."""
    run.print(f"trained: {len(trained.losses)} batches in {trained.seconds:.1f} s")
    return len(trained.losses)
