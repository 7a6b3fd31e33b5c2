"""What all recurrent layers share: options, parameters, shapes, and the calls."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from xlstm import activations as functions
from xlstm import checks, initializers
from xlstm.backend import Array, Backend, Namespace, Params, Seed, backend_of, device_of, generator, namespace
from xlstm.layers import stack
from xlstm.layers.ragged import Packing
from xlstm.layers.stack import Rates, Saved, State
from xlstm.recurrence import Cell

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
MASKS = 2  # the stream of a seed that masks are drawn from; 0 draws weights, 1 orders batches


@dataclass(frozen=True, repr=False)
class Recurrent:
    """What LSTM, GRU and RNN share; `LSTM` describes the options."""

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

    STATES: ClassVar[tuple[str, ...]] = ("h",)
    ACTIVATIONS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        where = type(self).__name__
        sizes = {"input_size": self.input_size, "hidden_size": self.hidden_size, "num_layers": self.num_layers}
        checks.positive(where, **sizes)
        for name, size in sizes.items():  # plain numbers, as JSON has them
            object.__setattr__(self, name, int(size))
        initializers.recurrent(self.initializer)
        for name in ("dropout", "recurrent_dropout"):
            checks.number(where, 0, 1, **{name: getattr(self, name)})
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.clip is not None:
            checks.number(where, 0, math.inf, strict=True, clip=self.clip)
            object.__setattr__(self, "clip", float(self.clip))
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

    def __repr__(self) -> str:
        """As it would be made, without the options that have their default."""
        usual = type(self)(self.input_size, self.hidden_size)
        defaults = {f.name: getattr(usual, f.name) for f in fields(self)[2:]}
        defaults["recurrent_bias"] = self.bias and self._needs_recurrent_bias()
        values = {name: getattr(self, name) for name in defaults}
        chosen = [f"{name}={value!r}" for name, value in values.items() if value != defaults[name]]
        return f"{type(self).__name__}({', '.join([repr(self.input_size), repr(self.hidden_size), *chosen])})"

    @functools.cached_property
    def shapes(self) -> dict[str, checks.Dims]:
        """Names and shapes of the parameters."""
        found: dict[str, checks.Dims] = {}
        for k in range(self.num_layers):
            D = {"D": self.input_size} if k == 0 else {"directions*P": len(self.directions) * self.state_sizes[0]}
            for direction in self.directions:
                found |= {f"{k}.{direction}{name}": dims for name, dims in self._shapes(D).items()}
        return found

    @functools.cached_property
    def names(self) -> dict[str, dict[str, str]]:
        """Names of the parameters of each layer and direction, by their last names."""
        found: dict[str, dict[str, str]] = {}
        for name in self.shapes:
            prefix, _, last = name.rpartition(".")
            found.setdefault(prefix, {})[last] = name
        return found

    @functools.cached_property
    def directions(self) -> tuple[str, ...]:
        """What stands before the last name of a parameter, by direction: "" or "reverse."."""
        return ("", "reverse.") if self.bidirectional else ("reverse.",) if self.reverse else ("",)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Widths of the states of one layer and direction."""
        return (self.hidden_size,) * len(self.STATES)

    @property
    def output_size(self) -> int:
        """Width of y, that of all directions."""
        return len(self.directions) * self.state_sizes[0]

    @property
    def random(self) -> bool:
        """Whether `forward` draws masks while training, and so needs a seed."""
        return bool(self.dropout or self.recurrent_dropout or any(self._rates.zoneout))

    def init(self, seed: Seed = 0, backend: str | Backend | None = None, dtype: str | None = None) -> Params:
        """Draw initial parameters.

        Parameters
        ----------
        seed : int or numpy.random.Generator
            Equal seeds give bit-identical parameters on every backend.
        backend : str or Backend, optional
            Where the arrays live; a name as for `xlstm.backend`, by default "auto".
        dtype : {"float32", "float64", "float16"}, optional
            By default that of the backend, which is float32 unless it was told otherwise.

        Returns
        -------
        dict of str to array
        """
        chosen, rng = backend_of(backend, dtype), generator(seed)
        return {
            name: chosen.asarray(self._draw(rng, name.rsplit(".", 1)[1], tuple(n for n in dims.values() if n)))
            for name, dims in self.shapes.items()
        }

    def forward(
        self,
        params: Params,
        x: Array,
        state: State | None = None,
        train: bool = True,
        *,
        lengths: Any = None,
        seed: Seed | None = None,
        keep: bool | None = None,
    ) -> tuple[Array, State, Saved | None]:
        """Run over a batch of sequences.

        L is the number of layers times that of directions, P the width of h: `hidden_size`, or
        `proj_size` where there is a projection.

        Parameters
        ----------
        params : dict
            As from `init`.
        x : array (T, B, D)
            Input, or (B, T, D) with `batch_first`.
        state : tuple of arrays (L, B, P), (L, B, H), optional
            Initial state, (h, c) of an LSTM and (h,) of others; layer by layer, forward before reverse.
            Zero by default.
        train : bool
            Draw the masks of dropout and zoneout, and keep what `backward` needs.
        lengths : whole numbers (B,), optional
            Lengths of the sequences, each from 0 to T, in any order; T by default. Steps past the end of a
            sequence take no part: there y is zero, the final state is that at its own end, and the reverse
            direction starts there.
        seed : int or numpy.random.Generator
            Of the masks; needed only where there are some. Give every training step another seed, or one
            generator to all of them.
        keep : bool, optional
            Keep what `backward` needs, by default as `train`. With `train=False, keep=True` gradients are
            those of the model without masks.

        Returns
        -------
        y : array (T, B, directions * P)
            Hidden state of the last layer after every step, or (B, T, ...) with `batch_first`.
        state : tuple of arrays as `state`
            Final state.
        saved : Saved or None
            What `backward` needs, and every gate, cell state and hidden state of every layer, time first.

        Raises
        ------
        ValueError, TypeError
            An array is missing, misshapen, or of another library, device or dtype than the rest; lengths are
            no whole numbers from 0 to T; a seed is needed and missing.
        """
        where = type(self).__name__
        xp = self._namespace(params, x, None, "state", state)
        outer = {"B": None, "T": None} if self.batch_first else {"T": None, "B": None}
        checks.shape(where, "x", x, {**outer, "D": self.input_size})
        x = self._swap(xp, x)
        T, B, _ = x.shape
        if T == 0:
            raise ValueError(f"{where}: x has no time steps, expected T of 1 or more")
        packing = Packing.of(where, lengths, T, B)
        start = self._columns(xp, "state", state, B, like=x)
        rng = self._generator(seed) if train else None
        keep = train if keep is None else keep
        rows, ends, saved = stack.forward(xp, self, params, packing.pack(xp, x), packing, start, self._rates, rng, keep)
        return self._swap(xp, packing.unpack(xp, rows)), _states(xp, ends), saved

    def backward(
        self, params: Params, saved: Saved, dy: Array | None, dstate: Sequence[Array | None] | None = None
    ) -> tuple[Params, Array, State]:
        """Backpropagation through time.

        Parameters
        ----------
        params : dict
            Those `forward` was given.
        saved : Saved
            From `forward`.
        dy : array (T, B, directions * P) or None
            Gradient of the loss by y, or (B, T, ...) with `batch_first`. None is zero. Past the end of a
            sequence it has no effect.
        dstate : tuple of arrays as the state, optional
            Gradient by the final state. None, or None in place of one of them, is zero.

        Returns
        -------
        grads : dict
            Gradients under the names and in the shapes of `params`.
        dx : array
            In the shape of x; exactly zero past the end of a sequence.
        dstate : tuple of arrays as the state
            Gradient by the initial state.
        """
        where = type(self).__name__
        if not isinstance(saved, Saved):
            raise TypeError(f"{where}: backward needs what forward saved, and forward(train=False) saves nothing")
        packing, x = saved.packing, next(iter(saved.passes.values())).saved.x
        if saved.layer is not self and saved.layer != self:
            raise ValueError(f"{where}: saved is what forward of {saved.layer} kept, expected that of {self}")
        xp = self._namespace(params, x, dy, "dstate", dstate)
        if dy is not None:
            outer = {"B": packing.B, "T": packing.T} if self.batch_first else {"T": packing.T, "B": packing.B}
            checks.shape(where, "dy", dy, {**outer, self._width: self.output_size})
            dy = packing.pack(xp, self._swap(xp, dy))
        end = self._columns(xp, "dstate", dstate, packing.B, like=x)
        grads, dx, starts = stack.backward(xp, params, saved, dy, end)
        return grads, self._swap(xp, packing.unpack(xp, dx)), _states(xp, starts)

    def step(self, params: Params, x: Array, state: State | None = None) -> tuple[Array, State]:
        """One time step, for streaming: x (B, D) and the state before -> y (B, P) and the state after.

        Raises
        ------
        ValueError
            The layer has a reverse direction, which begins at the end of the sequence.
        """
        where = type(self).__name__
        if self.directions != ("",):
            raise ValueError(f"{where}: step goes forward in time, the reverse direction needs the whole sequence")
        xp = self._namespace(params, x, None, "state", state)
        checks.shape(where, "x", x, {"B": None, "D": self.input_size})
        given = (None,) * len(self.STATES) if state is None else state
        self.check_state("state", given, x.shape[0])
        about = {"dtype": x.dtype, "device": device_of(x)}
        start = [
            xp.zeros((self.num_layers, x.shape[0], H), **about) if s is None else s
            for s, H in zip(given, self.state_sizes, strict=True)
        ]
        return stack.step(xp, self, params, x, tuple(start), self._rates)


    @functools.cached_property
    def cells(self) -> dict[str, Cell]:
        """The cell of each direction."""
        chosen = self.activations or self.ACTIVATIONS * len(self.directions)
        n = len(self.ACTIVATIONS)
        return {name: self._cell(tuple(chosen[n * k : n * (k + 1)])) for k, name in enumerate(self.directions)}

    def _cell(self, activations: tuple[str, ...]) -> Cell:
        raise NotImplementedError

    @property
    def _width(self) -> str:
        """The symbol of `output_size`."""
        P = "H" if self.state_sizes[0] == self.hidden_size else "P"
        return P if len(self.directions) == 1 else f"2{P}"

    def _needs_recurrent_bias(self) -> bool:
        """Whether a bias of Wh h is anything that one of Wx x is not."""
        return False

    def _shapes(self, D: dict[str, int]) -> dict[str, checks.Dims]:
        """Parameters of one layer and direction with an input of width D."""
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

    @functools.cached_property
    def _rates(self) -> Rates:
        assert isinstance(self.zoneout, tuple)
        return Rates(self.dropout, self.recurrent_dropout, self.zoneout)

    def _generator(self, seed: Seed | None) -> np.random.Generator | None:
        if not self.random:
            return None
        if seed is None:
            raise ValueError(
                f"{type(self).__name__}: dropout and zoneout draw masks while training, so forward needs a seed; "
                "train=False draws none"
            )
        return generator(seed, stream=MASKS)

    def _draw(self, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
        """The initial value of a parameter."""
        if name in ("gx", "gh", "gc"):
            return np.ones(shape)
        if name == "bc":
            return np.zeros(shape)
        return initializers.recurrent(self.initializer)(rng, name, shape, self.hidden_size)

    def _zoneout(self, where: str) -> tuple[float, ...]:
        given = self.zoneout if isinstance(self.zoneout, tuple | list) else (self.zoneout,) * len(self.STATES)
        if len(given) != len(self.STATES):
            raise ValueError(f"{where}: zoneout has {len(given)} rates, expected those of {', '.join(self.STATES)}")
        for rate in given:
            checks.number(where, 0, 1, zoneout=rate)
        return tuple(float(rate) for rate in given)

    def _activations(self, where: str) -> tuple[str, ...] | None:
        if self.activations is None:
            return None
        if not isinstance(self.activations, str | tuple | list):
            raise TypeError(f"{where}: activations is {self.activations!r}, expected names")
        given = (self.activations,) if isinstance(self.activations, str) else tuple(self.activations)
        n, directions = len(self.ACTIVATIONS), len(self.directions)
        if len(given) not in (n, n * directions):
            counts = f"{n}" if directions == 1 else f"{n}, or {n * directions} for both directions"
            raise ValueError(f"{where}: activations has {len(given)} names, expected {counts}")
        chosen = tuple(functions.canonical(text) for text in given) * (n * directions // len(given))
        return None if chosen == self.ACTIVATIONS * directions else chosen

    def _swap(self, xp: Namespace, array: Array) -> Array:
        """Between the user's order of time and batch and (T, B, ...)."""
        return xp.permute_dims(array, (1, 0, 2)) if self.batch_first else array

    def _namespace(
        self, params: Params, x: Array, dy: Array | None, what: str, state: Sequence[Array | None] | None
    ) -> Namespace:
        """The namespace of all these arrays, once the parameters are checked."""
        if type(x) is np.ndarray and type(params) is dict and len(params) == len(self._sizes):
            # What most calls are, without the price of asking.
            kind, given = x.dtype, params.get
            others = (dy, *state) if isinstance(state, tuple) else (dy,) if state is None else (what,)
            if (
                (kind is SINGLE or kind is DOUBLE)
                and all(a is None or (type(a) is np.ndarray and a.dtype is kind) for a in others)
                and all(
                    type(a := given(name)) is np.ndarray and a.dtype is kind and a.shape == size
                    for name, size in self._sizes.items()
                )
            ):
                return np
        where = type(self).__name__
        checks.params(where, params, self.shapes)
        arrays = {"x": x, **params, **({} if dy is None else {"dy": dy}), **self._named(what, state)}
        return namespace(where, arrays)

    @functools.cached_property
    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        return {name: tuple(dims.values()) for name, dims in self.shapes.items()}

    def _named(self, what: str, state: Sequence[Array | None] | None) -> dict[str, Array]:
        """The arrays of a state that are there, by name, for errors."""
        if state is None:
            return {}
        if not isinstance(state, tuple | list):
            raise TypeError(
                f"{type(self).__name__}: {what} is a {type(state).__name__}, "
                f"expected a tuple ({', '.join(self.STATES)}{',' if len(self.STATES) == 1 else ''})"
            )
        pairs = zip(self.STATES, state, strict=False)
        return {f"{what} {name}": array for name, array in pairs if array is not None}

    def check_state(self, name: str, state: Sequence[Array | None], B: int) -> None:
        """Raise unless `state` is a tuple of as many arrays as there are states, each None or (L, B, H)."""
        if not isinstance(state, tuple | list) or len(state) != len(self.STATES):
            self._named(name, state)
            raise ValueError(
                f"{type(self).__name__}: {name} has {len(state)} arrays, expected ({', '.join(self.STATES)})"
            )
        L = self.num_layers * len(self.directions)
        for key, array, H in zip(self.STATES, state, self.state_sizes, strict=True):
            if array is not None and array.shape != (L, B, H):
                dims = {"layers*directions": L, "B": B, "H": H}
                checks.shape(type(self).__name__, f"{name} {key}", array, dims)

    def _columns(
        self, xp: Namespace, name: str, state: Sequence[Array | None] | None, B: int, like: Array
    ) -> list[list[Array]]:
        """States (L, B, H), missing ones zero, as the recurrence has them: (H, B) for each layer and direction."""
        L = self.num_layers * len(self.directions)
        if state is None:
            state = (None,) * len(self.STATES)
        else:
            self.check_state(name, state, B)
        found: list[list[Array]] = [[] for _ in range(L)]
        for array, H in zip(state, self.state_sizes, strict=True):
            if array is None:
                zero = xp.zeros((H, B), dtype=like.dtype, device=device_of(like))
            for k, columns in enumerate(found):
                # Copies: the caller may reuse the arrays before `backward`.
                columns.append(zero if array is None else xp.asarray(array[k, ...].T, copy=True))
        return found


def _states(xp: Namespace, columns: Sequence[Sequence[Array]]) -> State:
    """(H, B) of each layer and direction -> (L, B, H)."""
    # Copies: the caller may change a state in place, and `saved` refers to it too.
    if len(columns) == 1:
        return tuple([xp.asarray(s.T[None, ...], copy=True) for s in columns[0]])
    return tuple(xp.stack([s.T for s in one]) for one in zip(*columns, strict=True))
