"""Module and SequenceLayer: the calls that every layer, block, stack and model has, written once.

A subclass gives its parameters (`parts` and `_own`) and its maths. A `Module` has `apply` and `apply_bwd`; a
`SequenceLayer` has `states`, `scan` and `scan_bwd`, in which x is (T, B, D) whatever the user's order is. These check
nothing; `forward`, `backward` and `step` check what they are given once, for all parts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xlstm.arrays import checks, workspace
from xlstm.arrays.backend import (
    Array,
    Backend,
    DType,
    Namespace,
    Params,
    Seed,
    backend_of,
    generator,
    loses_bfloat16,
    namespace,
    plain_namespace,
)
from xlstm.layers.state import Span, State, arrays_of, complete
from xlstm.recurrence.packing import Packing

Values = dict[str, np.ndarray[Any, Any]]
MASKS = 2  # the stream of a seed that masks are drawn from; 0 draws weights, 1 orders batches


class Module:
    """Something with parameters, a forward pass and a backward pass. Subclasses are frozen dataclasses.

    It holds no arrays: `init` makes the parameters, one dict of dotted names. Those of a part stand under the name of
    the part.
    """

    if TYPE_CHECKING:  # a field of some, which must not find a default here

        @property
        def input_size(self) -> int:
            """Width of x."""

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """The modules that this one is made of, by what stands before the names of their parameters."""
        return {}

    @property
    def _own(self) -> dict[str, checks.Dims]:
        """The parameters that belong to no part."""
        return {}

    @functools.cached_property
    def shapes(self) -> dict[str, checks.Dims]:
        """Names and shapes of the parameters."""
        found = dict(self._own)
        for prefix, part in self.parts.items():
            found |= {f"{prefix}.{name}": dims for name, dims in part.shapes.items()}
        return found

    @functools.cached_property
    def names(self) -> dict[str, dict[str, str]]:
        """Names of the parameters of each part, by their names there."""
        return {prefix: {name: f"{prefix}.{name}" for name in part.shapes} for prefix, part in self.parts.items()}

    @functools.cached_property
    def random(self) -> bool:
        """Whether `forward` draws masks while training, and so needs a seed."""
        return any(part.random for part in self.parts.values())

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

    def draw(self, rng: np.random.Generator) -> Values:
        """Draw initial parameters on the host."""
        found = self._draw_own(rng)
        for prefix, part in self.parts.items():
            found |= {f"{prefix}.{name}": values for name, values in part.draw(rng).items()}
        return found

    def _draw_own(self, rng: np.random.Generator) -> Values:
        return {}

    def __call__(self, params: Params, x: Array) -> Any:
        """Return y for x (..., D), and keep nothing."""
        return self.forward(params, x)[0]

    def forward(self, params: Params, x: Array) -> tuple[Any, ...]:
        """Map the last axis of x.

        Parameters
        ----------
        params : dict
            As from `init`.
        x : array (..., D)
            The input; D is `input_size`.

        Returns
        -------
        y : array
        saved : Saved
            What `backward` needs.

        Raises
        ------
        ValueError, TypeError
            A parameter is missing or misshapen, or arrays do not belong together.
        """
        xp = self.namespace(params, {"x": x})
        if x.ndim == 0 or x.shape[-1] != self.input_size:
            expected = f"(..., {self._symbol}) = (..., {self.input_size})"
            raise ValueError(f"{type(self).__name__}: x has shape {tuple(x.shape)}, expected {expected}")
        y, kept = self.apply(xp, params, x)
        return y, Saved(self, tuple(y.shape), kept)

    def backward(self, params: Params, saved: Any, dy: Array) -> tuple[Any, ...]:
        """Return gradients of the parameters, and that of x.

        Parameters
        ----------
        params : dict
            Those `forward` was given.
        saved : Saved
            From `forward`.
        dy : array
            Gradient of the loss by y, in its shape.

        Raises
        ------
        ValueError, TypeError
            `saved` is of another module, a parameter is misshapen, or arrays do not belong together.
        """
        checks.saved(type(self).__name__, self, saved, Saved)
        xp = self.namespace(params, {"dy": dy})
        if tuple(dy.shape) != saved.shape:
            shape = tuple(dy.shape)
            raise ValueError(f"{type(self).__name__}: dy has shape {shape}, expected that of y, {saved.shape}")
        return self.apply_bwd(xp, params, saved.kept, dy)

    _symbol: ClassVar[str] = "D"  # of input_size

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        """Return y and what `apply_bwd` needs."""
        raise NotImplementedError

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Any]:
        """Return gradients of the parameters, and that of x."""
        raise NotImplementedError

    def below(self, prefix: str, params: Params) -> Params:
        """Return the parameters of a part, under their names there."""
        return {name: params[full] for name, full in self.names[prefix].items()}

    def through(self, xp: Namespace, prefix: str, p: Params, x: Array, kept: dict[str, Any]) -> Array:
        """Return y of a part that has no state; what it keeps goes to `kept` under its name."""
        y, kept[prefix] = self.parts[prefix].apply(xp, self.below(prefix, p), x)
        return y

    def through_bwd(
        self, xp: Namespace, prefix: str, p: Params, kept: Mapping[str, Any], dy: Array, grads: Params
    ) -> Array:
        """Return dx of a part that has no state; its gradients are added to `grads`."""
        found, dx = self.parts[prefix].apply_bwd(xp, self.below(prefix, p), kept[prefix], dy)
        for name, full in self.names[prefix].items():
            grads[full] = found[name]
        return dx

    def pieces(self, kept: Any) -> Mapping[str, Any]:
        """Return what each part kept, by its name, where this module keeps it part by part."""
        return {name: kept[name] for name in self.parts if name in kept} if isinstance(kept, Mapping) else {}

    def check(self, params: Params) -> None:
        """Raise unless `params` has the names and shapes of the parameters."""
        checks.params(type(self).__name__, params, self.shapes)

    def namespace(self, params: Params, arrays: Mapping[str, Array]) -> Namespace:
        """Return the namespace of all these arrays, once the parameters are checked."""
        self.check(params)
        return namespace(type(self).__name__, {**arrays, **params})

    def __getstate__(self) -> dict[str, Any]:
        """Return the options alone, for copies and pickles."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


