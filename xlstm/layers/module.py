"""Module: the base of every layer, block, stack and model, with parameters and two passes.

A subclass gives its `weights` and `parts`, and its maths in `apply` and `apply_bwd`. These check
nothing: `forward` and `backward` check their arguments once, for all parts. `sequence.py` adds
layers through time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xlstm.arrays import checks, invariance
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.cached import cached_property
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.namespace import (
    Array,
    DType,
    Namespace,
    Params,
    deepest,
    depth_of,
    device_of,
    namespace,
    reshape,
)
from xlstm.arrays.random import Seed, bernoulli, generator
from xlstm.arrays.tensor_views import Views, views_of
from xlstm.arrays.trees import leaves_by_path, mapped
from xlstm.cells.activations import FEED_FORWARD, FORGET
from xlstm.engines import engine
from xlstm.engines.array_api import ARRAY_API
from xlstm.layers.announcements import announce
from xlstm.layers.initializers import RECURRENT, Draw

Weight = tuple[checks.Dims, Draw]
Weights = dict[str, Weight]
Parts = dict[str, Any]  # modules by the prefix of their parameters' names
STREAM = 2  # the stream of a seed for masks; stream 0 draws weights, 1 orders batches
# options that draw masks
RATES = ("dropout", "ffn_dropout", "recurrent_dropout", "embedding_dropout", "zoneout")
# The checks of all options of layers, by name: a name means the same in every layer.
OPTIONS: dict[str, checks.Kind] = {
    **dict.fromkeys(
        (
            "input_size",
            "hidden_size",
            "output_size",
            "size",
            "kernel_size",
            "vocab_size",
            "num_heads",
            "qkv_block_size",
        ),
        checks.size,
    ),
    **dict.fromkeys(("num_layers", "num_blocks"), checks.depth),
    **dict.fromkeys(("proj_size", "conv_kernel_size", "index"), checks.size_or_0),
    **dict.fromkeys(
        ("qk_size", "v_size", "ffn_size", "chunk_size", "slstm_num_heads"),
        checks.optional(checks.size),
    ),
    "slstm_conv_kernel_size": checks.optional(checks.size_or_0),
    **dict.fromkeys(
        (
            "bidirectional",
            "reverse",
            "batch_first",
            "bias",
            "residual",
            "layer_norm",
            "recompute",
            "peepholes",
            "coupled_input_forget",
            "reset_after",
            "silu",
            "post_norm",
            "last",
            "tied",
            "log_space",
        ),
        checks.flag,
    ),
    **dict.fromkeys(("recurrent_bias", "post_norm_bias"), checks.optional(checks.flag)),
    **dict.fromkeys(("dropout", "recurrent_dropout", "embedding_dropout"), checks.rate),
    "ffn_dropout": checks.optional(checks.rate),
    **dict.fromkeys(("clip", "cell_clip"), checks.optional(checks.above_0)),
    **dict.fromkeys(("gate_cap", "logit_cap"), checks.optional(checks.divisor)),
    "std": checks.optional(checks.squared),
    "eps": checks.non_negative,
    "norm_eps": checks.divisor,
    "proj_factor": checks.above_0,
    "ffn_proj_factor": checks.non_negative,
    "forget_gate": checks.choice(FORGET),
    "forget_bias": checks.optional(checks.finite),
    **dict.fromkeys(("ffn_activation", "activation"), checks.choice(FEED_FORWARD)),
    "recurrent_init": checks.choice(("zeros", "uniform")),
    "initializer": checks.choice(RECURRENT),
}


class Module:
    """The base of everything with parameters, a forward pass and a backward pass.

    Subclasses are frozen dataclasses. A module holds no arrays: `init` returns the parameters, one
    dict from dotted names to arrays. The names of a part's parameters begin with the name of the
    part.
    """

    # subclasses have fields of these names, for which a property would be a default
    if TYPE_CHECKING:

        @property
        def input_size(self) -> int:
            """Width of x."""

        @property
        def symbols(self) -> int | None:
            """The number of symbols if x holds symbols, None if it holds quantities."""

        num_heads: int
    else:
        symbols = None  #: the number of symbols if x holds symbols

    #: checks of options that differ from those in `OPTIONS`
    CHECKS: ClassVar[dict[str, checks.Kind]] = {}
    #: names of widths that `num_heads` must divide
    HEADED: ClassVar[tuple[str, ...]] = ()
    _symbol: ClassVar[str] = "D"  # the letter of input_size in errors

    def __post_init__(self) -> None:
        kinds = OPTIONS | self.CHECKS
        own = self.__getstate__()
        checks.fields(self, **{name: kinds[name] for name in own if name in kinds})
        for name in self.HEADED:
            checks.heads(type(self).__name__, self.num_heads, **{name: getattr(self, name)})

    @cached_property
    def parts(self) -> Parts:
        """The modules inside this one, by the prefix of their parameters' names."""
        return {}

    @property
    def weights(self) -> Weights:
        """The parameters outside of all parts, with the shape and the initialiser of each."""
        return {}

    @cached_property
    def shapes(self) -> dict[str, checks.Dims]:
        """Names and shapes of the parameters."""
        shapes = {name: dims for name, (dims, _) in self.weights.items()}
        for prefix, part in self.parts.items():
            shapes |= {f"{prefix}.{name}": dims for name, dims in part.shapes.items()}
        return shapes

    @cached_property
    def random(self) -> bool:
        """Whether `forward` draws masks while training, and so needs a seed."""
        rates = (getattr(self, name, 0.0) for name in RATES)
        return any(map(np.any, rates)) or any(part.random for part in self.parts.values())

    def init(
        self, seed: Seed = 0, backend: str | Backend | None = None, dtype: DType | None = None
    ) -> Params:
        """Draw initial parameters.

        Parameters
        ----------
        seed : int or numpy.random.Generator
            Equal seeds give bit-identical parameters on every backend.
        backend : str or Backend, optional
            The library and the device of the arrays. A name is as for `xlstm.backend`, by default
            "auto".
        dtype : {"float32", "float64", "float16"}, optional
            A name, or NumPy's dtype. By default the backend's dtype, which is float32 unless you
            chose another one.

        Returns
        -------
        dict of str to array
            The parameters by their dotted names.

        Raises
        ------
        ValueError
            There is no memory for the largest parameter. Nothing is drawn then.
        """
        target = backend_of(backend, dtype)
        rng = generator(seed, where=type(self).__name__)
        sizes = {
            name: math.prod(n for n in dims.values() if n) for name, dims in self.shapes.items()
        }
        largest = max(sizes, key=sizes.__getitem__)
        try:
            np.empty(sizes[largest])  # the largest one in float64, as it is drawn; never written to
        except (MemoryError, ValueError, OverflowError):
            # NumPy raises the last two errors for arrays that cannot have so many numbers.
            problem = f"{largest} has {sizes[largest]:.3g} numbers, for which there is no memory"
            raise ValueError(f"{type(self).__name__}: {problem}; expected smaller sizes") from None
        return {name: target.asarray(values) for name, values in self.draw(rng).items()}

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """Draw initial parameters on the host."""
        values = {
            name: draw(rng, tuple(n for n in dims.values() if n))
            for name, (dims, draw) in self.weights.items()
        }
        for prefix, part in self.parts.items():
            values |= {f"{prefix}.{name}": drawn for name, drawn in part.draw(rng).items()}
        return values

    def __call__(self, params: Params, x: Array) -> Any:
        """Return y for x (..., D), and keep nothing for `backward`."""
        return self.forward(params, x)[0]

    def forward(self, params: Params, x: Array) -> tuple[Any, ...]:
        """Return y for x, and the values that `backward` needs.

        Parameters
        ----------
        params : dict
            The parameters, as from `init`.
        x : array (..., D)
            Input.

        Returns
        -------
        y : array
            Output, with the leading axes of x.
        saved : Saved
            The values that `backward` needs.

        Raises
        ------
        ValueError, TypeError
            A parameter is missing or misshapen, or arrays differ in library, device or dtype. Or
            the call is in the context `batch_invariant()`, which is for layers through time.
        """
        invariance.refuse(type(self).__name__, "no axis of x is known to be that of sequences")
        if (views := self._views(params, x)) is not None:
            return views.run(self.forward, params, x)  # type: ignore[no-any-return]
        params, x = from_foreign(type(self).__name__, (params, x))
        xp = self.namespace(params, {"x": x})
        if x.ndim == 0 or x.shape[-1] != self.input_size:
            expected = f"(..., {self._symbol}) = (..., {self.input_size})"
            raise ValueError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}, expected {expected}"
            )
        y, saved = self.apply(xp, params, x)
        return y, Saved(self, tuple(y.shape), saved, home=device_of(y), xp=xp)

    def backward(self, params: Params, saved: Any, dy: Array) -> tuple[Any, ...]:
        """Return the gradients with respect to the parameters and to x.

        Parameters
        ----------
        params : dict
            The parameters that `forward` was given.
        saved : Saved
            The values that `forward` kept.
        dy : array
            The upstream gradient, of the loss with respect to y, in the shape of y.

        Returns
        -------
        grads : dict
            Gradients under the names and in the shapes of `params`.
        dx : array (..., D)
            Gradient with respect to x, in its shape.

        Raises
        ------
        ValueError, TypeError
            `saved` comes from another module or is on another device than `params`, an array is
            misshapen, or arrays differ in library, device or dtype.
        """
        checks.saved(type(self).__name__, self, saved, Saved)
        if (views := self._views(params, dy)) is not None:
            return views.run(self.backward, params, saved, dy)  # type: ignore[no-any-return]
        params, dy = from_foreign(type(self).__name__, (params, dy))
        xp = self.namespace(params, {"dy": dy})
        checks.beside(type(self).__name__, saved.home, params)
        shape = tuple(dy.shape)
        if shape != saved.shape:
            raise ValueError(
                f"{type(self).__name__}: dy has shape {shape}, expected that of y, {saved.shape}"
            )
        if depth_of(xp) > depth_of(saved.xp):
            return self._backward_of_duals(xp, params, saved, dy)
        return self.apply_bwd(deepest(xp, saved.xp), params, saved.kept, dy)

    def _backward_of_duals(
        self, xp: Namespace, params: Params, saved: Any, *gradients: Any
    ) -> tuple[Any, ...]:
        """Run `backward` on dual numbers after a `forward` without them.

        This works because `backward` is linear in its upstream gradients.
        """
        for name, p in params.items():
            if xp.owns(p):
                raise ValueError(
                    f"{type(self).__name__}: {name} has a tangent, but saved is what forward kept"
                    " without one, expected both inside of the function that is differentiated"
                )
        values = self.backward(params, saved, *mapped(gradients, lambda _, a: xp.value(a)))
        tangents = self.backward(params, saved, *mapped(gradients, lambda _, a: xp.tangent(a)))
        by_path = leaves_by_path(tangents)
        return mapped(values, lambda path, a: xp.dual(a, by_path[path]))  # type: ignore[no-any-return]

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        """Return y and the values that `apply_bwd` needs."""
        raise NotImplementedError

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Any]:
        """Return the gradients with respect to the parameters and to x."""
        raise NotImplementedError

    def below(self, prefix: str, params: Params) -> Params:
        """Return the parameters of a part, under their names in that part."""
        return {name: params[full] for name, full in self._names[prefix]}

    @cached_property
    def _names(self) -> dict[str, list[tuple[str, str]]]:
        """The names of each part's parameters, in the part and in this module."""
        return {
            prefix: [(name, f"{prefix}.{name}") for name in part.shapes]
            for prefix, part in self.parts.items()
        }

    def _made(self, kind: Any, **own: Any) -> Any:
        """Return an instance of another dataclass with the options that both have."""
        options = self.__getstate__() | own
        return kind(**{f.name: options[f.name] for f in fields(kind) if f.name in options})

    def check(self, params: Params) -> None:
        """Raise unless `params` has the names and shapes of the parameters."""
        checks.params(type(self).__name__, params, self.shapes)

    def namespace(
        self, params: Params, arrays: Mapping[str, Array], wide: Collection[str] = ()
    ) -> Namespace:
        """Check the names and shapes of the parameters, and return the namespace of all arrays.

        Arrays whose names are in `wide` are float32 beside parameters in float16 and bfloat16.
        """
        self.check(params)
        return namespace(type(self).__name__, {**arrays, **params}, frozenset(wide))

    def _views(self, params: Params, *arrays: Any) -> Views | None:
        """Return how to run on views of tensors, or None to take arrays as they are.

        If you ask for the reference engine, it takes tensors as they are.
        """
        if engine.asked() == ARRAY_API.name:
            return None
        return views_of(type(self).__name__, params, *arrays)

    def __getstate__(self) -> dict[str, Any]:
        """Return the options alone, for copies and pickles."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


class Forward:
    """A forward pass of a module through its parts: `run("up", x)` returns y of the part `up`.

    With the state of a part, `run("conv", x, state)` returns y and the final state. `kept` holds
    the values of each part under its name, unless the span says that nothing is needed. If x is not
    `masked`, it may hold any values past the end of a sequence.
    """

    def __init__(
        self, module: Module, xp: Namespace, p: Params, span: Any = None, masked: bool = True
    ) -> None:
        self.module = module
        self.xp = xp
        self.p = p
        self.span = span
        self.masked = masked
        self.kept: dict[str, Any] = {}
        self.keeps = span is None or span.keep

    def __call__(self, name: str, x: Array, *state: Any) -> Any:
        """Run a part."""
        part = self.module.parts[name]
        p = self.module.below(name, self.p)
        if state:
            scan = part.scan if self.masked else part.run
            *outputs, saved = scan(p, x, *state, self.span)
        else:
            *outputs, saved = part.apply(self.xp, p, x)
        if self.keeps:
            self.kept[name] = saved
        return outputs if state else outputs[0]

    def beside(self, names: str, xs: Sequence[Array]) -> Array:
        """Run parts of one kind, each named by a letter, and return their results side by side."""
        maps = [(self.module.below(name, self.p), x) for name, x in zip(names, xs, strict=True)]
        y, saved = self.module.parts[names[0]].beside(self.xp, maps)
        self.keep(**dict(zip(names, saved, strict=True)))
        return y

    def keep(self, **values: Any) -> None:
        """Keep values by name."""
        if self.keeps:
            self.kept |= values

    def dropped(self, name: str, y: Array, rate: float) -> Array:
        """Return y times a mask of dropout, and keep the mask, or None, under a name."""
        mask = dropout(self.span.rng, rate, y)
        self.keep(**{name: mask})
        return dropped(y, mask)


class Backward:
    """The backward pass of a `Forward`: `run("up", dy)` returns dx of the part `up`.

    With the gradient with respect to the final state, or None for zero, it also returns the
    gradient with respect to the initial state. `grads` has the gradients of all parameters of the
    parts that ran.
    """

    def __init__(
        self,
        module: Module,
        xp: Namespace,
        p: Params,
        kept: Mapping[str, Any],
        span: Any = None,
        masked: bool = True,
    ) -> None:
        self.module = module
        self.xp = xp
        self.p = p
        self.kept = kept
        self.span = span
        self.masked = masked
        self.grads: Params = {}

    def __call__(self, name: str, dy: Array | None, *dstate: Any, **options: Any) -> Any:
        """Differentiate a part; options are those of its backward pass."""
        part = self.module.parts[name]
        p = self.module.below(name, self.p)
        saved = self.kept[name]
        if dstate:
            scan_bwd = part.scan_bwd if self.masked else part.run_bwd
            grads, *gradients = scan_bwd(p, saved, dy, *dstate, self.span, **options)
        else:
            grads, *gradients = part.apply_bwd(self.xp, p, saved, dy, **options)
        self.grads |= {f"{name}.{last}": g for last, g in grads.items()}
        return gradients if dstate else gradients[0]

    def final(self, name: str) -> None:
        """Announce the gradients of a part once they are final: nothing more is added to them."""
        announce(self.p, {full: self.grads[full] for _, full in self.module._names[name]})

    def beside(
        self,
        names: str,
        dys: Sequence[Sequence[Array]],
        of: Sequence[int],
        add: Sequence[Array | None],
    ) -> list[Array]:
        """Differentiate parts of one kind, each named by a letter, by their `beside_bwd`."""
        maps = [
            (self.module.below(name, self.p), self.kept[name], d)
            for name, d in zip(names, dys, strict=True)
        ]
        dxs: list[Array]
        grads, dxs = self.module.parts[names[0]].beside_bwd(self.xp, maps, of, add)
        for name, own in zip(names, grads, strict=True):
            self.grads |= {f"{name}.{last}": g for last, g in own.items()}
        return dxs

    def dropped(self, name: str, dy: Array) -> Array:
        """Return a gradient times a mask that was kept."""
        return dropped(dy, self.kept[name])


@dataclass(eq=False)
class Saved:
    """The values that `forward` keeps for `backward`, readable by name.

    `saved["1.reverse"]` holds the values of the second layer's reverse direction, and
    `saved["blocks.0.cell"]` the values of a block's cell: the names of a part's parameters begin
    with the name of the part. In a recurrent layer `.gates`, `.c` and `.h` are every gate, cell
    state and hidden state, time first; past the end of a sequence they are zero. With one layer and
    one direction, `saved.gates`, `saved.c` and `saved.h` are enough.

    `saved` refers to arrays of the call, such as x and y: do not change these in place before
    `backward`.
    """

    layer: Any
    shape: tuple[int, ...] | None
    kept: Any
    span: Any = None
    home: Any = None  # the device of the arrays, None if it is not known
    xp: Any = None  # the namespace of the arrays of a module without time

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without device and library.

        Arrays of CuPy are unpickled to the device that is current then.
        """
        return {**vars(self), "home": None, "xp": None}

    def names(self) -> list[str]:
        """Return the names of the parts that `saved[...]` takes."""
        return list(self._known())

    def __getitem__(self, name: str | int) -> Any:
        """Return the values that a part kept.

        Raises
        ------
        KeyError
            There is no such part, or it keeps nothing.
        """
        parts = self._known()
        if str(name) not in parts:
            raise KeyError(f"saved: there is no layer {name!r}, only {checks.few(parts)}")
        return parts[str(name)]

    def __getattr__(self, name: str) -> Any:
        """Return a value that was kept under a name of its own."""
        if name.startswith("_"):
            raise AttributeError(name)
        if not isinstance(self.kept, Mapping):
            return getattr(self.kept, name)
        if name in self.kept:
            return self[name] if name in self.layer.parts else self.kept[name]
        if self.layer.parts:
            raise AttributeError(f"saved: {name} is not kept, only {checks.few(self.kept)}")
        if len(self.kept) > 1:
            names = ", ".join(f"saved[{part!r}].{name}" for part in self.kept)
            raise AttributeError(f"saved: there are several layers or directions, say {names}")
        return getattr(next(iter(self.kept.values())), name)

    def _known(self) -> dict[str, Any]:
        """Return the values that all parts kept, at every depth, by dotted names."""
        if not isinstance(self.kept, Mapping):
            return {}
        if not self.layer.parts:  # the keys are layers and directions
            return dict(self.kept)
        parts: Parts = {}
        for name, part in self.layer.parts.items():
            if name not in self.kept:
                continue
            view = Saved(part, None, self.kept[name], self.span)
            # a layer through time has parts to read
            parts[name] = view if hasattr(part, "scan") else view.kept
            parts |= {f"{name}.{rest}": value for rest, value in view._known().items()}
        return parts


