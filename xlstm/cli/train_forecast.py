"""`xlstm train forecast`: a forecaster of a series, as a run that can go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from xlstm.cli import folders
from xlstm.cli.console import BackendOption, ColumnOption, Report
from xlstm.cli.forecasting import SETTINGS, DtypeOption, HorizonOption, Job, WindowOption, pictures
from xlstm.cli.options import JsonOption, reads_tables, with_settings
from xlstm.data import writing
from xlstm.data.table import Dialect
from xlstm.estimators import Settings
from xlstm.estimators.forecaster import Forecaster


@reads_tables
@with_settings(Settings, SETTINGS)
def train_forecast(
    context: typer.Context,
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file.")],
    column: ColumnOption = None,
    horizon: HorizonOption = None,
    window: WindowOption = None,
    backend: BackendOption = "auto",
    dtype: DtypeOption = "float32",
    output: folders.OutputOption = Path("xlstm-forecast"),
    resume: folders.ResumeOption = False,
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
    **settings: Any,
) -> None:
    """Train a network to forecast a series as `xlstm train` does, and keep checkpoints and the history.

    The first 60 % of the series are fitted, the next 20 % decide when to stop, the last 20 % are the test. Then the
    model is trained once more on all of it.
    """
    job = Job.of(table, column, dialect, backend, dtype, horizon, window=window, **settings)
    job.check(job.forecaster())
    for picture in pictures(output) if output.is_dir() else []:
        writing.check(picture)
    report, start = Report(as_json), time.perf_counter()
    with folders.run(context, output, resume, pictures(output)) as fit:
        job.announce(report)
        model = fit(job.forecaster, job.fit, Forecaster.save)
        files = [output / folders.MODEL, *pictures(output)]
        job.results(report, model, files, time.perf_counter() - start)
