"""Layers above each other, each in one or both directions, over a packed batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from xlstm.arrays.backend import Array, Namespace, Params, like
from xlstm.cells.cell import Cell
from xlstm.engines.step import Masks
from xlstm.engines.tape import Tape
from xlstm.recurrence.backward import run_bwd
from xlstm.recurrence.forward import run, run_step
from xlstm.recurrence.packing import Packing

State = tuple[Array, ...]
NO_MASKS = Masks()


class Layer(Protocol):
    """What a stack is made of."""

    @property
    def num_layers(self) -> int: ...
    @property
    def cells(self) -> dict[str, Cell]: ...
    @property
    def names(self) -> dict[str, dict[str, str]]: ...
    @property
    def recompute(self) -> bool: ...


class Rates(NamedTuple):
    """Probabilities of dropout between layers, of recurrent dropout, and of zoneout of h and c."""

    dropout: float
    recurrent: float
    zoneout: tuple[float, ...]


@dataclass(frozen=True)
class Pass:
    """What one layer and direction did, for `backward` and for reading; time first, in the order of time."""

    packing: Packing
    reverse: bool
    tape: Tape

    @property
    def gates(self) -> Array:
        """Value of every gate at every step, in the order of the cell's GATES, (T, G, B, H)."""
        return self.tape.step.xp.permute_dims(self._steps(self.tape.gates()), (0, 2, 1, 3))

    @property
    def h(self) -> Array:
        """Hidden state after every step, (T, B, H)."""
        return self.tape.step.xp.asarray(self._steps(self.tape.state("h")), copy=True)  # what is kept may be y itself

    @property
    def c(self) -> Array:
        """Cell state after every step, (T, B, H)."""
        return self._steps(self.tape.state("c"))

    @property
    def n(self) -> Array:
        """Normaliser of an sLSTM after every step, divided by exp(m), (T, B, H)."""
        return self._steps(self.tape.state("n"))

    @property
    def m(self) -> Array:
        """Logarithm of what c and n of an sLSTM are divided by, after every step, (T, B, H)."""
        return self._steps(self.tape.state("m"))

    def _steps(self, rows: Array) -> Array:
        xp = self.tape.step.xp
        return self.packing.unpack(xp, self.packing.mirror(xp, rows) if self.reverse else rows)


@dataclass(frozen=True)
class Saved:
    """What a forward pass keeps for the backward pass, readable by name.

    `saved["1.reverse"].gates` is every gate at every step of the second layer's reverse direction, `.c`
    and `.h` are every cell and hidden state. With one layer and direction, `saved.gates`, `saved.c` and
    `saved.h` will do. Past the end of a sequence they are zero.

    It refers to the arrays `x` and `y` of the call: do not change those in place before `backward`.
    """

    layer: Layer  # that forward was called of
    packing: Packing
    passes: dict[str, Pass]
    masks: list[Array | None]  # of dropout, of the input of each layer

    def __getitem__(self, name: str) -> Pass:
        if name not in self.passes:
            raise KeyError(f"saved: there is no layer {name!r}, only {', '.join(self.passes)}")
        return self.passes[name]

    @property
    def gates(self) -> Array:
        """As of the only layer and direction, (T, G, B, H)."""
        return self._only("gates").gates

    @property
    def h(self) -> Array:
        """As of the only layer and direction, (T, B, H)."""
        return self._only("h").h

    @property
    def c(self) -> Array:
        """As of the only layer and direction, (T, B, H)."""
        return self._only("c").c

    @property
    def n(self) -> Array:
        """As of the only layer and direction, (T, B, H)."""
        return self._only("n").n

    @property
    def m(self) -> Array:
        """As of the only layer and direction, (T, B, H)."""
        return self._only("m").m

    def _only(self, what: str) -> Pass:
        if len(self.passes) > 1:
            names = ", ".join(f"saved[{name!r}].{what}" for name in self.passes)
            raise AttributeError(f"saved: there are several layers or directions, say {names}")
        return next(iter(self.passes.values()))


