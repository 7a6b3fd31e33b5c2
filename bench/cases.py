"""Cases that are timed, with arrays for everybody, and xlstm's own side of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

import xlstm
from xlstm.engines.numba import jit
from xlstm.models.sequence import layer_of

LARGE = (64, 32, 1024, 1024)  # T, B, D, H


@dataclass(frozen=True)
class Case:
    """A layer, its sizes, and the work that is timed."""

    layer: str
    T: int
    B: int
    D: int
    H: int
    dtype: str = "float32"
    num_layers: int = 1
    bidirectional: bool = False
    ragged: bool = False  # sequences of T/4 to T steps
    reset: float = 0.0  # the share of steps before which the state is reset
    train: bool = True  # forward and backward, else a forward pass that keeps nothing
    second: bool = (
        False  # a product with the Hessian with respect to the parameters, else the gradient
    )

    def __str__(self) -> str:
        return f"{self.T},{self.B},{self.D},{self.H} {self.dtype}"

    @property
    def lengths(self) -> np.ndarray | None:
        """Whole numbers from T/4 to T, or None."""
        if not self.ragged:
            return None
        return np.random.default_rng(1).integers(self.T // 4, self.T + 1, self.B)

    @property
    def resets(self) -> np.ndarray | None:
        """Booleans (T, B), or None."""
        if not self.reset:
            return None
        return np.random.default_rng(2).random((self.T, self.B)) < self.reset

    @property
    def options(self) -> dict[str, object]:
        """Options of the layer."""
        return {"num_layers": self.num_layers, "bidirectional": self.bidirectional}

    def layer_of(self) -> xlstm.LSTM | xlstm.GRU | xlstm.RNN:
        """xlstm's layer."""
        return layer_of("bench", self.layer, self.D, self.H, **self.options)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """x (T, B, D) and the gradient of y."""
        rng = np.random.default_rng(0)
        widths = self.D, self.H * (1 + self.bidirectional)
        x, dy = (rng.standard_normal((self.T, self.B, n)).astype(self.dtype) for n in widths)
        return x, dy


def ours(case: Case) -> Callable[[], None]:
    """xlstm's call."""
    layer = case.layer_of()
    params = layer.init(0, "numpy", case.dtype)
    x, dy = case.arrays()
    steps = {"lengths": case.lengths, "resets": case.resets}

    def run(params: Any = params) -> Any:
        _, _, saved = layer.forward(params, x, **steps, train=case.train)
        if case.train:
            return None, layer.backward(params, saved, dy)[0]

    return (lambda: xlstm.hvp(run, params, params)) if case.second else run


def backward(case: Case, alone: bool = False, **options: bool) -> Callable[[], None]:
    """xlstm's backward pass over the whole batch, or one over each sequence."""
    layer = case.layer_of()
    params = layer.init(0, "numpy", case.dtype)
    passes = []
    for x, dy in zip(*(np.split(a, case.B if alone else 1, 1) for a in case.arrays()), strict=True):
        *_, saved = layer.forward(params, np.ascontiguousarray(x))
        passes.append((saved, np.ascontiguousarray(dy)))

    def run() -> None:
        for saved, dy in passes:
            layer.backward(params, saved, dy, **options)

    return run


def without_compiling(call: Callable[[], None]) -> Callable[[], None]:
    """The same with NumPy alone."""
    return mock.patch.dict(os.environ, {jit.VARIABLE: "0"})(call)
