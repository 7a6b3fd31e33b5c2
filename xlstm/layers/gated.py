"""Recurrent: the options, parameters and states of stacked gated layers, in one direction or both."""

from __future__ import annotations

import functools
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from xlstm.arrays import checks
from xlstm.cells import activations as functions
from xlstm.cells.cell import Cell
from xlstm.layers import initializers
from xlstm.layers.module import Weight
from xlstm.layers.stack import Stack
from xlstm.layers.state import Leaf, State


@dataclass(frozen=True, repr=False)
class Recurrent(Stack):
    """The base of LSTM, GRU, RNN and sLSTM; `LSTM` describes the options."""

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

    STATES: ClassVar[tuple[str, ...]] = ("h",)
    REST: ClassVar[tuple[float, ...]] = (0.0,)  # each state before the first step
    ACTIVATIONS: ClassVar[tuple[str, ...]] = ()  # the activations of the cell by default

    def __post_init__(self) -> None:
        where = type(self).__name__
        super().__post_init__()
        initializers.recurrent(self.initializer)
        if self.bidirectional and self.reverse:
            raise ValueError(f"{where}: bidirectional and reverse exclude one another, both are True")
        if self.dropout and self.num_layers == 1:
            raise ValueError(f"{where}: dropout is {self.dropout} but acts between layers, and num_layers is 1")
        if self.recurrent_bias is None:
            object.__setattr__(self, "recurrent_bias", self.bias and self._needs_recurrent_bias())
        if self.recurrent_bias and not self.bias:
            raise ValueError(f"{where}: recurrent_bias and bias=False exclude one another")
        object.__setattr__(self, "zoneout", self._zoneout(where))
        object.__setattr__(self, "activations", self._activations(where))
        if self.recompute:
            for option, given in self._used("zoneout", "recurrent_dropout", "layer_norm", "proj_size").items():
                raise ValueError(f"{where}: recompute and {option} exclude one another, {option} is {given}")

    def _used(self, *options: str) -> dict[str, Any]:
        """Return those of `options` that the layer has and that are in use: neither 0, False nor None."""
        values = {name: getattr(self, name, None) for name in options}
        return {n: v for n, v in values.items() if (any(v) if isinstance(v, tuple) else v)}

    def __repr__(self) -> str:
        """Return the call that makes the layer, without the options that have their defaults."""
        usual = type(self)(self.input_size, self.hidden_size)
        defaults = {f.name: getattr(usual, f.name) for f in fields(self)[2:]}
        defaults["recurrent_bias"] = self.bias and self._needs_recurrent_bias()
        values = {name: getattr(self, name) for name in defaults}
        chosen = [f"{name}={value!r}" for name, value in values.items() if value != defaults[name]]
        return f"{type(self).__name__}({', '.join([repr(self.input_size), repr(self.hidden_size), *chosen])})"

    @property
    def weights(self) -> dict[str, Weight]:
        found: dict[str, Weight] = {}
        for k in range(self.num_layers):
            D = {"D": self.input_size} if k == 0 else {"directions*P": len(self.directions) * self.state_sizes[0]}
            for direction in self.directions:
                for name, dims in self._shapes(D).items():
                    found[f"{k}.{direction}{name}"] = dims, functools.partial(self._draw, name)
        return found

    @functools.cached_property
    def directions(self) -> tuple[str, ...]:
        return ("", "reverse.") if self.bidirectional else ("reverse.",) if self.reverse else ("",)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Widths of the states of one layer and direction."""
        return (self.hidden_size,) * len(self.STATES)

    @functools.cached_property
    def states(self) -> State:
        """The `Leaf` of every array of the state, each (layers * directions, B, H)."""
        before = {"layers*directions": self.num_layers * len(self.directions)}
        leaves = zip(self.STATES, self.state_sizes, self.REST, strict=True)
        return tuple(Leaf(name, before, {"H": size}, rest) for name, size, rest in leaves)

    @property
    def output_size(self) -> int:
        return len(self.directions) * self.state_sizes[0]

    @functools.cached_property
    def random(self) -> bool:
        return bool(self._used("dropout", "recurrent_dropout", "zoneout"))

    @functools.cached_property
    def cells(self) -> dict[str, Cell]:
        """The cell of each direction; see `directions`."""
        chosen = self.activations or self.ACTIVATIONS * len(self.directions)
        n = len(self.ACTIVATIONS)
        return {name: self._cell(tuple(chosen[n * k : n * (k + 1)])) for k, name in enumerate(self.directions)}

    def _cell(self, activations: tuple[str, ...]) -> Cell:
        raise NotImplementedError

    @property
    def _output_symbol(self) -> str:
        P = "H" if self.state_sizes[0] == self.hidden_size else "P"
        return P if len(self.directions) == 1 else f"2{P}"

    def _needs_recurrent_bias(self) -> bool:
        """Return whether a bias of Wh h has another effect than one of Wx x."""
        return False

    def _shapes(self, D: dict[str, int]) -> dict[str, checks.Dims]:
        """Return the shapes of the parameters of one layer and direction with an input of width D."""
        G, H = self._gates, self.hidden_size
        rows = {f"{G}H" if G > 1 else "H": G * H}
        found: dict[str, checks.Dims] = {"Wx": {**rows, **D}}
        found["Wh"] = {**rows, "H" if G > 1 and self.state_sizes[0] == H else "P": self.state_sizes[0]}
        if self.bias:
            found["b"] = rows
        if self.recurrent_bias:
            found["bh"] = rows
        if self.layer_norm:
            found |= {"gx": rows, "gh": rows}
        return found

    @functools.cached_property
    def _gates(self) -> int:
        return len(next(iter(self.cells.values())).GATES)

    def _draw(self, name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        """Return the initial value of a parameter, by its last name."""
        if name in ("gx", "gh", "gc"):
            return np.ones(shape)
        if name == "bc":
            return np.zeros(shape)
        return initializers.recurrent(self.initializer)(rng, name, shape, self.hidden_size)

    def _zoneout(self, where: str) -> tuple[float, ...]:
        """Return the checked rate of each state."""
        given: Any = self.zoneout
        if isinstance(given, tuple | list):
            if len(given) != len(self.STATES):
                raise ValueError(f"{where}: zoneout has {len(given)} rates, expected those of {', '.join(self.STATES)}")
        else:
            given = (given,) * len(self.STATES)
        return tuple(checks.rate(where, "zoneout", rate) for rate in given)

    def _activations(self, where: str) -> tuple[str, ...] | None:
        """Return the checked activations of all directions, or None where they are the default."""
        if self.activations is None:
            return None
        if not isinstance(self.activations, str | tuple | list):
            raise TypeError(f"{where}: activations is {checks.shown(self.activations)}, expected names")
        given = (self.activations,) if isinstance(self.activations, str) else tuple(self.activations)
        n, directions = len(self.ACTIVATIONS), len(self.directions)
        if len(given) not in (n, n * directions):
            counts = f"{n}" if directions == 1 else f"{n}, or {n * directions} for both directions"
            raise ValueError(f"{where}: activations has {len(given)} names, expected {counts}")
        chosen = tuple(functions.canonical(text) for text in given) * (n * directions // len(given))
        return None if chosen == self.ACTIVATIONS * directions else chosen
