"""`xlstm evaluate`: how well a model in a file does on data, as lines and tables and as values of JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument

from xlstm.cli.configuration import BackendOption, ColumnOption, JsonOption, with_options
from xlstm.cli.console import Report, printable, table
from xlstm.cli.sources import CLASSIFIER, TEXT, Layout, check_options, dated, find_model, read_text
from xlstm.data.csv_file import Dialect
from xlstm.data.series import Series, read_series
from xlstm.data.text import Bytes, Characters
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel
from xlstm.estimators.evaluation import Score
from xlstm.plots import confusion_counts

LARGEST = 700.0  # nats whose perplexity is a number
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "slstm": "sLSTM", "mlstm": "mLSTM", "xlstm": "xLSTM"}


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
