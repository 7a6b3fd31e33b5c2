"""Gates over time, their saturation, and how long a layer remembers, from the values that forward
saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.data.host import Host
from xlstm.layers.gated import LayerTape
from xlstm.layers.module import Saved
from xlstm.plots import figures

LOW = 0.05
HIGH = 0.95  # a gate below LOW or above HIGH is saturated
BINS = 30


@dataclass(frozen=True)
class Trace:
    """The gates and states of one layer and direction over time, on the host.

    Attributes
    ----------
    name : str
        The name that the layer's parameters begin with.
    gates, states : dict of str to array (T, B, H)
        The gates and states by name. In an mLSTM, gates and states that serve a whole head are (T,
        B, N).
    shares : tuple of str
        Names of the gates with values from 0 to 1.
    retained : array (T, B, H) or None
        The share of the old state that each unit keeps at a step, or None if there is no such
        share.
    lengths : whole numbers (B,)
        Lengths of the sequences.
    """

    name: str
    gates: dict[str, Host]
    states: dict[str, Host]
    shares: tuple[str, ...]
    retained: Host | None
    lengths: Host

    def within(self, values: Host) -> Host:
        """Return the values (n, H) of all steps within sequences, without padding."""
        return values[np.arange(len(values))[:, None] < self.lengths]


def layers_of(saved: Any) -> list[str]:
    """Return the names of all layers whose gates and states `forward` saved.

    Parameters
    ----------
    saved : Saved

    Returns
    -------
    list of str

    Raises
    ------
    TypeError, ValueError
        `saved` does not come from `forward`, or no layer in it has gates.
    """
    return [trace.name for trace in traces("layers_of", saved)]


def traces(where: str, saved: Any) -> list[Trace]:
    """Return the traces of all layers with gates.

    Raises
    ------
    TypeError, ValueError
        `saved` does not come from `forward`, or no layer in it has gates.
    """
    if not isinstance(saved, Saved) or saved.span is None:
        raise TypeError(
            f"{where}: saved is {checks.shown(saved)}, expected the values that forward of a"
            " recurrent layer saves"
        )
    lengths = saved.span.lengths
    parts = {type(saved.layer).__name__: saved.kept} | {name: saved[name] for name in saved.names()}
    layers = []
    for name, part in parts.items():
        content = part.kept if isinstance(part, Saved) else part
        if isinstance(content, LayerTape):
            layers.append(_gated(name, content, lengths))
            continue
        layer = content if isinstance(content, dict) else getattr(content, "_asdict", dict)()
        if layer.get("memory") is not None:
            layers.append(_matrix(name, content, layer["memory"].saved, lengths))
    if not layers:
        raise ValueError(
            f"{where}: {checks.shown(saved.layer)} keeps no gates, expected a recurrent layer"
        )
    return layers


def _gated(name: str, passed: LayerTape, lengths: Host) -> Trace:
    cell = passed.tape.step.cell
    values = to_numpy(passed.gates)  # (T, G, B, H)
    # The only gate of a plain RNN is its state.
    gates = {gate: values[:, k] for k, gate in enumerate(cell.GATES) if gate not in cell.STATES}
    states = {state: to_numpy(getattr(passed, state)) for state in cell.STATES}
    retained = None if passed.retained is None else to_numpy(passed.retained)
    return Trace(name, gates, states, cell.SHARES, retained, lengths)


def _matrix(name: str, content: Any, memory: Any, lengths: Host) -> Trace:
    # (T, B, N)
    log_i, log_f = (np.moveaxis(to_numpy(a), -1, 0) for a in (memory.inputs[3], memory.logf))
    gates = {"log i": log_i, "f": np.exp(log_f)}
    states = {}
    shares = ["f"] if np.all(log_f <= 0) else []  # an exponential gate may exceed 1
    # only in an mLSTM layer, not in a block, the output gate and h before it are as wide as y
    if not isinstance(content, dict):
        gates["o"] = to_numpy(content.o)
        states["h"] = to_numpy(content.h)
        shares.append("o")
    return Trace(name, gates, states, tuple(shares), gates["f"], lengths)


class Saturation(NamedTuple):
    """The shares of a gate's values below 0.05 and above 0.95, over units, steps and sequences."""

    layer: str
    gate: str
    below: float
    above: float


class Retention(NamedTuple):
    """The mean share of the old state that each unit keeps at a step, and its time constant in
    steps.

    The time constant is -1 / log(forget); after so many steps, exp(-1) of a value is left. It is
    infinite if a unit keeps everything, or if its exponential forget gate is above 1 on average, so
    that the state grows.
    """

    layer: str
    unit: int
    forget: float
    steps: float


