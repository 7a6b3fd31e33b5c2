"""SequenceLayer: the base of layers, blocks, stacks and models that go through time with a state.

A subclass gives its `states`, and its maths in `scan` and `scan_bwd`. There x is always (T, B, D),
whatever the user's order. `scan` and `scan_bwd` check nothing: `forward`, `backward` and `step`
check their arguments once, for all parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from xlstm.arrays import checks, constants, fuse, invariance, rows
from xlstm.arrays.cached import cached_property
from xlstm.arrays.fills import filled_at_once
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.namespace import (
    Array,
    Namespace,
    Params,
    check_library,
    deepest,
    depth_of,
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
# gradients with respect to parameters, x and the initial state
Derivatives: TypeAlias = "tuple[Params, Any, State]"


class Leaf(NamedTuple):
    """One array of a state, of the shape: sizes of `before`, then B, then sizes of `after`."""

    name: str
    before: dict[str, int]
    after: dict[str, int]
    rest: float = 0.0  # its value before the first step
    wide: bool = False  # whether it is float32 beside parameters in float16 or bfloat16

    def initial(
        self, xp: Namespace, B: int, like: Array, zero: bool
    ) -> tuple[tuple[int, ...], Any, float]:
        """Return shape, dtype and value before the first step, with 0 as value if `zero`."""
        dtype = widened(xp, like.dtype) if self.wide else like.dtype
        shape = (*self.before.values(), B, *self.after.values())
        return shape, dtype, 0.0 if zero else self.rest

    def dims(self, B: int | None) -> checks.Dims:
        """Return the sizes for a batch of B, by their letters."""
        return {**self.before, "B": B, **self.after}


class SequenceLayer(Module):
    """A module that goes through time with a state."""

    if TYPE_CHECKING:

        @property
        def output_size(self) -> int:
            """Width of y."""

        @property
        def last(self) -> bool:
            """Whether y is one prediction for each sequence, at its end, (B, O)."""

        @property
        def states(self) -> State:
            """The `Leaf` of every array of the state, in a tuple nested like the state."""
    else:
        last = False  #: whether y is one prediction at the end of each sequence

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, ...)."""
        return False

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions of time, as prefixes of parameters' last names: "" and "reverse."."""
        return ("",)

    _output_symbol: Any = "D"  # the letter of output_size in errors
    _has_groups: ClassVar[bool] = False  # whether `forward` lets sequences see each other

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        """Return y, the final state and the values that `scan_bwd` needs.

        Past the end of a sequence x is finite, and y may be anything.
        """
        raise NotImplementedError

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        """Return the gradients with respect to the parameters, x and the initial state.

        dy is zero past the end of a sequence.
        """
        raise NotImplementedError

    def run(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        """Run `forward` without checks.

        Past the end of a sequence x may be anything, and y is zero.
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

        Parameters and errors are as in `forward`.

        Returns
        -------
        y : array (T, B, O), or (B, T, O) with `batch_first`
            Output after every step.
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
            Initial state, as the class describes it. None, or None in place of any of its parts,
            means the state before the first step. Its values are not limited: products with values
            beyond the square root of the dtype's largest number may overflow.
        train : bool
            Draw the masks of dropout and zoneout, and keep what `backward` needs.
        lengths : whole numbers (B,), optional
            Lengths of the sequences, each from 0 to T, in any order; by default T. Steps past the
            end of a sequence are padding and have no effect. y is zero there, the final state is
            the state at the sequence's own end, and the reverse direction starts at that end.
        resets : booleans (T, B), optional
            Where an element is True, the state is reset before that step. Resets cut a sequence
            into parts, and each part gives the same results as in a call of its own. The first part
            begins from `state`, unless its first step is reset, too. The final state is the state
            of the last part. Both hold in both directions. No gradient crosses a cut. With
            `batch_first` the shape is (B, T). The host reads the values.
        cu_seqlens : whole numbers (n + 1,), optional
            Another way to give `resets`, for a batch of one sequence that consists of n sequences
            one after the other. Sequence k has the steps from cu_seqlens[k] up to, but not
            including, cu_seqlens[k + 1].
        seed : int or numpy.random.Generator
            Seed of the masks; needed only if the layer draws masks. Give every training step
            another seed, or give one generator to all steps.
        keep : bool, optional
            Whether to keep what `backward` needs; by default as `train`. With `train=False,
            keep=True` you get the gradients of the model without masks.
        groups : object, optional
            Sequences that belong together, for a layer that lets them see each other; see `Span`.
        batch_invariant : bool, optional
            Whether each sequence runs by itself. Its results, here and in `backward`, then do not
            depend on the rest of the batch, bit for bit, and `saved.sequences` has the values that
            each sequence kept. By default the context `xlstm.batch_invariant()` decides; without a
            context it is False.

        Returns
        -------
        y : array (T, B, O)
            Output after every step, or (B, T, O) with `batch_first`; O is `output_size`. A model
            with `last` gives one output for each sequence, (B, O).
        state : tuple
            Final state.
        saved : Saved or None
            The values that `backward` needs, or None without `keep`. They include every gate, cell
            state and hidden state of every layer, time first.

        Raises
        ------
        ValueError, TypeError
            An array is missing, misshapen, or of another library, device or dtype than the rest;
            lengths are not whole numbers from 0 to T; resets are not booleans; a seed is needed and
            missing; or `batch_invariant` is True although sequences see each other or share drawn
            masks.
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
        """Check the arguments of a call, and return parameters, x, initial state and span.

        x is (T, B, D), and the span is for inference.
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
        # past the end of a sequence any symbol is valid; `within` checks none on a GPU
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
            The upstream gradient, of the loss with respect to y. None means zero. Past the end of a
            sequence it has no effect.
        dstate : tuple as the state, optional
            Gradient with respect to the final state. None, or None in place of any of its parts,
            means zero.
        per_sequence : bool
            Whether to return the gradients of each sequence by itself, with the sequences as the
            first axis of every parameter's gradient. They take B times the memory of the
            parameters.

        Returns
        -------
        grads : dict
            Gradients under the names and in the shapes of `params`; with `per_sequence`, each shape
            begins with an axis of B.
        dx : array
            Gradient with respect to x, in its shape; exactly zero past the end of a sequence.
        dstate : tuple as the state
            Gradient with respect to the initial state.

        Raises
        ------
        ValueError, TypeError
            `saved` is None, comes from another layer, or is on another device than `params`; a
            gradient has another shape, library, device or dtype; `per_sequence` is not True or
            False, or is True although `forward` was given groups of sequences.
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
        """Run one time step, for streaming.

        Parameters
        ----------
        params : dict
            The parameters, as from `init`.
        x : array (B, D)
            Input of the step.
        state : tuple, optional
            The state before the step; None means the state before the first step.
        resets : booleans (B,), optional
            Where an element is True, that sequence begins from the state before the first step.
        batch_invariant : bool, optional
            As in `forward`.

        Returns
        -------
        y : array (B, O)
            Output after the step.
        state : tuple
            The state after the step.

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
        """Check the parameters, and return the namespace of all arrays, and the arrays in it.

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
        """Check the shape of x, and return it as (T, B, D), or as (B, D) for one step.

        Symbols come back as int64 without the axis D. Their values are not checked here.
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
        """Check the dtype and the number of axes of symbols, and return them as int64."""
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
        """Return the sizes of y, by their letters."""
        return {**self._outer(T, B), self._output_symbol: self.output_size}

    def _swap(self, xp: Namespace, array: Array) -> Array:
        """Change an array from the user's order of time and batch to (T, B, ...), or back.

        None stays None.
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
    """Check the shapes of a state against `leaves`, and fill in missing arrays.

    Parameters
    ----------
    where, what : str
        The names of the layer and of the argument, for errors.
    state : tuple or None
        The state to complete; None in place of it, or of any part, means the value before the first
        step.
    leaves : tuple
        The `Leaf` of every array, nested like the state.
    params : dict
        Arrays whose dtype and device the missing arrays get.
    zero : bool
        Whether missing arrays are zero, as in gradients.
    filled : iterator, optional
        For a part of a state: the missing arrays of the whole state, in order. They are made
        together if each fill is a launch.
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
            # NumPy's `zeros` takes a sixth of the time of `full`
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
    """Return a state with the values before the first step where `resets` (B,) is True."""
    parts = []
    for _, leaf, part in flat("step", "state", state, leaves):
        where = reshape(resets, (-1, *(1,) * len(leaf.after)))
        rest = constants.number(xp, leaf.rest, part.dtype, device_of(part))
        parts.append(fuse.where(xp, where, rest, part))
    return nested(leaves, iter(parts))


def nested(like: State, arrays: Iterator[Any]) -> State:
    """Return arrays as a state, nested like another state or like the leaves of a layer."""
    return tuple(nested(part, arrays) if type(part) is tuple else next(arrays) for part in like)


def flat(where: str, what: str, state: Any, leaves: State) -> Iterator[tuple[str, Leaf, Any]]:
    """Yield for each array of a state its name in errors, its leaf, and the array or None.

    Raises
    ------
    ValueError, TypeError
        A state, or a part of it, is not a tuple with one entry for each leaf.
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
    """Raise unless a state is a tuple, or a list, with one entry for each leaf."""
    is_one = isinstance(state, tuple | list)
    if is_one and len(state) == len(leaves):
        return
    names = ", ".join(leaf.name if isinstance(leaf, Leaf) else "(...)" for leaf in leaves)
    expected = f"expected a tuple of {len(leaves)} ({names})"
    if is_one:
        raise ValueError(f"{where}: {what} has {len(state)} entries, {expected}")
    raise TypeError(f"{where}: {what} is a {type(state).__name__}, {expected}")
