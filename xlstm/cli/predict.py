"""`xlstm predict` and `xlstm evaluate`: forecasts, or labels of sequences, of a model in a file, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument, Option

from xlstm.cli.configuration import BackendOption, ColumnOption, JsonOption, TableOption, with_options
from xlstm.cli.console import Report, err, printable, put, table
from xlstm.cli.sources import CLASSIFIER, TEXT, Layout, check_options, dated, find_model, read_text
from xlstm.data.csv_file import Dialect
from xlstm.data.series import Series, read_series
from xlstm.data.table import as_csv, check_table, write_table
from xlstm.data.text import Bytes, Characters
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel
from xlstm.estimators.evaluation import Score
from xlstm.plots import confusion_counts

LARGEST = 700.0  # nats whose perplexity is a number
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "slstm": "sLSTM", "mlstm": "mLSTM", "xlstm": "xLSTM"}


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


@with_options()
def evaluate(
    model: Annotated[Path, Argument(help="Model file of train forecast, train text or train classify.")],
    data: Annotated[Path, Argument(help="Series (CSV, Parquet), text, or table of sequences with labels.")],
    column: ColumnOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
) -> None:
    """Show errors of forecasts on the last fifth of a series, the loss of a text, or the accuracy on sequences."""
    printable("evaluate")
    model, kind = find_model("evaluate", model)
    check_options(model, kind, dialect, column)
    report = Report(as_json)
    if kind == TEXT:
        writer = TextModel.load(model, backend)
        values = of_text(report, writer, writer.nats(read_text(data)), str(data))
    elif kind == CLASSIFIER:
        classifier = SequenceClassifier.load(model, backend)
        read = Layout.kept(model, classifier.note_).read(data, dialect)
        if unknown := sorted({*read.labels.tolist()} - {*classifier.classes_.tolist()}):
            raise ValueError(f"{data}: label {unknown[0]!r} is not one of those that {model} knows")
        values = of_labels(report, classifier, read.sequences, read.labels)
    else:
        fitted = Forecaster.load(model, backend)
        values = of_forecasts(report, fitted, read_series(data, column, usual=fitted.name, dialect=dialect))[1]
    report.finish(kind=kind, **values)


def of_text(report: Report, model: TextModel, nats: float, what: str) -> dict[str, Any]:
    """Print the mean of -log p of a token of a text, and return it; `what` is the text, in words."""
    perplexity = math.exp(nats) if nats < LARGEST else None
    shown = "" if perplexity is None else f", perplexity {perplexity:.4g}"
    codec = model.codec_
    unit = "character" if isinstance(codec, Characters) else "byte" if isinstance(codec, Bytes) else "token"
    report.print(f"{what}: {nats:.4f} nats a {unit}{shown}")
    return {"nats": nats, "perplexity": perplexity}


def of_labels(report: Report, model: SequenceClassifier, sequences: Any, truth: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Print accuracy and confusion of the labels that a classifier gives to sequences, and return them."""
    predicted, names = model.predict(sequences), [str(label) for label in model.classes_]
    accuracy = float(np.mean(truth == predicted))
    counts = confusion_counts(truth, predicted, model.classes_.tolist())[1].tolist()
    report.print(f"accuracy: {accuracy:.2%} of {len(truth)} sequences")
    rows = ([name, *map(str, row)] for name, row in zip(names, counts, strict=True))
    report.print(table("sequences by label (rows) and predicted label (columns)", ["", *names], rows))
    return {"sequences": len(truth), "accuracy": accuracy, "classes": names, "confusion": counts}


def of_forecasts(report: Report, model: Forecaster, series: Series) -> tuple[Score, dict[str, Any]]:
    """Print the RMSE of a forecaster and of baselines on the test part; return the score, and values for JSON."""
    with dated(series) as dates:
        score = model.score(series.values, **dates)
    horizon, rows = len(score.model), []
    for h in sorted({1, 3, 6, 12, horizon // 2 if horizon > 12 else 1, horizon} & {*range(1, horizon + 1)}):
        errors = (f"{rmse[h - 1]:.4g}" for rmse in (score.model, score.persistence, score.autoregression))
        within = f"{100 * score.coverage[h - 1]:.0f} %"
        rows.append((f"{h} {series.step}{'s' if h > 1 else ''} ahead", *errors, within))
    network, baseline = CELLS.get(model.cell, model.cell), f"autoregression of {score.order}"
    names = ("", network, "persistence", baseline, f"{100 * score.interval:.0f} % interval")
    report.print(table(f"test RMSE on the last 20 %, {score.points} forecasts", names, rows))
    methods = ("model", "persistence", "autoregression", "seasonal")
    return score, {
        **{"forecasts": score.points, "order": score.order, "season": score.season, "interval": score.interval},
        "rmse": {name: getattr(score, name).tolist() for name in methods},
        "coverage": score.coverage.tolist(),
    }
