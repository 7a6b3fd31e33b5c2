"""The same work by other libraries, each optional: a builder gives a call, or says why there is
none.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import Case
from xlstm.arrays import cores
from xlstm.interop.onnx import to_onnx

Call = Callable[[], object]


class MissingError(Exception):
    """Why a peer is not there."""


def module(name: str) -> Any:
    """An optional library."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"{name} is not installed ({error})") from None


def torch_call(case: Case) -> Call:
    """`torch.nn`."""
    torch = module("torch")
    torch.set_num_threads(cores.threads())
    dtype = getattr(torch, case.dtype)
    kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
    if case.layer not in kinds:
        raise MissingError(f"torch.nn has no {case.layer}")
    kind = kinds[case.layer]
    layer = kind(case.D, case.H, dtype=dtype, **case.options)
    x, dy = (torch.tensor(a, dtype=dtype) for a in case.arrays())
    x.requires_grad_(case.train and not case.second)
    weights = list(layer.parameters())
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    rnn = torch.nn.utils.rnn
    stays = None if case.resets is None else torch.tensor(~case.resets[..., None], dtype=dtype)

    def with_resets() -> Any:
        state = None
        outputs = []
        for inputs, factor in zip(x.split(1), stays, strict=True):
            if state is not None:
                state = factor * state if case.layer == "gru" else tuple(factor * s for s in state)
            y, state = layer(inputs, state)
            outputs.append(y)
        return torch.cat(outputs)

    def forward() -> Any:
        if stays is not None:
            return with_resets()
        if lengths is None:
            return layer(x)[0]
        packed, _ = layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
        return rnn.pad_packed_sequence(packed, total_length=case.T)[0]

    def run() -> None:
        if case.second:
            gradients = torch.autograd.grad(forward(), weights, dy, create_graph=True)
            torch.autograd.grad(gradients, weights, weights)
        elif case.train:
            layer.zero_grad()
            x.grad = None
            forward().backward(dy)
        else:
            with torch.inference_mode():
                forward()

    return run


def _jax(case: Case) -> Any:
    """JAX, for numbers of the dtype of a case."""
    jax = module("jax")
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    return jax


def jax_call(case: Case) -> Call:
    """A compiled `jax.lax.scan` over the pointwise maths of xlstm's own cell, gradients by JAX."""
    jax = _jax(case)
    jnp = jax.numpy
    layer = case.layer_of()
    cell = layer.cells[""]
    params = {
        name.removeprefix("0."): jnp.asarray(a)
        for name, a in layer.init(0, "numpy", case.dtype).items()
    }
    x, dy = (jnp.asarray(a) for a in case.arrays())

    def forward(params: dict[str, Any], x: Any) -> Any:
        H = case.H
        Wx, Wh, b = (
            params[name].reshape(-1, H, *params[name].shape[1:]) for name in ("Wx", "Wh", "b")
        )
        inputs = jnp.einsum("tbd,ghd->tgbh", x, Wx) + b[:, None]

        def step(state: tuple[Any, ...], zx: Any) -> tuple[tuple[Any, ...], Any]:
            zh = jnp.einsum("bk,ghk->gbh", state[0], Wh)
            if "bh" in params:
                zh = zh + params["bh"].reshape(-1, 1, H)
            *new, _ = cell.gates(jnp, zx, zh, *state)
            return tuple(new), new[0]

        start = tuple(jnp.zeros((case.B, H), dtype=case.dtype) for _ in layer.STATES)
        return jax.lax.scan(step, start, inputs)[1]

    return _compiled(jax, case, forward, params, x, dy)


def _compiled(
    jax: Any, case: Case, forward: Callable[[Any, Any], Any], weights: Any, x: Any, dy: Any
) -> Call:
    """Return a call of a forward pass, with its gradients in a case that trains."""
    work = forward
    if case.train:
        work = jax.grad(lambda w, x: (forward(w, x) * dy).sum(), argnums=(0, 1))
    compiled = jax.jit(work)
    return lambda: jax.block_until_ready(compiled(weights, x))


def keras_call(case: Case) -> Call:
    """A Keras layer, compiled by JAX."""
    jax = _jax(case)
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = module("keras")
    if keras.backend.backend() != "jax":
        raise MissingError(
            f"it runs on {keras.backend.backend()} here, KERAS_BACKEND=jax is needed"
        )
    kinds = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}
    layer = kinds[case.layer](case.H, return_sequences=True, dtype=case.dtype)
    x, dy = (jax.numpy.asarray(a.swapaxes(0, 1)) for a in case.arrays())
    layer.build(x.shape)
    weights, others = (
        [v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)
    )

    def forward(weights: list[Any], x: Any) -> Any:
        return layer.stateless_call(weights, others, x)[0]

    return _compiled(jax, case, forward, weights, x, dy)


def onnxruntime_call(case: Case) -> Call:
    """The layer exported and run by onnxruntime, which does not train."""
    onnxruntime = module("onnxruntime")
    module("onnx")
    layer = case.layer_of()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        to_onnx(layer, layer.init(0, "numpy", case.dtype), path, state=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores.threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x, _ = case.arrays()
    return lambda: session.run(None, {"x": x})


PEERS: dict[str, Callable[[Case], Call]] = {
    "torch": torch_call,
    "JAX": jax_call,
    "Keras": keras_call,
    "onnxruntime": onnxruntime_call,
}
CPU = ("torch", "JAX", "Keras")
