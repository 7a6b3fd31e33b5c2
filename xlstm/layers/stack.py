"""Stack: gated layers on top of each other, each in one or both directions, over a packed batch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xlstm.arrays import foreach
from xlstm.arrays.bernoulli import bernoulli
from xlstm.arrays.concat import concat, stack
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.cells.cell import Cell
from xlstm.engines import engine
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.tape import Tape
from xlstm.layers.masks import dropout
from xlstm.layers.sequence import SequenceLayer
from xlstm.layers.state import Span, State, complete
from xlstm.recurrence.backward import run_bwd
from xlstm.recurrence.packing import Packing

NO_MASKS = Masks()


@dataclass(frozen=True)
class Pass:
    """The values that one layer and direction kept, which are read with time first, in the order of time."""

    packing: Packing
    reverse: bool
    tape: Tape

    @property
    def gates(self) -> Array:
        """The value of every gate at every step, in the order of the cell's GATES, (T, G, B, H)."""
        return self.tape.step.xp.permute_dims(self._steps(self.tape.gates()), (0, 2, 1, 3))

    @property
    def retained(self) -> Array | None:
        """The share of the old state that each unit keeps at every step, (T, B, H), or None if the cell has none."""
        found = self.tape.retained()
        return None if found is None else self._steps(found)

    def __getattr__(self, name: str) -> Array:
        """Return a state of the cell after every step, such as h or c, (T, B, H)."""
        if name.startswith("_"):
            raise AttributeError(name)
        states = self._steps(self.tape.state(name))
        return self.tape.step.xp.asarray(states, copy=True) if name == "h" else states  # what is kept may be y itself

    def _steps(self, rows: Array) -> Array:
        xp = self.tape.step.xp
        return self.packing.unpack(xp, self.packing.mirror(xp, rows) if self.reverse else rows)


@dataclass(frozen=True)
class Kept:
    """The values that all layers and directions kept."""

    passes: dict[str, Pass]
    masks: list[Array | None]  # the mask of dropout of the input of each layer

    def __getattr__(self, name: str) -> Array:
        """Return gates or a state of the only layer and direction."""
        if name.startswith("_"):
            raise AttributeError(name)
        if len(self.passes) > 1:
            names = ", ".join(f"saved[{one!r}].{name}" for one in self.passes)
            raise AttributeError(f"saved: there are several layers or directions, say {names}")
        return getattr(next(iter(self.passes.values())), name)


