"""Recurrent layers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from xlstm import checks, initializers, recurrence
from xlstm.backend import Array, Backend, Namespace, Params, Seed, backend_of, device_of, generator, namespace
from xlstm.cells import lstm
from xlstm.recurrence import Saved, Weights

State = tuple[Array, ...]


@dataclass(frozen=True)
class LSTM:
    """A long short-term memory layer.

    A frozen description that holds no arrays: `init` makes the parameters, a dict of
    `0.Wx` (4H, D), `0.Wh` (4H, H) and `0.b` (4H,), rows in gate order i o f g.

    Parameters
    ----------
    input_size : int
        Width D of the input.
    hidden_size : int
        Width H of the hidden state.
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...). States and `saved` do not change.
    initializer : {"uniform", "notebook"}
        "uniform": U(-1/sqrt(H), 1/sqrt(H)), as `torch.nn.LSTM`. "notebook": input weights
        N(0, 2/(D+H)), recurrent weights N(0, 1/H), zero bias.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> lstm = xlstm.LSTM(input_size=1, hidden_size=50)
    >>> params = lstm.init(seed=0, backend="numpy")
    >>> y, (h, c), saved = lstm.forward(params, np.ones((12, 3, 1), dtype="float32"))
    >>> y.shape, h.shape, saved.gates.shape
    ((12, 3, 50), (1, 3, 50), (12, 4, 3, 50))
    """

    input_size: int
    hidden_size: int
    batch_first: bool = False
    initializer: str = "uniform"

    def __post_init__(self) -> None:
        checks.positive("LSTM", input_size=self.input_size, hidden_size=self.hidden_size)
        initializers.recurrent(self.initializer)

    @functools.cached_property
    def shapes(self) -> dict[str, checks.Dims]:
        """Names and shapes of the parameters."""
        D, H = self.input_size, self.hidden_size
        return {"0.Wx": {"4H": 4 * H, "D": D}, "0.Wh": {"4H": 4 * H, "H": H}, "0.b": {"4H": 4 * H}}

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
        chosen = backend_of(backend, dtype)
        draw, rng = initializers.recurrent(self.initializer), generator(seed)
        return {
            name: chosen.asarray(draw(rng, name.rsplit(".", 1)[1], 4, self.hidden_size, self.input_size))
            for name in self.shapes
        }

    def forward(
        self, params: Params, x: Array, state: State | None = None, train: bool = True
    ) -> tuple[Array, State, Saved | None]:
        """Run over a batch of sequences.

        Parameters
        ----------
        params : dict
            As from `init`.
        x : array (T, B, D)
            Input, or (B, T, D) with `batch_first`.
        state : (h, c), each (1, B, H), optional
            Initial state, zero by default.
        train : bool
            Keep what `backward` needs. Without it `saved` is None and nothing is kept.

        Returns
        -------
        y : array (T, B, H)
            Hidden state after every step, or (B, T, H) with `batch_first`.
        state : (h, c), each (1, B, H)
            Final state.
        saved : Saved or None
            What `backward` needs; `saved.gates`, `saved.c` and `saved.h` are every gate, cell state
            and hidden state, time first. It refers to x and y: do not change those in place
            before `backward`.

        Raises
        ------
        ValueError, TypeError
            An array is missing, misshapen, or of another library, device or dtype than the rest.
        """
        checks.params("LSTM", params, self.shapes)
        xp = namespace("LSTM", {"x": x, **params, **_named("state", state)})
        outer = {"B": None, "T": None} if self.batch_first else {"T": None, "B": None}
        checks.shape("LSTM", "x", x, {**outer, "D": self.input_size})
        x = self._swap(xp, x)
        if x.shape[0] == 0:
            raise ValueError("LSTM: x has no time steps, expected T of 1 or more")
        start = self._columns(xp, "state", state, x.shape[1], like=x)
        y, end, saved = recurrence.forward(xp, lstm, _weights(params), x, start, train)
        return self._swap(xp, y), _rows(xp, end), saved

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
        dy : array (T, B, H) or None
            Gradient of the loss by y, or (B, T, H) with `batch_first`. None is zero.
        dstate : (dh, dc), each (1, B, H), optional
            Gradient by the final state. None, or None in place of one of them, is zero.

        Returns
        -------
        grads : dict
            Gradients under the names and in the shapes of `params`.
        dx : array
            In the shape of x.
        dstate : (dh, dc), each (1, B, H)
            Gradient by the initial state.
        """
        if not isinstance(saved, Saved):
            raise TypeError("LSTM: backward needs what forward saved, and forward(train=False) saves nothing")
        checks.params("LSTM", params, self.shapes)
        checks.shape("LSTM", "x of saved", saved.x, {"T": None, "B": None, "D": self.input_size})
        checks.shape("LSTM", "y of saved", saved.y, {"T": None, "B": None, "H": self.hidden_size})
        given = {} if dy is None else {"dy": dy}
        xp = namespace("LSTM", {"x": saved.x, **params, **given, **_named("dstate", dstate)})
        T, B, _ = saved.x.shape
        if dy is not None:
            outer = {"B": B, "T": T} if self.batch_first else {"T": T, "B": B}
            checks.shape("LSTM", "dy", dy, {**outer, "H": self.hidden_size})
            dy = self._swap(xp, dy)
        end = self._columns(xp, "dstate", dstate, B, like=saved.x)
        grads, dx, start = recurrence.backward(xp, _weights(params), saved, dy, end)
        named = {f"0.{name}": grad for name, grad in grads._asdict().items()}
        return named, self._swap(xp, dx), _rows(xp, start)

    def step(self, params: Params, x: Array, state: State | None = None) -> tuple[Array, State]:
        """One time step, for streaming: x (B, D) and the state before -> y (B, H) and the state after."""
        xp = namespace("LSTM", {"x": x})
        checks.shape("LSTM", "x", x, {"B": None, "D": self.input_size})
        time = 1 if self.batch_first else 0
        y, state, _ = self.forward(params, xp.expand_dims(x, axis=time), state, train=False)
        return xp.squeeze(y, axis=time), state

    def _swap(self, xp: Namespace, array: Array) -> Array:
        """Between the user's order of time and batch and (T, B, ...)."""
        return xp.permute_dims(array, (1, 0, 2)) if self.batch_first else array

    def _columns(
        self, xp: Namespace, name: str, state: Sequence[Array | None] | None, B: int, like: Array
    ) -> list[Array]:
        """States (1, B, H), missing ones zero, as the recurrence has them: (H, B)."""
        H = self.hidden_size
        zero = xp.zeros((H, B), dtype=like.dtype, device=device_of(like))
        if state is None:
            return [zero] * len(lstm.STATES)
        if len(state) != len(lstm.STATES):
            raise ValueError(f"LSTM: {name} has {len(state)} arrays, expected ({', '.join(lstm.STATES)})")
        for key, array in zip(lstm.STATES, state, strict=True):
            if array is not None:
                checks.shape("LSTM", f"{name} {key}", array, {"1": 1, "B": B, "H": H})
        # Copies: the caller may reuse the arrays before `backward`.
        return [zero if array is None else xp.asarray(array[0, ...].T, copy=True) for array in state]


def _named(what: str, state: Sequence[Array | None] | None) -> dict[str, Array]:
    """The arrays of a state that are there, by name, for errors."""
    if state is None:
        return {}
    if not isinstance(state, tuple | list):
        raise TypeError(f"LSTM: {what} is a {type(state).__name__}, expected a tuple ({', '.join(lstm.STATES)})")
    return {f"{what} {name}": array for name, array in zip(lstm.STATES, state, strict=False) if array is not None}


def _rows(xp: Namespace, columns: Sequence[Array]) -> State:
    return tuple(array.T[None, ...] for array in columns)


def _weights(params: Params) -> Weights:
    return Weights(params["0.Wx"], params["0.Wh"], params["0.b"])
