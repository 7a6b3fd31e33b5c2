"""`xlstm predict`, `forecast`, `generate` and `evaluate`: answers of a model in a file, and how
good they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument, Option

from xlstm.arrays import checks
from xlstm.cli import sources
from xlstm.cli.console import Report, printable, put, table, tell
from xlstm.cli.options import (
    BackendOption,
    ByRole,
    ColumnOption,
    JsonOption,
    LevelsOption,
    QuietOption,
    TableOption,
    command,
    levels_of,
)
from xlstm.cli.sources import Loaded, SequenceTable, find_model, load_model, panel_of
from xlstm.data import text
from xlstm.data.csv_file import Dialect
from xlstm.data.host import Host
from xlstm.data.panels import Panel
from xlstm.data.table import as_csv, check_table, is_parquet, write_table
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel, ZeroShotForecaster
from xlstm.estimators.evaluation import Score
from xlstm.estimators.text_model import text_of_tokens
from xlstm.models import model_files
from xlstm.models.language import xLSTMLanguageModel
from xlstm.plots import confusion_counts

LaterOption = Annotated[
    Path | None, Option("--future-file", help="Table of the columns that are known in advance.")
]
LARGEST = 700.0  # nats beyond which the perplexity overflows
UNITS = {"characters": "character", "bytes": "byte", "tokenizer": "token"}  # by the kind of a codec


@command()
def predict(
    model: Annotated[
        Path, Argument(help="Model file that train forecast or train classify wrote.")
    ],
    table: Annotated[
        Path,
        Argument(help="CSV or Parquet file of series or sequences; - is CSV on standard input."),
    ],
    column: ColumnOption = None,
    steps: Annotated[
        int | None, Option(help="Steps to forecast; beyond the horizon from earlier forecasts.")
    ] = None,
    intervals: Annotated[
        bool, Option("--intervals", help="Add the quantiles that the model learned.")
    ] = False,
    quantiles: LevelsOption = None,
    future_file: LaterOption = None,
    output: TableOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
) -> None:
    """Forecast the values after the end of a series, or predict labels of sequences with their
    probabilities.
    """
    check_output("predict", output)
    loaded = load_model(
        "predict",
        model,
        backend,
        column=column,
        steps=steps,
        intervals=intervals,
        quantiles=quantiles,
        future_file=future_file,
    )
    if isinstance(loaded.estimator, SequenceClassifier):
        labels = _labels(loaded, table, dialect)
        _give(as_json, output, "labels", labels, model=loaded.kind)
        return
    levels = [*loaded.estimator.quantiles] if intervals else []
    if quantiles is not None:
        levels = sorted({*levels, *levels_of("predict", quantiles)})
    panel = panel_of(loaded, table, column, dialect, future_file)
    columns = _ahead(loaded, panel, steps, levels)
    _give(as_json, output, "forecasts", columns, panel, model=loaded.kind, quantiles=levels)


def check_output(command: str, output: Path | None) -> None:
    """Raise an error if a table cannot be printed, or written to a file."""
    if output is None:
        printable(command)
    else:
        check_table(output)


def _give(
    as_json: bool,
    output: Path | None,
    name: str,
    columns: dict[str, Any],
    panel: Panel | None = None,
    **values: Any,
) -> None:
    """Write a table with a name to a file, or print it as CSV, or in one JSON object after other
    values.
    """
    report = Report(as_json)
    if output is not None:
        _write(output, columns, panel)
        report.print(f"{name}: {output}")
    elif not as_json:
        put(as_csv(columns))
    if panel is not None:
        values["horizon"] = len(columns[panel.time]) // len(panel.shown)
    report.finish(**values, output=None if output is None else str(output), **{name: columns})


def _write(output: Path, columns: dict[str, Any], panel: Panel | None) -> None:
    """Write a table to a file; Parquet gets the types of the panel that the table continues."""
    if panel is not None and is_parquet(output):
        steps = len(columns[panel.time]) // len(panel.shown)
        dates = [
            date
            for series in panel.shown
            if series.calendar is not None
            for date in series.calendar.following(steps).to_pydatetime()
        ]
        columns = columns | ({panel.time: dates} if dates else {})
    write_table(output, columns, {} if panel is None else panel.kinds)


def _ahead(
    loaded: Loaded, panel: Panel, steps: int | None, levels: Sequence[float]
) -> dict[str, Any]:
    """Return forecasts of a trained model, with quantiles, as columns."""
    fitted = loaded.estimator
    steps = fitted.horizon if steps is None else steps
    panel.check_ahead(steps)
    with panel.named():
        points = fitted.predict(panel, steps)
        quantiles = fitted.predict_quantiles(panel, steps, levels) if levels else []
    return _columns(panel, points, quantiles, levels)


def _columns(
    panel: Panel,
    points: Sequence[Any],
    quantiles: Sequence[Any],
    levels: Sequence[float],
) -> dict[str, Any]:
    """Return forecasts of each series as columns: its name, times, and for each target the value
    and the quantiles of `levels`.
    """
    steps = len(points[0])
    columns: dict[str, Any] = {}
    if panel.roles.series_id:
        columns[panel.roles.id_name] = [label for label in panel.groups for _ in range(steps)]
    columns[panel.time] = [label for series in panel.shown for label in series.after(steps)]
    suffixes = ["", *(f" {level:g}" for level in levels)]
    shape = (len(panel.shown), steps, len(panel.names), -1)
    ahead = np.reshape(points, shape)
    if levels:
        ahead = np.concatenate((ahead, np.reshape(quantiles, shape)), axis=-1)
    cells = panel.forecast_columns(list(ahead), suffixes)
    return columns | {name: column.tolist() for name, column in cells.items()}


def _labels(loaded: Loaded, table: Path, dialect: Dialect) -> dict[str, Sequence[Any]]:
    """Return names of sequences, their likeliest labels, and the probability of each label."""
    classifier = loaded.estimator
    layout = SequenceTable.of_model(loaded)
    sequences, names, _ = layout.read(table, dialect, labels=False)
    shares = classifier.predict_proba(sequences)
    return {
        layout.sequence or "row": names,
        layout.label: classifier.classes_[shares.argmax(axis=1)].tolist(),
        **{f"p({label})": shares[:, k].tolist() for k, label in enumerate(classifier.classes_)},
    }


@command()
def forecast(
    model: Annotated[
        Path, Argument(help="Model of train forecast, or a published checkpoint of TiRex.")
    ],
    table: Annotated[
        Path, Argument(help="CSV or Parquet file of series; - is CSV on standard input.")
    ],
    horizon: Annotated[
        int | None, Option(help="Steps to forecast; by default the model's, or a patch of TiRex.")
    ] = None,
    future_file: LaterOption = None,
    quantiles: LevelsOption = None,
    output: TableOption = None,
    backend: BackendOption = "auto",
    dtype: Annotated[
        str | None, Option(help="float32 or float64; by default as the checkpoint.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    by_role: ByRole,
    dialect: Dialect,
) -> None:
    """Forecast the series of a table with a trained model, or with a published TiRex, which needs
    no training.

    A trained model knows its columns. For TiRex, name the columns. Without --target, TiRex
    forecasts all columns that have no other role.
    """
    check_output("forecast", output)
    file, kind = find_model("forecast", model, foreign=True)
    levels = None if quantiles is None else levels_of("forecast", quantiles)
    if kind:
        sources.refuse(file, f"trained {kind}", vars(by_role) | {"dtype": dtype})
        loaded = load_model("forecast", file, backend)
        panel = panel_of(loaded, table, None, dialect, future_file)
        levels = list(loaded.estimator.quantiles) if levels is None else levels
        name = kind
        columns = _ahead(loaded, panel, horizon, levels)
    else:
        roles = by_role.roles()
        panel = Panel.from_file(table, roles, dialect, future_file, all_columns=True)
        if panel.left_out and not roles.targets:
            left_out = checks.few(panel.left_out)
            tell(f"warning: {table}: columns without a number are not forecast: {left_out}")
        zero_shot = ZeroShotForecaster(file, backend, dtype, horizon=horizon, quantiles=levels)
        name = type(zero_shot.fit().model_).__name__
        q, medians, levels = zero_shot._after(panel, None, {})  # both from one pass
        columns = _columns(panel, medians, q, levels)
    _give(as_json, output, "forecasts", columns, panel, model=name, quantiles=levels)


def generate(
    model: Annotated[Path, Argument(help="Model file or folder, or a published xLSTM checkpoint.")],
    prompt: Annotated[
        str, Option(help="Text, or tokens such as '3 1 4' if there is no tokenizer.json.")
    ],
    max_tokens: Annotated[int, Option(help="Tokens to add, at most.")] = 100,
    temperature: Annotated[
        float, Option(help="0 always takes the likeliest token; more draws more freely.")
    ] = 0.0,
    top_k: Annotated[int | None, Option(help="Draw from this number of likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, Option(help="Draw from the likeliest tokens that together are this probable.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the draws.")] = 0,
    stop: Annotated[int | None, Option(help="Token that ends the text.")] = None,
    as_bytes: Annotated[bool, Option("--bytes", help="Read tokens as bytes of UTF-8.")] = False,
    backend: BackendOption = "auto",
    dtype: Annotated[
        str | None, Option(help="float32 or float64; by default as the checkpoint.")
    ] = None,
) -> None:
    """Continue a prompt with a language model, token by token."""
    printable("generate")
    draws: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    model, kind = find_model("generate", model, foreign=True)
    if kind == TextModel.KIND:
        sources.refuse(model, kind, {"stop": stop, "bytes": as_bytes, "dtype": dtype})
        gap = ""
        pieces = TextModel.load(model, backend).stream(prompt, max_tokens, **draws)
    else:
        if kind:
            network, params = model_files.load(model, backend, dtype)
            if not isinstance(network, xLSTMLanguageModel):
                raise ValueError(
                    f"{model}: holds {network}, expected a language model; xlstm export and inspect"
                    " take it"
                )
        else:
            from xlstm.interop import nxai

            network, params = nxai.load(model, backend=backend, dtype=dtype)
        codec = text.codec(model, as_bytes)
        drawn = network.stream(params, [codec.encode(prompt)], max_tokens, stop=stop, **draws)
        gap = codec.GAP
        pieces = text_of_tokens(codec, drawn)
    put(f"{prompt}{gap}")  # as it is: not everything that looks like markup is
    for piece in pieces:
        put(piece)
    put("\n")


@command()
def evaluate(
    model: Annotated[
        Path, Argument(help="Model file of train forecast, train text or train classify.")
    ],
    data: Annotated[
        Path, Argument(help="Series (CSV, Parquet), text, or table of sequences with labels.")
    ],
    column: ColumnOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
) -> None:
    """Show errors of forecasts on the last fifth of a series, the loss of a text, or the accuracy
    on sequences.
    """
    printable("evaluate")
    sources.check_file("evaluate", data)
    loaded = load_model("evaluate", model, backend, dialect, column=column)
    report = Report(as_json)
    estimator = loaded.estimator
    if estimator.data_ == sources.digest(data):
        fair = (
            "; these are errors on its test part"
            if loaded.kind == Forecaster.KIND
            else ", so its answers on that file are not a fair test"
        )
        tell(f"note: the model was trained on {data}{fair}")
    if isinstance(estimator, TextModel):
        values = of_text(report, estimator, estimator.nats(sources.read_text(data)), str(data))
    elif isinstance(estimator, SequenceClassifier):
        sequences, _, labels = SequenceTable.of_model(loaded).read(data, dialect)
        for label in sorted({*labels} - {*estimator.classes_}):
            raise ValueError(
                f"{data}: label {label!r} is not one of those that {loaded.file} knows"
            )
        values = of_labels(report, estimator, sequences, labels)
    else:
        values = of_forecasts(report, estimator, panel_of(loaded, data, column, dialect))[1]
    report.finish(kind=loaded.kind, **values)


def of_text(report: Report, model: TextModel, nats: float, what: str) -> dict[str, Any]:
    """Print the mean of -log p of a token of a text, and return it; `what` describes the text."""
    perplexity = math.exp(nats) if nats < LARGEST else math.inf
    unit = UNITS[model.codec_kind_]
    report.print(f"{what}: {nats:.4f} nats a {unit}, perplexity {perplexity:.4g}")
    return {"nats": nats, "perplexity": perplexity}


def of_labels(
    report: Report, model: SequenceClassifier, sequences: Any, truth: Host
) -> dict[str, Any]:
    """Print accuracy and confusion of the labels that a classifier gives to sequences, and return
    them.
    """
    predicted = model.predict(sequences)
    names = [str(label) for label in model.classes_]
    accuracy = float(np.mean(truth == predicted))
    counts = confusion_counts(truth, predicted, model.classes_.tolist())[1].tolist()
    report.print(f"accuracy: {accuracy:.2%} of {len(truth)} sequences")
    rows = ([name, *map(str, row)] for name, row in zip(names, counts, strict=True))
    title = "sequences by label (rows) and predicted label (columns)"
    report.print(table(title, ["", *names], rows))
    return {"sequences": len(truth), "accuracy": accuracy, "classes": names, "confusion": counts}


def of_forecasts(report: Report, model: Forecaster, panel: Panel) -> tuple[Score, dict[str, Any]]:
    """Print errors of a forecaster and of baselines on the test part: the RMSE, for several series
    the RMSSE. Return the score, and values for JSON.
    """
    with panel.named():
        score = model.score(panel)
    horizon = len(score.model)
    step = panel.shown[0].step
    names = panel.names
    measure = "rmsse" if len(panel.shown) > 1 else "rmse"
    titles = {"model": "model", "persistence": "persistence"}
    if score.season:
        titles["seasonal"] = f"season of {score.season}"
    titles["autoregression"] = f"autoregression of {score.order}"
    errors = {titles[name]: getattr(score.errors[name], measure) for name in titles}
    steps = sorted(
        {1, 3, 6, 12, horizon // 2 if horizon > 12 else 1, horizon} & {*range(1, horizon + 1)}
    )
    rows = []
    by_target = [values.reshape(horizon, -1) for values in (*errors.values(), score.coverage)]
    for (c, name), h in itertools.product(enumerate(names), steps):
        *rmse, coverage = (values[h - 1, c] for values in by_target)
        label = f"{h} {step}{'s' if h > 1 else ''} ahead"
        label = label if len(names) == 1 else f"{name}, {label}"
        rows.append((label, *(f"{error:.4g}" for error in rmse), f"{100 * coverage:.0f} %"))
    heads = ("", *errors, f"{100 * score.interval:.0f} % interval")
    report.print(
        table(f"test {measure.upper()} on the last 20 %, {score.points} forecasts", heads, rows)
    )
    return score, {
        "forecasts": score.points,
        "order": score.order,
        "season": score.season,
        "interval": score.interval,
        "targets": names,
        "rmse": {name: of_method.rmse.tolist() for name, of_method in score.errors.items()},
        "rmsse": {name: of_method.rmsse.tolist() for name, of_method in score.errors.items()},
        "coverage": score.coverage.tolist(),
    }
