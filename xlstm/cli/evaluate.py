"""`xlstm evaluate`: how well a model in a file does on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xlstm.cli import forecasting, judging, kinds, labelled, train_text
from xlstm.cli.console import BackendOption, ColumnOption, Report, printable, uncut
from xlstm.cli.options import JsonOption, check_no_table, reads_tables
from xlstm.data.series import read_series
from xlstm.data.table import Dialect
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel


@reads_tables
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file of train forecast, train text or train classify.")],
    data: Annotated[Path, typer.Argument(help="Series (CSV, Parquet), text, or table of sequences with labels.")],
    column: ColumnOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
) -> None:
    """Show errors of forecasts on the last fifth of a series, the loss of a text, or the accuracy on sequences."""
    printable("evaluate")
    model, kind = kinds.find("evaluate", model)
    report = Report(as_json)
    if column is not None and kind != Forecaster.KIND:
        raise ValueError(f"{model}: is a {kind}, --column goes with a forecaster")
    if kind == TextModel.KIND:
        check_no_table(model, kind, dialect)
        loaded = TextModel.load(model, backend)
        values = judging.text(report, loaded.codec_, loaded.nats(train_text.read(data)), str(data))
    elif kind == SequenceClassifier.KIND:
        classifier = SequenceClassifier.load(model, backend)
        found = labelled.read(data, labelled.Layout.kept(model, classifier.note_), dialect)
        assert found.labels is not None
        unknown = sorted({*found.labels.tolist()} - {*classifier.classes_.tolist()})
        if unknown:
            raise ValueError(f"{data}: label {unknown[0]!r} is not one of those that {model} knows")
        values = judging.classification(report, found.labels, classifier.predict(found.sequences), classifier.classes_)
    else:
        fitted = Forecaster.load(model, backend)
        series = read_series(data, column, usual=fitted.name, **vars(dialect))
        with forecasting.dated(series):
            score = fitted.score(series.values, dates=forecasting.dates_of(series))
        report.print(uncut(forecasting.table(score, series.step, fitted.cell)))
        values = forecasting.scored(score)
    report.finish(kind=kind, **values)
