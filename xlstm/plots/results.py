"""Results: the course of training, labels that are confused, forecasts and their errors, and times of backends."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values
from xlstm.data.series import Series
from xlstm.plots import figures
from xlstm.training import folder
from xlstm.training.run import Trained

Host = np.ndarray[Any, Any]
POINTS = 2000  # of a line that are drawn
WRITTEN = 12  # labels, up to which counts are written into the matrix
LABELS = 200
TRUTH, FORECAST = "0.45", "tab:red"


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
    result = Course(*(_column(lines, key) for key in Course._fields))
    if len(result.loss) == 0:
        raise ValueError(f"{where}: {name} has no losses, expected the history of a run that made a step")
    return result


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
    courses = {str(name): course(run, "curves") for name, run in (runs if several else {"": runs}).items()}
    if not courses:
        raise ValueError("curves: runs is empty, expected one run or more")
    titles = {"loss": "training loss", "validation": "validation loss", "norm": "norm of the gradient"}
    kinds = [kind for kind in titles if any(len(getattr(one, kind)) for one in courses.values())]
    figure, panels = figures.panels(len(kinds), 1, 1.9, sharex=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for k, (name, one) in enumerate(courses.items()):
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
    means: Host = (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
    return means


def _draw(axes: Any, kind: str, points: Host, window: int | None, look: dict[str, Any], name: str) -> None:
    if len(points) == 0:
        return
    at, values = points.T
    few = slice(None, None, max(1, len(at) // POINTS))
    if kind == "validation":
        axes.plot(at, values, label=name, markersize=4, linewidth=1.2, **look)
        return
    size = max(1, len(at) // 20) if window is None else window
    if size > 1:
        axes.plot(at[few], values[few], color=look["color"], alpha=0.25, linewidth=0.7)
        values = smoothed(values, size)
    axes.plot(at[few], values[few], label=name, color=look["color"], linestyle=look["linestyle"], linewidth=1.4)


def _column(lines: Iterable[Mapping[str, Any]], key: str) -> Host:
    """Return the batches and the finite values of lines that have a value (n, 2)."""
    rows = [(line["total"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return np.array([row for row in rows if math.isfinite(row[1])], dtype=np.float64).reshape(-1, 2)


def confusion_counts(truth: Any, predicted: Any, labels: Sequence[Any] | None = None) -> tuple[list[Any], Host]:
    """Count how often each label is taken for each.

    Parameters
    ----------
    truth, predicted : array (N,)
        Labels: whole numbers or text.
    labels : list, optional
        The labels in their order; by default all that occur, sorted.

    Returns
    -------
    labels : list
    counts : array (C, C)
        A row for each true label, and a column for each predicted one.

    Raises
    ------
    ValueError, TypeError
        The arrays differ in length, are empty, or have a label that is not listed.
    """
    arrays = [
        checks.host("confusion", name, given, "labels (N,)")
        for name, given in (("truth", truth), ("predicted", predicted))
    ]
    if arrays[0].ndim != 1 or arrays[0].shape != arrays[1].shape or arrays[0].size == 0:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise ValueError(f"confusion: truth and predicted have shapes {shapes}, expected (N,) twice")
    columns = [array.tolist() for array in arrays]
    try:
        known = sorted({*columns[0], *columns[1]}) if labels is None else list(labels)
    except TypeError:
        raise TypeError("confusion: labels are of several types, expected numbers or text") from None
    if len(known) > LABELS or len(set(known)) < len(known):
        raise ValueError(f"confusion: labels are {checks.few(map(str, known))}, expected at most {LABELS}, each once")
    listed = set(known)
    for name, column in zip(("truth", "predicted"), columns, strict=True):
        if unknown := [label for label in column if label not in listed]:
            shown = checks.few(map(str, known))
            raise ValueError(f"confusion: {name} has the label {checks.shown(unknown[0])}, expected one of {shown}")
    return known, counted(columns[0], columns[1], known)


def confusion(truth: Any, predicted: Any, labels: Sequence[Any] | None = None) -> Any:
    """Draw a confusion matrix: counts, and shares of each row.

    Parameters
    ----------
    truth, predicted : array (N,)
    labels : list, optional
        As for `confusion_counts`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        As `confusion_counts` does.
    """
    known, counts = confusion_counts(truth, predicted, labels)
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.maximum(totals, 1)
    C, names = len(known), [str(label) for label in known]
    height = min(figures.WIDTH, 2.2 + 0.45 * C)
    figure, (axes,) = figures.panels(1, 1, height)
    figure.set_size_inches(min(figures.WIDTH, height + 1 + 0.06 * max(map(len, names))), height)
    image = axes.imshow(shares, cmap=figures.COLOURS, vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("share of the true label (%)", fontsize=figures.TEXT)
    bar.ax.tick_params(labelsize=figures.SMALL)
    if C <= WRITTEN:
        for row, column in np.ndindex(C, C):
            colour = "black" if shares[row, column] > 55 else "white"
            text = f"{counts[row, column]}\n{shares[row, column]:.0f} %"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=figures.SMALL)
    if C <= 40:
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
        figures.tick_names(axes.xaxis, names, **slanted)
        figures.tick_names(axes.yaxis, names)
    axes.spines[:].set_visible(False)
    figures.label(axes, f"{int(np.trace(counts))} of {int(counts.sum())} right", "predicted label", "true label")
    return figure


def counted(truth: Sequence[Any], predicted: Sequence[Any], labels: Sequence[Any]) -> Host:
    """Return how often each of the labels (rows) is taken for each (columns), (C, C); all of them are known."""
    place = {label: k for k, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, ([place[label] for label in truth], [place[label] for label in predicted]), 1)
    return counts


class Fan(NamedTuple):
    """Quantiles (H, Q) of what comes after the end of a series, and their levels."""

    quantiles: Values
    levels: Sequence[float]


def forecast(series: Series, at: np.ndarray[Any, Any], forecasts: Values, ahead: Fan | None = None) -> Any:
    """Draw one-step forecasts over the test part against the truth, and what comes after the end of the series.

    Parameters
    ----------
    series : Series
    at : integer array (N,)
        Positions of the values that are forecast.
    forecasts : array (N,)
        The forecasts, in the series' own units.
    ahead : Fan, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    time = at if series.calendar is None else series.index[at]
    is_fan = ahead is not None and len(ahead.levels) > 1
    figure, (whole, late, *last) = figures.panels(3 if is_fan else 2, 1, 2.2)
    zoom = slice(max(0, len(at) - max(24, len(at) // 5)), None)
    for axes, part, title in ((whole, slice(None), "test part"), (late, zoom, "its last fifth")):
        axes.plot(time[part], series.values[at][part], color=TRUTH, linewidth=1.2, label="truth")
        axes.plot(time[part], forecasts[part], color=FORECAST, linewidth=1.0, label="forecast, one step ahead")
        figures.label(axes, f"{series.name}: {title}", y=series.name)
    if ahead is not None and is_fan:
        _draw_fan(last[0], series, ahead)
        figures.legend(last[0], loc="upper left")
    figures.legend(figure, whole, loc="outside upper right", ncols=2)
    return figure


def fans(series: Sequence[Series], ahead: Sequence[Fan]) -> Any:
    """Draw the ends of series and quantiles of what comes after them, a panel for each.

    Parameters
    ----------
    series : list of Series
    ahead : list of Fan
        As many.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, panels = figures.panels(len(series), 1, 2.2)
    for axes, one, fan in zip(panels, series, ahead, strict=True):
        _draw_fan(axes, one, fan)
    figures.legend(figure, panels[0], loc="outside upper right", ncols=3)
    return figure


def forecast_errors(errors: Mapping[str, Any], unit: str = "", step: str = "step", measure: str = "RMSE") -> Any:
    """Draw errors of forecasts by steps ahead, the model's beside those of baselines.

    Parameters
    ----------
    errors : dict of str to array (horizon,)
        Errors by the names of methods, such as `Score.model`, `Score.persistence` and `Score.autoregression`.
    unit : str
        The unit of the series.
    step : str
        The unit of a step, such as "month".
    measure : str
        The name of the error.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        There are no errors, or they differ in length or are not finite.
    """
    given = checks.mapping("forecast_errors", errors, "errors")
    methods = {str(n): checks.host("forecast_errors", str(n), e, "numbers (horizon,)") for n, e in given.items()}
    horizon = next(iter(methods.values())).shape
    for name, values in methods.items():
        if values.ndim != 1 or values.shape != horizon or values.size == 0 or values.dtype.kind not in "fiu":
            raise ValueError(f"forecast_errors: {name} is {checks.shown(values)}, expected numbers {horizon}")
        if not np.all(np.isfinite(values)):
            raise ValueError(f"forecast_errors: {name} is not finite")
    label = f"{measure} ({unit})" if unit else measure
    figure, (axes,) = figures.panels(1, 1, 3.0)
    ahead = np.arange(1, horizon[0] + 1)
    for k, (name, values) in enumerate(methods.items()):
        every = max(1, horizon[0] // 12)
        look = figures.line(k)
        axes.plot(ahead, values, label=figures.named(name), linewidth=1.4, markersize=4, markevery=every, **look)
    axes.set_ylim(bottom=0)
    figures.whole_numbers(axes.xaxis)
    figures.label(axes, x=f"{step}s ahead", y=label)
    figures.legend(figure, axes, loc="outside upper left", ncols=3)
    return figure


def _draw_fan(axes: Any, series: Series, ahead: Fan) -> None:
    """Draw the end of a series and quantiles of what comes after it, each interval in a shade."""
    H, levels = len(ahead.quantiles), ahead.levels
    shown = min(len(series.values), max(3 * H, 24))
    known = series.values[-shown:]
    if series.calendar is None:
        past, future = np.arange(-shown + 1, 1), np.arange(1, H + 1)
    else:
        past = series.index[-shown:]
        future = np.array(series.after(H), dtype="datetime64")
    axes.plot(past, known, color=TRUTH, linewidth=1.2)
    last = np.flatnonzero(~np.isnan(known))[-1]
    quantiles = np.concatenate((np.full((1, len(levels)), known[last]), ahead.quantiles))  # (1 + H, Q)
    time = np.concatenate((past[last : last + 1], future))
    half = len(levels) // 2
    for k in range(half):
        low, high = quantiles[:, k], quantiles[:, -1 - k]
        label = f"{100 * (levels[-1 - k] - levels[k]):.0f} % interval" if k in (0, half - 1) else None
        axes.fill_between(time, low, high, color=FORECAST, alpha=0.12 + 0.3 * k / half, linewidth=0, label=label)
    if len(levels) % 2:
        axes.plot(time, quantiles[:, half], color=FORECAST, linewidth=1.2, label="median beyond the end")
    x = "steps after the end" if series.calendar is None else ""
    figures.label(axes, f"{series.name}: beyond the end of the data", x, series.name)


def comparison(rows: Sequence[Any]) -> Any:
    """Draw sequences a second of everything that was timed by the work of a call, a panel for each layer and dtype.

    Marks on the axis of work are the sizes.

    Parameters
    ----------
    rows : list of Row
        As `xlstm bench` measures them.

    Returns
    -------
    matplotlib.figure.Figure
    """
    kinds = list(dict.fromkeys((row.case.layer, row.case.dtype) for row in rows))
    figure, panels = figures.panels(len(kinds), 1, 3.0)
    for (layer, dtype), axes in zip(kinds, panels, strict=True):
        some = [row for row in rows if (row.case.layer, row.case.dtype) == (layer, dtype)]
        for k, name in enumerate(dict.fromkeys((row.name, row.device) for row in some)):
            line = sorted((row.operations, row.sequences) for row in some if (row.name, row.device) == name)
            axes.plot(*zip(*line, strict=True), label=", ".join(name), **figures.line(k))
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = {row.operations: ",".join(map(str, row.case.size)) for row in some}
        axes.set_xticks([*sizes], labels=[*sizes.values()], rotation=20, ha="right", fontsize=figures.SMALL)
        axes.set_xticks([], minor=True)
        x = "T,B,D,H, placed by the floating-point operations of a call"
        figures.label(axes, f"{layer} {dtype}, {some[0].case.what}", x, "sequences a second")
        figures.legend(axes)
    return figure