def gates(saved: Any, layer: str | None = None, sequence: int = 0) -> Any:
    """Draw the gates and states of a layer as heat maps, units by time.

    Parameters
    ----------
    saved : Saved
        The values that `forward` of a recurrent layer, a block, a stack or a model returned.
    layer : str, optional
        A name from `layers_of(saved)`, such as "0", "1.reverse" or "recurrent.0". You can leave it
        out if there is only one layer.
    sequence : int
        The index of the sequence in the batch.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        `saved` has no gates, `layer` is missing or unknown, or there is no such sequence.
    """
    by_name = {trace.name: trace for trace in traces("gates", saved)}
    if layer is None and len(by_name) == 1:
        (layer,) = by_name
    if layer not in by_name:
        raise ValueError(
            f"gates: layer is {checks.shown(layer)}, expected one of {checks.few(by_name)}"
        )
    trace = by_name[layer]
    b = checks.whole(0, len(trace.lengths) - 1)("gates", "sequence", sequence)
    T = int(trace.lengths[b])
    if T == 0:
        raise ValueError(f"gates: sequence {b} has no steps")
    arrays = {f"gate {name}": values for name, values in trace.gates.items()}
    arrays |= {f"state {name}": values for name, values in trace.states.items()}
    shares = [f"gate {name}" for name in trace.shares]
    figure, panels = figures.panels(len(arrays), 2, 1.6, "time step", sharex=True)
    for axes, (title, values) in zip(panels, arrays.items(), strict=True):
        look: dict[str, Any] = {"vmin": 0, "vmax": 1} if title in shares else {}
        figures.heat_map(
            axes, values[:T, b].T, aspect="auto", origin="lower", interpolation="nearest", **look
        )
        figures.whole_numbers(axes.xaxis, axes.yaxis)
        figures.label(axes, title, y="unit")
    return figure


def saturation_table(saved: Any) -> list[Saturation]:
    """Return how often the gates of each layer are nearly closed or nearly open.

    Only gates with values from 0 to 1 are listed. Exponential gates have no such bounds, so they
    are left out.

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
        `saved` has no gates, or no gate has values from 0 to 1.
    """
    rows = [
        Saturation(trace.name, gate, float(np.mean(values < LOW)), float(np.mean(values > HIGH)))
        for trace in traces("saturation", saved)
        for gate in trace.shares
        if (values := trace.within(trace.gates[gate])).size
    ]
    if not rows:
        raise ValueError(
            f"saturation: {checks.shown(saved.layer)} has no gate with values from 0 to 1"
        )
    return rows


def saturation(saved: Any) -> Any:
    """Draw the shares of gate values below 0.05 and above 0.95, by layer and gate.

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
    rows = saturation_table(saved)[::-1]  # the first layer on top
    figure, (axes,) = figures.panels(1, 1, 1.4 + 0.28 * len(rows))
    below, above = 100 * np.array([(row.below, row.above) for row in rows]).T
    places = np.arange(len(rows))
    axes.barh(places, below, 0.7, color=figures.DARK, label=f"below {LOW:g}, nearly closed")
    look = {"color": figures.LIGHT, "hatch": "////", "edgecolor": "0.2", "linewidth": 0.5}
    axes.barh(places, above, 0.7, left=below, **look, label=f"above {HIGH:g}, nearly open")
    axes.set_xlim(0, 100)
    figures.label(axes, x="share of a gate's values (%)", y="layer and gate")
    figures.tick_names(axes.yaxis, [f"{row.layer}  {row.gate}" for row in rows])
    figures.legend(figure, axes, loc="outside upper left", ncols=2)
    return figure


def memory_table(saved: Any) -> list[Retention]:
    """Return how long each unit of each layer remembers.

    The forget gate is f in an LSTM (1 - i if coupled), z in a GRU, 1 - z in a minGRU, f in a
    minLSTM, and f before stabilisation in an sLSTM or mLSTM. A plain RNN has none and is left out.

    Parameters
    ----------
    saved : Saved
        As `forward` returned it.

    Returns
    -------
    list of Retention
        An entry for each layer. In an mLSTM, a unit is a head.

    Raises
    ------
    ValueError, TypeError
        `saved` has no gates, or no layer has a forget gate.
    """
    rows = []
    for trace in traces("memory", saved):
        if trace.retained is not None and len(values := trace.within(trace.retained)):
            means = values.mean(axis=0, dtype=np.float64).tolist()
            rows += [Retention(trace.name, k, f, _time_constant(f)) for k, f in enumerate(means)]
    if not rows:
        raise ValueError(
            f"memory: {checks.shown(saved.layer)} has no forget gate, expected a layer with one, or"
            " a cell of your own with `retained`"
        )
    return rows


def memory(saved: Any) -> Any:
    """Draw a histogram of the time constants of each layer, on a logarithmic axis.

    A dashed line marks the length of the longest sequence in the batch. A time constant beyond that
    line is an extrapolation: no sequence was long enough to show it.

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
    T = int(np.max(saved.span.lengths))
    layers = list(dict.fromkeys(row.layer for row in rows))
    finite = [row.steps for row in rows if 0 < row.steps < math.inf]
    bins = np.geomspace(min(T, *finite) / 1.2, max(T, *finite) * 1.2, BINS)
    figure, panels = figures.panels(len(layers), 2, 2.0, "time constant (steps)", sharex=True)
    for k, (axes, name) in enumerate(zip(panels, layers, strict=True)):
        steps = np.array([row.steps for row in rows if row.layer == name])
        axes.hist(steps[np.isfinite(steps)], bins, color=figures.DARK)
        axes.axvline(
            T, color="0.2", linestyle="--", linewidth=1, label=f"longest sequence, {T} steps"
        )
        axes.set_xscale("log")
        figures.whole_numbers(axes.yaxis)
        left = np.count_nonzero(np.isinf(steps))
        title = f"{name}\nmedian {np.median(steps):.3g} steps" + (
            f", {left} of {len(steps)} infinite" if left else ""
        )
        figures.label(axes, title, y="units" if k % 2 == 0 else "")
    figures.legend(figure, panels[0], loc="outside upper right")
    return figure


def _time_constant(forget: float) -> float:
    if forget <= 0:
        return 0.0
    return math.inf if forget >= 1 else -1 / math.log(forget)