class SequenceLayer(Module):
    """A module that goes through time with a state."""

    if TYPE_CHECKING:

        @property
        def output_size(self) -> int:
            """Width of y."""

        @property
        def states(self) -> State:
            """The `Leaf` of every array of the state, in a tuple that is nested as the state is."""

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, ...)."""
        return False

    @property
    def directions(self) -> tuple[str, ...]:
        """For each direction of time, "" or "reverse.": what stands before the last name of a parameter."""
        return ("",)

    @property
    def BFLOAT16(self) -> bool:  # noqa: N802
        """Whether bfloat16 of CuPy is taken."""
        return False

    @property
    def _output_symbol(self) -> str:
        """The symbol of `output_size`."""
        return "D"

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        """Return y, the final state and what is kept; x is finite past the end of a sequence, y may be anything."""
        raise NotImplementedError

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """Return gradients of the parameters, of x and of the initial state; dy is zero past the end of a sequence."""
        raise NotImplementedError

    def run(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        """`forward` without checks: x may be anything past the end of a sequence, where y is zero."""
        workspace.settle(span.xp)
        y, end, kept = self.scan(p, span.mask(x), state, span)
        return span.mask(y), end, kept

    def run_bwd(
        self, p: Params, kept: Any, dy: Array | None, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """`backward` without checks; a dy or dstate of None is zero."""
        dy = span.zeros(self.output_size, p) if dy is None else span.mask(dy)
        grads, dx, start = self.scan_bwd(p, kept, dy, dstate, span)
        return grads, span.mask(dx), start

    def run_step(self, xp: Namespace, p: Params, x: Array, state: State) -> tuple[Array, State]:
        """`step` without checks."""
        span = Span(xp, Packing.of("step", None, 1, x.shape[0]))
        y, end, _ = self.scan(p, x[None, ...], state, span)
        return y[0, ...], end

    def __call__(self, params: Params, x: Array, state: Any = None, *, lengths: Any = None) -> tuple[Array, State]:
        """Run over a batch of sequences for inference, without masks, and keep nothing.

        Parameters and errors are those of `forward`.

        Returns
        -------
        y : array (T, B, ...), or (B, T, ...) with `batch_first`
        state : tuple
            Final state.
        """
        y, end, _ = self.forward(params, x, state, False, lengths=lengths)
        return y, end

    def forward(
        self,
        params: Params,
        x: Array,
        state: Any = None,
        train: bool = True,
        *,
        lengths: Any = None,
        seed: Seed | None = None,
        keep: bool | None = None,
    ) -> tuple[Array, State, Saved | None]:
        """Run over a batch of sequences.

        Parameters
        ----------
        params : dict
            As from `init`.
        x : array (T, B, D)
            Input, or (B, T, D) with `batch_first`.
        state : tuple, optional
            Initial state, as the class describes it. None, or None in place of any of its parts, is the state before
            the first step. It is taken as it is: beyond the square root of the largest number of the dtype products
            with it may overflow.
        train : bool
            Draw the masks of dropout and zoneout, and keep what `backward` needs.
        lengths : whole numbers (B,), optional
            Lengths of the sequences, each from 0 to T, in any order; T by default. Steps past the end of a sequence
            take no part: there y is zero, the final state is that at its own end, and the reverse direction starts
            there.
        seed : int or numpy.random.Generator
            Of the masks; needed only where there are some. Give every training step another seed, or one generator to
            all of them.
        keep : bool, optional
            Keep what `backward` needs, by default as `train`. With `train=False, keep=True` gradients are those of the
            model without masks.

        Returns
        -------
        y : array (T, B, O)
            Output after every step, or (B, T, O) with `batch_first`; O is `output_size`.
        state : tuple
            Final state.
        saved : Saved or None
            What `backward` needs, and every gate, cell state and hidden state of every layer, time first.

        Raises
        ------
        ValueError, TypeError
            An array is missing, misshapen, or of another library, device or dtype than the rest; lengths are no whole
            numbers from 0 to T; a seed is needed and missing.
        """
        where = type(self).__name__
        keep = checks.keeps(where, train, keep)
        xp = self._agree(params, x, "state", state)
        x = self._inner(xp, x)
        T, B = x.shape[:2]
        packing = Packing.of(where, lengths, T, B)
        rng = None
        if train and self.random:
            rng = masks(where, seed)
        elif seed is not None:
            checks.seed(where, "seed", seed)
        span = Span(xp, packing, rng, keep)
        start = complete(where, xp, "state", state, self.states, B, params)
        y, end, kept = self.run(params, x, start, span)
        y = self._swap(xp, y)
        return y, end, Saved(self, tuple(y.shape), kept, span) if keep else None

    def backward(self, params: Params, saved: Any, dy: Array | None, dstate: Any = None) -> tuple[Params, Array, State]:
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

        Raises
        ------
        ValueError, TypeError
            `saved` is none, or that of another layer; a gradient has another shape, library, device or dtype.
        """
        where = type(self).__name__
        checks.saved(where, self, saved, Saved)
        span = saved.span
        xp = self._agree(params, dy, "dstate", dstate)
        if dy is not None:
            if dy.shape != saved.shape:
                checks.shape(where, self._gradient, dy, self._output_dims(span.T, span.B))
            dy = self._swap(xp, dy)
        end = None
        if dstate is not None:
            end = complete(where, xp, "dstate", dstate, self.states, span.B, params, zero=True)
        grads, dx, start = self.run_bwd(params, saved.kept, dy, end, span)
        return {name: grads[name] for name in params}, self._swap(xp, dx), start

    def step(self, params: Params, x: Array, state: Any = None) -> tuple[Array, State]:
        """Go one time step, for streaming: from x (B, D) and the state before to y (B, O) and the state after.

        Raises
        ------
        ValueError
            The layer has a reverse direction, which begins at the end of the sequence.
        """
        where = type(self).__name__
        if self.directions != ("",):
            raise ValueError(f"{where}: step goes forward in time, the reverse direction needs the whole sequence")
        xp = self._agree(params, x, "state", state)
        x = self._inner(xp, x, step=True)
        start = complete(where, xp, "state", state, self.states, x.shape[0], params)
        return self.run_step(xp, params, x, start)

    def along(
        self, prefix: str, p: Params, x: Array, state: State, span: Span, kept: dict[str, Any]
    ) -> tuple[Array, State]:
        """Return y and the final state of a part; what it keeps goes to `kept` under its name."""
        y, end, kept[prefix] = self.parts[prefix].scan(self.below(prefix, p), x, state, span)
        return y, end

    def along_bwd(
        self, prefix: str, p: Params, kept: Mapping[str, Any], dy: Array, dstate: Any, span: Span, grads: Params
    ) -> tuple[Array, State]:
        """Return dx and the gradient by the initial state of a part; its gradients are added to `grads`."""
        found, dx, start = self.parts[prefix].scan_bwd(self.below(prefix, p), kept[prefix], dy, dstate, span)
        for name, full in self.names[prefix].items():
            grads[full] = found[name]
        return dx, start

    _gradient: ClassVar[str] = "dy"  # the name of the argument

    @functools.cached_property
    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        return {name: tuple(dims.values()) for name, dims in self.shapes.items()}

    def _agree(self, params: Params, x: Array | None, what: str, state: Any) -> Namespace:
        """Return the namespace of all these arrays, once the parameters are checked; x is the input, or dy."""
        found = plain_namespace(params, self._sizes, x, state)
        if found is not None:
            return found
        where = type(self).__name__
        name = "x" if what == "state" else self._gradient
        given = {} if x is None else {name: x}
        self.check(params)
        xp = namespace(where, {**given, **params, **arrays_of(where, what, state, self.states)})
        if x is not None and not self.BFLOAT16 and loses_bfloat16(x):
            raise TypeError(
                f"{where}: {name} is bfloat16, expected float16 or float32; LSTM, GRU, RNN and sLSTM take it"
            )
        return xp

    def _inner(self, xp: Namespace, x: Array, step: bool = False) -> Array:
        """Return x as (T, B, D), or (B, D) of one step, once its shape is checked."""
        if x.ndim != 3 - step or x.shape[-1] != self.input_size:
            outer = {"B": None} if step else {"B": None, "T": None} if self.batch_first else {"T": None, "B": None}
            checks.shape(type(self).__name__, "x", x, {**outer, "D": self.input_size})
        if step:
            return x
        x = self._swap(xp, x)
        if x.shape[0] == 0:
            raise ValueError(f"{type(self).__name__}: x has no time steps, expected T of 1 or more")
        return x

    def _output_dims(self, T: int, B: int) -> checks.Dims:
        outer = {"B": B, "T": T} if self.batch_first else {"T": T, "B": B}
        return {**outer, self._output_symbol: self.output_size}

    def _swap(self, xp: Namespace, array: Array) -> Array:
        """Change between the user's order of time and batch and (T, B, ...)."""
        return xp.permute_dims(array, (1, 0, 2)) if self.batch_first else array


