"""The style of figures, and their files; only this file imports matplotlib."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xlstm.arrays import checks
from xlstm.core.deferred_signals import held
from xlstm.data import writing

WIDTH = 7.0  # inches, the width of a text page
TITLE = 9
TEXT = 9
SMALL = 8  # font sizes
DPI = 150
# The lightness of heat maps grows with the value, so they can be printed in grey.
COLOURS = "viridis"
DARK = "#31507a"
LIGHT = "#e3b23c"


# Styles of lines: no two have the same lightness, dashes or markers.
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#111a33", "linestyle": "-", "marker": "o"},
    {"color": "#8c2d2d", "linestyle": "--", "marker": "s"},
    {"color": "#2f7fb8", "linestyle": "-.", "marker": "^"},
    {"color": "#d5812d", "linestyle": ":", "marker": "D"},
    {"color": "#8fc7a8", "linestyle": (0, (6, 2, 1, 2, 1, 2)), "marker": "v"},
    {"color": "#e6d98a", "linestyle": (0, (10, 3)), "marker": "P"},
)


def line(k: int, every: int = 1) -> dict[str, Any]:
    """Return the style of line k, with a marker at every `every`-th point; styles repeat after the
    last.
    """
    look = {"markevery": max(1, every), "markersize": 4, "linewidth": 1.4}
    return look | LINES[k % len(LINES)]


def available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require(where: object) -> None:
    """Import matplotlib; raise ImportError if it is not installed."""
    if not available():
        raise ImportError(f"{where}: matplotlib is not installed; pip install matplotlib")
    with held():  # a signal during the import of its C++ modules would abort Python at exit
        for module in ("figure", "backends.backend_agg"):
            importlib.import_module(f"matplotlib.{module}")


def check(path: Path) -> None:
    """Raise an error unless a picture can be written to a path.

    It is an ImportError, or a ValueError or OSError about the path.
    """
    require(path)
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise ValueError(
            f"{path}: ends in {path.suffix!r}, expected one of .{', .'.join(sorted(formats))}"
        )
    writing.check(path)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, completely or not at all; equal figures give equal bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : path
        The file. Its suffix decides the format: .png, .svg, .pdf, or another that matplotlib knows.

    Raises
    ------
    ValueError, TypeError
        The suffix is unknown, or `figure` is not a figure.
    OSError
        The file cannot be written.
    """
    checks.having("savefig", expected="a figure of matplotlib")("save", "figure", figure)
    target = checks.path("save", "path", path)
    check(target)
    import matplotlib

    kind = target.suffix.removeprefix(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with writing.whole(target) as temporary, matplotlib.rc_context({"svg.hashsalt": "xlstm"}):
        figure.savefig(temporary, dpi=DPI, format=kind, metadata=dates.get(kind))


def panels(
    count: int, columns: int, height: float, x: str = "", interactive: bool = False, **options: Any
) -> tuple[Any, list[Any]]:
    """Return a new figure as wide as a text page, and its axes, row by row.

    Parameters
    ----------
    count : int
        The number of axes.
    columns : int
        The most axes in a row.
    height : float
        The height of a row in inches.
    x : str
        The label below the lowest axes of each column.
    interactive : bool
        Whether to make a figure of pyplot, which notebooks and `pyplot.show` show.
    options : dict
        Options of matplotlib's `subplots`.
    """
    require("plots")
    from matplotlib.figure import Figure  # no screen, no global state

    new: Any = Figure
    if interactive:
        from matplotlib import pyplot

        new = pyplot.figure
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new(figsize=(WIDTH, max(height * rows, 1.5)), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in grid[count:]:
        axes.remove()
    for k, axes in enumerate(grid[:count]):
        axes.tick_params(which="both", labelsize=SMALL)
        if k + columns >= count:  # the lowest axes of the column, even with shared axes
            axes.tick_params(labelbottom=True)
            label(axes, x=x)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid[:count]


def label(axes: Any, title: str = "", x: str = "", y: str = "", size: int = TITLE) -> None:
    """Label a panel; names are shown literally, even with special characters."""
    axes.set_title(title, loc="left", fontsize=size, parse_math=False)
    axes.set_xlabel(x or axes.get_xlabel(), fontsize=TEXT, parse_math=False)
    axes.set_ylabel(y, fontsize=TEXT, parse_math=False)


def legend(target: Any, axes: Any = None, **options: Any) -> None:
    """Add a legend to axes, or to a figure for the lines of `axes`."""
    handles, names = (target if axes is None else axes).get_legend_handles_labels()
    for text in target.legend(handles, names, frameon=False, fontsize=SMALL, **options).get_texts():
        text.set_parse_math(False)


def dates(axes: Any, time: Any) -> None:
    """Give date ticks short labels that do not overlap, if `time` holds dates."""
    if time.dtype.kind == "M":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=4, maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.xaxis.get_offset_text().set_fontsize(SMALL)


def tint(colour: str, share: float) -> Any:
    """Return a colour mixed with white; `share` is the colour's share."""
    from matplotlib.colors import to_rgb

    return tuple(1 - share * (1 - part) for part in to_rgb(colour))


def heat_map(axes: Any, values: Any, text: str = "", **look: Any) -> None:
    """Draw an array as colours, with a labelled colour bar."""
    image = axes.imshow(values, cmap=COLOURS, **look)
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label(text, fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)


def whole_numbers(*axes: Any) -> None:
    """Put ticks only at whole numbers, along each given axis."""
    for axis in axes:
        axis.get_major_locator().set_params(integer=True)


def tick_names(axis: Any, names: Iterable[str], **options: Any) -> None:
    """Put names at 0, 1, 2, ... along an axis."""
    named = list(names)
    axis.set_ticks(range(len(named)), named, fontsize=SMALL, parse_math=False, **options)
