"""`xlstm inspect`: pictures and numbers of a model, and of its gates and gradients over data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from xlstm import plots
from xlstm.arrays import checks
from xlstm.arrays.backend import backend_like
from xlstm.arrays.namespace import Params
from xlstm.cli import kinds, labelled
from xlstm.cli.console import Report, accounted, out, printable
from xlstm.cli.forecasting import dated, dates_of
from xlstm.cli.options import check_no_table, reads_tables
from xlstm.data import text, writing
from xlstm.data.series import read_series
from xlstm.data.table import PLAIN, Dialect, read_table
from xlstm.estimators import Forecaster, SequenceClassifier, SequenceRegressor, TextModel
from xlstm.models import model_files
from xlstm.models.language import xLSTMLanguageModel
from xlstm.plots.activity import HIGH, LOW
from xlstm.plots.networks import MOST

FOLDER = Path("xlstm-inspect")
LETTERS = 32  # of a text that are read for a token; a number with its gap has fewer
SEQUENCES = {each.KIND: each for each in (SequenceClassifier, SequenceRegressor)}


class Seen(NamedTuple):
    """A network, its parameters, and what it is shown of the data, time first, or None without data."""

    network: Any
    params: Params
    x: Any


class Found(NamedTuple):
    """Rows of numbers and figures by their headings, and the reasons why some are missing."""

    tables: dict[str, list[Any]]
    pictures: dict[str, Any]
    notes: list[str]


@reads_tables
def inspect(
    model: Annotated[Path, typer.Argument(help="Model file of train, models.save or an estimator.")],
    data: Annotated[
        Path | None, typer.Argument(help="Series (CSV) of a forecaster, text of a language model, or table.")
    ] = None,
    history: Annotated[Path | None, typer.Option(help="Folder of a run, or its history.jsonl, for its curves.")] = None,
    column: Annotated[str | None, typer.Option("--column", help="Column of the series of a forecaster.")] = None,
    steps: Annotated[int, typer.Option(help="Time steps of the data that the model is shown, at most.")] = 200,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for PNG and SVG; xlstm-inspect, or none with --json."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON.")] = False,
    *,
    dialect: Dialect,
) -> None:
    """Draw the parameters of a model and, over data, its gates, states, memory and gradients."""
    printable("inspect")
    checks.whole(3, checks.LARGEST)("inspect", "steps", steps)
    seen = read(model, data, column, steps, dialect)
    folder = FOLDER if output is None and not as_json else output
    found = look(seen, history, draw=folder is not None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{_file(name)}.{kind}" for name in found.pictures for kind in ("png", "svg")]
        for path in paths:
            writing.check(path)
        with accounted(paths):
            for name, figure in found.pictures.items():
                for kind in ("png", "svg"):
                    plots.save(figure, folder / f"{_file(name)}.{kind}")
    if as_json:
        rows = {name: [_plain(row._asdict()) for row in table] for name, table in found.tables.items()}
        out.print(json.dumps({"model": str(seen.network), **rows}, allow_nan=False))
        return
    report = Report()
    report.print(f"holds: {seen.network}")
    for line in (*_lines(found.tables), *found.notes):
        report.print(line)
    report.print(f"wrote: {len(found.pictures)} pictures as PNG and SVG to {folder}" if folder else "")
    report.finish()


def read(model: Path, data: Path | None, column: str | None, steps: int, dialect: Dialect = PLAIN) -> Seen:
    """Read a model file, and what the model is shown of the data: at most `steps` steps.

    Raises
    ------
    OSError, ValueError, TypeError
        A file is missing or not readable, or the data do not fit the model.
    """
    model, kind = kinds.find("inspect", model)
    if column is not None and kind != Forecaster.KIND:
        raise ValueError(f"{model}: --column is for a forecaster, this is a {kind}")
    if kind == Forecaster.KIND:
        made = Forecaster.load(model, "numpy")
        return Seen(made.model_, made.params_, None if data is None else _windows(made, data, column, steps, dialect))
    if kind == TextModel.KIND:
        check_no_table(model, kind, dialect)
        writer = TextModel.load(model, "numpy")
        return Seen(writer.model_, writer.params_, None if data is None else _tokens(writer.codec_, data, steps))
    if kind in SEQUENCES:
        reader = SEQUENCES[kind].load(model, "numpy")
        x = None if data is None else _sequences(model, reader, data, steps, dialect)
        return Seen(reader.model_, reader.params_, x)
    network, params = model_files.load(model, "numpy")
    if data is None:
        return Seen(network, params, None)
    if isinstance(network, xLSTMLanguageModel):
        check_no_table(model, "language model", dialect)
        tokens = _tokens(text.codec(model), data, steps)
        return Seen(network, params, tokens if network.batch_first else tokens.T)
    return Seen(network, params, _table(network, params, data, steps, dialect))


def look(seen: Seen, history: Path | None = None, draw: bool = True) -> Found:
    """Compute the numbers of a model and, if asked, draw them.

    Raises
    ------
    OSError, ValueError, TypeError
        The history cannot be read, or there are too few steps.
    """
    names = list(seen.network.shapes)  # from the input to the output; a file has them in the order of the alphabet
    found = Found({"parameters": plots.parameter_table({name: seen.params[name] for name in names})}, {}, [])
    if draw:
        for k in range(0, len(names), MOST):
            some = {name: seen.params[name] for name in names[k : k + MOST]}
            found.pictures[f"parameters {k // MOST + 1}" if k else "parameters"] = plots.parameters(some)
    if seen.x is not None:
        _, _, saved = seen.network.forward(seen.params, seen.x, train=False, keep=True)
        if draw:
            for layer in plots.layers_of(saved):
                found.pictures[f"gates of {layer}"] = plots.gates(saved, layer)
        _add(found, "saturation", lambda: plots.saturation_table(saved), lambda: plots.saturation(saved), draw)
        _add(found, "memory", lambda: plots.memory_table(saved), lambda: plots.memory(saved), draw)
        norms = plots.gradient_norms(seen.network, seen.params, seen.x)
        _add(found, "gradients", lambda: norms, lambda: plots.gradients(norms), draw)
    if history is not None:
        plots.course(history)
        if draw:
            found.pictures["training"] = plots.curves(history)
    return found


def _add(found: Found, name: str, table: Callable[[], list[Any]], figure: Callable[[], Any], draw: bool) -> None:
    """Add numbers and their figure, or the reason why a model has none."""
    try:
        found.tables[name] = table()
    except ValueError as error:
        found.notes.append(f"no {error}")
        return
    if draw:
        found.pictures[name] = figure()


def _windows(made: Forecaster, data: Path, column: str | None, steps: int, dialect: Dialect) -> Any:
    """Return the last windows of a series, as the network sees them."""
    series = read_series(data, column, usual=made.name, **vars(dialect))
    with dated(series):
        return made.windows(series.values, dates=dates_of(series) if made.calendar_ else None)[-steps:]


def _tokens(codec: Any, data: Path, steps: int) -> Any:
    """Return the first tokens of a text, (1, T)."""
    try:
        with data.open(encoding="utf-8") as file:
            found = codec.encode(file.read(LETTERS * steps))[:steps]
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from error
    if len(found) < 3:
        raise ValueError(f"{data}: has {len(found)} tokens, expected 3 or more")
    return np.array(found)[None]


def _sequences(
    model: Path, made: SequenceClassifier | SequenceRegressor, data: Path, steps: int, dialect: Dialect
) -> Any:
    """Return the first sequence of a table, or its first rows where each is a sequence, as the network sees them."""
    if {"features", "label"} <= made.note_.keys():
        X = labelled.read(data, labelled.Layout.kept(model, made.note_), dialect, labels=False).sequences
    else:
        values = read_table(data, **vars(dialect)).values
        X = values if made.table_ else [values]
    try:
        rows = made.prepared(X)
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from error
    x = np.stack(rows[:steps], axis=1) if made.table_ else rows[0][:steps, None]  # (T, B, D)
    if len(x) < 3:
        raise ValueError(f"{data}: a sequence has {len(x)} steps, expected 3 or more")
    return backend_like(next(iter(made.params_.values()))).asarray(x)


def _table(network: Any, params: Params, data: Path, steps: int, dialect: Dialect) -> Any:
    """Return the first rows of a table as one sequence."""
    columns = read_table(data, **vars(dialect))
    rows, D = columns.values[:steps], network.input_size
    if rows.shape[1] != D:
        names = checks.few(columns.names)
        raise ValueError(f"{data}: has {rows.shape[1]} columns of numbers ({names}), x of the model has D = {D}")
    if len(rows) < 3 or not np.all(np.isfinite(rows)):
        problem = f"has {len(rows)} rows, expected 3 or more" if len(rows) < 3 else "has gaps, expected numbers"
        raise ValueError(f"{data}: {problem}")
    x = rows[None] if network.batch_first else rows[:, None]
    return backend_like(next(iter(params.values()))).asarray(x)


def _lines(tables: dict[str, list[Any]]) -> list[str]:
    """Return what the numbers say in a few lines."""
    parameters = tables["parameters"]
    count = sum(math.prod(row.shape) for row in parameters)
    found = [f"parameters: {count} in {len(parameters)} arrays"]
    found += [
        f"saturation: {row.layer} gate {row.gate}, {100 * row.below:.1f} % below {LOW}, "
        f"{100 * row.above:.1f} % above {HIGH}"
        for row in tables.get("saturation", [])
    ]
    layers: dict[str, list[float]] = {}
    for row in tables.get("memory", []):
        layers.setdefault(row.layer, []).append(math.inf if row.steps is None else row.steps)
    found += [f"memory: {layer}, median time constant {np.median(s):.3g} steps" for layer, s in layers.items()]
    found += [
        f"gradient of {row.of}{f', layer {row.layer}' if row.layer else ''}: times {row.factor:.3g} a step back"
        for row in tables.get("gradients", [])
    ]
    return found


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, with None for numbers that it has not."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _file(name: str) -> str:
    return name.replace(" of ", "-").replace(" ", "-")
