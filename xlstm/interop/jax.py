"""Layers and models as functions of JAX: their passes run on the host, in callbacks of compiled
programs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array
from xlstm.interop.bridge import Bridge
from xlstm.layers.module import masks
from xlstm.layers.sequence import SequenceLayer

__all__ = ["layer"]

WHERE = "interop.jax.layer"


def layer(layer: Any) -> Callable[..., tuple[Any, Any]]:
    """Return a layer or a model as a pure function of JAX, `(params, x, state) -> (y, state)`.

    The function runs our forward and backward passes on NumPy views of JAX's buffers, in
    `jax.pure_callback`, and has their gradients by `jax.custom_vjp`. It works under `jit`, `grad`,
    `value_and_grad`, `checkpoint`, `scan`, and `vmap` over x and the state. Arrays on a GPU are
    copied to the host and back.

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
    NotImplementedError
        When called: a second derivative is asked for.

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
    run = _differentiable(bridge)

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
        ordered = [params[name] for name in bridge.names]
        y, *end = run(Call(ordered, x, bridge.flat(state), lengths, seed))
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
    """The arguments of a pass, or their gradients."""

    params: Any
    x: Any
    state: Any
    lengths: Any = None
    seed: Any = None


def _differentiable(bridge: Bridge) -> Any:
    """Return a function of a `Call` that returns y and the arrays of the final state, with our
    gradients.
    """
    import jax

    def passed(call: Call, keep: bool) -> tuple[list[Array], Any]:
        params, x, state, lengths, seed = call
        options = {"train": seed is not None, "lengths": lengths, "keep": keep}
        number = None
        if seed is not None:
            number = int(seed) if seed.ndim == 0 else int.from_bytes(seed.tobytes())
        return bridge.forward(params, x, state, seed=number, **options)

    def forward(call: Call) -> list[Array]:
        return passed(call, False)[0]

    # by a handle: what the last forward pass saved, until a backward pass takes it
    saved_pass: dict[bytes, Any] = {}

    def forward_saved(call: Call) -> list[Array]:
        # copies, since buffers end with the call
        results, saved = passed(jax.tree.map(np.array, call), True)
        handle = np.frombuffer(os.urandom(16), np.uint32)
        saved_pass.clear()
        saved_pass[handle.tobytes()] = saved
        return [*results, handle]

    def backward(call: Call, handle: Any, dy: Any, dstate: Any) -> Any:
        saved = saved_pass.pop(handle.tobytes(), None)
        if saved is None:
            _, saved = passed(call, True)
        grads, dx, start = bridge.backward(call.params, saved, dy, dstate)
        start = [None if a is None else d for d, a in zip(start, call.state, strict=True)]
        return Call(grads, dx, start)

    def outputs(call: Call) -> list[Any]:
        dtype = call.params[0].dtype
        return [jax.ShapeDtypeStruct(shape, dtype) for shape in bridge.shapes(call.x)]

    def outputs_saved(call: Call) -> list[Any]:
        return [*outputs(call), jax.ShapeDtypeStruct((4,), np.uint32)]

    def gradients(call: Call, *_: Any) -> Any:
        is_real = jax.numpy.issubdtype(call.x.dtype, jax.numpy.floating)  # and no tokens
        derived = Call(call.params, call.x if is_real else None, call.state)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), derived)

    def second(*_: Any) -> None:
        raise NotImplementedError(
            f"{bridge.name}: a second derivative is asked for, expected first ones only"
        )

    run = jax.custom_vjp(_on_host(bridge.name, forward, outputs))
    run_saved = jax.custom_jvp(_on_host(bridge.name, forward_saved, outputs_saved))
    run_bwd = jax.custom_jvp(_on_host(bridge.name, backward, gradients))
    run_saved.defjvp(second)
    run_bwd.defjvp(second)

    def begin(call: Call) -> tuple[list[Any], Any]:
        *results, handle = run_saved(call)
        return results, (call, handle)

    def end(residuals: Any, upstream: list[Any]) -> tuple[Call]:
        return (run_bwd(*residuals, upstream[0], upstream[1:]),)

    run.defvjp(begin, end)
    return run


def _on_host(name: str, function: Callable[..., Any], shapes: Callable[..., Any]) -> Any:
    """Return a function of JAX that calls one on NumPy arrays, of whose results `shapes` gives
    shapes and dtypes.
    """
    import jax

    def host(*arguments: Any) -> Any:
        return function(*jax.tree.map(np.asarray, arguments))

    def call(*arguments: Any) -> Any:
        return jax.pure_callback(host, shapes(*arguments), *arguments, vmap_method="sequential")

    def batched(size: int, mapped: Any, *arguments: Any) -> Any:
        if any(jax.tree.leaves(mapped[0].params)):
            raise ValueError(f"{name}: vmap is over parameters, expected in_axes=None for them")
        results = jax.vmap(
            call, in_axes=jax.tree.map(lambda is_mapped: 0 if is_mapped else None, mapped)
        )(*arguments)
        return results, jax.tree.map(lambda _: True, results)

    with_vmap = jax.custom_batching.custom_vmap(call)
    with_vmap.def_vmap(batched)
    return with_vmap