class Saved:
    """What `forward` keeps for `backward`, readable by name.

    `saved["1.reverse"]` is what the second layer's reverse direction kept, `saved["blocks.0.cell"]` that of the cell of
    a block: names are those that the parameters of the part begin with. Of a recurrent layer `.gates`, `.c` and `.h`
    are every gate, cell state and hidden state, time first; past the end of a sequence they are zero. With one layer
    and direction, `saved.gates`, `saved.c` and `saved.h` will do.

    It refers to arrays of the call, such as x and y: do not change those in place before `backward`.
    """

    def __init__(self, layer: Any, shape: tuple[int, ...] | None, kept: Any, span: Span | None = None) -> None:
        self.layer, self.shape, self.kept, self.span = layer, shape, kept, span

    def __getitem__(self, name: str | int) -> Any:
        """Return what a part kept.

        Raises
        ------
        KeyError
            There is no such part, or it keeps nothing.
        """
        known = self._known()
        if str(name) not in known:
            raise KeyError(f"saved: there is no layer {name!r}, only {checks.few(known)}")
        return known[str(name)]

    def __getattr__(self, name: str) -> Any:
        """Return what was kept under a name that is no part's."""
        if name.startswith("_"):
            raise AttributeError(name)
        if isinstance(self.kept, Mapping):
            if name not in self.kept:
                raise AttributeError(f"saved: {name} is not kept, only {checks.few(self.kept)}")
            return self[name] if name in self.layer.parts else self.kept[name]
        return getattr(self.kept, name)

    def _known(self) -> dict[str, Any]:
        """Return what all parts kept, and their parts, by dotted names."""
        found: dict[str, Any] = {}
        for name, kept in self.layer.pieces(self.kept).items():
            part = self.layer.parts.get(name)
            found[name] = kept
            if isinstance(part, Module):
                view = Saved(part, None, kept, self.span)
                found |= {f"{name}.{rest}": value for rest, value in view._known().items()}
                if isinstance(part, SequenceLayer):
                    found[name] = view
        return found


def masks(where: str, seed: Seed | None) -> np.random.Generator:
    """Return the generator of masks.

    Raises
    ------
    ValueError
        There is no seed, or it is none.
    """
    if seed is None:
        raise ValueError(f"{where}: masks are drawn while training, so forward needs a seed; train=False draws none")
    return generator(seed, stream=MASKS, where=where)


def dropped(d: Array, mask: Array | None) -> Array:
    """Return an array, or its gradient, through a mask of dropout, where there is one."""
    return d if mask is None else d * mask


def rows(xp: Namespace, x: Array) -> Array:
    """Return (..., D) as a matrix."""
    return xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def total(xp: Namespace, d: Array) -> Array:
    """Return the sum over all axes but the last."""
    return xp.sum(rows(xp, d), axis=0)
