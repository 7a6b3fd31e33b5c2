"""`xlstm inspect`: pictures and numbers of a model, and of its gates and gradients over data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument, Option

from xlstm import plots
from xlstm.arrays import checks
from xlstm.arrays.backend import backend_like
from xlstm.arrays.namespace import Params
from xlstm.cli.console import Report, printable
from xlstm.cli.options import ColumnOption, JsonOption, command
from xlstm.cli.sources import (
    LANGUAGE,
    Loaded,
    SequenceTable,
    load_model,
    panel_of,
    read_text,
)
from xlstm.data import text
from xlstm.data.csv_file import PLAIN, Dialect
from xlstm.data.host import Host
from xlstm.data.table import read_table
from xlstm.estimators import Forecaster, TextModel
from xlstm.estimators.forecaster import windows
from xlstm.plots.networks import MOST

FOLDER = Path("xlstm-inspect")
LETTERS = 32  # of a text, read for each token; a number with its gap has fewer


@command()
def inspect_model(
    model: Annotated[Path, Argument(help="Model file of train, models.save or an estimator.")],
    data: Annotated[
        Path | None, Argument(help="Data to show the model: a series, a text, or a table.")
    ] = None,
    column: ColumnOption = None,
    steps: Annotated[int, Option(help="Time steps of the data to show the model, at most.")] = 200,
    output: Annotated[
        Path | None, Option("--output", "-o", help="By default xlstm-inspect, or none with --json.")
    ] = None,
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
) -> None:
    """Draw the parameters of a model, and over data its gates, states, memory and gradients."""
    printable("inspect")
    checks.whole(3, checks.LARGEST)("inspect", "steps", steps)
    loaded = load_model("inspect", model, "numpy", dialect, column=column)
    x = None if data is None else read(loaded, data, column, steps, dialect)
    if output is None and not as_json:
        output = FOLDER
    report = Report(as_json)
    report.print(f"holds: {loaded.network}")
    # from the input to the output; a file has them in the order of the alphabet
    params = {name: loaded.params[name] for name in loaded.network.shapes}
    size = sum(math.prod(param.shape) for param in params.values())
    report.print(f"parameters: {size} in {len(params)} arrays")
    tables: dict[str, list[Any]] = {"parameters": plots.parameter_table(params)}
    saved = None
    if x is not None:
        saved = loaded.network.forward(params, x, train=False, keep=True)[2]
        for name, numbers in (
            ("saturation", lambda: plots.saturation_table(saved)),
            ("memory", lambda: plots.memory_table(saved)),
            ("gradients", lambda: plots.gradient_norms(loaded.network, params, x)),
        ):
            try:
                tables[name] = numbers()
            except ValueError as error:
                report.print(f"no {error}")
    if output is not None:
        pictures = _pictures(params, saved, tables)
        output.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            for kind in ("png", "svg"):
                plots.save(figure, output / f"{name}.{kind}")
        report.print(f"pictures: {len(pictures)}, as PNG and SVG, in {output}")
    rows = {name: [row._asdict() for row in table] for name, table in tables.items()}
    report.finish(model=str(loaded.network), **rows)


def _pictures(params: Params, saved: Any, tables: dict[str, list[Any]]) -> dict[str, Any]:
    """Return figures by their names: of parameters, of gates, and of the tables over data."""
    pictures = {}
    names = list(params)
    for k in range(0, len(names), MOST):
        page = f"parameters-{k // MOST + 1}" if k else "parameters"
        pictures[page] = plots.parameters({name: params[name] for name in names[k : k + MOST]})
    if saved is None:
        return pictures
    for layer in plots.layers_of(saved):
        pictures[f"gates-{layer}"] = plots.gates(saved, layer)
    if "saturation" in tables:
        pictures["saturation"] = plots.saturation(saved)
    if "memory" in tables:
        pictures["memory"] = plots.memory(saved)
    if "gradients" in tables:
        pictures["gradients"] = plots.gradients(tables["gradients"])
    return pictures


def read(
    loaded: Loaded, data: Path, column: str | None, steps: int, dialect: Dialect = PLAIN
) -> Any:
    """Return the data that a model is shown, at most `steps` steps.

    Raises
    ------
    OSError, ValueError, TypeError
        The file is missing or not readable, or the data do not fit the model.
    """
    estimator = loaded.estimator
    if isinstance(estimator, Forecaster):
        panel = panel_of(loaded, data, column, dialect)
        panel.check_ahead(estimator.horizon)
        with panel.named():
            return windows(estimator, panel)[-steps:]
    if isinstance(estimator, TextModel):
        x = _tokens(estimator.codec_, data, steps)
    elif estimator is not None:
        x = _sequences(loaded, data, steps, dialect)
    elif loaded.kind == LANGUAGE:
        x = _tokens(text.codec(loaded.file), data, steps)
    else:
        x = _table(loaded.network.input_size, data, steps, dialect)
    if len(x) < 3:
        raise ValueError(f"{data}: has {len(x)} steps, expected 3 or more")
    home = backend_like(next(iter(loaded.params.values())))
    return home.asarray(x.swapaxes(0, 1) if loaded.network.batch_first else x)


def _tokens(codec: Any, data: Path, steps: int) -> Host:
    """Return the first tokens of a text, (T, 1)."""
    start = read_text(data)[: LETTERS * steps]
    try:
        return np.array(codec.encode(start)[:steps])[:, None]
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from error


def _sequences(loaded: Loaded, data: Path, steps: int, dialect: Dialect) -> Host:
    """Return the first sequence of a table, as the network sees it, (T, B, D); if each row is a
    sequence, the first rows.
    """
    layout = SequenceTable.of_model(loaded)
    rows = loaded.estimator.prepared(layout.read(data, dialect, labels=False)[0])
    return rows[0][:steps, None] if layout.sequence else np.stack(rows[:steps], axis=1)


def _table(D: int, data: Path, steps: int, dialect: Dialect) -> Host:
    """Return the first rows of a table as one sequence, (T, 1, D)."""
    columns = read_table(data, **vars(dialect))
    rows = columns.values[:steps]
    if rows.shape[1] != D:
        names = checks.few(columns.names)
        raise ValueError(
            f"{data}: has {rows.shape[1]} columns of numbers ({names}), x of the model has D = {D}"
        )
    if not np.all(np.isfinite(rows)):
        raise ValueError(f"{data}: has gaps, expected numbers")
    return rows[:, None]
