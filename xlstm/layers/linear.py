"""y = x W^T + b."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from xlstm import checks, initializers
from xlstm.backend import Array, Backend, Namespace, Params, Seed, backend_of, generator, namespace


@dataclass(frozen=True)
class Linear:
    """An affine map of the last axis, y = x W^T + b.

    Parameters
    ----------
    input_size, output_size : int
        Widths I and O. Parameters are `W` (O, I) and `b` (O,).
    """

    input_size: int
    output_size: int

    def __post_init__(self) -> None:
        checks.positive("Linear", input_size=self.input_size, output_size=self.output_size)

    @functools.cached_property
    def shapes(self) -> dict[str, checks.Dims]:
        """Names and shapes of the parameters."""
        return {"W": {"O": self.output_size, "I": self.input_size}, "b": {"O": self.output_size}}

    def init(self, seed: Seed = 0, backend: str | Backend | None = None, dtype: str | None = None) -> Params:
        """Parameters drawn from U(-1/sqrt(I), 1/sqrt(I)), as `torch.nn.Linear`; see `LSTM.init`."""
        chosen = backend_of(backend, dtype)
        W, b = initializers.linear(generator(seed), self.output_size, self.input_size)
        return {"W": chosen.asarray(W), "b": chosen.asarray(b)}

    def forward(self, params: Params, x: Array) -> tuple[Array, Array]:
        """x (..., I) -> y (..., O) and what `backward` needs.

        Raises
        ------
        ValueError, TypeError
            A parameter is missing or misshapen, or arrays do not belong together.
        """
        xp = self._check(params, x=x)
        if x.ndim == 0 or x.shape[-1] != self.input_size:
            raise ValueError(f"Linear: x has shape {tuple(x.shape)}, expected (..., I) = (..., {self.input_size})")
        y = xp.reshape(x, (-1, self.input_size)) @ params["W"].T
        y += params["b"]
        return xp.reshape(y, (*x.shape[:-1], self.output_size)), x

    def backward(self, params: Params, saved: Array, dy: Array) -> tuple[Params, Array]:
        """dy (..., O) -> gradients of the parameters and dx (..., I)."""
        xp = self._check(params, dy=dy)
        expected = (*saved.shape[:-1], self.output_size)
        if tuple(dy.shape) != expected:
            raise ValueError(f"Linear: dy has shape {tuple(dy.shape)}, expected that of y, {expected}")
        rows = xp.reshape(dy, (-1, self.output_size))
        grads = {
            "W": rows.T @ xp.reshape(saved, (-1, self.input_size)),
            "b": xp.sum(rows, axis=0),
        }
        return grads, xp.reshape(rows @ params["W"], saved.shape)

    def _check(self, params: Params, **arrays: Array) -> Namespace:
        checks.params("Linear", params, self.shapes)
        return namespace("Linear", {**arrays, **params})
