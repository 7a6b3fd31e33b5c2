"""`xlstm train`: a forecaster of a series, which leaves a model and a picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from xlstm import training
from xlstm.cli.console import BackendOption, ColumnOption, Report, accounted
from xlstm.cli.folders import MODEL
from xlstm.cli.forecasting import SETTINGS, DtypeOption, HorizonOption, Job, WindowOption, pictures
from xlstm.cli.options import JsonOption, reads_tables, with_settings
from xlstm.cli.progress import bar
from xlstm.data import writing
from xlstm.data.table import Dialect
from xlstm.estimators import Settings


@reads_tables
@with_settings(Settings, SETTINGS)
def train(
    csv: Annotated[Path | None, typer.Argument(help="CSV or Parquet file; monthly sunspots if left out.")] = None,
    column: ColumnOption = None,
    horizon: HorizonOption = None,
    window: WindowOption = None,
    backend: BackendOption = "auto",
    dtype: DtypeOption = "float32",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model and the picture; older ones are replaced.")
    ] = Path("xlstm-output"),
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
    **settings: Any,
) -> None:
    """Train a network to forecast a series, and compare it with persistence and a linear autoregression.

    The first 60 % of the series are fitted, the next 20 % decide when to stop, the last 20 % are the test. Then the
    model is trained once more on all of it.
    """
    job = Job.of(csv, column, dialect, backend, dtype, horizon, window=window, **settings)
    model = job.forecaster()
    job.check(model)
    files = [output / MODEL, *pictures(output)]
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        writing.check(file)
    report = Report(as_json)
    job.announce(report)
    with accounted(files):
        start = time.perf_counter()
        with bar() as show:
            try:
                job.fit(model, show)
            except (training.Interrupted, training.Terminated):
                model.save(files[0])  # the best so far
                raise
            model.save(files[0])  # before anything else can go wrong
        job.results(report, model, files, time.perf_counter() - start)
