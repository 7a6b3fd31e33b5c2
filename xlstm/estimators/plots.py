"""Pictures, where matplotlib is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.data.host import Values
from xlstm.data.series import Series
from xlstm.plots.figures import available, check, save

__all__ = ["available", "check", "comparison", "forecast"]


def forecast(path: str | os.PathLike[str], series: Series, at: np.ndarray[Any, Any], forecasts: Values) -> None:
    """Draw one-step forecasts over the test part against the truth.

    Parameters
    ----------
    path : path
        The file to write; its ending decides the format.
    series : Series
    at : integer array (N,)
        Positions of the values that are forecast.
    forecasts : array (N,)
        The forecasts, in the series' own units.
    """
    from matplotlib.figure import Figure  # no pyplot: no screen, no global state

    time = at if series.unit is None else np.array([series.labels[k] for k in at], dtype="datetime64")
    truth = series.values[at]
    figure = Figure(figsize=(10, 6), layout="constrained")
    whole, late = figure.subplots(2, 1)
    zoom = slice(max(0, len(at) - max(24, len(at) // 5)), None)
    for axes, part, title in ((whole, slice(None), "test part"), (late, zoom, "its last fifth")):
        axes.plot(time[part], truth[part], color="0.45", linewidth=1.2, label="truth")
        axes.plot(time[part], forecasts[part], color="tab:red", linewidth=1.0, label="forecast, one step ahead")
        axes.set_title(f"{series.name}: {title}", loc="left", fontsize=10, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel(series.name, parse_math=False)
    figure.legend(*whole.get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=2, fontsize=9)
    save(figure, path)


def comparison(path: str | os.PathLike[str], rows: Sequence[Any]) -> None:
    """Draw sequences a second of every backend by size, a panel for each layer and dtype."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((r.case.layer, r.case.dtype) for r in rows))
    figure = Figure(figsize=(10, 1 + 3 * len(panels)), layout="constrained")
    for (layer, dtype), axes in zip(panels, figure.subplots(len(panels), 1, squeeze=False)[:, 0], strict=True):
        some = [r for r in rows if (r.case.layer, r.case.dtype) == (layer, dtype)]
        for name in dict.fromkeys(r.device for r in some):
            mine = [r for r in some if r.device == name]
            sizes = [",".join(map(str, r.case.size)) for r in mine]
            axes.plot(sizes, [r.sequences for r in mine], marker="o", label=name)
        axes.set_yscale("log")
        axes.set_ylabel("sequences a second")
        axes.set_xlabel("T,B,D,H")
        axes.set_title(f"{layer} {dtype}, {some[0].case.what}", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    save(figure, path)
