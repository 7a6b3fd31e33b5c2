"""`xlstm train` and `xlstm predict`: a forecaster of a series in a CSV file."""

from __future__ import annotations

import contextlib
import csv as csvlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from xlstm import training
from xlstm.arrays.backend import backend_of
from xlstm.cli.console import BackendOption, ColumnOption, Report, accounted, err, out, printable, tell
from xlstm.data import writing
from xlstm.data.dates import Dates
from xlstm.data.series import Series, bundled, read_csv
from xlstm.estimators import plots
from xlstm.estimators.forecaster import Forecaster
from xlstm.estimators.scores import Score
from xlstm.estimators.settings import Settings
from xlstm.estimators.values import SeriesError

MODEL, PICTURE = "model.safetensors", "forecast.png"
HORIZON, SHORT = 12, 20  # steps ahead by default, of which a series is to be so many times as long
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "slstm": "sLSTM", "mlstm": "mLSTM", "xlstm": "xLSTM"}


def train(
    csv: Annotated[Path | None, typer.Argument(help="CSV file with a header; monthly sunspots if left out.")] = None,
    column: ColumnOption = None,
    window: Annotated[int, typer.Option(help="Steps the model looks back.")] = Settings.window,
    horizon: Annotated[
        int | None, typer.Option(help="Steps ahead it forecasts at once; 12 if left out, or fewer in a short series.")
    ] = None,
    hidden_size: Annotated[
        int, typer.Option("--hidden-size", help="Units of the recurrent layer.")
    ] = Settings.hidden_size,
    epochs: Annotated[int, typer.Option(help="Passes over the training part, at most.")] = Settings.epochs,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", help="Learning rate of AdamW.")
    ] = Settings.learning_rate,
    cell: Annotated[str, typer.Option(help="lstm, gru, rnn, slstm, mlstm or xlstm.")] = Settings.cell,
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

    The first 60 % of the series are fitted, the next 20 % decide when to stop, the last 20 % are the test. Then the
    model is trained once more on all of it.
    """
    series = read_csv(csv or bundled("sunspots"), column)
    horizon = max(1, min(HORIZON, len(series.values) // SHORT)) if horizon is None else horizon
    least = 0.0 if np.nanmin(series.values) >= 0 else None  # what never was below 0 will not be
    settings = Settings(
        window,
        horizon,
        hidden_size,
        epochs,
        learning_rate=learning_rate,
        seed=seed,
        precision=precision,
        cell=cell,
        least=least,
    )
    home = backend_of(backend, dtype)
    forecaster = Forecaster(settings, home, name=series.name)
    with dated(series):
        # Whether it can be trained on comes out before anything is made or printed.
        forecaster.examples(series.values, dates=dates_of(series))
    files = [output / MODEL] + [output / PICTURE] * plots.available()
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        writing.check(file)
    report = Report()
    narrow = "" if precision is None else f", training in {precision}"
    report.print(f"backend: {home}, {dtype}{narrow} ({home.reason})")
    report.print(f"series:  {series.name}, {_extent(series)}")
    with accounted(files):
        start = time.perf_counter()
        with _bar() as show:
            try:
                forecaster.fit(series.values, show, dates=dates_of(series))
            except (training.Interrupted, training.Terminated) as stopped:
                forecaster.save(files[0])  # the best so far
                if isinstance(stopped, training.Terminated):
                    tell(f"terminated; {files[0]} is saved")
                raise
            forecaster.save(files[0])  # before anything else can go wrong
        report.print(f"trained: {_summary(forecaster.trained_, time.perf_counter() - start)}")
        report.print(f"model:   {files[0]}")
        score = forecaster.score(series.values, dates=dates_of(series))
        report.print(_table(score, series.step, cell), width=max(80, out.width))  # numbers are never cut short
        for picture in files[1:]:
            ahead = forecaster.predict_quantiles(series.values, dates=dates_of(series))
            plots.forecast(picture, series, score.at, score.forecasts[:, 0], plots.Fan(ahead, settings.quantiles))
            report.print(f"picture: {picture}")
        if len(files) == 1:
            report.print("picture: none, matplotlib is not installed (pip install matplotlib)")
        report.finish()


def predict(
    model: Annotated[Path, typer.Argument(help="Model file that train wrote.")],
    csv: Annotated[Path, typer.Argument(help="CSV file with the series so far.")],
    column: ColumnOption = None,
    steps: Annotated[int | None, typer.Option(help="Steps to forecast; beyond the horizon by feeding back.")] = None,
    backend: BackendOption = "auto",
) -> None:
    """Forecast what comes after the last value of a series; prints CSV."""
    printable("predict")
    forecaster = Forecaster.load(model, backend)
    series = read_csv(csv, column, usual=forecaster.name)
    with dated(series):
        dates = dates_of(series) if forecaster.calendar_ else None
        values = forecaster.predict(series.values, steps, dates=dates)
    if series.name != forecaster.name:
        err.print(f"note: the model was trained on {forecaster.name}, this is {series.name}")
    writer = csvlib.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["time", series.name])
    writer.writerows((label, f"{value:.9g}") for label, value in zip(series.after(len(values)), values, strict=True))


@contextlib.contextmanager
def dated(series: Series) -> Iterator[None]:
    """Name the row of a value that cannot be used by its date."""
    try:
        yield
    except SeriesError as error:
        raise ValueError(f"{series.name}, {series.step} {series.labels[error.row]}: {error}") from error


def _extent(series: Series) -> str:
    gaps = f", {series.gaps} of them gaps" if series.gaps else ""
    note = f" ({series.note})" if series.note else ""
    return f"{len(series.values)} {series.step}s from {series.labels[0]} to {series.labels[-1]}{gaps}{note}"


def dates_of(series: Series) -> Dates | None:
    """Return the dates of a series that has a calendar."""
    return None if series.unit is None else np.array([*series.labels], dtype="datetime64")


def _summary(trained: training.Trained, seconds: float) -> str:
    early = ", stopped early" if trained.stopped_early else ""
    skipped = f", {trained.skipped} steps left out" if trained.skipped else ""
    epochs = f"{len(trained.validations)} epochs in {trained.seconds:.1f} s"
    return f"{epochs}, best after epoch {trained.best_epoch}{early}{skipped}; {seconds:.1f} s in all"


def _table(score: Score, step: str, cell: str) -> Table:
    """Return a row for each of some steps ahead: the RMSE on the test part by method, and the share in the interval."""
    table = Table(title=f"test RMSE on the last 20 %, {score.points} forecasts", title_justify="left")
    table.add_column("", no_wrap=True)
    interval = f"{100 * score.interval:.0f} % interval"
    for name in (CELLS.get(cell, cell), "persistence", f"autoregression of {score.order}", interval):
        table.add_column(name, justify="right")
    horizon = len(score.model)
    for h in sorted({1, 3, 6, 12, horizon // 2 if horizon > 12 else 1, horizon} & set(range(1, horizon + 1))):
        errors = (score.model, score.persistence, score.autoregression)
        within = f"{100 * score.coverage[h - 1]:.0f} %"
        table.add_row(f"{h} {step}{'s' if h > 1 else ''} ahead", *(f"{e[h - 1]:.4g}" for e in errors), within)
    return table


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[training.Progress], None]]:
    """Show a live progress bar on a terminal; give the function that moves it."""
    if not err.is_terminal:  # old versions of rich print an empty line there
        yield lambda now: None
        return
    columns = (
        TextColumn("{task.fields[epoch]}"),
        BarColumn(16),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("", total=None, epoch="")

        def show(now: training.Progress) -> None:
            validation = "-" if now.validation is None else f"{now.validation:.4f}"
            bar.update(
                task,
                total=now.epochs * now.steps,  # training may stop early, so the time left is at most that
                completed=(now.epoch - 1) * now.steps + now.step,
                epoch=f"{now.epoch}/{now.epochs}",
                description=f"loss {now.loss:.4f}  validation {validation}  left",
            )

        yield show
