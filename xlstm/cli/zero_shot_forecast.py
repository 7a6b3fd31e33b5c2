"""`xlstm forecast`: forecasts of a table by a published TiRex, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument, Option

from xlstm import plots
from xlstm.arrays import checks
from xlstm.cli.configuration import BackendOption, JsonOption, QuietOption, TableOption, with_options
from xlstm.cli.console import Report, err, put, tell
from xlstm.cli.predict import check_output
from xlstm.cli.sources import find_model
from xlstm.data import panels
from xlstm.data.csv_file import Dialect
from xlstm.data.frames import places_of
from xlstm.data.host import Values
from xlstm.data.panels import Given, Roles, numbers_of
from xlstm.data.series import Series
from xlstm.data.table import as_csv, opened, read_groups, write_table
from xlstm.estimators import ZeroShotForecaster
from xlstm.plots import figures

PANELS = 12  # of a picture at most


@with_options()
def forecast(
    checkpoint: Annotated[Path, Argument(help="Folder or file of a published checkpoint of TiRex.")],
    table: Annotated[Path, Argument(help="CSV or Parquet file with one series or several.")],
    horizon: Annotated[int | None, Option(help="Steps to forecast; by default a patch of the model.")] = None,
    target: Annotated[list[str] | None, Option(help="Column to forecast, repeatable; by default all others.")] = None,
    past: Annotated[list[str] | None, Option(help="Column known as far as targets, for TiRex-2.")] = None,
    future: Annotated[list[str] | None, Option(help="Column known in advance, for TiRex-2.")] = None,
    series_id: Annotated[str | None, Option(help="Column that tells several series apart.")] = None,
    quantiles: Annotated[str | None, Option(help="Levels, such as 0.1,0.5,0.9.")] = None,
    output: TableOption = None,
    picture: Annotated[Path | None, Option(help="Draw the forecasts to a file such as ahead.png.")] = None,
    backend: BackendOption = "auto",
    dtype: Annotated[str | None, Option(help="float32 or float64; by default that of the checkpoint.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    dialect: Dialect,
) -> None:
    """Forecast the series of a table with a published TiRex, without any training: the median and quantiles."""
    check_output("forecast", output)
    if picture is not None:
        figures.check(picture)
    checkpoint, _ = find_model("forecast", checkpoint, foreign=True)
    levels = None if quantiles is None else _levels(quantiles)
    forecaster = ZeroShotForecaster(checkpoint, backend, dtype, horizon=horizon)
    roles = Roles(target, past, future, None, series_id).checked(str(table))
    given = _read(table, roles, dialect)
    covariates, names = given.covariates, given.names
    model = forecaster.fit().model_
    levels = levels or [*model.quantiles]
    known = sorted({*levels, 0.5})
    ahead = forecaster.set_params(quantiles=known).predict_quantiles(
        list(given.values),
        past=[one.past for one in covariates] if roles.past else None,
        future=[one.future for one in covariates] if roles.future else None,
        dates=None if covariates[0].dates is None else [one.dates for one in covariates],
    )
    columns = _columns(given, ahead, known, levels)
    report = Report(as_json)
    if output is not None:
        write_table(output, columns)
        report.print(f"forecasts: {output}")
    elif not as_json:
        put(as_csv(columns))
    if picture is not None:
        series = [_series(given, k, c) for k in range(len(ahead)) for c in range(len(names))]
        fans = [plots.Fan(one[:, c], known) for one in ahead for c in range(len(names))]
        plots.save(plots.fans(series[:PANELS], fans[:PANELS]), picture)
        if len(series) > PANELS:
            err.print(f"note: {picture} has the first {PANELS} of {len(series)} forecasts")
    about = {"model": type(model).__name__, "horizon": len(ahead[0]), "quantiles": levels}
    report.finish(**about, output=None if output is None else str(output), forecasts=columns)


def _levels(text: str) -> list[float]:
    """Return levels from text with commas between them."""
    try:
        return sorted({float(level) for level in text.split(",")})
    except ValueError:
        raise ValueError(f"--quantiles is {checks.shown(text)}, expected numbers such as 0.1,0.5,0.9") from None


def _read(path: Path, roles: Roles, dialect: Dialect) -> Given:
    """Return the series of a table, whose targets are by default all other columns that hold a number.

    Rows at the end of a series without a target are those of what is known in advance. A warning names the columns that
    are left out.

    Raises
    ------
    OSError, TypeError, ValueError, ImportError
        The file cannot be read, a column is missing, a target or a series has no value, or dates do not rise or go on.
    """
    beside = [*roles.past, *roles.future]
    wanted = [*roles.targets, *beside] if roles.targets else None
    groups = read_groups(path, roles.id_name or None, wanted, dialect)
    first = next(iter(groups.values()))
    places_of(str(path), first.names, [*roles.targets, *beside])  # a column of dates is none of numbers
    names = roles.targets or [name for name in first.names if name not in beside]
    if not names:
        raise ValueError(f"{path}: all columns of numbers are covariates, expected one to forecast")
    there = np.any([~np.isnan(group.values).all(axis=0) for group in groups.values()], axis=0)
    empty = {name for name, has_numbers in zip(first.names, there, strict=True) if not has_numbers}
    if roles.targets and (wrong := [name for name in names if name in empty]):
        raise ValueError(f"{path}: column {checks.shown(wrong[0])} has no value to forecast from")
    names = [name for name in names if name not in empty] or names
    used = {*names, *beside, *roles.series_id, first.index_name}
    left = [name for name in opened(path, dialect).names if name not in used]
    if left and not roles.targets:
        tell(f"warning: {path}: columns without a number are not forecast: {checks.few(left)}")
    series, after = {}, {}
    for label, columns in groups.items():
        there = np.flatnonzero(np.any(~np.isnan(numbers_of(str(path), columns, names)), axis=1))
        if not len(there):
            raise ValueError(f"{path}: {label or 'the table'} has no value to forecast from")
        end = int(there[-1]) + 1
        series[label], after[label] = columns.take(slice(end)), columns.take(slice(end, None))
    return panels.of_columns(str(path), series, roles, names, after if roles.future else {}, "the table")


def _series(given: Given, k: int, c: int) -> Series:
    """Return a target of a series, to label and to draw."""
    name, values = f"{given.labels[k]} {given.names[c]}".strip(), given.values[k][:, c]
    calendar = given.covariates[k].dates
    if calendar is None:
        return Series(name, values, np.arange(1, len(values) + 1))
    return Series(name, calendar.placed(values[:, None])[:, 0], calendar.dates, calendar)


def _columns(
    given: Given,
    ahead: Sequence[Values],
    known: Sequence[float],
    levels: Sequence[float],
) -> dict[str, list[Any]]:
    """Return the columns of a long table: the series, the time, and for each target its median and its quantiles.

    `ahead` has quantiles (H, C, Q) of the levels `known` for each series; of these `levels` become columns.
    """
    steps, columns = len(ahead[0]), {}
    if given.id_name:
        columns[given.id_name] = [label for label in given.labels for _ in range(steps)]
    columns["time"] = [label for k in range(len(ahead)) for label in _series(given, k, 0).after(steps)]
    for c, name in enumerate(given.names):
        for level, column in ((0.5, name), *((level, f"{name} {level:g}") for level in levels)):
            columns[column] = np.concatenate([one[:, c, known.index(level)] for one in ahead]).tolist()
    return columns
