"""The course of training: losses, validation losses and norms of gradients, of one run or of several."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.plots import figures
from xlstm.training import folder
from xlstm.training.run import Trained

Host = np.ndarray[Any, Any]
MOST = 2000  # points of a line that are drawn


class Course(NamedTuple):
    """The finite numbers of a run, each with the batches that were done: arrays (n, 2) of batches and values."""

    loss: Host
    validation: Host
    norm: Host


def course(run: Any, where: str = "course") -> Course:
    """Return losses, validation losses and norms of gradients of a run.

    Parameters
    ----------
    run : path, Trained, or list of dict
        The folder of a run, its history.jsonl, the result of `training.train`, or the lines of a history.
    where : str
        The caller, for errors.

    Returns
    -------
    Course
        A `Trained` has no norms.

    Raises
    ------
    OSError, ValueError, TypeError
        There is no such file, it is no history, or no line of it has a loss.
    """
    if isinstance(run, Trained):
        every = len(run.losses) / max(1, len(run.validations))
        lines = [{"total": k, "loss": loss} for k, loss in enumerate(run.losses, 1)]
        lines += [{"total": round(k * every), "validation": v} for k, v in enumerate(run.validations, 1)]
        name = "the run"
    elif isinstance(run, str | os.PathLike):
        path = Path(run)
        path = path / folder.HISTORY if path.is_dir() else path
        lines, name = folder.read_history(path), str(path)
    else:
        lines, name = checks.several(where, "run", run, "a path, a Trained, or the lines of a history", 2**28), "run"
        if not all(isinstance(line, Mapping) and "total" in line for line in lines):
            raise TypeError(f"{where}: run is {checks.shown(run)}, expected lines of a history, each with a total")
    found = Course(*(_column(lines, key) for key in Course._fields))
    if len(found.loss) == 0:
        raise ValueError(f"{where}: {name} has no losses, expected the history of a run that made a step")
    return found


def curves(runs: Any, window: int | None = None) -> Any:
    """Draw the losses, validation losses and norms of gradients of one run, or of several over each other.

    Losses and norms are drawn as they are in a pale shade, and as the mean of the batches around each one.

    Parameters
    ----------
    runs : path, Trained, list of dict, or dict of str to these
        As for `course`; a dict has the names of several runs.
    window : int, optional
        The number of batches of a mean; by default a twentieth of the run. With 1 nothing is smoothed.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    OSError, ValueError, TypeError
        As `course` does.
    """
    window = checks.optional(checks.size)("curves", "window", window)
    several = isinstance(runs, Mapping)
    found = {str(name): course(run, "curves") for name, run in (runs if several else {"": runs}).items()}
    if not found:
        raise ValueError("curves: runs is empty, expected one run or more")
    titles = {"loss": "training loss", "validation": "validation loss", "norm": "norm of the gradient"}
    kinds = [kind for kind in titles if any(len(getattr(one, kind)) for one in found.values())]
    figure, panels = figures.panels(len(kinds), 1, 1.9, sharex=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for k, (name, one) in enumerate(found.items()):
            _draw(axes, kind, getattr(one, kind), window, figures.line(k), figures.named(name) if several else "")
        if kind == "norm":
            axes.set_yscale("log")
        figures.label(axes, x="batches" if kind == kinds[-1] else "", y=titles[kind])
    if several:
        figures.legend(figure, panels[0], loc="outside upper left", ncols=3)
    return figure


def smoothed(values: Host, window: int) -> Host:
    """Return the mean of the values around each one, at most `window` of them and fewer at the ends (n,)."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    at, half = np.arange(len(values)), window // 2
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))  # the same on both sides
    found: Host = (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
    return found


def _draw(axes: Any, kind: str, points: Host, window: int | None, look: figures.Line, name: str) -> None:
    if len(points) == 0:
        return
    at, values = points.T
    few = slice(None, None, max(1, len(at) // MOST))
    if kind == "validation":
        axes.plot(at, values, label=name, markersize=4, linewidth=1.2, **look._asdict())
        return
    size = max(1, len(at) // 20) if window is None else window
    if size > 1:
        axes.plot(at[few], values[few], color=look.color, alpha=0.25, linewidth=0.7)
        values = smoothed(values, size)
    axes.plot(at[few], values[few], label=name, color=look.color, linestyle=look.linestyle, linewidth=1.4)


def _column(lines: Iterable[Mapping[str, Any]], key: str) -> Host:
    """Return the batches and the finite values of lines that have a value (n, 2)."""
    rows = [(line["total"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return np.array([row for row in rows if math.isfinite(row[1])], dtype=np.float64).reshape(-1, 2)