class SameWidth:
    """A mixin for modules with one `size`, the width D of x and of y."""

    size: int

    @property
    def input_size(self) -> int:
        """Width of x."""
        return self.size

    @property
    def output_size(self) -> int:
        """Width of y."""
        return self.size


def dropped(d: Array, mask: Array | None) -> Array:
    """Return an array or a gradient times a mask of dropout, or as it is without a mask."""
    return d if mask is None else d * mask


def rows(x: Array) -> Array:
    """Return (..., D) as a matrix."""
    return x if x.ndim == 2 else reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def masks(where: str, seed: Seed | None) -> np.random.Generator:
    """Return the generator of masks.

    Raises
    ------
    ValueError
        There is no seed, or `seed` is not one.
    """
    if seed is None:
        raise ValueError(
            f"{where}: masks are drawn while training, so forward needs a seed; train=False draws"
            " none"
        )
    return generator(seed, stream=STREAM, where=where)


def dropout(
    rng: np.random.Generator | None,
    rate: float,
    array: Array,
    shape: tuple[int, ...] | None = None,
) -> Array | None:
    """Draw a mask for an array, or of another shape; return None if no mask is needed.

    The mask is 0 with probability `rate`, else 1 / (1 - rate).
    """
    if rng is None or not rate:
        return None
    return bernoulli(rng, rate, shape or tuple(array.shape), array, dropout=True)