class Stack(SequenceLayer):
    """A layer that runs the cells of all its layers and directions; `Recurrent` has the options."""

    if TYPE_CHECKING:
        num_layers: int
        dropout: float
        recurrent_dropout: float
        zoneout: Any
        recompute: bool

        @property
        def cells(self) -> dict[str, Cell]:
            """The cell of each direction, "" or "reverse."."""

    @functools.cached_property
    def names(self) -> dict[str, dict[str, str]]:
        """For each layer and direction, the full name of each parameter by its last name."""
        found: dict[str, dict[str, str]] = {}
        for name in self.shapes:
            prefix, _, last = name.rpartition(".")
            found.setdefault(prefix, {})[last] = name
        return found

    def run(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        """Run `forward` without checks; packing leaves out all steps past the end of a sequence."""
        xp, packing, rng = span.xp, span.packing, span.rng
        keep = "nothing" if not span.keep else "states" if self.recompute else "all"
        passes: dict[str, Pass] = {}
        masks: list[Array | None] = []
        ends: list[Sequence[Array]] = []
        masked = bool(self.recurrent_dropout) or any(self.zoneout)
        rows = packing.pack(xp, x)
        for k in range(self.num_layers):
            mask = None
            if k and self.dropout:
                mask = dropout(rng, self.dropout, tuple(rows.shape), rows)
            masks.append(mask)
            if mask is not None:
                rows = rows * mask
            outputs = []
            for direction, cell in self.cells.items():
                name = f"{k}.{direction}"[:-1]
                names = self.names[name]
                start: Sequence[Array] = [s[len(ends), ...].T for s in state]
                if packing.order is not None and not span.rest:
                    start = packing.sort(xp, start)
                drawn = self._masks(xp, packing, rng, start, rows) if masked else NO_MASKS
                step = Step(xp, cell, dict(zip(names, map(p.__getitem__, names.values()), strict=True)), drawn)
                chosen = engine.choose(step, packing.widths, self._engines[name])
                given = packing.mirror(xp, rows) if direction else rows
                y, end, tape = chosen.forward(step, given, start, packing.widths, keep)
                ends.append(end)
                outputs.append(packing.mirror(xp, y) if direction else y)
                if span.keep:
                    passes[name] = Pass(packing, bool(direction), tape)
            rows = outputs[0] if len(outputs) == 1 else concat(xp, outputs, 1)
        y, columns = packing.restore(xp, rows, ends)
        return y, _together(xp, columns, packing), Kept(passes, masks)

    def run_bwd(
        self, p: Params, kept: Any, dy: Array | None, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """Run `backward` without checks; a dy or dstate of None is zero."""
        xp, packing = span.xp, span.packing
        rest = dstate is None
        if dstate is None:
            dstate = complete("backward", xp, "dstate", None, self.states, span.B, p, zero=True)
        rows = None if dy is None else packing.pack(xp, dy)
        grads: Params = {}
        names = list(kept.passes)
        starts: list[Sequence[Array]] = [()] * len(names)
        directions = len(names) // len(kept.masks)
        for k in reversed(range(len(kept.masks))):
            dx = None
            for d in range(directions):
                at = k * directions + d
                one = kept.passes[names[at]]
                P = one.tape.step.P
                part = rows if rows is None or directions == 1 else rows[:, d * P : (d + 1) * P]
                if part is not None and one.reverse:
                    part = packing.mirror(xp, part)
                last = [s[at, ...].T for s in dstate]
                dend = last if rest else packing.sort(xp, last)
                found, below, start = run_bwd(one.tape, part, dend)
                grads |= {f"{names[at]}.{name}": g for name, g in found.items()}
                starts[at] = start
                if one.reverse:
                    below = packing.mirror(xp, below)
                dx = below if dx is None else dx + below
            rows = dx if kept.masks[k] is None else dx * kept.masks[k]
        dx, columns = packing.restore(xp, rows, starts)
        return grads, dx, _together(xp, columns, packing)

    def run_step(self, xp: Namespace, p: Params, x: Array, state: State) -> tuple[Array, State]:
        """Run `step` without checks; zoneout takes its expectation."""
        masks = Masks(None, tuple([rate or None for rate in self.zoneout])) if any(self.zoneout) else NO_MASKS
        (cell,) = self.cells.values()
        after: list[Sequence[Array]] = []
        for k, names in enumerate(self.names.values()):
            w = {last: p[name] for last, name in names.items()}
            x, found = engine.step(xp, cell, w, masks, x, [s[k, ...] for s in state], self._streams[k])
            after.append(found)
        new = x is not after[-1][0]  # all arrays are
        y = x if new else xp.asarray(x, copy=True)
        if new:
            stacked = [[s[None, ...] for s in one] for one in zip(*after, strict=True)]
            return y, tuple([one[0] if len(one) == 1 else concat(xp, one, 0) for one in stacked])
        if len(after) == 1:  # to stack one array takes longer, which counts in a stream
            return y, tuple([xp.asarray(s[None, ...], copy=True) for s in after[0]])
        return y, tuple([stack(xp, states) for states in zip(*after, strict=True)])

    @functools.cached_property
    def _engines(self) -> dict[str, dict[Any, Any]]:
        """For each layer and direction the engines chosen before, which `engine.choose` fills in."""
        return {name: {} for name in self.names}

    @functools.cached_property
    def _streams(self) -> list[dict[Any, Any]]:
        """For each layer the compiled single step by dtype, which `engine.step` fills in."""
        return [{} for _ in self.names]

    def pieces(self, kept: Any) -> Mapping[str, Any]:
        """Return what each layer and direction kept, by its name."""
        return kept.passes  # type: ignore[no-any-return]

    def _masks(
        self, xp: Namespace, packing: Packing, rng: np.random.Generator | None, start: Sequence[Array], rows: Array
    ) -> Masks:
        """Draw the masks of one layer and direction: one of h a sequence, those of zoneout a packed row."""
        P, B = start[0].shape
        drop = dropout(rng, self.recurrent_dropout, (B, P), rows)
        shares: list[Array | float | None] = []
        for rate, s in zip(self.zoneout, start, strict=True):
            if rng is None or not rate:
                shares.append(rate or None)
            else:
                shares.append(bernoulli(rng, rate, (rows.shape[0], s.shape[0]), rows))
        return Masks(None if drop is None else packing.sort(xp, [drop.T])[0], tuple(shares))


def _together(xp: Namespace, columns: Sequence[Sequence[Array]], packing: Packing) -> State:
    """Return copies, (L, B, H), of the states (H, B) of each layer and direction, to which what is kept refers too."""
    if len(columns) == 1:
        if xp is not np and compiles(xp):
            states = [s.T[None, ...] for s in columns[0]]
            return tuple(states if packing.order is not None else foreach.copies(xp, states))  # the order is a copy
        return tuple([xp.asarray(s.T[None, ...], copy=True) for s in columns[0]])
    return tuple([stack(xp, [s.T for s in one]) for one in zip(*columns, strict=True)])
