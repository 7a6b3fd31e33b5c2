"""Layers and models as functions of JAX: their passes run on the host, in callbacks of compiled
programs.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array
from xlstm.arrays.tangents import jvp
from xlstm.interop.bridge import Bridge
from xlstm.layers.module import masks
from xlstm.layers.sequence import SequenceLayer

__all__ = ["layer"]

WHERE = "interop.jax.layer"


def layer(layer: Any) -> Callable[..., tuple[Any, Any]]:
    """Return a layer or a model as a pure function of JAX, `(params, x, state) -> (y, state)`.

    The function runs our forward and backward passes on NumPy views of JAX's buffers, in
    `jax.pure_callback`. It is an operation of JAX, with derivatives of any order: it works under
    `jit`, `grad`, `vjp`, `jvp`, `linearize`, `hessian`, `jacfwd`, `jacrev`, `checkpoint`, `scan`,
    and `vmap` over x and the state. Arrays on a GPU are copied to the host and back.

    A gradient is one forward and one backward pass. Tangents and second derivatives are those of
    `xlstm.jvp`, which runs the passes step by step on dual numbers; `grad(grad(f))` runs them so,
    too.

    Between the passes stays what the last forward pass of the function kept, with copies of x and
    the parameters; the backward pass takes it by a handle, an array. Where it has gone, since JAX
    ordered, repeated or dropped calls, the backward pass runs the forward pass again.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, sLSTM, mLSTM, xLSTMStack, SequenceModel, or another with time

    Returns
    -------
    function
        `function(params, x, state=None, *, train=True, lengths=None, seed=None)`, with arguments as
        of the layer's `forward`. In a layer that draws masks, `train=True` needs a `seed`: a whole
        number, also as an array, which gives the masks of `forward`, or a key of `jax.random`.
        Under `vmap` the elements of a batch get the same masks unless seeds are mapped too.

    Raises
    ------
    TypeError
        `layer` is something else; when called: an array is of another dtype than the others, or
        neither float32 nor float64.
    ValueError
        When called: an array is missing or misshapen, there is no seed, or `vmap` is over
        parameters.

    Examples
    --------
    >>> import jax, xlstm
    >>> import xlstm.interop.jax
    >>> lstm = xlstm.LSTM(3, 8)
    >>> run = jax.jit(xlstm.interop.jax.layer(lstm))
    >>> y, (h, c) = run(lstm.init(backend="numpy"), jax.numpy.ones((20, 5, 3)))
    >>> y.shape
    (20, 5, 8)
    """
    import jax
    import jax.numpy as jnp

    bridge = Bridge(WHERE, layer, SequenceLayer)
    passes = _Passes(bridge)
    run = _primitive()

    def call(
        params: Any,
        x: Any,
        state: Any = None,
        *,
        train: bool = True,
        lengths: Any = None,
        seed: Any = None,
    ) -> tuple[Any, Any]:
        """Run over a batch of sequences: return y and the final state."""
        params = {key: jnp.asarray(p) for key, p in checks.mapping(bridge.name, params).items()}
        x, state = jax.tree.map(jnp.asarray, (x, state))
        _check(layer, lengths, params, x, state)
        lengths = None if lengths is None else jnp.asarray(lengths)
        drawn = checks.flag(bridge.name, "train", train) and layer.random
        seed = _words(bridge.name, seed) if drawn else None
        arrays = [*(params[name] for name in bridge.names), x, *bridge.flat(state)]
        y, *end, _ = run(passes, Call(arrays, lengths, seed, [None]))
        return y, bridge.state(end)

    return call


def _check(layer: SequenceLayer, lengths: Any, *arrays: Any) -> None:
    """Raise the errors of `forward` by shapes and dtypes, before a program is made in which it
    would fail.
    """
    import jax

    def like(array: Any) -> np.ndarray[Any, Any]:
        return np.broadcast_to(np.zeros((), array.dtype), array.shape)

    params, x, state = jax.tree.map(like, arrays)
    layer.begin(
        params, x, state, like(lengths) if isinstance(lengths, jax.core.Tracer) else lengths
    )


def _words(name: str, seed: Any) -> Any:
    """Return the seed of masks as an array: a whole number, or the words of a key."""
    import jax

    if seed is None:
        masks(name, seed)  # raises
    words = jax.numpy.asarray(seed)
    if jax.numpy.issubdtype(words.dtype, jax.dtypes.prng_key):
        words = jax.random.key_data(words)
    if not jax.numpy.issubdtype(words.dtype, jax.numpy.integer):
        raise TypeError(
            f"{name}: seed has dtype {words.dtype}, expected a whole number or a key of jax.random"
        )
    return words


class Call(NamedTuple):
    """The arguments of a pass of a layer, or of a derivative of it.

    A layer is a function F of `arrays`. All its derivatives are parts of one multilinear form,
    `<c, D^k F[u1, ..., uk]>`, in a cotangent c of the results and directions u of the arrays. One
    slot of the form is empty, and the result is what stands there: `[None]` is the forward pass,
    `[None, u]` a Jacobian-vector product, `[c, None]` the backward pass, and `[c, None, u]` a
    Hessian-vector product. The transpose with respect to a slot empties it and fills the other.
    """

    arrays: Any  # parameters, x, and the arrays of the state or None
    lengths: Any
    seed: Any
    slots: Any  # the cotangent, then directions: lists of arrays, in which None is zero
    handle: Any = None  # of what the forward pass saved


class _Passes:
    """The passes of a layer on NumPy arrays, and their derivatives."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        # by a handle: what the last forward pass saved, until a backward pass takes it
        self._saved: dict[bytes, Any] = {}

    def results(self, call: Call) -> list[Any]:
        """Return the shapes and dtypes of the results, with None where there is no gradient."""
        from jax.core import ShapedArray

        params, x, _ = self._parts(call.arrays)
        dtype = params[0].dtype
        if call.slots[0] is None:
            shapes = [ShapedArray(shape, dtype) for shape in self.bridge.shapes(x)]
            return [*shapes, ShapedArray((4,), np.uint32)] if _is_forward(call) else shapes
        # tokens have another dtype
        return [
            None if a is None or a.dtype != dtype else ShapedArray(a.shape, dtype)
            for a in call.arrays
        ]

    def run(self, call: Call, keep: bool) -> list[Array | None]:
        """Return the results; those of the forward pass end with a handle of what it saved."""
        if _is_forward(call):
            results, saved = self._forward(call, call.arrays, keep)
            handle = np.frombuffer(os.urandom(16), np.uint32)
            if keep:
                self._saved = {handle.tobytes(): saved}
            return [*results, handle]
        function: Any = functools.partial(self._backward, call)
        if call.slots[0] is None:
            function = functools.partial(self._outputs, call)
        for direction in call.slots[1:]:
            if direction is not None:
                function = _tangent(function, direction)
        return function(call.arrays)  # type: ignore[no-any-return]

    def _outputs(self, call: Call, arrays: Any) -> list[Array]:
        return self._forward(call, arrays, False)[0]

    def _forward(self, call: Call, arrays: Any, keep: bool) -> tuple[list[Array], Any]:
        options = {"train": call.seed is not None, "lengths": call.lengths, "keep": keep}
        seed = call.seed
        if seed is not None:
            seed = int(seed) if seed.ndim == 0 else int.from_bytes(seed.tobytes())
        return self.bridge.forward(*self._parts(arrays), seed=seed, **options)

    def _backward(self, call: Call, arrays: Any) -> list[Array | None]:
        saved = None
        if arrays is call.arrays:  # and no dual numbers
            saved = self._saved.pop(call.handle.tobytes(), None)
        if saved is None:
            _, saved = self._forward(call, arrays, True)
        params, _, state = self._parts(arrays)
        dy, *dstate = call.slots[0]
        grads, dx, start = self.bridge.backward(params, saved, dy, dstate)
        start = [None if a is None else d for d, a in zip(start, state, strict=True)]
        return [*grads, dx, *start]

    def _parts(self, arrays: Any) -> tuple[Any, Any, Any]:
        count = len(self.bridge.names)
        return arrays[:count], arrays[count], arrays[count + 1 :]


