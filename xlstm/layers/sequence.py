"""The calls of everything that goes through time and is made of parts: init, forward, backward, step.

A state is a tuple, of arrays or of states of parts. Inside, x is (T, B, D) and `run` and `run_bwd` check nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xlstm.arrays import checks, workspace
from xlstm.arrays.namespace import Array, Namespace, Params, device_of, loses_bfloat16
from xlstm.arrays.random import Seed
from xlstm.layers.base import Recurrent, masks
from xlstm.layers.part import Part
from xlstm.recurrence.packing import Packing

State: TypeAlias = "tuple[Any, ...]"


@dataclass(frozen=True)
class Leaf:
    """One array of a state."""

    name: str
    dims: checks.Dims
    rest: float = 0.0  # its value before the first step


class Span:
    """What a call is about, the same for all parts.

    T steps of each of B sequences, or fewer where there are lengths; the generator of masks, where they are drawn; and
    whether to keep what `run_bwd` needs.
    """

    def __init__(
        self, xp: Namespace, packing: Packing, like: Array, rng: np.random.Generator | None = None, keep: bool = False
    ) -> None:
        self.xp, self.rng, self.keep = xp, rng, keep
        self.packing, self.T, self.B = packing, packing.T, packing.B
        self.there: Array | None = None  # (T, B), where all steps are not those of the sequences
        if packing.lengths is not None or packing.steps < packing.T:
            there = np.arange(self.T)[:, None] < self.lengths
            self.there = xp.asarray(there, device=device_of(like))

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Of the sequences, (B,)."""
        given = self.packing.lengths
        return np.full(self.B, self.packing.steps) if given is None else given

    def mask(self, x: Array, value: float = 0.0) -> Array:
        """x (T, B, ...) with `value` past the end of each sequence."""
        xp = self.xp
        if self.there is None:
            return x
        there = xp.reshape(self.there, (self.T, self.B, *(1,) * (x.ndim - 2)))
        return xp.where(there, x, xp.full_like(x, value))


@dataclass(frozen=True)
class Saved:
    """What `forward` keeps. It refers to arrays of the call: do not change those in place before `backward`."""

    layer: Sequence
    span: Span
    shape: tuple[int, ...]  # of y, (T, B, ...)
    inner: Any

    def __getitem__(self, name: str) -> Any:
        """What a part kept."""
        return self.inner[name]


