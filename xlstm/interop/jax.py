"""Layers and models as JAX functions that run on the host, in callbacks of compiled programs."""

from __future__ import annotations

import functools
import itertools
import operator
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.tangents import jvp
from xlstm.interop.bridge import Bridge
from xlstm.layers.module import masks
from xlstm.layers.sequence import SequenceLayer

__all__ = ["layer"]

WHERE = "interop.jax.layer"


def layer(layer: Any) -> Callable[..., tuple[Any, Any]]:
    """Return a layer or a model as a pure JAX function, `(params, x, state) -> (y, state)`.

    The function runs xlstm's forward and backward passes on NumPy views of JAX's buffers, in
    `jax.pure_callback`. For JAX it is an operation with derivatives of any order. It works under
    `jit`, `grad`, `vjp`, `jvp`, `linearize`, `hessian`, `jacfwd`, `jacrev`, `checkpoint`, `scan`,
    and `vmap` over x and the state. Arrays on a GPU are copied to the host and back.

    A gradient is one forward and one backward pass. Tangents and second derivatives come from
    `xlstm.jvp`, which runs the passes step by step on dual numbers.

    Between the passes, the function holds the values that its last forward pass saved, with copies
    of x and the parameters. The backward pass finds them by a handle, an array. If they are gone,
    because JAX reordered, repeated or dropped calls, the backward pass runs the forward pass again.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, sLSTM, mLSTM, xLSTMStack, SequenceModel, or another with time

    Returns
    -------
    function
        `function(params, x, state=None, *, train=True, lengths=None, resets=None, cu_seqlens=None,
        seed=None)`, with arguments as for the layer's `forward`; all arrays may be traced. If the
        layer draws masks, `train=True` needs a `seed`: a whole number, also as an array, for the
        same masks as in `forward`, or a key of `jax.random`. Under `vmap`, the elements of a batch
        get the same masks unless you also map seeds.

    Raises
    ------
    TypeError
        `layer` is not a layer with time. When called: arrays differ in dtype, or are neither
        float32 nor float64.
    ValueError
        When called: an array is missing or misshapen, a seed is missing, or `vmap` is over
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
        resets: Any = None,
        cu_seqlens: Any = None,
        seed: Any = None,
    ) -> tuple[Any, Any]:
        """Run the layer over a batch of sequences; return y and the final state."""
        params = {key: jnp.asarray(p) for key, p in checks.mapping(bridge.name, params).items()}
        x, state = jax.tree.map(jnp.asarray, (x, state))
        options = {"lengths": lengths, "resets": resets, "cu_seqlens": cu_seqlens}
        options = {name: value for name, value in options.items() if value is not None}
        _check(layer, options, params, x, state)
        options = {name: jnp.asarray(value) for name, value in options.items()}
        drawn = checks.flag(bridge.name, "train", train) and layer.random
        seed = _words(bridge.name, seed) if drawn else None
        arrays = [*(params[name] for name in bridge.names), x, *bridge.flat(state)]
        y, *end, _ = run(passes, Call(arrays, options, seed, [None]))
        return y, bridge.state(end)

    return call


def _check(layer: SequenceLayer, options: Any, *arrays: Any) -> None:
    """Raise the errors of `forward` about shapes and dtypes before JAX compiles a program that
    would fail.
    """
    import jax

    def like(array: Any) -> np.ndarray[Any, Any]:
        return np.broadcast_to(np.zeros((), array.dtype), array.shape)

    params, x, state = jax.tree.map(like, arrays)
    seen = {
        name: like(value) if isinstance(value, jax.core.Tracer) else value
        for name, value in options.items()
        # zeros in place of values cannot serve as lengths
        if name != "cu_seqlens" or not isinstance(value, jax.core.Tracer)
    }
    layer.begin(params, x, state, **seen)


def _words(name: str, seed: Any) -> Any:
    """Return the masks' seed as an array: a whole number, or the words of a key."""
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
    """The arguments of a layer's pass, or of a derivative of it.

    A layer is a function F of `arrays`. With a cotangent c of the results and directions u of the
    arrays, all its derivatives are parts of one multilinear form: `<c, D^k F[u1, ..., uk]>`. One
    slot of the form is empty, and the call returns the coefficient of that slot:

    - `[None]` is the forward pass,
    - `[None, u]` is a Jacobian-vector product,
    - `[c, None]` is the backward pass,
    - `[c, None, u]` is a Hessian-vector product.

    The transpose with respect to a slot empties that slot and fills the empty one.
    """

    arrays: Any  # parameters, x, and the arrays of the state or None
    options: Any  # lengths, resets or cu_seqlens by name
    seed: Any
    slots: Any  # the cotangent, then directions: lists of arrays; None is zero
    # of the forward pass's saved values; for that pass itself () to save them, else None
    handle: Any = None


