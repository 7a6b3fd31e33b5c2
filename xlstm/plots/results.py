"""The results of a model: a confusion matrix, and errors of forecasts beside those of baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.plots import figures

Host = np.ndarray[Any, Any]
WRITTEN = 12  # labels, up to which counts are written into the matrix
MOST = 200


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
    arrays = [checks.host("confusion", name, given, "labels (N,)") for name, given in _pairs(truth, predicted)]
    if arrays[0].ndim != 1 or arrays[0].shape != arrays[1].shape or arrays[0].size == 0:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise ValueError(f"confusion: truth and predicted have shapes {shapes}, expected (N,) twice")
    plain = [array.tolist() for array in arrays]
    try:
        known = sorted({*plain[0], *plain[1]}) if labels is None else list(labels)
    except TypeError:
        raise TypeError("confusion: labels are of several types, expected numbers or text") from None
    if len(known) > MOST:
        raise ValueError(f"confusion: there are {len(known)} labels, expected at most {MOST}")
    listed = set(known)
    if len(listed) < len(known):
        raise ValueError("confusion: a label is listed twice")
    for name, column in _pairs(*plain):
        if unknown := [label for label in column if label not in listed]:
            shown = checks.few(map(str, known))
            raise ValueError(f"confusion: {name} has the label {checks.shown(unknown[0])}, expected one of {shown}")
    return known, counted(plain[0], plain[1], known)


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
    found = {str(n): checks.host("forecast_errors", str(n), e, "numbers (horizon,)") for n, e in given.items()}
    horizon = next(iter(found.values())).shape
    for name, values in found.items():
        if values.ndim != 1 or values.shape != horizon or values.size == 0 or values.dtype.kind not in "fiu":
            raise ValueError(f"forecast_errors: {name} is {checks.shown(values)}, expected numbers {horizon}")
        if not np.all(np.isfinite(values)):
            raise ValueError(f"forecast_errors: {name} is not finite")
    label = f"{measure} ({unit})" if unit else measure
    if horizon == (1,):
        figure, (axes,) = figures.panels(1, 1, 0.9 + 0.3 * len(found))
        widths = [float(one[0]) for one in found.values()][::-1]
        bars = axes.barh(range(len(found)), widths, 0.65, color=figures.DARK)
        axes.bar_label(bars, [f"{width:.4g}" for width in widths], padding=3, fontsize=figures.SMALL)
        axes.set_xlim(0, max(widths) * 1.15 or 1)
        figures.tick_names(axes.yaxis, list(found)[::-1])
        figures.label(axes, f"one {step} ahead", f"{label} of forecasts")
        return figure
    figure, (axes,) = figures.panels(1, 1, 3.0)
    ahead = np.arange(1, horizon[0] + 1)
    for k, (name, values) in enumerate(found.items()):
        every = max(1, horizon[0] // 12)
        look = figures.line(k)._asdict()
        axes.plot(ahead, values, label=figures.named(name), linewidth=1.4, markersize=4, markevery=every, **look)
    axes.set_ylim(bottom=0)
    figures.whole_numbers(axes.xaxis)
    figures.label(axes, x=f"{step}s ahead", y=label)
    figures.legend(figure, axes, loc="outside upper left", ncols=3)
    return figure


def counted(truth: Sequence[Any], predicted: Sequence[Any], labels: Sequence[Any]) -> Host:
    """Return how often each of the labels (rows) is taken for each (columns), (C, C); all of them are known."""
    place = {label: k for k, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, ([place[label] for label in truth], [place[label] for label in predicted]), 1)
    return counts


def _pairs(truth: Any, predicted: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("truth", truth), ("predicted", predicted)
