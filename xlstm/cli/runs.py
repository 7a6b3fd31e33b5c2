"""`xlstm runs`: runs of training compared, by their histories and options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from xlstm import plots
from xlstm.cli.console import message_of, out, printable, tell, to_json, uncut
from xlstm.cli.folders import OPTIONS
from xlstm.cli.options import JsonOption, from_toml
from xlstm.data import reading
from xlstm.plots import figures
from xlstm.training import folder

# Of a checkpoint, where a run has no options.
SETTINGS = ("model", "dtype", "precision", "accumulate", "seed", "optimizer", "loss function", "callbacks")

SHOWN = ("output", "sample")  # options that decide nothing of how a run goes


@dataclass(frozen=True)
class Row:
    """A run.

    Attributes
    ----------
    run : str
        Its folder.
    steps : int
    epoch : int or None
    loss : float or None
        That of the last step.
    best : float or None
        The lowest validation loss.
    best_epoch : int or None
    seconds : float or None
    settings : dict
    """

    run: str
    steps: int
    epoch: int | None
    loss: float | None
    best: float | None
    best_epoch: int | None
    seconds: float | None
    settings: dict[str, Any]


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or folders that hold some; this one if left out.")
    ] = None,
    as_json: JsonOption = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Picture of curves to draw; needs matplotlib.")] = None,
) -> None:
    """Compare runs of training: steps, losses, time, and the settings in which they differ."""
    printable("runs")
    if plot is not None:
        figures.check(plot)
    found = [row for path in find(folders or [Path()]) if (row := _read(path)) is not None]
    if not found:
        raise ValueError("runs: none of the runs has a readable history with a step")
    if plot is not None:
        plots.save(plots.curves({row.run: Path(row.run) for row in found}), plot)
    if as_json:
        typer.echo(to_json([asdict(row) for row in found]))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", no_wrap=True)
    differing = differences(found)
    for name in ("steps", "epoch", "loss", "best validation", "at epoch", "seconds", *differing):
        table.add_column(name, justify="right")
    for row in sorted(found, key=lambda row: (row.best is None, row.best)):
        numbers = (row.steps, row.epoch, row.loss, row.best, row.best_epoch, row.seconds and round(row.seconds, 1))
        table.add_row(row.run, *map(_cell, (*numbers, *(row.settings.get(name) for name in differing))))
    out.print(uncut(table))


def find(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of runs among and below some folders; raises where there is none.

    Raises
    ------
    OSError
        There is no such folder.
    ValueError
        One holds no run.
    """
    found: dict[Path, None] = {}
    for path in folders:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder")
        inside = sorted(one.parent for one in path.rglob(folder.HISTORY))
        if not inside:
            raise ValueError(f"{path}: holds no run, which has a file {folder.HISTORY}")
        found.update(dict.fromkeys(inside))
    return list(found)


def differences(found: Sequence[Row]) -> list[str]:
    """Return the names of settings that all runs have, and that are not the same in all of them."""
    names = [name for name in found[0].settings if all(name in row.settings for row in found)]
    return [name for name in names if len({repr(row.settings.get(name)) for row in found}) > 1]


def _read(path: Path) -> Row | None:
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
    best = min(judged, key=lambda line: line["validation"], default={})
    loss = next((line["loss"] for line in reversed(lines) if "loss" in line), None)
    last = lines[-1]
    return Row(
        str(path),
        last["total"],
        last.get("epoch", 0),
        loss,
        best.get("validation"),
        best.get("epoch"),
        last.get("seconds", 0.0),
        settings,
    )


def _settings(path: Path) -> dict[str, Any]:
    """Return the options of a run of the command line, or what its newest checkpoint says."""
    if (options := reading.regular(path / OPTIONS)).exists():
        text = json.dumps(from_toml(options), default=str)
        return {k: v for k, v in reading.from_json(str(options), text, unlimited=True).items() if k not in SHOWN}
    if not folder.Folder(path, 1).checkpoints():
        return {}
    about = folder.find(path).about
    return {name: about[name] for name in SETTINGS if name in about}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
