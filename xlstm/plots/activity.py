"""The work of gates: their values over time, how often they saturate, and for how long a layer remembers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.plots import figures
from xlstm.plots.traces import Host, Trace, traces

LOW, HIGH = 0.05, 0.95  # a gate below the one or above the other is saturated
BINS = 30


class Saturation(NamedTuple):
    """The shares of a gate's values, over units, steps and sequences, below 0.05 and above 0.95."""

    layer: str
    gate: str
    below: float
    above: float


class Memory(NamedTuple):
    """The mean share of its old state that a unit keeps at a step, and its time constant in steps.

    The time constant is -1 / log(forget), after which exp(-1) of a value is left. It is infinite where everything is
    kept, and None where the state grows, with an exponential forget gate above 1 on average.
    """

    layer: str
    unit: int
    forget: float
    steps: float | None


def gates(saved: Any, layer: str | None = None, sequence: int = 0) -> Any:
    """Draw the gates and states of a layer as heat maps, units by time.

    Parameters
    ----------
    saved : Saved
        As `forward` of a recurrent layer, a block, a stack or a model returned it.
    layer : str, optional
        The name that the parameters of the layer begin with, such as "0", "1.reverse" or "recurrent.0"; by default that
        of the only layer.
    sequence : int
        The sequence of the batch.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        `saved` keeps no gates, there are several layers or none of that name, or no such sequence.
    """
    found = traces("gates", saved, layer)
    if len(found) > 1:
        names = checks.few([one.name for one in found])
        raise ValueError(f"gates: there are several layers, expected one of {names} as layer")
    (trace,) = found
    b = checks.whole(0, len(trace.lengths) - 1)("gates", "sequence", sequence)
    T = int(trace.lengths[b])
    if T == 0:
        raise ValueError(f"gates: sequence {b} has no steps")
    every = [(f"gate {name}", name, values) for name, values in trace.gates.items()]
    every += [(f"state {name}", name, values) for name, values in trace.states.items()]
    figure, panels = figures.panels(len(every), 2, 1.6, sharex=True)
    for k, (axes, (title, name, values)) in enumerate(zip(panels, every, strict=True)):
        shown = values[:T, b].T  # (H, T)
        low, high = _limits(name, shown, trace)
        image = axes.imshow(
            shown,
            cmap=figures.COLOURS,
            aspect="auto",
            origin="lower",
            interpolation="nearest",
            vmin=low,
            vmax=high,
            extent=(-0.5, T - 0.5, -0.5, len(shown) - 0.5),
        )
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.ax.tick_params(labelsize=figures.SMALL)
        figures.whole_numbers(axes.xaxis, axes.yaxis)
        last = k + 2 >= len(every)
        figures.label(axes, title, "time step" if last else "", "head" if name in trace.of_heads else "unit")
    return figure


def saturation_table(saved: Any) -> list[Saturation]:
    """Return how often the gates of every layer are nearly closed or nearly open.

    Only gates whose values are shares from 0 to 1 are listed. Exponential gates have no such bounds and are left out.

    Parameters
    ----------
    saved : Saved
        As `forward` returned it.

    Returns
    -------
    list of Saturation

    Raises
    ------
    ValueError, TypeError
        `saved` keeps no gates, or none of them is a share.
    """
    found = []
    for trace in traces("saturation", saved):
        for gate in trace.shares:
            values = trace.within(trace.gates[gate])
            if values.size:
                found.append(Saturation(trace.name, gate, float(np.mean(values < LOW)), float(np.mean(values > HIGH))))
    if not found:
        raise ValueError(f"saturation: {checks.shown(saved.layer)} has no gate with values from 0 to 1")
    return found


