"""`xlstm runs`: runs of training compared, by their histories and options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from xlstm import plots
from xlstm.cli.configuration import JsonOption, from_toml
from xlstm.cli.console import OPEN, message_of, out, printable, table, tell, to_json
from xlstm.cli.train import OPTIONS
from xlstm.data import reading
from xlstm.plots import figures
from xlstm.training import folder

# These are read from a checkpoint, where a run has no options.
SETTINGS = ("model", "dtype", "precision", "accumulate", "seed", "optimizer", "loss function", "callbacks")
SHOWN = ("output", "sample")  # options that decide nothing of how a run goes
NUMBERS = ("steps", "epoch", "loss", "best", "best_epoch", "seconds")  # of a run, in the table


def runs(
    folders: Annotated[list[Path] | None, Argument(help="Folders of runs or above them; by default this one.")] = None,
    as_json: JsonOption = False,
    plot: Annotated[Path | None, Option("--plot", help="Picture of curves to draw; needs matplotlib.")] = None,
) -> None:
    """Compare runs of training: steps, losses, time, and the settings in which they differ."""
    printable("runs")
    if plot is not None:
        figures.check(plot)
    rows = [row for path in dict.fromkeys(_find(folders or [Path()])) if (row := _read(path))]
    if not rows:
        raise ValueError("runs: none of the runs has a readable history with a step")
    if plot is not None:
        plots.save(plots.curves({row["run"]: Path(row["run"]) for row in rows}), plot)
    if as_json:
        typer.echo(to_json(rows))
        return
    settings = [row["settings"] for row in rows]
    common = [name for name in settings[0] if all(name in some for some in settings)]
    differing = [name for name in common if len({repr(some[name]) for some in settings}) > 1]
    cells = []
    for row in sorted(rows, key=lambda row: (row["best"] is None, row["best"])):
        values = [*(row[key] for key in NUMBERS), *(row["settings"][name] for name in differing)]
        cells.append((row["run"], *map(_cell, values)))
    out.print(table(None, ("run", *NUMBERS, *differing), cells, **OPEN))


def _find(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders of runs among and below some folders; OSError or ValueError where there is none."""
    for path in folders:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder")
        inside = sorted(one.parent for one in path.rglob(folder.HISTORY))
        if not inside:
            raise ValueError(f"{path}: holds no run, which has a file {folder.HISTORY}")
        yield from inside


def _read(path: Path) -> dict[str, Any] | None:
    """Return a run, or None, after a word about it, where its history cannot be read or is empty."""
    try:
        lines, settings = folder.read_history(path / folder.HISTORY), _settings(path)
    except (OSError, ValueError) as error:
        tell(f"note: {message_of(error)}")
        return None
    if not lines:
        tell(f"note: {path}: the history has no step yet")
        return None
    judged = [line for line in lines if line.get("validation") is not None]
    best, last = min(judged, key=lambda line: line["validation"], default={}), lines[-1]
    return {
        **{"run": str(path), "steps": last["total"], "epoch": last.get("epoch", 0)},
        "loss": next((line["loss"] for line in reversed(lines) if "loss" in line), None),
        **{"best": best.get("validation"), "best_epoch": best.get("epoch"), "seconds": last.get("seconds", 0.0)},
        "settings": settings,
    }


def _settings(path: Path) -> dict[str, Any]:
    """Return the options of a run of the command line, or what its newest checkpoint says."""
    if (options := reading.regular(path / OPTIONS)).exists():
        text = json.dumps(from_toml(options), default=str)
        return {k: v for k, v in reading.from_json(str(options), text, unlimited=True).items() if k not in SHOWN}
    newest = folder.Folder(path, 1).newest()
    about = {} if newest is None else newest.about
    return {name: about[name] for name in SETTINGS if name in about}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
