"""Plots of results: the course of training, confused labels, and forecasts with their errors."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars, frames, host
from xlstm.data.host import Host, Values
from xlstm.data.panels import Panel, Roles, by_series
from xlstm.data.series import Series, series_of
from xlstm.data.time_series import TimeSeries
from xlstm.plots import figures
from xlstm.training import Trained, folder

log = logging.getLogger("xlstm")
POINTS = 2000  # the most points of a line
WRITTEN = 12  # the most labels with counts written into the matrix
NAMED = 40  # the most labels with names at the axes
LATEST = 200  # the most forecasts of a test part that are drawn
AXES = 12  # the most axes for targets of several series
MEASURES = ("RMSE", "MAE", "MASE", "sMAPE")  # of `Errors`
# the name of a column of quantiles: target and level
QUANTILE = re.compile(r"(.*) (0\.\d+|[\d.]+e-\d+)")
TRUTH = "0.45"
FAN = "#3b7d5b"
LEADS = "#e0457b", "#5b3fa0"  # colours of forecasts one step and a whole horizon ahead


class Course(NamedTuple):
    """The finite numbers of a run, as arrays (n, 2) of the batches so far and the value."""

    loss: Host
    validation: Host
    norm: Host


def course(run: Any, where: str = "course") -> Course:
    """Return the losses, validation losses and gradient norms of a run.

    Parameters
    ----------
    run : path, Trained or fitted estimator
        The folder of a run, its history.jsonl, the result of `training.train`, or an estimator with
        such a result.
    where : str
        The caller, for errors.

    Returns
    -------
    Course
        The numbers of the run. A `Trained` has no norms.

    Raises
    ------
    OSError, ValueError, TypeError
        The file does not exist, it is not a history, or no line of it has a loss.
    """
    run = getattr(run, "trained_", run)
    if isinstance(run, Trained):
        every = len(run.losses) / max(1, len(run.validations))
        lines = [{"total": k, "loss": loss} for k, loss in enumerate(run.losses, 1)]
        lines += [
            {"total": round(k * every), "validation": v} for k, v in enumerate(run.validations, 1)
        ]
        name = "the run"
    else:
        path = checks.path(where, "run", run)
        path = path / folder.HISTORY if path.is_dir() else path
        lines = folder.read_history(path)
        name = str(path)
    result = Course(*(_column(lines, key) for key in Course._fields))
    if len(result.loss) == 0:
        raise ValueError(
            f"{where}: {name} has no losses, expected the history of a run that made a step"
        )
    return result


def curves(runs: Any) -> Any:
    """Draw the losses, validation losses and gradient norms of one run, or of several over each
    other.

    Losses and norms are drawn twice: unsmoothed in a pale shade, and smoothed by a mean over the
    batches around each point, a twentieth of the run.

    Parameters
    ----------
    runs : path, Trained, fitted estimator, or dict of str to these
        As for `course`; a dict gives several runs by name.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    OSError, ValueError, TypeError
        As for `course`.
    """
    by_name = checks.mapping("curves", runs, "runs") if isinstance(runs, Mapping) else {"": runs}
    courses = {str(name): course(run, "curves") for name, run in by_name.items()}
    titles = {
        "loss": "training loss",
        "validation": "validation loss",
        "norm": "norm of the gradient",
    }
    kinds = [
        kind for kind in titles if any(len(getattr(of_run, kind)) for of_run in courses.values())
    ]
    figure, panels = figures.panels(len(kinds), 1, 1.9, "batches", sharex=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for k, (name, of_run) in enumerate(courses.items()):
            _draw(axes, kind, getattr(of_run, kind), figures.line(k), name)
        if kind == "norm":
            axes.set_yscale("log")
        figures.label(axes, y=titles[kind])
    figures.legend(figure, panels[0], loc="outside upper left", ncols=3)
    return figure


def smoothed(values: Host, window: int) -> Host:
    """Return a moving mean (n,) over at most `window` values, fewer at the ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    at = np.arange(len(values))
    half = window // 2
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))  # the same on both sides
    means: Host = (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
    return means


def _draw(axes: Any, kind: str, points: Host, look: dict[str, Any], name: str) -> None:
    at, values = points.T
    if kind == "validation":
        axes.plot(at, values, label=name, **look)
        return
    few = slice(None, None, max(1, len(at) // POINTS))
    means = smoothed(values, len(values) // 20)
    axes.plot(at[few], values[few], color=look["color"], alpha=0.25, linewidth=0.7)
    axes.plot(at[few], means[few], label=name, **look | {"marker": ""})


def _column(lines: Iterable[Mapping[str, Any]], key: str) -> Host:
    """Return the batches and values (n, 2) of all lines with a finite value."""
    rows = [
        (line["total"], line[key])
        for line in lines
        if isinstance(line.get(key), int | float) and math.isfinite(line[key])
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def confusion_counts(
    truth: Any, predicted: Any, labels: Sequence[Any] | None = None
) -> tuple[list[Any], Host]:
    """Count how often each true label is predicted as each label.

    Parameters
    ----------
    truth, predicted : array (N,)
        The true and the predicted labels, whole numbers or text.
    labels : list, optional
        The labels, in the order of the matrix; by default all that occur, sorted.

    Returns
    -------
    labels : list
    counts : array (C, C)
        A row for each true label, and a column for each predicted label.

    Raises
    ------
    ValueError, TypeError
        The arrays differ in length or are empty, a label is not listed, or labels cannot be sorted.

    Examples
    --------
    >>> labels, counts = confusion_counts(["cat", "dog", "dog"], ["cat", "cat", "dog"])
    >>> labels, counts.tolist()
    (['cat', 'dog'], [[1, 0], [1, 1]])
    """
    rows, columns = (
        checks.host("confusion", name, values, "labels (N,)")
        for name, values in (("truth", truth), ("predicted", predicted))
    )
    if rows.ndim != 1 or rows.shape != columns.shape or rows.size == 0:
        raise ValueError(
            f"confusion: truth and predicted have shapes {rows.shape} and {columns.shape}, expected"
            " (N,) twice"
        )
    pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
    if labels is not None:
        labels = checks.several("confusion", "labels", labels, "a list of labels")
    try:
        names = sorted({*itertools.chain(*pairs)}) if labels is None else list(labels)
        place = {label: k for k, label in enumerate(names)}
    except TypeError as error:
        raise TypeError(
            f"confusion: labels are whole numbers or text, all of one kind ({error})"
        ) from None
    if unknown := [label for pair in pairs for label in pair if label not in place]:
        raise ValueError(
            f"confusion: the label {checks.shown(unknown[0])} is unknown, expected one of"
            f" {checks.few(map(str, names))}"
        )
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for label, other in pairs:
        counts[place[label], place[other]] += 1
    return names, counts


def confusion(truth: Any, predicted: Any, labels: Sequence[Any] | None = None) -> Any:
    """Draw a confusion matrix with counts, and with shares of each row as colours.

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
        As for `confusion_counts`.
    """
    every_label, counts = confusion_counts(truth, predicted, labels)
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.maximum(totals, 1)
    C = len(every_label)
    names = [str(label) for label in every_label]
    height = min(figures.WIDTH, 2.2 + 0.45 * C)
    figure, (axes,) = figures.panels(1, 1, height)
    figure.set_size_inches(min(figures.WIDTH, height + 1 + 0.06 * max(map(len, names))), height)
    figures.heat_map(axes, shares, "share of the true label (%)", vmin=0, vmax=100)
    if C <= WRITTEN:
        for row, column in np.ndindex(C, C):
            colour = "black" if shares[row, column] > 55 else "white"
            text = f"{counts[row, column]}\n{shares[row, column]:.0f} %"
            axes.text(
                column, row, text, ha="center", va="center", color=colour, fontsize=figures.SMALL
            )
    if C <= NAMED:
        slanted = (
            {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
            if max(map(len, names)) > 3
            else {}
        )
        figures.tick_names(axes.xaxis, names, **slanted)
        figures.tick_names(axes.yaxis, names)
    axes.spines[:].set_visible(False)
    figures.label(
        axes,
        f"{int(np.trace(counts))} of {int(counts.sum())} right",
        "predicted label",
        "true label",
    )
    return figure


class Fan(NamedTuple):
    """The quantiles of a forecast after the end of a series.

    Attributes
    ----------
    quantiles : array (H, Q)
    levels : sequence of Q floats
        The level of each column, between 0 and 1, such as 0.1.
    mean : array (H,), optional
        The mean, which is drawn if there is no median.
    """

    quantiles: Values
    levels: Sequence[float]
    mean: Any = None


def forecast(
    series: Series,
    at: Host,
    forecasts: Values,
    ahead: Fan | None = None,
    errors: Mapping[str, Any] | None = None,
) -> Any:
    """Draw forecasts of a test part against the observed values, their errors, and the forecast
    after the end.

    If the test part is long, the latest 200 forecasts are drawn: one step ahead, and the whole
    horizon ahead.

    Parameters
    ----------
    series : Series
    at : integer array (N,)
        The indices of the values that are forecast one step ahead.
    forecasts : array (N,) or (N, H)
        The forecasts of each such value and the values after it, in the units of the series.
    ahead : Fan, optional
    errors : dict of str to array (H,), optional
        As for `forecast_errors`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    forecasts = forecasts[:, None] if np.ndim(forecasts) == 1 else forecasts
    time = np.arange(len(series.values)) if series.calendar is None else series.index
    figure, (test, *rest) = figures.panels(1 + (errors is not None) + (ahead is not None), 1, 2.4)
    shown = at[-LATEST:]
    test.plot(time[shown], series.values[shown], color=TRUTH, linewidth=1.2, label="truth")
    for h, colour in zip(sorted({1, forecasts.shape[1]}), LEADS, strict=False):
        there = shown[shown + h <= len(time)] + h - 1
        test.plot(
            time[there],
            forecasts[-len(shown) :][: len(there), h - 1],
            color=colour,
            linewidth=1.0,
            label=f"{h} {series.step}{'s' if h > 1 else ''} ahead",
        )
    part = "test part" if len(shown) == len(at) else f"test part, the last {len(shown)} forecasts"
    figures.label(test, part, y=series.name)
    figures.dates(test, time)
    if errors is not None:
        first = {name: values[:, 0] for name, values in _measured(errors, "RMSE").items()}
        _draw_errors(rest[0], first, "", series.step, "RMSE")
    if ahead is not None:
        _draw_fan(rest[-1], series, ahead, "beyond the end of the data")
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.97)}
    for axes in (test, *rest):  # right of the title, where the legend covers nothing
        figures.legend(axes, ncols=5, columnspacing=1.2, handlelength=1.6, **place)
    return figure


def fans(series: Any, ahead: Any) -> Any:
    """Draw the ends of series with the quantiles of their forecasts, in a panel for each series.

    Parameters
    ----------
    series : list of Series, or table
        The series. For a table, each target of each series has a panel.
    ahead : list of Fan, or table
        A `Fan` for each series; for a table, the table that `predict_quantiles` of a forecaster
        returns.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        The series are a table, but `ahead` does not hold quantiles of its targets.
    """
    if frames.is_table(series):
        series, ahead = _of_tables(series, ahead)
    figure, panels = figures.panels(len(series), 1, 2.2)
    for axes, past, fan in zip(panels, series, ahead, strict=True):
        _draw_fan(axes, past, fan, f"{past.name}: beyond the end of the data")
    figures.legend(figure, panels[0], loc="outside upper right", ncols=5)
    return figure


def ends(
    panel: Panel, several: Sequence[TimeSeries], ahead: Fan, ax: Any = None, last: int | None = None
) -> Any:
    """Draw the ends of the first series of a panel, and a forecaster's forecasts after them.

    Parameters
    ----------
    panel : Panel
    several : list of S TimeSeries
    ahead : Fan
        The quantiles (S, H, C, Q) and mean (S, H, C) of all series. At most AXES targets are drawn.
    ax : Axes, or array or list of Axes, optional
        The axes to draw on; by default the axes of a new figure of pyplot.
    last : int, optional
        The number of last values of each series to draw.

    Returns
    -------
    Axes, or array of Axes
        An array if several targets are drawn.

    Raises
    ------
    ValueError, TypeError
        The number of axes in `ax` differs from the number of targets to draw.
    """
    S, _, C, _ = ahead.quantiles.shape
    every = len(panel.values) * C
    places = list(np.ndindex(S, C))[:AXES]
    count = len(places)
    if count < every:
        log.warning("Forecaster: plot draws the first %d of %d series and targets", count, every)
    if ax is None:
        figure, drawn = figures.panels(count, 1 if count < 4 else 2, 2.2, interactive=True)
    else:
        kind = checks.having("fill_between", expected="Axes of matplotlib")
        drawn = checks.several("Forecaster", "ax", np.ravel(ax), "Axes of matplotlib", kind)
    if len(drawn) != count:
        raise ValueError(
            f"Forecaster: ax has {len(drawn)} Axes, expected {count}, one for each target of each"
            " series"
        )
    for axes, (k, c) in zip(drawn, places, strict=True):
        values = several[k].values[:, c]
        name = panel.names[c] if panel.names else f"target {c}" * (C > 1)
        title = panel.ids[k] if panel.ids else f"series {k}" * (S > 1)
        past = Series(name, values, np.arange(len(values)), several[k].calendar)
        fan = Fan(ahead.quantiles[k, :, c], ahead.levels, ahead.mean[k, :, c])
        _draw_fan(axes, past, fan, title, last)
    if ax is None:
        figures.legend(figure, drawn[0], loc="outside upper right", ncols=5)
    else:
        figures.legend(drawn[0])
    return drawn[0] if count == 1 else np.array(drawn)


def _of_tables(table: Any, ahead: Any) -> tuple[list[Series], list[Fan]]:
    """Return each target of each series of a table, and its quantiles from `ahead`."""
    levels: dict[str, dict[str, float]] = {}  # levels of each target, by column
    others = []
    for column in frames.names_of("fans", ahead):
        if match := QUANTILE.fullmatch(column):
            levels.setdefault(match[1], {})[column] = float(match[2])
        else:
            others.append(column)
    if not levels:
        raise ValueError(
            f"fans: ahead has columns {checks.few(others)}, expected those of predict_quantiles"
        )
    columns = [*itertools.chain(*levels.values())]
    dates = frames.table_of("fans", ahead, columns).index_name
    roles = Roles(series_id=[name for name in others if name != dates]).checked("fans")
    observed = by_series("fans", table, roles, [*levels])
    series = []
    quantiles = []
    for label, later in by_series("fans", ahead, roles, columns).items():
        if label not in observed:
            raise ValueError(
                f"fans: ahead has a series {checks.shown(label)}, expected"
                f" {checks.few(map(str, observed))}"
            )
        for target, each in levels.items():
            line = f"fans: series {label}: row {{}}".format
            past = series_of(target, observed[label], line=line)
            series.append(replace(past, name=f"{target} of {label}") if roles.id_name else past)
            quantiles.append(Fan(later.numbers("fans", [*each]), [*each.values()]))
    return series, quantiles


def forecast_errors(
    errors: Mapping[str, Any], unit: str = "", step: str = "step", measure: str = "RMSE"
) -> Any:
    """Draw errors of forecasts by steps ahead, the model's beside the baselines'.

    Parameters
    ----------
    errors : dict of str to array (horizon,) or (horizon, C), or to Errors
        The errors of each method, by name, such as `Score.errors`, or `Score.model` and others. If
        there are several targets, each has a panel. Errors that are NaN are left out.
    unit : str
        The unit of the series.
    step : str
        The name of a step, such as "month".
    measure : str
        The name of the error. With `Errors` it selects RMSE, MAE, MASE or sMAPE.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        There are no errors, they are not numbers (horizon,) or (horizon, C), or methods differ in
        C.
    """
    by_name = _measured(checks.mapping("forecast_errors", errors, "errors"), measure)
    C, *others = {values.shape[1] for values in by_name.values()}
    if others:
        raise ValueError(
            f"forecast_errors: errors are of {C} and {others[0]} targets, expected (H, C) with"
            " one C"
        )
    figure, panels = figures.panels(C, 1, 3.0)
    for c, axes in enumerate(panels):
        of_target = {name: values[:, c] for name, values in by_name.items()}
        _draw_errors(axes, of_target, unit, step, measure, f"target {c}" if C > 1 else "")
    figures.legend(figure, panels[0], loc="outside upper left", ncols=3)
    return figure


def _measured(errors: Mapping[str, Any], measure: str) -> dict[str, Host]:
    """Return errors (H, C) by steps ahead and targets; of `Errors`, the values of one measure."""
    by_name = {}
    for name, values in errors.items():
        if hasattr(values, "rmse"):
            checks.choice(MEASURES)("forecast_errors", "measure", measure)
            values = getattr(values, measure.lower())
        by_name[str(name)] = host.columns("forecast_errors", str(name), values)
    return by_name


def _draw_errors(
    axes: Any, errors: Mapping[str, Host], unit: str, step: str, measure: str, title: str = ""
) -> None:
    """Draw errors (H,) of each method by steps ahead."""
    for k, (name, values) in enumerate(errors.items()):
        look = figures.line(k, len(values) // 12)
        axes.plot(np.arange(1, len(values) + 1), values, label=name, **look)
    axes.set_ylim(bottom=0)
    figures.whole_numbers(axes.xaxis)
    figures.label(axes, title, f"{step}s ahead", f"{measure} ({unit})" if unit else measure)


def _draw_fan(axes: Any, series: Series, ahead: Fan, title: str, last: int | None = None) -> None:
    """Draw the end of a series and the quantiles of its forecast, each interval in a shade.

    The end has `last` values. If all of these are gaps, it begins with the value before them.
    """
    H = len(ahead.quantiles)
    levels = [*ahead.levels]
    N = len(series.values)
    observed = np.flatnonzero(~np.isnan(series.values))[-1]
    shown = min(N, max(last or max(3 * H, 24), N - observed))
    values = series.values[-shown:]
    time: Host = np.arange(-N + 1, H + 1)
    if series.calendar is not None:
        dates = series.calendar.dates.append(series.calendar.following(H))
        time = calendars.on_clocks(dates)
    past = time[:-H][-shown:]
    axes.plot(past, values, color=TRUTH, linewidth=1.2)
    begin = observed - N  # the last value: forecasts begin there
    quantiles = np.insert(ahead.quantiles, 0, values[begin], axis=0)  # (1 + H, Q)
    time = np.insert(time[-H:], 0, past[begin])
    half = len(levels) // 2
    for k in range(half):  # opaque, widest first, so that each keeps its shade
        shade = figures.tint(FAN, 0.15 + 0.55 * k / half)
        label = (
            f"{100 * (levels[-1 - k] - levels[k]):.0f} %" if k % max(1, half // 4) == 0 else None
        )
        bounds = quantiles[:, k], quantiles[:, -1 - k]
        axes.fill_between(time, *bounds, color=shade, linewidth=0, label=label)
    centre = ahead.mean
    label = "mean"
    if 0.5 in levels:
        centre = ahead.quantiles[:, levels.index(0.5)]
        label = "median"
    if centre is not None:
        centre = np.insert(centre, 0, values[begin])
        axes.plot(time, centre, color=FAN, linewidth=1.4, label=label)
    x = "steps after the end" if series.calendar is None else ""
    figures.label(axes, title, x, series.name)
    figures.dates(axes, time)