def saturation(saved: Any) -> Any:
    """Draw the shares of values below 0.05 and above 0.95 by layer and gate.

    Parameters
    ----------
    saved : Saved
        As `forward` returned it.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        As `saturation_table` does.
    """
    rows = saturation_table(saved)[::-1]  # the first one on top
    figure, (axes,) = figures.panels(1, 1, 1.4 + 0.28 * len(rows))
    below, above = (100 * np.array(column) for column in ([r.below for r in rows], [r.above for r in rows]))
    places = np.arange(len(rows))
    axes.barh(places, below, 0.7, color=figures.DARK, label=f"below {LOW:g}, nearly closed")
    look = {"color": figures.LIGHT, "hatch": "////", "edgecolor": "0.2", "linewidth": 0.5}
    axes.barh(places, above, 0.7, left=below, **look, label=f"above {HIGH:g}, nearly open")
    axes.set_xlim(0, 100)
    figures.label(axes, x="share of a gate's values (%)", y="layer and gate")
    figures.tick_names(axes.yaxis, [f"{row.layer}  {row.gate}" for row in rows])
    figures.legend(figure, axes, loc="outside upper left", ncols=2)
    return figure


def memory_table(saved: Any) -> list[Memory]:
    """Return for how long each unit of every layer remembers.

    An LSTM forgets by f (a coupled one by 1 - i), a GRU by z, an sLSTM and an mLSTM by f before it is stabilised. A
    plain RNN has no such gate and is left out.

    Parameters
    ----------
    saved : Saved
        As `forward` returned it.

    Returns
    -------
    list of Memory
        In an mLSTM a unit is a head.

    Raises
    ------
    ValueError, TypeError
        `saved` keeps no gates, or no layer has a forget gate.
    """
    found = []
    for trace in traces("memory", saved):
        values = None if trace.retained is None else trace.within(trace.retained)
        if values is not None and len(values):
            means = values.mean(axis=0, dtype=np.float64)
            found += [Memory(trace.name, k, float(f), _time_constant(float(f))) for k, f in enumerate(means)]
    if not found:
        raise ValueError(f"memory: {checks.shown(saved.layer)} has no forget gate")
    return found


def memory(saved: Any) -> Any:
    """Draw histograms of the time constants of every layer, on a logarithmic axis.

    A dashed line marks the length of the longest sequence that was run: a longer time constant says how slowly a unit
    forgets, and was not seen at work.

    Parameters
    ----------
    saved : Saved
        As `forward` returned it.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        As `memory_table` does.
    """
    rows = memory_table(saved)
    names = list(dict.fromkeys(row.layer for row in rows))
    finite = np.array([row.steps for row in rows if row.steps and math.isfinite(row.steps)])
    T = int(np.max(saved.span.lengths))
    ends = np.array([*finite, T])
    bins = np.geomspace(ends.min() / 1.2, ends.max() * 1.2, BINS)
    figure, panels = figures.panels(len(names), 2, 2.0, sharex=True)
    for k, (axes, name) in enumerate(zip(panels, names, strict=True)):
        mine = [row.steps for row in rows if row.layer == name]
        known = [steps for steps in mine if steps and math.isfinite(steps)]
        axes.hist(known, bins, color=figures.DARK)
        axes.axvline(T, color="0.2", linestyle="--", linewidth=1, label=f"longest sequence, {T} steps")
        axes.set_xscale("log")
        figures.whole_numbers(axes.yaxis)
        left = len(mine) - len(known)
        middle = f"median {np.median(known):.3g} steps" if known else "none forgets"
        title = f"{name}\n{middle}" + (f", {left} of {len(mine)} not shown" if left else "")
        last = k + 2 >= len(names)
        figures.label(axes, title, "time constant (steps)" if last else "", "units" if k % 2 == 0 else "")
    figures.legend(figure, panels[0], loc="outside upper right")
    return figure


def _limits(name: str, values: Host, trace: Trace) -> tuple[float, float]:
    """Return the ends of the scale of colours: 0 and 1, the same on both sides of 0, or those of the values."""
    if name in trace.shares:
        return 0.0, 1.0
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    if finite.min() < 0 < finite.max():
        end = float(np.abs(finite).max())
        return -end, end
    return float(finite.min()), float(finite.max())


def _time_constant(forget: float) -> float | None:
    if forget <= 0:
        return 0.0
    return math.inf if forget == 1 else -1 / math.log(forget) if forget < 1 else None
