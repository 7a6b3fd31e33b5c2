"""`xlstm predict`: forecasts, or labels of sequences, of a model in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from xlstm.cli.configuration import BackendOption, ColumnOption, TableOption, with_options
from xlstm.cli.console import err, printable, put
from xlstm.cli.sources import CLASSIFIER, Layout, dated, find_model
from xlstm.data.csv_file import Dialect
from xlstm.data.series import read_series
from xlstm.data.table import as_csv, check_table, write_table
from xlstm.estimators import Forecaster, SequenceClassifier


@with_options()
def predict(
    model: Annotated[Path, Argument(help="Model file that train forecast or train classify wrote.")],
    table: Annotated[Path, Argument(help="CSV or Parquet file with the series so far, or with sequences.")],
    column: ColumnOption = None,
    steps: Annotated[int | None, Option(help="Steps to forecast; beyond the horizon by feeding back.")] = None,
    intervals: Annotated[bool, Option("--intervals", help="Add quantiles, up to the horizon.")] = False,
    output: TableOption = None,
    backend: BackendOption = "auto",
    *,
    dialect: Dialect,
) -> None:
    """Forecast what comes after the last value of a series, or tell the labels of sequences and their probabilities."""
    check_output("predict", output)
    model, kind = find_model("predict", model)
    if kind == CLASSIFIER:
        if column is not None or steps is not None or intervals:
            raise ValueError(f"{model}: is a classifier, --column, --steps and --intervals go with a forecaster")
        columns = _labels(model, table, dialect, backend)
    else:
        columns = _forecast(model, table, column, dialect, steps, intervals, backend)
    if output is None:
        put(as_csv(columns))
    else:
        write_table(output, columns)


def check_output(command: str, output: Path | None) -> None:
    """Raise where a table cannot be printed, or written to a file."""
    if output is None:
        printable(command)
    else:
        check_table(output)


def _forecast(
    model: Path, table: Path, column: str | None, dialect: Dialect, steps: int | None, intervals: bool, backend: str
) -> dict[str, Sequence[Any]]:
    """Return times and values after the end of a series."""
    fitted = Forecaster.load(model, backend)
    series = read_series(table, column, usual=fitted.name, dialect=dialect)
    with dated(series, fitted.calendar_) as dates:
        values = fitted.predict(series.values, steps, **dates)
        if intervals and len(values) > fitted.horizon:
            raise ValueError(f"{model}: steps is {len(values)}, but intervals end at the horizon, {fitted.horizon}")
        quantiles = fitted.predict_quantiles(series.values, **dates) if intervals else None
    if series.name != fitted.name:
        err.print(f"note: the model was trained on {fitted.name}, this is {series.name}")
    name = "value" if series.name == "time" else series.name
    columns: dict[str, Sequence[Any]] = {"time": series.after(len(values)), name: values.tolist()}
    if quantiles is not None:
        columns |= {f"{name} {q:g}": quantiles[: len(values), k].tolist() for k, q in enumerate(fitted.quantiles)}
    return columns


def _labels(model: Path, table: Path, dialect: Dialect, backend: str) -> dict[str, Sequence[Any]]:
    """Return names of sequences, their likeliest labels, and the probability of each label."""
    classifier = SequenceClassifier.load(model, backend)
    layout = Layout.kept(model, classifier.note_)
    read = layout.read(table, dialect, labels=False)
    shares = classifier.predict_proba(read.sequences)
    columns: dict[str, Sequence[Any]] = {
        layout.sequence or "row": read.names,
        layout.label: classifier.classes_[shares.argmax(axis=1)].tolist(),
    }
    return columns | {f"p({label})": shares[:, k].tolist() for k, label in enumerate(classifier.classes_)}
