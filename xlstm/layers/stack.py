"""Layers above each other, each in one or both directions, over a packed batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from xlstm.arrays.backend import Array, Namespace, Params, like
from xlstm.recurrence import backward as bptt
from xlstm.recurrence import forward as recurrence
from xlstm.recurrence.loop import Cell, Noise
from xlstm.recurrence.packing import Packing

State = tuple[Array, ...]


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
    saved: recurrence.Saved

    @property
    def gates(self) -> Array:
        """Value of every gate at every step, in the order of the cell's GATES, (T, G, B, H)."""
        return self.saved.xp.permute_dims(self._steps(self.saved.gates), (0, 2, 1, 3))

    @property
    def h(self) -> Array:
        """Hidden state after every step, (T, B, H)."""
        return self.saved.xp.asarray(self._steps(self.saved.state("h")), copy=True)  # what is kept may be y itself

    @property
    def c(self) -> Array:
        """Cell state after every step, (T, B, H)."""
        return self._steps(self.saved.state("c"))

    @property
    def n(self) -> Array:
        """Normaliser of an sLSTM after every step, divided by exp(m), (T, B, H)."""
        return self._steps(self.saved.state("n"))

    @property
    def m(self) -> Array:
        """Logarithm of what c and n of an sLSTM are divided by, after every step, (T, B, H)."""
        return self._steps(self.saved.state("m"))

    def _steps(self, rows: Array) -> Array:
        xp = self.saved.xp
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

    States are given and returned for each layer and direction in turn, each (H, B).
    With `rng` masks are drawn, without it zoneout is its expectation.
    """
    passes: dict[str, Pass] = {}
    masks: list[Array | None] = []
    ends: list[Sequence[Array]] = []
    for k in range(layer.num_layers):
        mask = dropout(rng, rates.dropout if k else 0.0, tuple(rows.shape), rows)
        masks.append(mask)
        if mask is not None:
            rows = rows * mask
        loops = []
        for d, (direction, cell) in enumerate(layer.cells.items()):
            start = [packing.sort(xp, s) for s in state[len(ends) + d]]
            noise = _noise(xp, packing, rates, rng, start, rows)
            x = packing.mirror(xp, rows) if direction else rows
            w = _weights(xp, params, layer.names[f"{k}.{direction}".rstrip(".")])
            loops.append(recurrence.Forward(xp, cell, w, x, packing.runs, start, noise, keep, layer.recompute))
        outputs = []
        for direction, (y, end, saved) in zip(layer.cells, recurrence.run(loops), strict=True):
            ends.append([packing.unsort(xp, s) for s in end])
            outputs.append(packing.mirror(xp, y) if direction else y)
            if saved is not None:
                passes[f"{k}.{direction}".rstrip(".")] = Pass(packing, bool(direction), saved)
        rows = outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=1)
    return rows, ends, Saved(layer, packing, passes, masks) if keep else None


def step(xp: Namespace, layer: Layer, params: Params, x: Array, state: State, rates: Rates) -> tuple[Array, State]:
    """One time step of a stack without reverse directions, x (B, D): y (B, P) and the state after, each (L, B, H)."""
    after = tuple([xp.asarray(s, copy=True) for s in state])
    noise = Noise(None, tuple([rate or None for rate in rates.zoneout]))
    (cell,) = layer.cells.values()
    for k, names in enumerate(layer.names.values()):
        here = [s[k, ...] for s in after]
        recurrence.step(xp, cell, _weights(xp, params, names), x, here, noise)
        x = here[0]
    return xp.asarray(x, copy=True), after


def backward(
    xp: Namespace, params: Params, saved: Saved, dy: Array | None, dstate: Sequence[Sequence[Array]]
) -> tuple[Params, Array, list[Sequence[Array]]]:
    """Gradients of the parameters, of the packed rows and of the initial states, from those of y and the final ones."""
    packing = saved.packing
    grads: Params = {}
    starts: list[Sequence[Array]] = [()] * len(dstate)
    names = list(saved.passes)
    directions = len(names) // len(saved.masks)
    for k in reversed(range(len(saved.masks))):
        here = range(k * directions, (k + 1) * directions)
        loops = []
        for d, at in enumerate(here):
            one = saved.passes[names[at]]
            width = one.saved.y.shape[1]
            part = None if dy is None else dy[:, d * width : (d + 1) * width]
            if part is not None and one.reverse:
                part = packing.mirror(xp, part)
            loops.append(bptt.Backward(one.saved, part, [packing.sort(xp, d) for d in dstate[at]]))
        dx = None
        for at, (gradients, below_x, start) in zip(here, bptt.run(loops), strict=True):
            grads |= {f"{names[at]}.{name}": g for name, g in gradients.items()}
            starts[at] = [packing.unsort(xp, d) for d in start]
            if saved.passes[names[at]].reverse:
                below_x = packing.mirror(xp, below_x)
            dx = below_x if dx is None else dx + below_x
        mask = saved.masks[k]
        dy = dx if mask is None else dx * mask
    return {name: xp.reshape(grads[name], tuple(p.shape)) for name, p in params.items()}, dy, starts


def _weights(xp: Namespace, params: Params, names: dict[str, str]) -> Params:
    """Parameters of a layer and direction by their last names; one head alone is a matrix like any other."""
    w = {last: params[name] for last, name in names.items()}
    if w["Wh"].ndim == 4 and w["Wh"].shape[1] == 1:
        G, _, K, _ = w["Wh"].shape
        w["Wh"] = xp.reshape(w["Wh"], (G * K, K))
    return w


def _noise(
    xp: Namespace,
    packing: Packing,
    rates: Rates,
    rng: np.random.Generator | None,
    start: Sequence[Array],
    rows: Array,
) -> Noise:
    """Masks of one layer and direction; drawn for the batch in its own order, or over packed rows."""
    P, B = start[0].shape
    drop = dropout(rng, rates.recurrent, (B, P), rows)
    stay: list[Array | float | None] = []
    for rate, s in zip(rates.zoneout, start, strict=False):
        shape = (rows.shape[0], s.shape[0])
        drawn = None if rng is None or not rate else like(rng.random(shape, dtype=np.float32) < rate, rows)
        stay.append((rate or None) if drawn is None else drawn)
    return Noise(None if drop is None else packing.sort(xp, drop.T), tuple(stay))


def dropout(rng: np.random.Generator | None, rate: float, shape: tuple[int, ...], array: Array) -> Array | None:
    """Zero with probability `rate`, else 1 / (1 - rate)."""
    if rng is None or not rate:
        return None
    return like((rng.random(shape, dtype=np.float32) >= rate) / (1 - rate), array)