class _Passes:
    """The passes of a layer on NumPy arrays, and their derivatives."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        # saved values of the last forward pass by handle, until a backward pass takes them
        self._saved: dict[bytes, Any] = {}

    def run(self, call: Call) -> Any:
        """Return the results; the forward pass's end with a handle of its saved values."""
        import jax

        if call.slots != [None]:
            directions = [direction for direction in call.slots[1:] if direction is not None]
            return self._derivative(call, call.arrays, directions)
        keep = call.handle is not None
        if keep:
            # copies, since buffers are freed after the call
            call = jax.tree.map(np.array, call)
        results, saved = self._forward(call, call.arrays, keep)
        handle = np.frombuffer(os.urandom(16), np.uint32)
        if keep:
            self._saved = {handle.tobytes(): saved}
        return [*results, handle]

    def _derivative(self, call: Call, arrays: Any, directions: Any) -> Any:
        if directions:
            first, *others = directions
            return jvp(lambda a: self._derivative(call, a, others), (arrays,), (first,))[1]
        saved = None
        if arrays is call.arrays:  # not dual numbers
            saved = self._saved.pop(call.handle.tobytes(), None)
        cotangent = call.slots[0]
        if saved is None:
            outputs, saved = self._forward(call, arrays, cotangent is not None)
        if cotangent is None:
            return outputs
        params, _, state = self.parts(arrays)
        grads, dx, start = self.bridge.backward(params, saved, cotangent[0], cotangent[1:])
        start = [None if a is None else d for d, a in zip(start, state, strict=True)]
        return [*grads, dx, *start]

    def _forward(self, call: Call, arrays: Any, keep: bool) -> Any:
        seed = call.seed
        train = seed is not None
        if train:
            seed = int(seed) if seed.ndim == 0 else int.from_bytes(seed.tobytes())
        return self.bridge.forward(
            *self.parts(arrays), train=train, seed=seed, keep=keep, **call.options
        )

    def parts(self, arrays: Any) -> Any:
        """Return the parameters, x, and the arrays of the state."""
        count = len(self.bridge.names)
        return arrays[:count], arrays[count], arrays[count + 1 :]


class _Host(NamedTuple):
    """A callback that makes a call of arrays and runs it; equal ones share a JAX program."""

    passes: _Passes
    tree: Any

    def __call__(self, *leaves: Any) -> Any:
        """Return the results."""
        call = self.tree.unflatten(map(np.asarray, leaves))
        return [a for a in self.passes.run(call) if a is not None]


@functools.cache
def _primitive() -> Any:
    """Return the JAX function `(passes, call)` that runs a call on the host.

    Its derivatives and transposes are such calls, too.
    """
    import jax
    from jax.core import ShapedArray
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    primitive = Primitive("xlstm")
    primitive.multiple_results = True

    def bind(passes: _Passes, call: Call) -> Any:
        leaves, tree = jax.tree.flatten(call)
        return primitive.bind(*leaves, host=_Host(passes, tree))

    def results_of(passes: _Passes, call: Call) -> Any:
        """Return stand-ins with the shapes and dtypes of the results, and None for no gradient."""
        params, x, _ = passes.parts(call.arrays)
        dtype = params[0].dtype
        if call.slots[0] is not None:
            # tokens have another dtype
            return [a if a is not None and a.dtype == dtype else None for a in call.arrays]
        results = [ShapedArray(shape, dtype) for shape in passes.bridge.shapes(x)]
        if call.slots == [None]:
            results.append(ShapedArray((4,), np.uint32))
        return results

    def shapes(*leaves: Any, host: _Host) -> Any:
        return jax.tree.leaves(results_of(host.passes, host.tree.unflatten(leaves)))

    def on_host(*leaves: Any, host: _Host) -> Any:
        return jax.pure_callback(host, shapes(*leaves, host=host), *leaves)

    def tangents(primals: Any, tangents: Any, *, host: _Host) -> Any:
        passes, tree = host
        call = tree.unflatten(primals)
        moved = tree.unflatten([None if type(t) is ad.Zero else t for t in tangents])
        if call.slots == [None]:
            results = bind(passes, call._replace(handle=()))
            call = call._replace(handle=results[-1])
        else:
            results = bind(passes, call)
        terms = []
        for k, direction in enumerate([*moved.slots, moved.arrays]):
            if jax.tree.leaves(direction):
                slots = list(call.slots)
                slots[k : k + 1] = [direction]  # also past the end
                terms.append(bind(passes, call._replace(slots=slots)))
        sums = [functools.reduce(operator.add, column) for column in zip(*terms, strict=True)]
        no_tangent = ad.Zero(ShapedArray((4,), jax.dtypes.float0))
        return results, [*sums, no_tangent][: len(results)]

    def transposed(cotangents: Any, *leaves: Any, host: _Host) -> Any:
        passes, tree = host
        call = tree.unflatten(leaves)
        upstream = [None if type(ct) is ad.Zero else ct for ct in cotangents]
        # other leaves of the slot are zeros
        is_linear = list(map(ad.is_undefined_primal, leaves))
        linear_slots = tree.unflatten(is_linear).slots
        linear = [any(slot or ()) for slot in linear_slots].index(True)
        slots = list(call.slots)
        slots[slots.index(None)] = jax.tree.structure(results_of(passes, call)).unflatten(upstream)
        slots[linear] = None
        call = call._replace(slots=slots)
        gradients = jax.tree.structure(results_of(passes, call)).unflatten(bind(passes, call))
        rest = itertools.compress(gradients, linear_slots[linear])
        return [next(rest) if is_one else None for is_one in is_linear]

    def batched(leaves: Any, axes: Any, *, host: _Host) -> Any:
        passes, tree = host
        params, *_ = passes.parts(tree.unflatten(axes).arrays)
        if jax.tree.leaves(params):
            raise ValueError(
                f"{passes.bridge.name}: vmap is over parameters, expected in_axes=None for them"
            )
        rows = {
            k: jax.numpy.moveaxis(leaves[k], axis, 0)
            for k, axis in enumerate(axes)
            if axis is not None
        }
        results = jax.lax.map(
            lambda row: primitive.bind(*(row.get(k, a) for k, a in enumerate(leaves)), host=host),
            rows,
        )
        return results, [0] * len(results)

    primitive.def_impl(on_host)
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, mlir.lower_fun(on_host, multiple_results=True))
    ad.primitive_jvps[primitive] = tangents
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batched
    return bind
