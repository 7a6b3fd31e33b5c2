"""Recurrent: the base of the layers in `recurrent.py`, stacked gated layers over a packed batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xlstm.arrays import checks, foreach
from xlstm.arrays.cached import cached_property
from xlstm.arrays.concat import concat, stack
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.arrays.random import bernoulli
from xlstm.cells import activations as functions
from xlstm.cells.cell import Cell
from xlstm.engines import engine
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.tape import Tape
from xlstm.layers import initializers
from xlstm.layers.announcements import announce
from xlstm.layers.module import Weights, dropout, dropped
from xlstm.layers.sequence import (
    Derivatives,
    Leaf,
    Scanned,
    SequenceLayer,
    State,
    WithState,
    complete,
)
from xlstm.recurrence.backward import run_bwd
from xlstm.recurrence.packing import Packing, Span

NO_MASKS = Masks()


class Sublayer(NamedTuple):
    """One layer and direction of a stack."""

    name: str  # the names of its parameters begin with it
    cell: Cell
    reverse: bool
    names: dict[str, str]  # its parameters' names, by their last names
    choices: dict[Any, Any]  # the engines chosen before, which `engine.choose` fills in


@dataclass(frozen=True)
class LayerTape:
    """The values that one layer and direction kept, read with time first, in the order of time."""

    packing: Packing
    reverse: bool
    tape: Tape
    mask: Array | None = None  # the dropout mask of the input

    @property
    def gates(self) -> Array:
        """The value of every gate at every step, in the order of the cell's GATES, (T, G, B, H)."""
        return self.tape.step.xp.permute_dims(self._steps(self.tape.gates()), (0, 2, 1, 3))

    @property
    def retained(self) -> Array | None:
        """The share of the old state that each unit keeps at every step, (T, B, H).

        It is None if the cell has no such share.
        """
        share = self.tape.retained()
        return None if share is None else self._steps(share)

    def __getattr__(self, name: str) -> Array:
        """Return a state of the cell after every step, such as h or c, (T, B, H)."""
        if name.startswith("_"):
            raise AttributeError(name)
        states = self._steps(self.tape.state(name))
        # the array that is kept may be y itself
        return self.tape.step.xp.asarray(states, copy=True) if name == "h" else states

    def _steps(self, rows: Array) -> Array:
        xp = self.tape.step.xp
        return self.packing.unpack(xp, self.packing.mirror(xp, rows) if self.reverse else rows)


