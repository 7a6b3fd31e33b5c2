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
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.layer]
    layer = kind(case.D, case.H, dtype=dtype, **case.options)
    x, dy = (torch.tensor(a, dtype=dtype) for a in case.arrays())
    x.requires_grad_(case.train)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    rnn = torch.nn.utils.rnn

    def forward() -> Any:
        if lengths is None:
            return layer(x)[0]
        packed, _ = layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
        return rnn.pad_packed_sequence(packed, total_length=case.T)[0]

    def run() -> None:
        if case.train:
            layer.zero_grad()
            x.grad = None
            forward().backward(dy)
        else:
            with torch.inference_mode():
                forward()

    return run


def jax_call(case: Case) -> Call:
    """A compiled `jax.lax.scan` over the pointwise maths of xlstm's own cell, gradients by JAX."""
    jax = module("jax")
    if case.ragged or case.num_layers > 1:
        raise MissingError("written for one layer of full sequences")
    jnp = jax.numpy
    jax.config.update("jax_enable_x64", case.dtype == "float64")
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

    if case.train:
        work = jax.jit(jax.grad(lambda p, x: (forward(p, x) * dy).sum(), argnums=(0, 1)))
    else:
        work = jax.jit(forward)
    return lambda: jax.block_until_ready(work(params, x))


def keras_call(case: Case) -> Call:
    """A Keras layer, compiled by JAX."""
    jax = module("jax")
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = module("keras")
    if keras.backend.backend() != "jax":
        raise MissingError(
            f"it runs on {keras.backend.backend()} here, KERAS_BACKEND=jax is needed"
        )
    if case.ragged or case.num_layers > 1:
        raise MissingError("written for one layer of full sequences")
    jnp = jax.numpy
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    kind = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[
        case.layer
    ]
    layer = kind(case.H, return_sequences=True, dtype=case.dtype)
    x, dy = (jnp.asarray(a.swapaxes(0, 1)) for a in case.arrays())
    layer.build(x.shape)
    weights, others = (
        [v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)
    )

    def forward(weights: list[Any], x: Any) -> Any:
        return layer.stateless_call(weights, others, x)[0]

    if case.train:
        work = jax.jit(jax.grad(lambda w, x: (forward(w, x) * dy).sum(), argnums=(0, 1)))
    else:
        work = jax.jit(forward)
    return lambda: jax.block_until_ready(work(weights, x))


def onnxruntime_call(case: Case) -> Call:
    """The layer exported and run by onnxruntime, which does not train."""
    onnxruntime = module("onnxruntime")
    module("onnx")
    if case.train or case.ragged:
        raise MissingError("written for inference of full sequences")
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
