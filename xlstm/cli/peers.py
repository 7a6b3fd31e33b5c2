"""Layers of `torch.nn`, as `xlstm bench` times them beside those of this library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xlstm.arrays import probe
from xlstm.arrays.backend import Backend
from xlstm.arrays.random import generator

TORCH = "torch.nn"
LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


def call(case: Any, be: Backend) -> Callable[[], None]:
    """Return the work of a case in `torch.nn`, on a backend of PyTorch tensors: gradients are those that xlstm gives.

    Raises
    ------
    TypeError
        `torch.nn` does not have the layer.
    """
    if case.layer not in LAYERS:
        raise TypeError(f"{TORCH}: has no {case.layer}")
    torch = probe.torch()
    T, B, D, H = case.size
    rng = generator(0)
    x, dy = (be.asarray(rng.standard_normal((T, B, n))) for n in (D, H))
    layer = getattr(torch.nn, LAYERS[case.layer])(D, H).to(x)
    x.requires_grad_(case.train)

    def work() -> None:
        with torch.set_grad_enabled(case.train):
            y, _ = layer(x)
        if case.train:
            layer.zero_grad(set_to_none=True)
            x.grad = None
            y.backward(dy)
        be.synchronize()

    return work
