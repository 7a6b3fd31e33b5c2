"""The command line: parses, calls, prints."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import xlstm
from xlstm import backend as choose_backend
from xlstm import plots, training
from xlstm.backend import Backend, BackendError, usable
from xlstm.estimators import Forecaster, Score, Settings
from xlstm.series import Series, bundled, read_csv

app = typer.Typer(
    help="The LSTM family with hand-written gradients, on NumPy and CuPy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

BackendOption = Annotated[str, typer.Option("--backend", help="auto, numpy, cupy or torch.")]
ColumnOption = Annotated[str | None, typer.Option("--column", help="Column to forecast, if several hold numbers.")]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input ends with one line on standard error and exit code 2."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, TypeError, OSError, FloatingPointError, BackendError) as error:
            err.print(f"error: {error}", markup=False, soft_wrap=True)
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
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model and the picture.")] = Path(
        "xlstm-output"
    ),
) -> None:
    """Train an LSTM to forecast a series, and compare it with persistence and a linear autoregression."""
    settings = Settings(window, horizon, hidden_size, epochs, learning_rate=learning_rate, seed=seed)
    series = read_csv(csv or bundled("sunspots"), column)
    forecaster = Forecaster(settings, backend, dtype, series.name)
    _writable(output)
    out.print(f"backend: {forecaster.backend}, {dtype} ({forecaster.backend.reason})", markup=False, soft_wrap=True)
    out.print(f"series:  {series.name}, {_extent(series)}{series.note and f', {series.note}'}", soft_wrap=True)
    bar, show = _bar(epochs)
    with bar:
        forecaster.fit(series.values, show)
    trained = forecaster.trained
    assert trained is not None
    out.print(
        f"trained: {len(trained.validations)} epochs in {trained.seconds:.1f} s, best after epoch {trained.best_epoch}"
        f"{', stopped early' if trained.stopped_early else ''}"
    )
    model = output / "model.safetensors"
    forecaster.save(model)
    _print_score(forecaster.score(series.values), series.step)
    out.print(f"model:   {model}", markup=False, soft_wrap=True)
    if plots.available():
        at, forecasts = forecaster.forecasts(series.values)
        plots.forecast(output / "forecast.png", series, at, forecasts[:, 0])
        out.print(f"picture: {output / 'forecast.png'}", markup=False, soft_wrap=True)
    else:
        out.print("picture: none, matplotlib is not installed (pip install matplotlib)", markup=False)


@app.command()
@one_line_errors
def predict(
    model: Annotated[Path, typer.Argument(help="Model file that train wrote.")],
    csv: Annotated[Path, typer.Argument(help="CSV file with the series so far.")],
    column: ColumnOption = None,
    steps: Annotated[int | None, typer.Option(help="Steps to forecast; beyond the horizon by feeding back.")] = None,
    backend: BackendOption = "auto",
) -> None:
    """Forecast what comes after the end of a series; prints CSV."""
    forecaster = Forecaster.load(model, backend)
    series = read_csv(csv, column, usual=forecaster.name)
    values = forecaster.predict(series.values, steps)
    typer.echo(f"time,{series.name}")
    for label, value in zip(series.after(len(values)), values, strict=True):
        typer.echo(f"{label},{value:.6g}")


@app.command()
@one_line_errors
def info() -> None:
    """Show versions, devices, and which backend is chosen and why."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("xlstm", xlstm.__version__)
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for package in ("numpy", "array-api-compat", "safetensors", "cupy-cuda12x", "cupy-cuda13x", "torch", "matplotlib"):
        table.add_row(package, _version(package))
    for name, found in usable().items():
        table.add_row(f"backend {name}", Text(str(found) if isinstance(found, Backend) else f"not usable: {found}"))
    chosen = choose_backend("auto")
    table.add_row("auto chooses", Text(f"{chosen} ({chosen.reason})"))
    out.print(table)


def main() -> None:
    """Entry point."""
    app()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _writable(folder: Path) -> None:
    """Make the output folder and try it before any work is done."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / ".xlstm-trial"
    trial.touch()
    trial.unlink()


def _extent(series: Series) -> str:
    gaps = series.gaps
    return (
        f"{len(series.values)} rows from {series.labels[0]} to {series.labels[-1]}"
        f"{f', {gaps} of them gaps' if gaps else ''}"
    )


def _bar(epochs: int) -> tuple[Progress, Callable[[training.Progress], None]]:
    """A live progress bar and the callback that moves it."""
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  validation {task.fields[validation]}  best {task.fields[best]}"),
        TimeElapsedColumn(),
        TextColumn("at most"),
        TimeRemainingColumn(),
        console=err,
    )
    task = bar.add_task("training", total=None, epoch=0, epochs=epochs, loss=float("nan"), validation="-", best="-")

    def show(now: training.Progress) -> None:
        bar.update(
            task,
            total=now.epochs * now.steps,
            completed=(now.epoch - 1) * now.steps + now.step,
            epoch=now.epoch,
            loss=now.loss,
            validation="-" if now.validation is None else f"{now.validation:.4f}",
            best="-" if now.best is None else f"{now.best:.4f}",
        )

    return bar, show


def _print_score(score: Score, step: str) -> None:
    """RMSE on the test part, a row a method and a column for each of some steps ahead."""
    horizon = len(score.model)
    table = Table(title=f"test RMSE on the last 20 %, {score.points} forecasts", title_justify="left")
    table.add_column("method")
    ahead = sorted({1, 2, 3, horizon // 2, horizon} & set(range(1, horizon + 1)))
    for h in ahead:
        table.add_column(f"{h} {step}{'s' if h > 1 else ''} ahead", justify="right")
    rows = {
        "LSTM": score.model,
        "persistence": score.persistence,
        f"linear autoregression of {score.order} {step}s": score.autoregression,
    }
    for method, errors in rows.items():
        table.add_row(method, *(f"{errors[h - 1]:.4g}" for h in ahead))
    out.print(table)