def _is_forward(call: Call) -> bool:
    return len(call.slots) == 1


def _tangent(function: Callable[[Any], Any], direction: Any) -> Callable[[Any], Any]:
    return lambda arrays: jvp(function, (arrays,), (direction,))[1]


@functools.cache
def _primitive() -> Any:
    """Return the function `(passes, call)` of JAX that runs a call on the host, and whose
    derivatives and transposes are such calls.
    """
    import jax
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    primitive = Primitive("xlstm")
    primitive.multiple_results = True

    def bind(passes: _Passes, call: Call, keep: bool = False) -> Any:
        leaves, tree = jax.tree.flatten(call)
        return primitive.bind(*leaves, passes=passes, tree=tree, keep=keep)  # type: ignore[no-untyped-call]

    def shapes(*leaves: Any, passes: _Passes, tree: Any, keep: bool) -> Any:
        return jax.tree.leaves(passes.results(tree.unflatten(leaves)))

    def on_host(*leaves: Any, passes: _Passes, tree: Any, keep: bool) -> Any:
        def host(*leaves: Any) -> Any:
            # what is saved has copies, since buffers end with the call
            array = np.array if keep else np.asarray
            return jax.tree.leaves(passes.run(tree.unflatten(map(array, leaves)), keep))

        return jax.pure_callback(
            host, jax.tree.leaves(passes.results(tree.unflatten(leaves))), *leaves
        )

    def tangents(primals: Any, tangents: Any, *, passes: _Passes, tree: Any, keep: bool) -> Any:
        call = tree.unflatten(primals)
        moved = tree.unflatten([None if type(t) is ad.Zero else t for t in tangents])
        results = bind(passes, call, _is_forward(call))
        no_tangent = []
        if _is_forward(call):
            call = call._replace(handle=results[-1])
            no_tangent = [ad.Zero(jax.core.ShapedArray((4,), jax.dtypes.float0))]
        changed = [[*call.slots, moved.arrays]]
        for k, slot in enumerate(moved.slots):
            changed.append([*call.slots[:k], slot, *call.slots[k + 1 :]])
        terms = [
            bind(passes, call._replace(slots=slots))
            for slots, direction in zip(changed, [moved.arrays, *moved.slots], strict=True)
            if jax.tree.leaves(direction)
        ]
        sums = [functools.reduce(operator.add, column) for column in zip(*terms, strict=True)]
        return results, sums + no_tangent

    def transposed(cotangents: Any, *leaves: Any, passes: _Passes, tree: Any, keep: bool) -> Any:
        call = tree.unflatten(leaves)
        is_linear = [any(map(ad.is_undefined_primal, slot or ())) for slot in call.slots]
        linear = is_linear.index(True)
        upstream = [None if type(ct) is ad.Zero else ct for ct in cotangents]
        slots = list(call.slots)
        slots[slots.index(None)] = jax.tree.structure(passes.results(call)).unflatten(upstream)
        slots[linear] = None
        call = call._replace(slots=slots)
        gradients = jax.tree.structure(passes.results(call)).unflatten(bind(passes, call))
        places = tree.unflatten(range(len(leaves))).slots[linear]
        by_place = dict(zip(places, gradients, strict=True))
        # the others, if any, are zeros
        return [by_place[k] if ad.is_undefined_primal(a) else None for k, a in enumerate(leaves)]

    def batched(leaves: Any, axes: Any, *, passes: _Passes, tree: Any, keep: bool) -> Any:
        if any(
            axis is not None for axis in tree.unflatten(axes).arrays[: len(passes.bridge.names)]
        ):
            raise ValueError(
                f"{passes.bridge.name}: vmap is over parameters, expected in_axes=None for them"
            )
        pairs = list(zip(leaves, axes, strict=True))

        def element(rows: Any) -> Any:
            rest = iter(rows)
            merged = [a if axis is None else next(rest) for a, axis in pairs]
            return bind(passes, tree.unflatten(merged), keep)

        rows = [jax.numpy.moveaxis(a, axis, 0) for a, axis in pairs if axis is not None]
        results = jax.lax.map(element, rows)
        return results, [0] * len(results)

    primitive.def_impl(on_host)
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, mlir.lower_fun(on_host, multiple_results=True))
    ad.primitive_jvps[primitive] = tangents
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batched
    return bind