@dataclass(frozen=True, repr=False)
class Recurrent(SequenceLayer):
    """The base of gated layers; `LSTM` describes the options."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    _: KW_ONLY
    bidirectional: bool = False
    reverse: bool = False
    batch_first: bool = False
    bias: bool = True
    recurrent_bias: bool | None = None
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, ...] = 0.0
    layer_norm: bool = False
    clip: float | None = None
    activations: str | tuple[str, ...] | None = None
    initializer: str = "uniform"
    recompute: bool = False

    CELL: ClassVar[type[Cell]]  #: its fields are options of the layer, if the layer has them too

    def __post_init__(self) -> None:
        where = type(self).__name__
        super().__post_init__()
        if self.bidirectional and self.reverse:
            raise ValueError(
                f"{where}: bidirectional and reverse exclude one another, both are True"
            )
        if self.dropout and self.num_layers == 1:
            raise ValueError(
                f"{where}: dropout is {self.dropout} but acts between layers, and num_layers is 1"
            )
        cell_options = {field.name for field in fields(self.CELL)}  # type: ignore[arg-type]
        self._refuse("its cell has none", *{"activations", "clip"} - cell_options)
        if not self.CELL.RECURRENT:
            self._refuse(
                "its cell has no product of h", "recurrent_bias", "recurrent_dropout", "layer_norm"
            )
        object.__setattr__(self, "activations", self._activations(where))
        if self.recurrent_bias is None:
            object.__setattr__(self, "recurrent_bias", self._has_recurrent_bias)
        if self.recurrent_bias and not self.bias:
            raise ValueError(f"{where}: recurrent_bias and bias=False exclude one another")
        object.__setattr__(self, "zoneout", self._zoneout(where))
        if self.recompute:
            self._refuse(
                "recompute excludes it", "zoneout", "recurrent_dropout", "layer_norm", "proj_size"
            )

    def _used(self, *options: str) -> dict[str, Any]:
        """Return the layer's options among these that are in use: neither 0, False nor None."""
        values = {name: getattr(self, name, None) for name in options}
        return {n: v for n, v in values.items() if (any(v) if isinstance(v, tuple) else v)}

    def _refuse(self, why: str, *options: str) -> None:
        """Raise ValueError if one of the options is in use."""
        for option, value in self._used(*options).items():
            where = type(self).__name__
            raise ValueError(f"{where}: {option} is {checks.shown(value)}, but {why}")

    def __repr__(self) -> str:
        """Return the call that makes the layer, without options at their defaults."""
        plain = type(self)(self.input_size, self.hidden_size)
        defaults = plain.__getstate__() | {"recurrent_bias": self._has_recurrent_bias}
        values = self.__getstate__().items()
        options = [f", {name}={value!r}" for name, value in values if value != defaults[name]]
        return f"{type(self).__name__}({self.input_size!r}, {self.hidden_size!r}{''.join(options)})"

    @property
    def weights(self) -> Weights:
        weights: Weights = {}
        for k in range(self.num_layers):
            D = {"directions*P": self.output_size} if k else {"D": self.input_size}
            for direction in self.directions:
                for name, dims in self._shapes(D).items():
                    weights[f"{k}.{direction}{name}"] = dims, functools.partial(self._draw, name)
        return weights

    @cached_property
    def directions(self) -> tuple[str, ...]:
        return ("", "reverse.") if self.bidirectional else ("reverse.",) if self.reverse else ("",)

    @property
    def STATES(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the states."""
        return self.CELL.STATES

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Widths of the states of one layer and direction."""
        return (self.hidden_size,) * len(self.STATES)

    @cached_property
    def states(self) -> State:
        """The `Leaf` of every array of the state, each (layers * directions, B, H)."""
        before = {"layers*directions": self.num_layers * len(self.directions)}
        leaves = zip(self.STATES, self.state_sizes, self.CELL.REST, strict=True)
        return tuple(Leaf(name, before, {"H": size}, rest) for name, size, rest in leaves)

    @property
    def output_size(self) -> int:
        """Width of y."""
        return len(self.directions) * self.state_sizes[0]

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """The cell of each direction; see `directions`."""
        defaults = getattr(self.CELL, "activations", ())
        activations = self.activations or defaults * len(self.directions)
        n = len(defaults)
        return {
            name: self._cell(tuple(activations[n * k : n * (k + 1)]))
            for k, name in enumerate(self.directions)
        }

    def _cell(self, activations: tuple[str, ...]) -> Cell:
        """Return the cell of a direction, with the options that layer and cell share."""
        return self._made(self.CELL, activations=activations)  # type: ignore[no-any-return]

    @property
    def _output_symbol(self) -> str:
        P = "H" if self.state_sizes[0] == self.hidden_size else "P"
        return P if len(self.directions) == 1 else f"2{P}"

    @property
    def _has_recurrent_bias(self) -> bool:
        """The default of `recurrent_bias`: whether its effect differs from that of `bias`."""
        return self.bias and next(iter(self.cells.values())).BIASES == 2

    def _shapes(self, D: dict[str, int]) -> dict[str, checks.Dims]:
        """Return the parameters' shapes of one layer and direction with an input of width D."""
        G = self._gates
        H = self.hidden_size
        P = self.state_sizes[0]
        rows = {f"{G}H" if G > 1 else "H": G * H}
        shapes: dict[str, checks.Dims] = {"Wx": {**rows, **D}}
        if self.CELL.RECURRENT:
            shapes["Wh"] = {**rows, "H" if G > 1 and P == H else "P": P}
        if self.bias:
            shapes["b"] = rows
        if self.recurrent_bias:
            shapes["bh"] = rows
        if self.layer_norm:
            shapes |= {"gx": rows, "gh": rows}
        return shapes | {
            name: {f"{rows}H": rows * H} for name, rows in self.CELL.PARAMETERS.items()
        }

    @cached_property
    def _gates(self) -> int:
        return len(next(iter(self.cells.values())).GATES)

    def _draw(self, name: str, rng: np.random.Generator, shape: initializers.Shape) -> Any:
        """Return the initial value of a parameter, by its last name."""
        if name in ("gx", "gh", "gc"):
            return np.ones(shape)
        if name == "bc":
            return np.zeros(shape)
        return initializers.RECURRENT[self.initializer](rng, name, shape, self.hidden_size)

    def _zoneout(self, where: str) -> tuple[float, ...]:
        """Return the checked rate of each state."""
        rates: Any = self.zoneout
        names = self.STATES
        if not isinstance(rates, tuple | list):
            rates = (rates,) * len(names)
        elif len(rates) != len(names):
            raise ValueError(
                f"{where}: zoneout has {len(rates)} rates, expected those of {', '.join(names)}"
            )
        return tuple(checks.rate(where, "zoneout", rate) for rate in rates)

    @cached_property
    def _zones(self) -> tuple[Any, ...]:
        """The rate of zoneout of each state, None without zoneout."""
        rates: Any = self.zoneout
        return tuple(rate or None for rate in rates)

    def _activations(self, where: str) -> tuple[str, ...] | None:
        """Return the checked activations of all directions, or None for the default."""
        if self.activations is None:
            return None
        texts = [self.activations] if isinstance(self.activations, str) else self.activations
        texts = checks.several(where, "activations", texts, "names")
        defaults = self.CELL.activations * len(self.directions)
        n = len(self.CELL.activations)
        if len(texts) not in (n, len(defaults)):
            raise ValueError(
                f"{where}: activations has {len(texts)} names, expected {n} for each direction"
            )
        names = tuple(map(functions.canonical, texts))
        names *= len(self.directions) if len(texts) == n else 1
        return None if names == defaults else names

    @cached_property
    def names(self) -> dict[str, dict[str, str]]:
        """The full name of each parameter by its last name, for each layer and direction."""
        full_names: dict[str, dict[str, str]] = {}
        for name in self.shapes:
            prefix, _, last = name.rpartition(".")
            full_names.setdefault(prefix, {})[last] = name
        return full_names

    @cached_property
    def _sublayers(self) -> list[list[Sublayer]]:
        """The recurrences of each layer, one for each direction."""
        return [
            [
                Sublayer(
                    name := f"{k}.{direction}"[:-1], cell, bool(direction), self.names[name], {}
                )
                for direction, cell in self.cells.items()
            ]
            for k in range(self.num_layers)
        ]

    def run(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        """Run `forward` without checks; packing leaves out all steps past a sequence's end."""
        xp = span.xp
        packing = span.packing
        rng = span.rng
        keep = "nothing" if not span.keep else "states" if self.recompute else "all"
        passes: dict[str, LayerTape] = {}
        ends: list[Sequence[Array]] = []
        rows = packing.pack(xp, x)
        for k, directions in enumerate(self._sublayers):
            mask = None
            if k and self.dropout:
                mask = _by_row(
                    xp, packing, rows.shape, functools.partial(dropout, rng, self.dropout, rows)
                )
                rows = dropped(rows, mask)
            outputs = []
            for sublayer in directions:
                start: Sequence[Array] = [s[len(ends), ...].T for s in state]
                if packing.order is not None:
                    start = packing.sort(xp, start, sublayer.cell.REST, span.rest)
                masks = self._masks(xp, packing, rng, start, rows) if self._masked else NO_MASKS
                w = dict(
                    zip(sublayer.names, map(p.__getitem__, sublayer.names.values()), strict=True)
                )
                step = Step(xp, sublayer.cell, w, masks)
                runner = engine.choose(step, packing.widths, sublayer.choices)
                x = packing.mirror(xp, rows) if sublayer.reverse else rows
                y, end, tape = runner.forward(step, x, start, packing.widths, keep)
                ends.append(end)
                outputs.append(packing.mirror(xp, y) if sublayer.reverse else y)
                if span.keep and tape is not None:
                    passes[sublayer.name] = LayerTape(packing, sublayer.reverse, tape, mask)
            rows = outputs[0] if len(outputs) == 1 else concat(xp, outputs, 1)
        y, columns = packing.restore(xp, rows, ends)
        return y, stack_states(xp, columns, span.keep and packing.order is None), passes

    def run_bwd(
        self, p: Params, kept: Any, dy: Array | None, dstate: State | None, span: Span
    ) -> Derivatives:
        """Run `backward` without checks; a dy or dstate of None is zero."""
        xp = span.xp
        packing = span.packing
        rest = dstate is None
        if dstate is None:
            dstate = complete("backward", xp, "dstate", None, self.states, span.B, p, zero=True)
        rows = None if dy is None else packing.pack(xp, dy)
        grads: Params = {}
        starts: list[Sequence[Array]] = [()] * len(kept)
        at = len(kept)
        for directions in reversed(self._sublayers):
            dx = None
            at -= len(directions)
            for d, sublayer in enumerate(directions):
                layer_tape = kept[sublayer.name]
                P = layer_tape.tape.step.P
                dh = None if rows is None else rows[:, d * P : (d + 1) * P]
                if dh is not None and sublayer.reverse:
                    dh = packing.mirror(xp, dh)
                dend: Sequence[Array] = [s[at + d, ...].T for s in dstate]
                if packing.order is not None:
                    dend = packing.sort(xp, dend, equal=rest)
                dw, below, starts[at + d] = run_bwd(layer_tape.tape, dh, dend, packing)
                own = {sublayer.names[last]: g for last, g in dw.items()}
                announce(p, own)
                grads |= own
                if sublayer.reverse:
                    below = packing.mirror(xp, below)
                dx = below if dx is None else dx + below
            rows = dropped(dx, kept[directions[0].name].mask)
        dx, columns = packing.restore(xp, rows, starts, backward=True)
        return grads, dx, stack_states(xp, columns, packing.order is None)

    def run_step(self, xp: Namespace, p: Params, x: Array, state: State) -> WithState:
        """Run `step` without checks; zoneout takes its expectation."""
        masks = Masks(None, self._zones) if self._masked else NO_MASKS
        y = x
        after: list[Sequence[Array]] = []
        for (sublayer,) in self._sublayers:
            w = {last: p[name] for last, name in sublayer.names.items()}
            stream = engine.stream(xp, sublayer.cell, w, masks, y, sublayer.choices)
            y, end = stream(w, y, [s[len(after), ...] for s in state])
            after.append(end)
        if y is after[-1][0]:
            y = xp.asarray(y, copy=True)
        if len(after) == 1:  # stacking one array takes longer, which counts in a stream
            return y, tuple([s[None, ...] for s in after[0]])
        return y, tuple([stack(xp, states) for states in zip(*after, strict=True)])

    @cached_property
    def _masked(self) -> bool:
        """Whether the recurrence draws masks."""
        return bool(self.recurrent_dropout) or any(self._zones)

    def _masks(
        self,
        xp: Namespace,
        packing: Packing,
        rng: np.random.Generator | None,
        start: Sequence[Array],
        rows: Array,
    ) -> Masks:
        """Draw the masks of one layer and direction.

        There is one mask of h for each sequence, and one of zoneout for each packed row.
        """
        N = rows.shape[0]
        # with an axis of steps: these rows are not packed
        drop = dropout(rng, self.recurrent_dropout, rows, (1, packing.B, start[0].shape[0]))
        shares = [
            _by_row(
                xp, packing, (N, h.shape[0]), functools.partial(bernoulli, rng, rate, array=rows)
            )
            if rng and rate
            else rate
            for rate, h in zip(self._zones, start, strict=True)
        ]
        return Masks(
            None if drop is None else packing.by_sequence(xp, drop[0, ...].T), tuple(shares)
        )


def _by_row(
    xp: Namespace, packing: Packing, shape: tuple[int, ...], draw: Callable[..., Any]
) -> Any:
    """Return what `draw(shape=...)` draws for packed rows (N, F).

    With resets it draws in the order of the batch, the only order that ranks with a part of the
    batch share.
    """
    if not packing.has_resets:
        return draw(shape=shape)
    drawn = draw(shape=(packing.T, packing.B, shape[1]))
    return None if drawn is None else packing.pack(xp, drawn)


def stack_states(xp: Namespace, columns: Sequence[Sequence[Array]], copy: bool) -> State:
    """Return the states (L, B, H) from the columns (H, B) of each layer and direction.

    With `copy` they are new arrays, because the values kept refer to `columns`, too.
    """
    if len(columns) > 1:
        return tuple([stack(xp, [s.T for s in states]) for states in zip(*columns, strict=True)])
    if copy and xp is np:  # NumPy copies all without a call of Python for each
        return tuple([s.T[None].copy() for s in columns[0]])
    states = [s.T[None, ...] for s in columns[0]]
    return tuple(foreach.copies(xp, states) if copy else states)
