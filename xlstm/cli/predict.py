"""`xlstm predict`, `forecast`, `generate` and `evaluate`: what a model in a file says of data, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument, Option

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.cli.configuration import BackendOption, ColumnOption, JsonOption, QuietOption, TableOption, command
from xlstm.cli.console import Report, err, printable, put, table, tell
from xlstm.cli.sources import Layout, Loaded, check_options, dated, find_model, load_model, read_text
from xlstm.data import panels, text
from xlstm.data.csv_file import Dialect
from xlstm.data.frames import places_of
from xlstm.data.panels import Given, Roles, numbers_of
from xlstm.data.series import Series, read_series
from xlstm.data.table import as_csv, check_table, opened, read_groups, write_table
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel, ZeroShotForecaster
from xlstm.estimators.evaluation import Score
from xlstm.estimators.text_model import text_of_tokens
from xlstm.models import model_files
from xlstm.models.language import xLSTMLanguageModel
from xlstm.plots import confusion_counts

LARGEST = 700.0  # nats whose perplexity is a number
UNITS = {"characters": "character", "bytes": "byte", "tokenizer": "token"}  # by the kind of a codec


@command()
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
    loaded = load_model("predict", model, backend)
    check_options(loaded.file, loaded.kind, column=column, steps=steps, intervals=intervals)
    if isinstance(loaded.estimator, SequenceClassifier):
        columns = _labels(loaded, table, dialect)
    else:
        columns = _forecast(loaded, table, column, dialect, steps, intervals)
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
    loaded: Loaded, table: Path, column: str | None, dialect: Dialect, steps: int | None, intervals: bool
) -> dict[str, Sequence[Any]]:
    """Return times and values after the end of a series."""
    fitted = loaded.estimator
    series = read_series(table, column, usual=fitted.name, dialect=dialect)
    with dated(series, fitted.calendar_) as dates:
        values = fitted.predict(series.values, steps, **dates)
        if intervals and len(values) > fitted.horizon:
            expected = f"expected at most the horizon, {fitted.horizon}, with --intervals"
            raise ValueError(f"{loaded.file}: steps is {len(values)}, {expected}")
        quantiles = fitted.predict_quantiles(series.values, **dates) if intervals else None
    if series.name != fitted.name:
        err.print(f"note: the model was trained on {fitted.name}, this is {series.name}")
    name = "value" if series.name == "time" else series.name
    columns: dict[str, Sequence[Any]] = {"time": series.after(len(values)), name: values.tolist()}
    if quantiles is not None:
        columns |= {f"{name} {q:g}": quantiles[: len(values), k].tolist() for k, q in enumerate(fitted.quantiles)}
    return columns


def _labels(loaded: Loaded, table: Path, dialect: Dialect) -> dict[str, Sequence[Any]]:
    """Return names of sequences, their likeliest labels, and the probability of each label."""
    classifier, layout = loaded.estimator, Layout.kept(loaded)
    sequences, names, _ = layout.read(table, dialect, labels=False)
    shares = classifier.predict_proba(sequences)
    columns: dict[str, Sequence[Any]] = {
        layout.sequence or "row": names,
        layout.label: classifier.classes_[shares.argmax(axis=1)].tolist(),
    }
    return columns | {f"p({label})": shares[:, k].tolist() for k, label in enumerate(classifier.classes_)}


@command()
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
    backend: BackendOption = "auto",
    dtype: Annotated[str | None, Option(help="float32 or float64; by default that of the checkpoint.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    dialect: Dialect,
) -> None:
    """Forecast the series of a table with a published TiRex, without any training: the median and quantiles."""
    check_output("forecast", output)
    checkpoint, _ = find_model("forecast", checkpoint, foreign=True)
    levels = None if quantiles is None else _levels(quantiles)
    forecaster = ZeroShotForecaster(checkpoint, backend, dtype, horizon=horizon)
    roles = Roles(target, past, future, None, series_id).checked(str(table))
    given = _read(table, roles, dialect)
    covariates, calendars = given.covariates, [one.dates for one in given.covariates]
    model = forecaster.fit().model_
    levels = levels or [*model.quantiles]
    known = sorted({*levels, 0.5})
    ahead = forecaster.set_params(quantiles=known).predict_quantiles(
        list(given.values),
        past=[one.past for one in covariates] if roles.past else None,
        future=[one.future for one in covariates] if roles.future else None,
        dates=None if calendars[0] is None else calendars,
    )
    steps = len(ahead[0])
    columns: dict[str, list[Any]] = {}
    if series_id is not None:
        columns[series_id] = [label for label in given.labels for _ in range(steps)]
    series = [Series("", one[:, 0], one[:, 0], dates) for one, dates in zip(given.values, calendars, strict=True)]
    columns["time"] = [label for one in series for label in one.after(steps)]
    for c, name in enumerate(given.names):
        for level, column in ((0.5, name), *((level, f"{name} {level:g}") for level in levels)):
            columns[column] = np.concatenate([one[:, c, known.index(level)] for one in ahead]).tolist()
    report = Report(as_json)
    if output is not None:
        write_table(output, columns)
        report.print(f"forecasts: {output}")
    elif not as_json:
        put(as_csv(columns))
    about = {"model": type(model).__name__, "horizon": steps, "quantiles": levels}
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


def generate(
    model: Annotated[Path, Argument(help="Model file or folder, or a published xLSTM checkpoint.")],
    prompt: Annotated[str, Option(help="Text, or tokens such as '3 1 4' if there is no tokenizer.json.")],
    max_tokens: Annotated[int, Option(help="Tokens to add, at most.")] = 100,
    temperature: Annotated[float, Option(help="0 takes the likeliest token always.")] = 0.0,
    top_k: Annotated[int | None, Option(help="Draw from so many likeliest tokens.")] = None,
    top_p: Annotated[float | None, Option(help="Draw from the likeliest, so probable together.")] = None,
    seed: Annotated[int, Option(help="Seed of the draws.")] = 0,
    stop: Annotated[int | None, Option(help="Token that ends the text.")] = None,
    as_bytes: Annotated[bool, Option("--bytes", help="Tokens are bytes of UTF-8.")] = False,
    backend: BackendOption = "auto",
    dtype: Annotated[str | None, Option(help="float32 or float64; that of the checkpoint if left out.")] = None,
) -> None:
    """Go on from a prompt with a language model, token by token."""
    printable("generate")
    draws: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    model, kind = find_model("generate", model, foreign=True)
    if kind == TextModel.KIND:
        check_options(model, kind, stop=stop, bytes=as_bytes, dtype=dtype)
        gap, pieces = "", TextModel.load(model, backend).stream(prompt, max_tokens, **draws)
    else:
        network, params = _language_model(model, kind, backend, dtype)
        codec = text.codec(model, as_bytes)
        drawn = network.stream(params, [codec.encode(prompt)], max_tokens, stop=stop, **draws)
        gap, pieces = codec.GAP, text_of_tokens(codec, drawn)
    put(f"{prompt}{gap}")  # as it is: not everything that looks like markup is
    for piece in pieces:
        put(piece)
    put("\n")


def _language_model(file: Path, kind: str, backend: str, dtype: str | None) -> tuple[xLSTMLanguageModel, Params]:
    """Return a language model from a model file, or from a published checkpoint, which has no kind."""
    if not kind:
        from xlstm.interop import nxai

        return nxai.load(file, backend=backend, dtype=dtype)
    model, params = model_files.load(file, backend, dtype)
    if not isinstance(model, xLSTMLanguageModel):
        raise ValueError(f"{file}: holds {model}, expected a language model; xlstm export and inspect take it")
    return model, params


@command()
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
    loaded = load_model("evaluate", model, backend)
    check_options(loaded.file, loaded.kind, dialect, column=column)
    report, estimator = Report(as_json), loaded.estimator
    if isinstance(estimator, TextModel):
        values = of_text(report, estimator, estimator.nats(read_text(data)), str(data))
    elif isinstance(estimator, SequenceClassifier):
        sequences, _, labels = Layout.kept(loaded).read(data, dialect)
        if unknown := sorted({*labels.tolist()} - {*estimator.classes_.tolist()}):
            raise ValueError(f"{data}: label {unknown[0]!r} is not one of those that {loaded.file} knows")
        values = of_labels(report, estimator, sequences, labels)
    else:
        values = of_forecasts(report, estimator, read_series(data, column, usual=estimator.name, dialect=dialect))[1]
    report.finish(kind=loaded.kind, **values)


def of_text(report: Report, model: TextModel, nats: float, what: str) -> dict[str, Any]:
    """Print the mean of -log p of a token of a text, and return it; `what` is the text, in words."""
    perplexity = math.exp(nats) if nats < LARGEST else None
    shown = "" if perplexity is None else f", perplexity {perplexity:.4g}"
    report.print(f"{what}: {nats:.4f} nats a {UNITS[model.codec_kind_]}{shown}")
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
    network, baseline = type(model.model_.recurrent).__name__, f"autoregression of {score.order}"
    names = ("", network, "persistence", baseline, f"{100 * score.interval:.0f} % interval")
    report.print(table(f"test RMSE on the last 20 %, {score.points} forecasts", names, rows))
    methods = ("model", "persistence", "autoregression", "seasonal")
    return score, {
        **{"forecasts": score.points, "order": score.order, "season": score.season, "interval": score.interval},
        "rmse": {name: getattr(score, name).tolist() for name in methods},
        "coverage": score.coverage.tolist(),
    }
