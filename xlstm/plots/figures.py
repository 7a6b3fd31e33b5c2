"""Figures: their style, and files of them. Nothing else imports matplotlib."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xlstm.arrays import checks
from xlstm.data import writing

WIDTH = 7.0  # inches, the width of a page of text
TITLE, TEXT, SMALL = 9, 9, 8  # sizes of type
DPI = 150
COLOURS = "viridis"  # of heat maps: its lightness grows with the value, so that it can be printed in grey
DARK, LIGHT = "#31507a", "#e3b23c"


class Line(NamedTuple):
    """A look of a line; no two of them are alike in lightness and in dashes."""

    color: str
    linestyle: Any
    marker: str


LINES = (
    Line("#111a33", "-", "o"),
    Line("#8c2d2d", "--", "s"),
    Line("#2f7fb8", "-.", "^"),
    Line("#d5812d", ":", "D"),
    Line("#8fc7a8", (0, (6, 2, 1, 2, 1, 2)), "v"),
    Line("#e6d98a", (0, (10, 3)), "P"),
)


def line(k: int) -> Line:
    """Return the look of the k-th line; after the last one they begin again."""
    return LINES[k % len(LINES)]


def available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check(path: Path) -> None:
    """Raise unless a picture can be written to a path: ImportError, or ValueError or OSError about the path."""
    if not available():
        raise ImportError(f"{path}: matplotlib is not installed; pip install matplotlib")
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise ValueError(f"{path}: ends in {path.suffix!r}, expected one of .{', .'.join(sorted(formats))}")
    writing.check(path)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, whole or not at all; equal figures give equal bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : path
        Its ending decides the format: .png, .svg, .pdf, or another one that matplotlib knows.

    Raises
    ------
    ValueError, TypeError
        The ending is unknown, or `figure` is no figure.
    OSError
        The file cannot be written.
    """
    checks.having("savefig", expected="a figure of matplotlib")("save", "figure", figure)
    target = checks.path("save", "path", path)
    check(target)
    with writing.whole(target) as temporary:
        _draw(figure, temporary, target.suffix.removeprefix("."))


def svg(figure: Any) -> bytes:
    """Return a figure as SVG."""
    stream = io.BytesIO()
    _draw(figure, stream, "svg")
    return stream.getvalue()


def _draw(figure: Any, target: Any, kind: str) -> None:
    import matplotlib

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "xlstm"}):
        figure.savefig(target, dpi=DPI, format=kind, metadata=dates.get(kind))


def panels(count: int, columns: int, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """Return a new figure as wide as a page, and its axes, row by row.

    Parameters
    ----------
    count : int
        Axes.
    columns : int
        The most axes in a row.
    height : float
        Inches of a row.
    options : dict
        Options of matplotlib's `subplots`.
    """
    if not available():
        raise ImportError("plots: matplotlib is not installed; pip install matplotlib")
    from matplotlib.figure import Figure  # no pyplot: no screen, no global state

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, max(height * rows, 1.5)), layout="constrained")
    found = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in found[count:]:
        axes.remove()
    for k, axes in enumerate(found[:count]):
        axes.tick_params(which="both", labelsize=SMALL)
        if k + columns >= count:  # the lowest one of its column, whatever axes are shared
            axes.tick_params(labelbottom=True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found[:count]


def label(axes: Any, title: str = "", x: str = "", y: str = "", size: int = TITLE) -> None:
    """Label a panel; names are shown as they are, whatever letters they have."""
    axes.set_title(title, loc="left", fontsize=size, parse_math=False)
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)


def legend(target: Any, axes: Any = None, **options: Any) -> None:
    """Add a legend to a figure, of the lines of `axes`, or to axes, if there is anything to explain."""
    handles, names = (target if axes is None else axes).get_legend_handles_labels()
    if not handles:
        return
    made = target.legend(handles, names, frameon=False, fontsize=SMALL, **options)
    for text in made.get_texts():
        text.set_parse_math(False)


def named(name: str) -> str:
    """Return a name for a legend, which leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def whole_numbers(*axes: Any) -> None:
    """Put ticks at whole numbers only, along each axis given."""
    for one in axes:
        one.get_major_locator().set_params(integer=True)


def tick_names(axis: Any, names: Iterable[str], **options: Any) -> None:
    """Put a name at 0, 1, 2, ... of an axis."""
    listed: Sequence[str] = list(names)
    axis.set_ticks(range(len(listed)), listed, fontsize=SMALL, parse_math=False, **options)
