"""The calls of all recurrent layers: init, forward, backward, step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.namespace import Array, DType, Namespace, Params, device_of, namespace
from xlstm.arrays.random import Seed, generator
from xlstm.layers import stack
from xlstm.layers.options import Options
from xlstm.layers.stack import Saved, State
from xlstm.recurrence.packing import Packing

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
MASKS = 2  # the stream of a seed that masks are drawn from; 0 draws weights, 1 orders batches


@dataclass(frozen=True, repr=False)
class Recurrent(Options):
    """What can be done with any layer that has `Options`."""

    def init(self, seed: Seed = 0, backend: str | Backend | None = None, dtype: DType | None = None) -> Params:
        """Draw initial parameters.

        Parameters
        ----------
        seed : int or numpy.random.Generator
            Equal seeds give bit-identical parameters on every backend.
        backend : str or Backend, optional
            Where the arrays live; a name as for `xlstm.backend`, by default "auto".
        dtype : {"float32", "float64", "float16"}, optional
            A name, or NumPy's dtype. By default that of the backend, which is float32 unless it was told otherwise.

        Returns
        -------
        dict of str to array
        """
        chosen, rng = backend_of(backend, dtype), generator(seed, where=type(self).__name__)
        return {name: chosen.asarray(values) for name, values in self.draw(rng).items()}

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """Initial parameters on the host."""
        return {
            name: self._draw(rng, name.rsplit(".", 1)[1], tuple(n for n in dims.values() if n))
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
            Initial state, (h, c) of an LSTM, (h, c, n, m) of an sLSTM and (h,) of others; layer by layer, forward
            before reverse. By default zero, and m of an sLSTM -inf.
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
        keep = checks.keeps(where, train, keep)
        xp = self._namespace(params, x, None, "state", state)
        outer = {"B": None, "T": None} if self.batch_first else {"T": None, "B": None}
        checks.shape(where, "x", x, {**outer, "D": self.input_size})
        x = self._swap(xp, x)
        T, B, _ = x.shape
        if T == 0:
            raise ValueError(f"{where}: x has no time steps, expected T of 1 or more")
        packing = Packing.of(where, lengths, T, B)
        start = self._columns(xp, "state", state, B, x, self.REST)
        rng = masks(where, "dropout and zoneout draw", seed, bool(train and self.random))
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
        checks.saved(where, self, saved, Saved)
        packing, x = saved.packing, next(iter(saved.passes.values())).tape.x
        xp = self._namespace(params, x, dy, "dstate", dstate)
        if dy is not None:
            outer = {"B": packing.B, "T": packing.T} if self.batch_first else {"T": packing.T, "B": packing.B}
            checks.shape(where, "dy", dy, {**outer, self._width: self.output_size})
            dy = packing.pack(xp, self._swap(xp, dy))
        end = self._columns(xp, "dstate", dstate, packing.B, x)
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
            xp.full((self.num_layers, x.shape[0], H), rest, **about) if s is None else s
            for s, H, rest in zip(given, self.state_sizes, self.REST, strict=False)
        ]
        return stack.step(xp, self, params, x, tuple(start), self._rates)

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
            if array is not None and getattr(array, "shape", None) != (L, B, H):
                dims = {"layers*directions": L, "B": B, "H": H}
                checks.shape(type(self).__name__, f"{name} {key}", array, dims)

    def _columns(
        self,
        xp: Namespace,
        name: str,
        state: Sequence[Array | None] | None,
        B: int,
        like: Array,
        rest: Sequence[float] | None = None,
    ) -> list[list[Array]]:
        """States (L, B, H) as the recurrence has them, (H, B) for each layer and direction.

        Missing ones are zero, or have the value that `rest` has for them.
        """
        L = self.num_layers * len(self.directions)
        if state is None:
            state = (None,) * len(self.STATES)
        else:
            self.check_state(name, state, B)
        found: list[list[Array]] = [[] for _ in range(L)]
        for j, (array, H) in enumerate(zip(state, self.state_sizes, strict=True)):
            if array is None:
                missing = xp.full((H, B), rest[j] if rest else 0.0, dtype=like.dtype, device=device_of(like))
            for k, columns in enumerate(found):
                # Copies: the caller may reuse the arrays before `backward`.
                columns.append(missing if array is None else xp.asarray(array[k, ...].T, copy=True))
        return found


def masks(where: str, who: str, seed: Seed | None, needed: bool) -> np.random.Generator | None:
    """The generator of masks, where it is needed; `who` says what draws them.

    Raises
    ------
    ValueError
        It is needed and there is no seed, or the seed is none.
    """
    if not needed:
        if seed is not None:
            checks.seed(where, "seed", seed)
        return None
    if seed is None:
        raise ValueError(f"{where}: {who} masks while training, so forward needs a seed; train=False draws none")
    return generator(seed, stream=MASKS, where=where)


def _states(xp: Namespace, columns: Sequence[Sequence[Array]]) -> State:
    """(H, B) of each layer and direction -> (L, B, H)."""
    # Copies: the caller may change a state in place, and `saved` refers to it too.
    if len(columns) == 1:
        return tuple([xp.asarray(s.T[None, ...], copy=True) for s in columns[0]])
    return tuple(xp.stack([s.T for s in one]) for one in zip(*columns, strict=True))
