"""Pictures, where matplotlib is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.data.host import Values
from xlstm.data.series import Series
from xlstm.plots.figures import available, check, save

__all__ = ["Fan", "ahead", "available", "check", "comparison", "forecast"]


class Fan(NamedTuple):
    """Quantiles (H, Q) of what comes after the end of a series, and their levels."""

    quantiles: Values
    levels: Sequence[float]


def forecast(
    path: str | os.PathLike[str],
    series: Series,
    at: np.ndarray[Any, Any],
    forecasts: Values,
    ahead: Fan | None = None,
) -> None:
    """Draw one-step forecasts over the test part against the truth, and what comes after the end of the series.

    Parameters
    ----------
    path : path
        The file to write; its ending decides the format.
    series : Series
    at : integer array (N,)
        Positions of the values that are forecast.
    forecasts : array (N,)
        The forecasts, in the series' own units.
    ahead : Fan, optional
    """
    from matplotlib.figure import Figure  # no pyplot: no screen, no global state

    time = at if series.calendar is None else series.index[at]
    truth = series.values[at]
    fan = ahead is not None and len(ahead.levels) > 1
    figure = Figure(figsize=(10, 9 if fan else 6), layout="constrained")
    whole, late, *last = figure.subplots(3 if fan else 2, 1)
    zoom = slice(max(0, len(at) - max(24, len(at) // 5)), None)
    for axes, part, title in ((whole, slice(None), "test part"), (late, zoom, "its last fifth")):
        axes.plot(time[part], truth[part], color="0.45", linewidth=1.2, label="truth")
        axes.plot(time[part], forecasts[part], color="tab:red", linewidth=1.0, label="forecast, one step ahead")
        _label(axes, series, title)
    if ahead is not None and fan:
        _fan(last[0], series, ahead)
    handles = dict(zip(*reversed(whole.get_legend_handles_labels()), strict=True))
    handles |= {label: handle for axes in last for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", frameon=False, ncols=3, fontsize=9)
    save(figure, path)


def ahead(path: str | os.PathLike[str], series: Sequence[Series], fans: Sequence[Fan]) -> None:
    """Draw the ends of series and quantiles of what comes after them, a panel for each.

    Parameters
    ----------
    path : path
        The file to write; its ending decides the format.
    series : list of Series
    fans : list of Fan
        As many.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.5 + 3 * len(series)), layout="constrained")
    panels = figure.subplots(len(series), 1, squeeze=False)[:, 0]
    for axes, one, fan in zip(panels, series, fans, strict=True):
        _fan(axes, one, fan)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=3, fontsize=9)
    save(figure, path)


def _fan(axes: Any, series: Series, ahead: Fan) -> None:
    """Draw the end of a series and quantiles of what comes after it, each interval in a shade."""
    H, levels = len(ahead.quantiles), ahead.levels
    shown = min(len(series.values), max(3 * H, 24))
    known = series.values[-shown:]
    if series.calendar is None:
        past, future = np.arange(-shown + 1, 1), np.arange(1, H + 1)
        axes.set_xlabel("steps after the end")
    else:
        past = series.index[-shown:]
        future = np.array(series.after(H), dtype="datetime64")
    axes.plot(past, known, color="0.45", linewidth=1.2)
    there = np.flatnonzero(~np.isnan(known))[-1]
    start = np.full((1, len(levels)), known[there])
    quantiles = np.concatenate((start, ahead.quantiles))  # (1 + H, Q), from the last value on
    time = np.concatenate((past[there : there + 1], future))
    half = len(levels) // 2
    for k in range(half):
        low, high = quantiles[:, k], quantiles[:, -1 - k]
        label = f"{100 * (levels[-1 - k] - levels[k]):.0f} % interval" if k in (0, half - 1) else None
        axes.fill_between(time, low, high, color="tab:red", alpha=0.12 + 0.3 * k / half, linewidth=0, label=label)
    if len(levels) % 2:
        axes.plot(time, quantiles[:, half], color="tab:red", linewidth=1.2, label="median beyond the end")
    _label(axes, series, "beyond the end of the data")


def _label(axes: Any, series: Series, title: str) -> None:
    axes.set_title(f"{series.name}: {title}", loc="left", fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel(series.name, parse_math=False)


def comparison(path: str | os.PathLike[str], rows: Sequence[Any]) -> None:
    """Draw sequences a second of everything that was timed by the work of a call, a panel for each layer and dtype.

    Marks on the axis of work are the sizes.

    Parameters
    ----------
    path : path
        The file to write; its ending decides the format.
    rows : list of benchmark.Row
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((r.case.layer, r.case.dtype) for r in rows))
    figure = Figure(figsize=(10, 1 + 3.5 * len(panels)), layout="constrained")
    for (layer, dtype), axes in zip(panels, figure.subplots(len(panels), 1, squeeze=False)[:, 0], strict=True):
        some = [r for r in rows if (r.case.layer, r.case.dtype) == (layer, dtype)]
        for name in dict.fromkeys((r.name, r.device) for r in some):
            mine = sorted((r for r in some if (r.name, r.device) == name), key=lambda r: r.operations)
            axes.plot([r.operations for r in mine], [r.sequences for r in mine], marker="o", label=", ".join(name))
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = {r.operations: ",".join(map(str, r.case.size)) for r in some}
        axes.set_xticks([*sizes], labels=[*sizes.values()], rotation=20, ha="right", fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_ylabel("sequences a second")
        axes.set_xlabel("T,B,D,H, placed by the floating-point operations of a call")
        axes.set_title(f"{layer} {dtype}, {some[0].case.what}", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    save(figure, path)
