"""`xlstm forecast`: forecasts of a table by a published TiRex, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from xlstm import plots
from xlstm.arrays import checks
from xlstm.cli import kinds, tabular
from xlstm.cli.console import BackendOption, Report, err, printable, put, quieted, tell, uncut
from xlstm.cli.options import JsonOption, QuietOption, reads_tables
from xlstm.data.covariates import CovariateArguments
from xlstm.data.host import Values
from xlstm.data.panels import Roles
from xlstm.data.table import Dialect, as_csv, check_table, write_table
from xlstm.estimators.scores import Score
from xlstm.estimators.zero_shot import ZeroShotForecaster
from xlstm.plots import figures

PANELS = 12  # of a picture at most

CheckpointArgument = Annotated[Path, typer.Argument(help="Folder or file of a published checkpoint of TiRex.")]
TableArgument = Annotated[Path, typer.Argument(help="CSV or Parquet file with one series or several.")]
HorizonOption = Annotated[int | None, typer.Option(help="Steps to forecast; by default a patch of the model.")]
TargetOption = Annotated[
    list[str] | None, typer.Option(help="Column to forecast, may be repeated; by default all others with numbers.")
]
PastOption = Annotated[list[str] | None, typer.Option(help="Column that is known as far as targets, for TiRex-2.")]
FutureOption = Annotated[
    list[str] | None, typer.Option(help="Column that is known in advance, in rows after the targets, for TiRex-2.")
]
IdOption = Annotated[str | None, typer.Option(help="Column that tells several series apart.")]
QuantilesOption = Annotated[str | None, typer.Option(help="Levels such as 0.1,0.5,0.9; by default those of the model.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write, .csv or .parquet; else CSV is printed.")
]
BacktestOption = Annotated[
    int | None, typer.Option(help="Forecast the last values, too, so many horizons, and compare with baselines.")
]
PictureOption = Annotated[Path | None, typer.Option(help="Draw the forecasts to a file such as ahead.png.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32 or float64; by default that of the checkpoint.")]
SignFlipOption = Annotated[
    bool | None, typer.Option("--sign-flip/--no-sign-flip", help="Add the forecast of the negated series; TiRex-2.")
]
DifferencingOption = Annotated[
    bool | None, typer.Option("--differencing/--no-differencing", help="Forecast changes of trends; TiRex-2.")
]
RolloutOption = Annotated[int | None, typer.Option(help="Patches from one window at most; TiRex-1.")]
ResampleOption = Annotated[
    bool, typer.Option("--resample", help="Forecast long series with a long period at a lower rate; TiRex-1.")
]


@reads_tables
def forecast(
    checkpoint: CheckpointArgument,
    table: TableArgument,
    horizon: HorizonOption = None,
    target: TargetOption = None,
    past: PastOption = None,
    future: FutureOption = None,
    series_id: IdOption = None,
    quantiles: QuantilesOption = None,
    output: OutputOption = None,
    picture: PictureOption = None,
    backtest: BacktestOption = None,
    backend: BackendOption = "auto",
    dtype: DtypeOption = None,
    sign_flip: SignFlipOption = None,
    differencing: DifferencingOption = None,
    rollout: RolloutOption = None,
    resample: ResampleOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    dialect: Dialect,
) -> None:
    """Forecast the series of a table with a published TiRex, without any training: the median and quantiles."""
    if output is None:
        printable("forecast")
    else:
        check_table(output)
    if picture is not None:
        figures.check(picture)
    checkpoint, _ = kinds.find("forecast", checkpoint, foreign=True)
    levels = None if quantiles is None else _levels(quantiles)
    forecaster = ZeroShotForecaster(
        checkpoint,
        backend,
        dtype,
        horizon=horizon,
        sign_flip=sign_flip,
        differencing=differencing,
        rollout=rollout,
        resample="frequency" if resample else None,
    )
    roles = Roles(target, past, future, None, series_id).checked(str(table))
    parts, names, left = tabular.read(table, roles, dialect)
    if left:
        tell(f"warning: {table}: columns without a number are not forecast: {checks.few(left)}")
    model = forecaster.fit().model_
    levels = [*model.quantiles] if levels is None else levels
    known = sorted({*levels, 0.5})
    forecaster.set_params(quantiles=known)
    beside: CovariateArguments = {
        "past": [part.past for part in parts] if roles.past else None,
        "future": [part.future for part in parts] if roles.future else None,
        "dates": None if parts[0].calendar is None else [part.calendar for part in parts],
    }
    found = forecaster.predict_quantiles([part.targets for part in parts], **beside)
    score = None if backtest is None else forecaster.backtest([part.targets for part in parts], backtest, **beside)
    columns = tabular.columns(parts, names, series_id, found, known, levels)
    report = Report(as_json)
    with quieted(quiet):
        if output is not None:
            write_table(output, columns)
            report.print(f"forecasts: {output}")
        if picture is not None:
            _draw(picture, parts, names, [[plots.Fan(one[:, c], known) for c in range(len(names))] for one in found])
        if score is not None and not (as_json or quiet):
            err.print(uncut(_table(score, names)))
    if output is None and not as_json:
        put(as_csv(columns))
    about = {"model": type(model).__name__, "horizon": len(found[0]), "quantiles": levels}
    judged = None if score is None else _judged(score, names)
    report.finish(**about, output=None if output is None else str(output), forecasts=columns, backtest=judged)


def _judged(score: Score, names: Sequence[str]) -> dict[str, Any]:
    """Return errors of each target along the horizon by method, as JSON can hold them."""
    errors = {method: _plain(one.rmse) for method, one in score.errors.items()}
    rmse = {name: {method: rows[c] for method, rows in errors.items()} for c, name in enumerate(names)}
    return {"rmse": rmse, "coverage": dict(zip(names, _plain(score.coverage), strict=True)), "at": score.at.tolist()}


def _plain(errors: Values) -> list[list[float | None]]:
    """Return numbers (H, C) by target; None where there was nothing to compare with."""
    return np.where(np.isnan(errors), None, errors).T.tolist()  # type: ignore[no-any-return, call-overload]


def _table(score: Score, names: Sequence[str]) -> Table:
    """Return a row for each target: the mean RMSE over the horizon by method, and the share in the interval."""
    title = f"RMSE of {len(score.at)} forecasts of {len(score.model)} steps"
    found = Table(title=title, title_justify="left")
    found.add_column("", no_wrap=True)
    within = f"{100 * score.interval:.0f} % interval" if score.interval > 0 else "interval"
    for name in (*score.errors, within):
        found.add_column(name, justify="right")
    for c, name in enumerate(names):
        errors = (f"{np.nanmean(one.rmse[:, c]):.4g}" for one in score.errors.values())
        found.add_row(name, *errors, f"{100 * np.nanmean(score.coverage[:, c]):.0f} %")
    return found


def _draw(path: Path, parts: Sequence[tabular.Part], names: Sequence[str], fans: Sequence[Sequence[plots.Fan]]) -> None:
    """Draw the first forecasts."""
    every = [
        (part.series(c, name), some[c]) for part, some in zip(parts, fans, strict=True) for c, name in enumerate(names)
    ]
    plots.save(plots.fans(*zip(*every[:PANELS], strict=True)), path)
    if len(every) > PANELS:
        err.print(f"note: {path} has the first {PANELS} of {len(every)} forecasts")


def _levels(given: str) -> list[float]:
    """Return levels from text with commas between them."""
    try:
        return sorted({float(level) for level in given.split(",")})
    except ValueError:
        raise ValueError(f"--quantiles is {checks.shown(given)}, expected numbers such as 0.1,0.5,0.9") from None