def forward(
    xp: Namespace,
    layer: Layer,
    params: Params,
    rows: Array,
    packing: Packing,
    state: Sequence[Sequence[Array]],
    rates: Rates,
    rng: np.random.Generator | None,
    keep: bool,
) -> tuple[Array, list[Sequence[Array]], Saved | None]:
    """Run packed rows (N, D) through a stack: y (N, directions * P), final states and Saved.

    States are given and returned for each layer and direction in turn, each (H, B). With `rng` masks are drawn, without
    it zoneout is its expectation.
    """
    passes: dict[str, Pass] = {}
    masks: list[Array | None] = []
    ends: list[Sequence[Array]] = []
    kept = "nothing" if not keep else "states" if layer.recompute else "all"
    for k in range(layer.num_layers):
        mask = dropout(rng, rates.dropout if k else 0.0, tuple(rows.shape), rows)
        masks.append(mask)
        if mask is not None:
            rows = rows * mask
        outputs = []
        for direction, cell in layer.cells.items():
            name = f"{k}.{direction}".rstrip(".")
            w = {last: params[full] for last, full in layer.names[name].items()}
            start = [packing.sort(xp, s) for s in state[len(ends)]]
            drawn = _masks(xp, packing, rates, rng, start, rows)
            x = packing.mirror(xp, rows) if direction else rows
            y, end, tape = run(xp, cell, w, x, packing.widths, start, drawn, kept)
            ends.append([packing.unsort(xp, s) for s in end])
            outputs.append(packing.mirror(xp, y) if direction else y)
            if keep:
                passes[name] = Pass(packing, bool(direction), tape)
        rows = outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=1)
    return rows, ends, Saved(layer, packing, passes, masks) if keep else None


def step(xp: Namespace, layer: Layer, params: Params, x: Array, state: State, rates: Rates) -> tuple[Array, State]:
    """Run one step of a stack without reverse directions from x (B, D); return y (B, P) and the state (L, B, H)."""
    masks = Masks(None, tuple([rate or None for rate in rates.zoneout]))
    (cell,) = layer.cells.values()
    after = []
    for k, names in enumerate(layer.names.values()):
        w = {last: params[name] for last, name in names.items()}
        after.append(run_step(xp, cell, w, x, [s[k, ...] for s in state], masks))
        x = after[-1][0]
    return xp.asarray(x, copy=True), tuple([xp.stack(states) for states in zip(*after, strict=True)])


def backward(
    xp: Namespace, params: Params, saved: Saved, dy: Array | None, dstate: Sequence[Sequence[Array]]
) -> tuple[Params, Array, list[Sequence[Array]]]:
    """Return gradients of the parameters, of the packed rows and of the initial states."""
    packing = saved.packing
    grads: Params = {}
    starts: list[Sequence[Array]] = [()] * len(dstate)
    names = list(saved.passes)
    directions = len(names) // len(saved.masks)
    for k in reversed(range(len(saved.masks))):
        dx = None
        for d in range(directions):
            at = k * directions + d
            one = saved.passes[names[at]]
            P = one.tape.step.P
            part = None if dy is None else dy[:, d * P : (d + 1) * P]
            if part is not None and one.reverse:
                part = packing.mirror(xp, part)
            gradients, below, start = run_bwd(one.tape, part, [packing.sort(xp, d) for d in dstate[at]])
            grads |= {f"{names[at]}.{name}": g for name, g in gradients.items()}
            starts[at] = [packing.unsort(xp, d) for d in start]
            if one.reverse:
                below = packing.mirror(xp, below)
            dx = below if dx is None else dx + below
        mask = saved.masks[k]
        dy = dx if mask is None else dx * mask
    return {name: grads[name] for name in params}, dy, starts


def _masks(
    xp: Namespace,
    packing: Packing,
    rates: Rates,
    rng: np.random.Generator | None,
    start: Sequence[Array],
    rows: Array,
) -> Masks:
    """Draw the masks of one layer and direction, for the batch in its own order, or over packed rows."""
    if not rates.recurrent and not any(rates.zoneout):
        return NO_MASKS
    P, B = start[0].shape
    drop = dropout(rng, rates.recurrent, (B, P), rows)
    stay: list[Array | float | None] = []
    for rate, s in zip(rates.zoneout, start, strict=False):
        shape = (rows.shape[0], s.shape[0])
        drawn = None if rng is None or not rate else like(rng.random(shape, dtype=np.float32) < rate, rows)
        stay.append((rate or None) if drawn is None else drawn)
    return Masks(None if drop is None else packing.sort(xp, drop.T), tuple(stay))


def dropout(rng: np.random.Generator | None, rate: float, shape: tuple[int, ...], array: Array) -> Array | None:
    """Zero with probability `rate`, else 1 / (1 - rate)."""
    if rng is None or not rate:
        return None
    return like((rng.random(shape, dtype=np.float32) >= rate) / (1 - rate), array)