class Sequence(Part):
    """A layer, block or stack."""

    batch_first: bool = False

    if TYPE_CHECKING:  # a field of some, which must not find a default here

        @property
        def input_size(self) -> int:
            """Width of x."""

    @property
    def random(self) -> bool:
        """Whether `forward` draws masks while training, and so needs a seed."""
        return False

    def states(self, B: int | None) -> State:
        """The `Leaf` of every array of the state, for a batch of B."""
        raise NotImplementedError

    def run(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        """`forward` without checks; x is finite past the end of a sequence."""
        raise NotImplementedError

    def run_bwd(
        self, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """`backward` without checks; dy is zero past the end of a sequence."""
        raise NotImplementedError

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
        """Run over a batch of sequences; arguments and errors as of `LSTM.forward`.

        Parameters
        ----------
        params : dict
            As from `init`.
        x : array (T, B, D)
            Input, or (B, T, D) with `batch_first`.
        state : tuple, optional
            Initial state; by default that before the first step. It is taken as it is: beyond the square root of the
            largest number of the dtype products with it may overflow.
        train : bool
            Draw masks of dropout, and keep what `backward` needs.
        lengths : whole numbers (B,), optional
            Lengths of the sequences, in any order; T by default. What lies past an end changes nothing; there y is
            zero, and the final state is that at the end.
        seed : int or numpy.random.Generator
            Of the masks; needed only where there are some.
        keep : bool, optional
            Keep what `backward` needs, by default as `train`.

        Returns
        -------
        y : array (T, B, D)
        state : tuple
            Final state.
        saved : Saved or None
        """
        where = type(self).__name__
        keep = checks.keeps(where, train, keep)
        xp = self.namespace(params, {"x": x, **self._named("state", state)})
        if loses_bfloat16(x):
            raise TypeError(f"{where}: x is bfloat16, expected float16 or float32; LSTM, GRU, RNN and sLSTM take it")
        outer = {"B": None, "T": None} if self.batch_first else {"T": None, "B": None}
        checks.shape(where, "x", x, {**outer, "D": self.input_size})
        x = self._swap(xp, x)
        T, B, _ = x.shape
        if T == 0:
            raise ValueError(f"{where}: x has no time steps, expected T of 1 or more")
        packing = Packing.of(where, lengths, T, B)
        if xp is np:
            workspace.settle()
        start = self._complete(xp, "state", state, B, x)
        rng = masks(where, "dropout draws", seed, bool(train and self.random))
        span = Span(xp, packing, x, rng, keep)
        y, end, inner = self.run(params, span.mask(x), start, span)
        y = span.mask(y)
        saved = Saved(self, span, tuple(y.shape), inner) if span.keep else None
        return self._swap(xp, y), end, saved

    def backward(
        self, params: Params, saved: Saved, dy: Array | None, dstate: State | None = None
    ) -> tuple[Params, Array, State]:
        """Backpropagation through time.

        Parameters
        ----------
        params : dict
            Those `forward` was given.
        saved : Saved
            From `forward`.
        dy : array like y, or None
            Gradient of the loss by y. None is zero. Past the end of a sequence it has no effect.
        dstate : tuple as the state, optional
            Gradient by the final state. None, or None in place of any of its parts, is zero.

        Returns
        -------
        grads : dict
            Gradients under the names and in the shapes of `params`.
        dx : array
            In the shape of x; exactly zero past the end of a sequence.
        dstate : tuple as the state
            Gradient by the initial state.
        """
        where = type(self).__name__
        checks.saved(where, self, saved, Saved)
        span = saved.span
        given = self._named("dstate", dstate)
        xp = self.namespace(params, {**({} if dy is None else {"dy": dy}), **given})
        if dy is None:
            like = next(iter(params.values()))
            dy = xp.zeros(saved.shape, dtype=like.dtype, device=device_of(like))
        else:
            T, B, width = saved.shape
            outer = {"B": B, "T": T} if self.batch_first else {"T": T, "B": B}
            checks.shape(where, "dy", dy, {**outer, "D": width})
            dy = self._swap(xp, dy)
        end = self._complete(xp, "dstate", dstate, span.B, dy, zero=True) if given else None
        grads, dx, start = self.run_bwd(params, saved.inner, span.mask(dy), end, span)
        return {name: grads[name] for name in params}, self._swap(xp, span.mask(dx)), start

    def step(self, params: Params, x: Array, state: State | None = None) -> tuple[Array, State]:
        """One time step, for streaming: x (B, D) and the state before -> y (B, D) and the state after."""
        where = type(self).__name__
        xp = self.namespace(params, {"x": x, **self._named("state", state)})
        checks.shape(where, "x", x, {"B": None, "D": self.input_size})
        start = self._complete(xp, "state", state, x.shape[0], x)
        x = x[None, ...]
        span = Span(xp, Packing.of(where, None, 1, x.shape[1]), x)
        y, end, _ = self.run(params, x, start, span)
        return y[0, ...], end

    @functools.cached_property
    def _leaves(self) -> State:
        return self.states(None)

    def _swap(self, xp: Namespace, array: Array) -> Array:
        """Between the user's order of time and batch and (T, B, ...)."""
        return xp.permute_dims(array, (1, 0, 2)) if self.batch_first else array

    def _named(self, what: str, state: Any) -> dict[str, Array]:
        """The arrays of a state that are there, by name."""
        found = self._walk(what, state, self._leaves)
        return {name: array for name, array, _ in found if array is not None}

    def _walk(self, what: str, state: Any, leaves: State) -> Iterator[tuple[str, Array | None, Leaf]]:
        """Name, array (or None) and leaf of every array of a state, in order."""
        if state is not None and (not isinstance(state, tuple | list) or len(state) != len(leaves)):
            names = ", ".join(leaf.name if isinstance(leaf, Leaf) else "(...)" for leaf in leaves)
            found = f"{len(state)} entries" if isinstance(state, tuple | list) else f"a {type(state).__name__}"
            raise ValueError(f"{type(self).__name__}: {what} is {found}, expected a tuple ({names})")
        for k, leaf in enumerate(leaves):
            part = None if state is None else state[k]
            if isinstance(leaf, Leaf):
                yield f"{what} {leaf.name}", part, leaf
            else:
                yield from self._walk(f"{what}[{k}]", part, leaf)

    def _complete(self, xp: Namespace, what: str, state: Any, B: int, like: Array, zero: bool = False) -> State:
        """The state with what is missing filled in, checked."""
        arrays, leaves = [], self.states(B)
        for name, array, leaf in self._walk(what, state, leaves):
            if array is None:
                shape = tuple(n or 0 for n in leaf.dims.values())
                value = 0.0 if zero else leaf.rest
                array = xp.full(shape, value, dtype=like.dtype, device=device_of(like))
            else:
                checks.shape(type(self).__name__, name, array, leaf.dims)
            arrays.append(array)
        return _tree(leaves, iter(arrays))


def layer(where: str, name: str, value: Any) -> Any:
    """A layer or a stack that knows the width of its y: what a model can be made of."""
    if not isinstance(value, Recurrent | Sequence) or not hasattr(value, "output_size"):
        expected = "an xLSTMStack, xLSTMLarge, LSTM, GRU, RNN, sLSTM or mLSTM"
        raise TypeError(f"{where}: {name} is {checks.shown(value)}, expected {expected}")
    return value


def _tree(leaves: State, arrays: Iterator[Array]) -> State:
    return tuple(next(arrays) if isinstance(leaf, Leaf) else _tree(leaf, arrays) for leaf in leaves)
