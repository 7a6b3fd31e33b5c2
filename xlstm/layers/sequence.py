"""SequenceLayer: a module that goes through time with a state; the base of recurrent layers,
blocks, stacks and models.

A subclass gives its `states`, and its maths in `scan` and `scan_bwd`, in which x is (T, B, D)
whatever the user's order is. These check nothing: `forward`, `backward` and `step` check what they
are given once, for all parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from xlstm.arrays import checks, fuse, invariance, rows
from xlstm.arrays.cached import cached_property
from xlstm.arrays.cuda import constants
from xlstm.arrays.dual import deepest, depth_of
from xlstm.arrays.fills import filled_at_once
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.namespace import (
    Array,
    Namespace,
    Params,
    check_library,
    device_of,
    plain_namespace,
    reshape,
    widened,
)
from xlstm.arrays.random import Seed
from xlstm.layers import alone
from xlstm.layers.embedding import tokens_of, within
from xlstm.layers.module import Module, Saved, masks
from xlstm.recurrence.packing import Packing, Span
from xlstm.recurrence.parts import checked_resets, resets_at

State: TypeAlias = "tuple[Any, ...]"  # it holds arrays, or the states of parts
WithState: TypeAlias = "tuple[Array, State]"  # y and the final state, or their gradients
Scanned: TypeAlias = "tuple[Array, State, Any]"  # y, the final state and what backward needs
# gradients of parameters, of x and of the initial state
Derivatives: TypeAlias = "tuple[Params, Any, State]"


class Leaf(NamedTuple):
    """One array of a state: its shape is the sizes of `before`, then B, then the sizes of
    `after`.
    """

    name: str
    before: dict[str, int]
    after: dict[str, int]
    rest: float = 0.0  # its value before the first step
    wide: bool = False  # whether it is float32 where parameters are float16 or bfloat16

    def initial(
        self, xp: Namespace, B: int, like: Array, zero: bool
    ) -> tuple[tuple[int, ...], Any, float]:
        """Return the shape, the dtype and the value before the first step, or 0, beside a weight."""
        dtype = widened(xp, like.dtype) if self.wide else like.dtype
        shape = (*self.before.values(), B, *self.after.values())
        return shape, dtype, 0.0 if zero else self.rest

    def dims(self, B: int | None) -> checks.Dims:
        """Return the sizes for a batch of B by their letters."""
        return {**self.before, "B": B, **self.after}


class SequenceLayer(Module):
    """A module that goes through time with a state."""

    if TYPE_CHECKING:

        @property
        def output_size(self) -> int:
            """Width of y."""

        @property
        def last(self) -> bool:
            """Whether y is one prediction at the end of each sequence, (B, O)."""

        @property
        def states(self) -> State:
            """The `Leaf` of every array of the state, in a tuple that is nested as the state is."""
    else:
        last = False  #: whether y is one prediction at the end of each sequence

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, ...)."""
        return False

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions of time, each by the prefix of a parameter's last name, "" or
        "reverse.".
        """
        return ("",)

    _output_symbol: Any = "D"  # the letter of output_size in errors
    _has_groups: ClassVar[bool] = False  # whether `forward` lets sequences see each other

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        """Return y, the final state and what `scan_bwd` needs.

        Past the end of a sequence x is finite, and y may be anything.
        """
        raise NotImplementedError

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        """Return gradients of the parameters, of x and of the initial state; dy is zero past the
        end of a sequence.
        """
        raise NotImplementedError

    def run(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        """Run `forward` without checks. Past the end of a sequence x may be anything, and y is
        zero.
        """
        y, end, saved = self.scan(p, span.mask(x), state, span)
        return span.mask(y), end, saved

    def run_bwd(
        self, p: Params, kept: Any, dy: Array | None, dstate: State | None, span: Span
    ) -> Derivatives:
        """Run `backward` without checks; a dy or dstate of None is zero."""
        dy = span.zeros(self.output_size, p) if dy is None else span.mask(dy)
        grads, dx, start = self.scan_bwd(p, kept, dy, dstate, span)
        return grads, span.mask(dx), start

    def run_step(self, xp: Namespace, p: Params, x: Array, state: State) -> WithState:
        """Run `step` without checks."""
        span = Span(xp, Packing.of("step", None, 1, x.shape[0]))
        y, end, _ = self.scan(p, x[None, ...], state, span)
        return y[0, ...], end

    def __call__(
        self,
        params: Params,
        x: Array,
        state: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        cu_seqlens: Any = None,
        batch_invariant: bool | None = None,
    ) -> WithState:
        """Run over a batch of sequences for inference, without masks, and keep nothing.

        Parameters and errors are those of `forward`.

        Returns
        -------
        y : array (T, B, ...), or (B, T, ...) with `batch_first`
        state : tuple
            Final state.
        """
        y, end, _ = self.forward(
            params,
            x,
            state,
            False,
            lengths=lengths,
            resets=resets,
            cu_seqlens=cu_seqlens,
            batch_invariant=batch_invariant,
        )
        return y, end

    def forward(
        self,
        params: Params,
        x: Array,
        state: Any = None,
        train: bool = True,
        *,
        lengths: Any = None,
        resets: Any = None,
        cu_seqlens: Any = None,
        seed: Seed | None = None,
        keep: bool | None = None,
        groups: Any = None,
        batch_invariant: bool | None = None,
    ) -> tuple[Array, State, Saved | None]:
        """Run over a batch of sequences.

        Parameters
        ----------
        params : dict
            The parameters, as from `init`.
        x : array (T, B, D)
            Input, or (B, T, D) with `batch_first`.
        state : tuple, optional
            Initial state, as the class describes it. None, or None in place of any of its parts, is
            the state before the first step. It is not limited: products with numbers in it beyond
            the square root of the dtype's largest number may overflow.
        train : bool
            Draw the masks of dropout and zoneout, and keep what `backward` needs.
        lengths : whole numbers (B,), optional
            Lengths of the sequences, each from 0 to T, in any order; T by default. Steps past the
            end of a sequence take no part: y is zero there, the final state is that at the
            sequence's own end, and the reverse direction starts at that end.
        resets : booleans (T, B), optional
            Where one is True, the state before the step is that before the first step, whatever
            the state is: the sequence is cut there into parts, each of which gives what it gives
            in a call of its own. `state` is that of the first part, unless that is reset, too,
            and the final state that of the last part, in both directions; no gradient crosses a
            cut. They are (B, T) with `batch_first`, and read on the host.
        cu_seqlens : whole numbers (n + 1,), optional
            Another way to say `resets` of a batch of one sequence: n sequences lie in it one
            after the other, of which number k has the steps from cu_seqlens[k] to
            cu_seqlens[k + 1].
        seed : int or numpy.random.Generator
            Seed of the masks, needed only where there are some. Give every training step another
            seed, or one generator to all of them.
        keep : bool, optional
            Whether to keep what `backward` needs, by default as `train`. With `train=False,
            keep=True` gradients are those of the model without masks.
        groups : object, optional
            Sequences that belong together, in a layer that lets them see each other; see `Span`.
        batch_invariant : bool, optional
            Whether each sequence runs by itself, so that its results here and in `backward` do not
            depend on the batch that it is in, bit for bit. `saved.sequences` then has what each of
            them kept. By default as in the context `xlstm.batch_invariant()`, and False without.

        Returns
        -------
        y : array (T, B, O)
            Output after every step, or (B, T, O) with `batch_first`; O is `output_size`.
        state : tuple
            Final state.
        saved : Saved or None
            The values that `backward` needs, with every gate, cell state and hidden state of every
            layer, time first.

        Raises
        ------
        ValueError, TypeError
            An array is missing, misshapen, or of another library, device or dtype than the rest;
            lengths are not whole numbers from 0 to T; resets are not booleans; a seed is needed and
            missing; `batch_invariant` is True where sequences see each other or share drawn masks.
        """
        where = type(self).__name__
        is_alone = invariance.is_on.get()
        if batch_invariant is not None:
            is_alone = checks.flag(where, "batch_invariant", batch_invariant)
        if type(x) is not np.ndarray and (views := self._views(params, x, state)) is not None:
            options = {
                "lengths": lengths,
                "resets": resets,
                "cu_seqlens": cu_seqlens,
                "seed": seed,
                "keep": keep,
                "groups": groups,
                "batch_invariant": is_alone,
            }
            return views.run(self.forward, params, x, state, train, **options)  # type: ignore[no-any-return]
        keep = train if keep is None and type(train) is bool else checks.keeps(where, train, keep)
        if groups is not None and not self._has_groups:
            raise TypeError(
                f"{where}: groups is {checks.shown(groups)}, expected None, as no sequence sees"
                " another"
            )
        params, x, start, span = self.begin(params, x, state, lengths, groups, resets, cu_seqlens)
        span.keep = keep
        random = train and self.random
        if is_alone and (random or groups is not None):
            why = "masks are drawn for a whole batch" if random else "groups are not None"
            raise ValueError(f"{where}: batch_invariant is True, expected False, as {why}")
        if random:
            span.rng = masks(where, seed)
        elif seed is not None:
            checks.seed(where, "seed", seed)
        span.alone = is_alone and span.B > 0
        if span.alone:
            y, end, saved = alone.run(self, params, x, start, span)
        else:
            y, end, saved = self.run(params, x, start, span)
        if self.batch_first and not self.last:
            y = self._swap(span.xp, y)
        return y, end, Saved(self, tuple(y.shape), saved, span, device_of(y)) if keep else None

    def begin(
        self,
        params: Params,
        x: Array,
        state: Any,
        lengths: Any = None,
        groups: Any = None,
        resets: Any = None,
        cu_seqlens: Any = None,
    ) -> tuple[Params, Array, State, Span]:
        """Check the arguments of a call, and return them, x (T, B, D), the initial state and the
        span for inference.
        """
        where = type(self).__name__
        xp, params, x, state = self._agree(params, x, "state", state)
        x = self._inner(xp, x)
        T, B = x.shape[:2]
        if cu_seqlens is not None:
            if resets is not None:
                raise ValueError(f"{where}: resets and cu_seqlens exclude one another")
            resets = resets_at(where, cu_seqlens, T, B)
        elif resets is not None:
            resets = checked_resets(where, resets, **self._outer(T, B))
            resets = resets.T if self.batch_first else resets
        if resets is not None and groups is not None:
            raise ValueError(f"{where}: resets and groups of sequences exclude one another")
        packing = Packing.of(where, lengths, T, B, resets)
        span = Span(xp, packing, None, False, groups, state is None)
        # past the end of a sequence any will do; on a GPU `within` looks at none
        if self.symbols is not None and isinstance(x, np.ndarray):
            within(where, "tokens", self._swap(xp, span.mask(x)), self.symbols)
        return params, x, complete(where, xp, "state", state, self.states, B, params), span

    def backward(
        self,
        params: Params,
        saved: Any,
        dy: Array | None,
        dstate: Any = None,
        *,
        per_sequence: bool = False,
    ) -> tuple[Params, Array, State]:
        """Backpropagate through time.

        Parameters
        ----------
        params : dict
            The parameters that `forward` was given.
        saved : Saved
            The values that `forward` kept.
        dy : array like y, or None
            Gradient of the loss by y; None means zero. Past the end of a sequence it has no effect.
        dstate : tuple as the state, optional
            Gradient by the final state. None, or None in place of any of its parts, means zero.
        per_sequence : bool
            Whether gradients of the parameters are those of each sequence by itself, with the
            sequences as their first axis. They take B times the memory of the parameters.

        Returns
        -------
        grads : dict
            Gradients under the names and in the shapes of `params`; with `per_sequence` in these
            shapes after an axis of B.
        dx : array
            Gradient by x, in its shape; exactly zero past the end of a sequence.
        dstate : tuple as the state
            Gradient by the initial state.

        Raises
        ------
        ValueError, TypeError
            `saved` is None, comes from another layer, or is on another device than `params`; a
            gradient has another shape, library, device or dtype; `per_sequence` is not True or
            False, or is True where `forward` was given groups of sequences.
        """
        if type(dy) is not np.ndarray and (views := self._views(params, dy, dstate)) is not None:
            return views.run(  # type: ignore[no-any-return]
                self.backward, params, saved, dy, dstate, per_sequence=per_sequence
            )
        where = type(self).__name__
        checks.saved(where, self, saved, Saved)
        span = saved.span
        if per_sequence is not False and checks.flag(where, "per_sequence", per_sequence):
            if span.groups is not None:
                raise ValueError(
                    f"{where}: per_sequence is True, expected False beside groups of sequences"
                )
            before = rows.per_sequence.set(span.B)
            try:
                return self.backward(params, saved, dy, dstate)
            finally:
                rows.per_sequence.reset(before)
        xp, params, dy, dstate = self._agree(params, dy, "dstate", dstate)
        checks.beside(where, saved.home, params)
        if depth_of(xp) > depth_of(span.xp):
            return self._backward_of_duals(xp, params, saved, dy, dstate)
        xp = deepest(xp, span.xp)
        if dy is not None:
            checks.shape(where, "dy", dy, self.output_dims(span.T, span.B))
            dy = dy if self.last else self._swap(xp, dy)
        end = None
        if dstate is not None:
            end = complete(where, xp, "dstate", dstate, self.states, span.B, params, zero=True)
        if span.alone:
            grads, dx, start = alone.run_bwd(self, params, saved.kept, dy, end, span)
        else:
            grads, dx, start = self.run_bwd(params, saved.kept, dy, end, span)
        return {name: grads[name] for name in params}, self._swap(xp, dx), start

    def step(
        self,
        params: Params,
        x: Array,
        state: Any = None,
        *,
        resets: Any = None,
        batch_invariant: bool | None = None,
    ) -> WithState:
        """Run one time step, for streaming: return y (B, O) and the state after it, from x (B, D)
        and that before it. Where `resets`, booleans (B,), is True, the state before it is that
        before the first step.

        `batch_invariant` is as in `forward`.

        Raises
        ------
        ValueError
            The layer has a reverse direction, which begins at the end of the sequence.
        """
        where = type(self).__name__
        is_alone = invariance.is_on.get()
        if batch_invariant is not None:
            is_alone = checks.flag(where, "batch_invariant", batch_invariant)
        if type(x) is not np.ndarray and (views := self._views(params, x, state)) is not None:
            options = {"resets": resets, "batch_invariant": is_alone}
            return views.run(self.step, params, x, state, **options)  # type: ignore[no-any-return]
        if self.directions != ("",):
            raise ValueError(
                f"{where}: step goes forward in time, the reverse direction needs the whole"
                " sequence"
            )
        xp, params, x, state = self._agree(params, x, "state", state)
        x = self._inner(xp, x, True)
        if self.symbols is not None:
            within(where, "tokens", x, self.symbols)
        B = x.shape[0]
        start = complete(where, xp, "state", state, self.states, B, params)
        if resets is not None:
            fresh = checked_resets(where, resets, B=B)
            start = _reset(xp, start, self.states, constants.copied(xp, fresh, device_of(x)))
        if is_alone and B:
            return alone.run_step(self, xp, params, x, start)
        return self.run_step(xp, params, x, start)

    @cached_property
    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        return {name: tuple(dims.values()) for name, dims in self.shapes.items()}

    def _agree(
        self, params: Params, x: Array | None, what: str, state: Any
    ) -> tuple[Namespace, Params, Any, Any]:
        """Check the parameters, and return the namespace of all these arrays, and the arrays as it
        has them.

        x is the input, or dy. Symbols have a dtype of their own, and `_inner` checks them.
        """
        if self.symbols is not None and what == "state" and x is not None:
            xp, params, _, state = self._agree(params, None, what, state)
            return xp, params, from_foreign(type(self).__name__, x), state
        xp = plain_namespace(params, self._sizes, x, state)
        if xp is not None:
            return xp, params, x, state
        where = type(self).__name__
        params, x, state = from_foreign(where, (params, x, state))
        arrays = {} if x is None else {"x" if what == "state" else "dy": x}
        wide = []
        for name, leaf, part in flat(where, what, state, self.states):
            if part is not None:
                arrays[name] = part
                wide += [name] * leaf.wide
        return self.namespace(params, arrays, wide), params, x, state

    def _inner(self, xp: Namespace, x: Array, step: bool = False) -> Array:
        """Check the shape of x, and return it as (T, B, D), or as (B, D) for one step; symbols
        without D, and as int64, but their values are not checked.
        """
        if self.symbols is not None:
            x = self._symbols_of(xp, x, step)
        elif x is None or x.ndim != 3 - step or x.shape[-1] != self.input_size:
            outer = ("B",) if step else ("B", "T") if self.batch_first else ("T", "B")
            sizes = {**dict.fromkeys(outer), "D": self.input_size}
            checks.shape(type(self).__name__, "x", x, sizes)
        if step:
            return x
        if self.batch_first:
            x = self._swap(xp, x)
        if x.shape[0] == 0:
            raise ValueError(f"{type(self).__name__}: x has no time steps, expected T of 1 or more")
        return x

    def _outer(self, T: int, B: int) -> dict[str, int]:
        return {"B": B, "T": T} if self.batch_first else {"T": T, "B": B}

    def _symbols_of(self, xp: Namespace, x: Array, step: bool) -> Array:
        """Return symbols as int64 once their kind and the number of their axes are checked."""
        where = type(self).__name__
        check_library(where, "tokens", xp, x)
        tokens = tokens_of(where, "tokens", xp, x)
        if tokens.ndim != 2 - step:
            expected = "(B,)" if step else "(B, T)" if self.batch_first else "(T, B)"
            raise ValueError(
                f"{where}: tokens has shape {tuple(tokens.shape)}, expected {expected}"
            )
        return tokens

    def output_dims(self, T: int, B: int) -> checks.Dims:
        """Return the sizes of y by their letters."""
        return {**self._outer(T, B), self._output_symbol: self.output_size}

    def _swap(self, xp: Namespace, array: Array) -> Array:
        """Change an array from the user's order of time and batch to (T, B, ...), or back; None
        stays.
        """
        if array is None or not self.batch_first:
            return array
        return xp.permute_dims(array, (1, 0, *range(2, array.ndim)))


def complete(
    where: str,
    xp: Namespace,
    what: str,
    state: Any,
    leaves: State,
    B: int,
    params: Params,
    zero: bool = False,
    filled: Iterator[Array] | None = None,
) -> State:
    """Check the shapes of a state against `leaves`, and fill in the arrays that are missing.

    Parameters
    ----------
    where, what : str
        The names of the layer and of the argument, for errors.
    state : tuple or None
        The state that is given; None in place of it, or of any part, means the value before the
        first step.
    leaves : tuple
        The `Leaf` of every array, nested as the state is.
    params : dict
        Arrays of the dtype and on the device that missing ones get.
    zero : bool
        Whether missing arrays are zero, as those of gradients are.
    filled : iterator, optional
        With a part of a state the missing arrays of the whole, in order, where each fill is a
        launch.
    """
    if state is not None:
        _check_container(where, what, state, leaves)
    like = next(iter(params.values()))
    if filled is None and xp is not np:
        missing = (
            leaf.initial(xp, B, like, zero)
            for _, leaf, part in flat(where, what, state, leaves)
            if part is None
        )
        filled = filled_at_once(xp, like, missing)
    parts: list[Any] = []
    for k, leaf in enumerate(leaves):
        part = None if state is None else state[k]
        if not isinstance(leaf, Leaf):
            part = complete(where, xp, f"{what}[{k}]", part, leaf, B, params, zero, filled)
        elif part is None and filled is not None:
            part = next(filled)
        elif part is None:
            shape, dtype, value = leaf.initial(xp, B, like, zero)
            # NumPy makes zeros in a sixth of the time
            part = (
                xp.full(shape, value, dtype=dtype, device=like.device)
                if value
                else xp.zeros(shape, dtype=dtype, device=like.device)
            )
        elif getattr(part, "shape", None) != (*leaf.before.values(), B, *leaf.after.values()):
            checks.shape(where, f"{what} {leaf.name}", part, leaf.dims(B))
        parts.append(part)
    return tuple(parts)


def _reset(xp: Namespace, state: State, leaves: State, resets: Array) -> State:
    """Return a state that is that before the first step where `resets` (B,) is True."""
    parts = []
    for _, leaf, part in flat("step", "state", state, leaves):
        where = reshape(resets, (-1, *(1,) * len(leaf.after)))
        rest = constants.number(xp, leaf.rest, part.dtype, device_of(part))
        parts.append(fuse.where(xp, where, rest, part))
    return nested(leaves, iter(parts))


def nested(like: State, arrays: Iterator[Any]) -> State:
    """Return arrays as a state that is nested as another one is, or as the leaves of a layer
    are.
    """
    return tuple(nested(part, arrays) if type(part) is tuple else next(arrays) for part in like)


def flat(where: str, what: str, state: Any, leaves: State) -> Iterator[tuple[str, Leaf, Any]]:
    """Yield the name of each array of a state, as errors have it, its leaf, and the array, None
    where it is missing.

    Raises
    ------
    ValueError, TypeError
        A state, or a part of it, is no tuple of as many entries as there are leaves.
    """
    if state is not None:
        _check_container(where, what, state, leaves)
    for k, leaf in enumerate(leaves):
        part = None if state is None else state[k]
        if isinstance(leaf, Leaf):
            yield f"{what} {leaf.name}", leaf, part
        else:
            yield from flat(where, f"{what}[{k}]", part, leaf)


def _check_container(where: str, what: str, state: Any, leaves: State) -> None:
    """Raise unless a state is a tuple, or a list, of as many entries as there are leaves."""
    is_one = isinstance(state, tuple | list)
    if is_one and len(state) == len(leaves):
        return
    names = ", ".join(leaf.name if isinstance(leaf, Leaf) else "(...)" for leaf in leaves)
    expected = f"expected a tuple of {len(leaves)} ({names})"
    if is_one:
        raise ValueError(f"{where}: {what} has {len(state)} entries, {expected}")
    raise TypeError(f"{where}: {what} is a {type(state).__name__}, {expected}")
