"""`xlstm predict`: forecasts, or labels of sequences, of a model in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xlstm.cli import kinds, labelled
from xlstm.cli.console import BackendOption, ColumnOption, err, printable, put
from xlstm.cli.forecasting import dated, dates_of
from xlstm.cli.options import reads_tables
from xlstm.data.series import read_series
from xlstm.data.table import Dialect, as_csv, check_table, write_table
from xlstm.estimators import Forecaster, SequenceClassifier


@reads_tables
def predict(
    model: Annotated[Path, typer.Argument(help="Model file that train forecast or train classify wrote.")],
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file with the series so far, or with sequences.")],
    column: ColumnOption = None,
    steps: Annotated[int | None, typer.Option(help="Steps to forecast; beyond the horizon by feeding back.")] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Add quantiles of forecasts, as far as the horizon reaches.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, .csv or .parquet; else CSV is printed.")
    ] = None,
    backend: BackendOption = "auto",
    *,
    dialect: Dialect,
) -> None:
    """Forecast what comes after the last value of a series, or tell the labels of sequences and their probabilities."""
    if output is None:
        printable("predict")
    else:
        check_table(output)
    model, kind = kinds.find("predict", model)
    if kind == SequenceClassifier.KIND:
        if column is not None or steps is not None or intervals:
            raise ValueError(f"{model}: is a classifier, --column, --steps and --intervals go with a forecaster")
        found = _labels(model, table, dialect, backend)
    else:
        found = _forecast(model, table, column, dialect, steps, intervals, backend)
    if output is None:
        put(as_csv(found))
    else:
        write_table(output, found)


def _forecast(
    model: Path, table: Path, column: str | None, dialect: Dialect, steps: int | None, intervals: bool, backend: str
) -> dict[str, Sequence[Any]]:
    """Return times and values after the end of a series."""
    fitted = Forecaster.load(model, backend)
    series = read_series(table, column, usual=fitted.name, **vars(dialect))
    dates = dates_of(series) if fitted.calendar_ else None
    with dated(series):
        values = fitted.predict(series.values, steps, dates=dates)
        if intervals and len(values) > fitted.horizon:
            raise ValueError(f"{model}: steps is {len(values)}, but intervals end at the horizon, {fitted.horizon}")
        shares = fitted.predict_quantiles(series.values, dates=dates) if intervals else None
    if series.name != fitted.name:
        err.print(f"note: the model was trained on {fitted.name}, this is {series.name}")
    name = "value" if series.name == "time" else series.name
    found: dict[str, Sequence[Any]] = {"time": series.after(len(values)), name: values.tolist()}
    if shares is not None:
        found |= {f"{name} {q:g}": shares[: len(values), k].tolist() for k, q in enumerate(fitted.quantiles)}
    return found


def _labels(model: Path, table: Path, dialect: Dialect, backend: str) -> dict[str, Sequence[Any]]:
    """Return names of sequences, their likeliest labels, and the probability of each label."""
    classifier = SequenceClassifier.load(model, backend)
    layout = labelled.Layout.kept(model, classifier.note_)
    data = labelled.read(table, layout, dialect, labels=False)
    shares = classifier.predict_proba(data.sequences)
    found: dict[str, Sequence[Any]] = {
        layout.sequence or "row": data.names,
        layout.label: classifier.classes_[shares.argmax(axis=1)].tolist(),
    }
    return found | {f"p({label})": shares[:, k].tolist() for k, label in enumerate(classifier.classes_)}
