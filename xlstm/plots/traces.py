"""The gates and states that a forward pass kept, read under the names of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.layers.gated import Pass
from xlstm.layers.module import Saved

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Trace:
    """Gates and states of one layer and direction over time, on the host.

    Attributes
    ----------
    name : str
        The name that the layer's parameters begin with.
    gates, states : dict of str to array (T, B, H)
    shares : tuple of str
        Names of the gates whose values are shares, from 0 to 1.
    retained : array (T, B, H) or None
        The share of the old state that each unit keeps at a step; None where there is no such share.
    lengths : whole numbers (B,)
        Lengths of the sequences.
    of_heads : tuple of str
        Names of the gates that each serve a whole head, (T, B, N).
    """

    name: str
    gates: dict[str, Host]
    states: dict[str, Host]
    shares: tuple[str, ...]
    retained: Host | None
    lengths: Host
    of_heads: tuple[str, ...] = ()

    def within(self, values: Host) -> Host:
        """Return the values (n, H) of all steps before the ends of sequences."""
        found: Host = values[np.arange(len(values))[:, None] < self.lengths]
        return found


def layers_of(saved: Any) -> list[str]:
    """Return the names of all layers whose gates and states `forward` kept.

    Parameters
    ----------
    saved : Saved

    Returns
    -------
    list of str

    Raises
    ------
    TypeError, ValueError
        `saved` is not what forward keeps, or has no such layer.
    """
    return [trace.name for trace in traces("layers_of", saved)]


def traces(where: str, saved: Any, part: str | None = None) -> list[Trace]:
    """Return the traces of all layers that have gates, or of those whose name is `part` or begins with it.

    Raises
    ------
    TypeError, ValueError
        `saved` is not what forward keeps, or has no such layer.
    """
    if not isinstance(saved, Saved) or saved.span is None:
        raise TypeError(f"{where}: saved is {checks.shown(saved)}, expected what forward of a recurrent layer keeps")
    found = list(_found(saved))
    if not found:
        raise ValueError(f"{where}: {checks.shown(saved.layer)} keeps no gates, expected a recurrent layer")
    if part is None:
        return found
    chosen = [one for one in found if f"{one.name}.".startswith(f"{part}.")]
    if not chosen:
        known = checks.few([one.name for one in found])
        raise ValueError(f"{where}: there is no layer {checks.shown(part)}, only {known}")
    return chosen


def _found(saved: Saved) -> Iterator[Trace]:
    assert saved.span is not None
    lengths = saved.span.lengths
    parts = {type(saved.layer).__name__: saved.kept} | {name: saved[name] for name in saved.names()}
    for name, part in parts.items():
        kept = part.kept if isinstance(part, Saved) else part
        if isinstance(kept, Pass):
            yield _gated(name, kept, lengths)
        elif (memory := kept.get("memory") if isinstance(kept, dict) else getattr(kept, "memory", None)) is not None:
            yield _matrix(name, kept, memory, lengths)


def _gated(name: str, kept: Pass, lengths: Host) -> Trace:
    cell = kept.tape.step.cell
    values = to_numpy(kept.gates)  # (T, G, B, H)
    gates = {gate: values[:, k] for k, gate in enumerate(cell.GATES)}
    states = {state: to_numpy(getattr(kept, state)) for state in cell.STATES}
    retained = kept.retained
    gates = {gate: one for gate, one in gates.items() if gate not in states}  # that of a plain RNN is its state
    return Trace(name, gates, states, cell.SHARES, None if retained is None else to_numpy(retained), lengths)


def _matrix(name: str, kept: Any, memory: Any, lengths: Host) -> Trace:
    log_i, log_f = (np.moveaxis(to_numpy(a), -1, 0) for a in (memory.inputs[3], memory.logf))  # (T, B, N)
    gates, states = {"log i": log_i, "f": np.exp(log_f)}, {}
    shares = ["f"] if np.all(log_f <= 0) else []  # the exponential of a gate may be more than 1
    if not isinstance(kept, dict):  # an mLSTM layer, and no block, has an output gate, and h before it, as wide as y
        gates["o"], states["h"] = to_numpy(kept.o), to_numpy(kept.h)
        shares.append("o")
    return Trace(name, gates, states, tuple(shares), gates["f"], lengths, ("log i", "f"))
