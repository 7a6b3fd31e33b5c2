"""The matrix products of a layer forward and backward, and nothing else: what remains is the price of the rest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.cases import Case


def alone(case: Case) -> Callable[[], None]:
    """Products in the shapes that backpropagation through time needs, by NumPy and into memory that is there."""
    rng = np.random.default_rng(0)
    N, B, T = case.T * case.B, case.B, case.T
    todo: list[Callable[[], object]] = []

    def add(a: np.ndarray, b: np.ndarray, times: int = 1) -> None:
        out = np.empty((a.shape[0], b.shape[1]), dtype=case.dtype)
        todo.extend([lambda: np.matmul(a, b, out=out)] * times)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(case.dtype)

    shapes = case.layer_of().shapes
    for name, dims in shapes.items():
        if len(dims) != 2:
            continue
        R, K = dims.values()
        W, dz, rows = random(R, K), random(R, N), random(N, K)
        add(dz, rows)  # dW
        if name.endswith("Wx"):
            add(W, rows.T)
            add(dz.T, W)  # dx
        else:
            add(W, random(K, B), T)
            add(np.ascontiguousarray(W.T), random(R, B), T)

    def products() -> None:
        for product in todo:
            product()

    return products
