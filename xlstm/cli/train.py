"""`xlstm train`: a forecaster of a series in a CSV file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from xlstm import training
from xlstm.cli.console import BackendOption, ColumnOption, Report, accounted, out
from xlstm.cli.options import JsonOption
from xlstm.cli.progress import bar
from xlstm.data import writing
from xlstm.data.series import Series, bundled, read_csv
from xlstm.estimators import plots
from xlstm.estimators.forecaster import Forecaster, Score
from xlstm.estimators.settings import Settings
from xlstm.estimators.values import SeriesError

MODEL, PICTURE = "model.safetensors", "forecast.png"


def train(
    csv: Annotated[Path | None, typer.Argument(help="CSV file with a header; monthly sunspots if left out.")] = None,
    column: ColumnOption = None,
    window: Annotated[int, typer.Option(help="Steps the model looks back.")] = Settings.window,
    horizon: Annotated[int, typer.Option(help="Steps ahead it forecasts at once.")] = Settings.horizon,
    hidden_size: Annotated[int, typer.Option("--hidden-size", help="LSTM units.")] = Settings.hidden_size,
    epochs: Annotated[int, typer.Option(help="Passes over the training part, at most.")] = Settings.epochs,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", help="Learning rate of AdamW.")
    ] = Settings.learning_rate,
    seed: Annotated[int, typer.Option(help="Initial weights and order of batches.")] = Settings.seed,
    backend: BackendOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    precision: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or tf32 while training, on a GPU; weights stay as they are.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model and the picture; older ones are replaced.")
    ] = Path("xlstm-output"),
    as_json: JsonOption = False,
) -> None:
    """Train an LSTM to forecast a series, and compare it with persistence and a linear autoregression.

    The first 60 % of the series are fitted, the next 20 % decide when to stop, the last 20 % are the test.
    """
    settings = Settings(
        window, horizon, hidden_size, epochs, learning_rate=learning_rate, seed=seed, precision=precision
    )
    series = read_csv(csv or bundled("sunspots"), column)
    forecaster = Forecaster(settings, backend, dtype, series.name)
    with dated(series):
        forecaster.examples(series.values)  # whether it can be trained on, before anything is made or printed
    files = [output / MODEL] + [output / PICTURE] * plots.available()
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        writing.check(file)
    report = Report(as_json)
    narrow = "" if precision is None else f", training in {precision}"
    report.print(f"backend: {forecaster.backend}, {dtype}{narrow} ({forecaster.backend.reason})")
    report.print(f"series:  {series.name}, {_extent(series)}")
    with accounted(files):
        with bar() as show:
            forecaster.fit(series.values, show)
            forecaster.save(files[0])  # before anything else can go wrong
        assert forecaster.trained is not None
        report.print(f"trained: {_summary(forecaster.trained)}")
        report.print(f"model:   {files[0]}")
        score = forecaster.score(series.values)
        report.print(table(score, series.step), width=max(80, out.width))  # numbers are never cut short
        for picture in files[1:]:
            plots.forecast(picture, series, score.at, score.forecasts[:, 0])
            report.print(f"picture: {picture}")
        if len(files) == 1:
            report.print("picture: none, matplotlib is not installed (pip install matplotlib)")
        report.finish(model=str(files[0]), seconds=forecaster.trained.seconds, **scored(score))


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


def _summary(trained: training.Trained) -> str:
    early = ", stopped early" if trained.stopped_early else ""
    skipped = f", {trained.skipped} steps left out" if trained.skipped else ""
    epochs = f"{len(trained.validations)} epochs in {trained.seconds:.1f} s"
    return f"{epochs}, best after epoch {trained.best_epoch}{early}{skipped}"


def scored(score: Score) -> dict[str, Any]:
    """Return errors on the test part by method, a list along the horizon each, as JSON can hold them."""
    rmse = {name: getattr(score, name).tolist() for name in ("model", "persistence", "autoregression")}
    return {"forecasts": score.points, "order": score.order, "rmse": rmse}


def table(score: Score, step: str) -> Table:
    """Return the RMSE on the test part by method, a row for each of some steps ahead."""
    table = Table(title=f"test RMSE on the last 20 %, {score.points} forecasts", title_justify="left")
    table.add_column("", no_wrap=True)
    for method in ("LSTM", "persistence", f"autoregression of {score.order}"):
        table.add_column(method, justify="right")
    horizon = len(score.model)
    for h in sorted({1, 2, 3, horizon // 2, horizon} & set(range(1, horizon + 1))):
        errors = (score.model, score.persistence, score.autoregression)
        table.add_row(f"{h} {step}{'s' if h > 1 else ''} ahead", *(f"{e[h - 1]:.4g}" for e in errors))
    return table
