"""Forecasting jobs of the command line: a series, the settings, and the results as lines, a picture and JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.table import Table

from xlstm import plots, training
from xlstm.arrays.backend import Backend, backend_of
from xlstm.cli.console import Report, uncut
from xlstm.data.calendars import Dates
from xlstm.data.host import SeriesError
from xlstm.data.series import Series, bundled, read_series
from xlstm.data.table import Dialect
from xlstm.estimators import Settings
from xlstm.estimators.forecaster import Forecaster
from xlstm.estimators.scores import Score
from xlstm.plots import figures

PICTURE = "forecast.png"
HORIZON, SHORT = 12, 20  # steps ahead by default, of which a series is to be so many times as long
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "slstm": "sLSTM", "mlstm": "mLSTM", "xlstm": "xLSTM"}
SETTINGS = {
    "hidden_size": "Units of each recurrent layer.",
    "epochs": "Passes over the training part, at most.",
    "learning_rate": "Learning rate of AdamW.",
    "cell": "lstm, gru, rnn, slstm, mlstm, xlstm, or the name of a registered cell.",
    "num_layers": "Recurrent layers.",
    "bidirectional": "Read windows in both directions.",
    "dropout": "Rate of dropout between layers.",
    "patience": "Epochs without a better validation loss before training stops.",
    "weight_decay": "Weight decay of AdamW.",
    "batch_size": "Windows of a batch.",
    "clip": "Limit of the global norm of the gradient.",
    "averaging": "Decay of the moving average of weights that is kept.",
    "scaling": "window or series: units of the values that the network sees.",
    "linear_baseline": "Steps that the linear autoregression looks back; 0 for none, auto lets validation decide.",
    "season": "Steps of a season; 0 for none, auto finds them.",
    "least": "Forecasts do not go below it; 0 if left out where no value is below 0.",
    "refit": "Train once more on all of the series at the end.",
    "seed": "Initial weights and order of batches.",
    "precision": "float16, bfloat16 or tf32 while training, on a GPU; weights stay as they are.",
}
HorizonOption = Annotated[
    int | None, typer.Option("--horizon", help="Steps ahead it forecasts at once; 12, or fewer in a short series.")
]
WindowOption = Annotated[
    int | None, typer.Option("--window", help="Steps the model looks back; 48, or fewer in a short series.")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32 or float64.")]


class Job(NamedTuple):
    """A series to forecast, and how.

    Attributes
    ----------
    series : Series
    settings : Settings
    home : Backend
    """

    series: Series
    settings: Settings
    home: Backend

    @classmethod
    def of(
        cls,
        path: Path | None,
        column: str | None,
        dialect: Dialect,
        backend: str,
        dtype: str,
        horizon: int | None,
        **settings: Any,
    ) -> Job:
        """Read a series, by default that of sunspots, and choose what is left open."""
        series = read_series(path or bundled("sunspots"), column, **vars(dialect))
        horizon = max(1, min(HORIZON, len(series.values) // SHORT)) if horizon is None else horizon
        for name in ("linear_baseline", "season"):
            if settings[name].isdigit():
                settings[name] = int(settings[name])
        if settings["least"] is None and np.nanmin(series.values) >= 0:
            settings["least"] = 0.0  # what never was below 0 will not be
        return cls(series, Settings(horizon=horizon, **settings), backend_of(backend, dtype))

    def forecaster(self, **options: Any) -> Forecaster:
        """Return the forecaster; options are those that are no settings."""
        return Forecaster(**vars(self.settings), backend=self.home, name=self.series.name, **options)

    def check(self, model: Forecaster) -> None:
        """Raise where the series cannot be trained on, before anything is made or printed."""
        with dated(self.series):
            model.examples(self.series.values, dates=dates_of(self.series))

    def fit(self, model: Forecaster, show: Callable[[training.Progress], None]) -> None:
        """Train the forecaster."""
        model.fit(self.series.values, show, dates=dates_of(self.series))

    def announce(self, report: Report) -> None:
        """Print what is trained on which backend."""
        narrow = "" if self.settings.precision is None else f", training in {self.settings.precision}"
        report.print(f"backend: {self.home}, {self.home.dtype}{narrow} ({self.home.reason})")
        report.print(f"series:  {self.series.name}, {_extent(self.series)}")

    def results(self, report: Report, model: Forecaster, files: Sequence[Path], seconds: float) -> None:
        """Print how training went and how good forecasts are, and draw them; `files` are the model and the picture."""
        report.print(f"trained: {_summary(model.trained_, seconds)}, with a window of {model.window_}")
        report.print(f"model:   {files[0]}")
        score = model.score(self.series.values, dates=dates_of(self.series))
        report.print(uncut(table(score, self.series.step, self.settings.cell)))
        for picture in files[1:]:
            ahead = model.predict_quantiles(self.series.values, dates=dates_of(self.series))
            fan = plots.Fan(ahead, self.settings.quantiles)
            plots.save(plots.forecast(self.series, score.at, score.forecasts[:, 0], fan), picture)
            report.print(f"picture: {picture}")
        if len(files) == 1:
            report.print("picture: none, matplotlib is not installed (pip install matplotlib)")
        unsaved = model.trained_.unsaved
        report.finish(model=str(files[0]), seconds=seconds, window=model.window_, unsaved=unsaved, **scored(score))


def pictures(output: Path) -> list[Path]:
    """Return the picture that is drawn into a folder, if one can be drawn."""
    return [output / PICTURE] * figures.available()


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
    return None if series.calendar is None else series.index


def _summary(trained: training.Trained, seconds: float) -> str:
    early = ", stopped early" if trained.stopped_early else ""
    skipped = f", {trained.skipped} steps left out" if trained.skipped else ""
    epochs = f"{len(trained.validations)} epochs in {trained.seconds:.1f} s"
    return f"{epochs}, best after epoch {trained.best_epoch}{early}{skipped}; {seconds:.1f} s in all"


def scored(score: Score) -> dict[str, Any]:
    """Return errors on the test part by method, a list along the horizon each, as JSON can hold them."""
    rmse = {name: getattr(score, name).tolist() for name in ("model", "persistence", "autoregression", "seasonal")}
    return {
        "forecasts": score.points,
        "order": score.order,
        "season": score.season,
        "rmse": rmse,
        "interval": score.interval,
        "coverage": score.coverage.tolist(),
    }


def table(score: Score, step: str, cell: str) -> Table:
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
