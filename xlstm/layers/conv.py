"""Causal depthwise convolution along time."""

from __future__ import annotations

import functools
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Array, Namespace, Params, device_of
from xlstm.layers.module import SequenceLayer, Values, total
from xlstm.layers.state import Leaf, Span, State


@dataclass(frozen=True)
class CausalConv(SequenceLayer):
    """y_t = b + sum_j W_j x_(t - k + 1 + j), each of D channels by itself.

    Parameters
    ----------
    size : int
        Number D of channels.
    kernel_size : int
        Number k of steps that a y sees, its own the last. Parameters are `W` (D, k) and `b` (D,). The state is
        (x,), the k - 1 steps before, (k - 1, B, D).
    bias : bool
        Whether there is a `b`.
    """

    size: int
    kernel_size: int = 4
    _: KW_ONLY
    bias: bool = True

    def __post_init__(self) -> None:
        checks.fields(self, size=checks.size, kernel_size=checks.size, bias=checks.flag)

    @property
    def input_size(self) -> int:
        """Width of x, and of y."""
        return self.size

    @property
    def output_size(self) -> int:
        """Width of y."""
        return self.size

    @property
    def _own(self) -> dict[str, checks.Dims]:
        D = {"D": self.size}
        return {"W": {**D, "k": self.kernel_size}, **({"b": D} if self.bias else {})}

    def _draw_own(self, rng: np.random.Generator) -> Values:
        """U(-1/sqrt(k), 1/sqrt(k)), as `torch.nn.Conv1d`."""
        bound = self.kernel_size**-0.5
        W, b = rng.uniform(-bound, bound, (self.size, self.kernel_size)), rng.uniform(-bound, bound, self.size)
        return {"W": W, "b": b} if self.bias else {"W": W}

    @functools.cached_property
    def states(self) -> State:
        """The steps before."""
        return (Leaf("x", {"k - 1": self.kernel_size - 1}, {"D": self.size}),)

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        """Return y (T, B, D), the last k - 1 steps, and all steps, for x (T, B, D)."""
        xp = span.xp
        xs = xp.concat((state[0], x))  # (k - 1 + T, B, D)
        y = p["W"][:, 0] * xs[: span.T, ...]
        for j in range(1, self.kernel_size):
            y += p["W"][:, j] * xs[j : j + span.T, ...]
        if self.bias:
            y += p["b"]
        return y, (self._last(xp, xs, span),), xs

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        """Return gradients, dx (T, B, D) and the gradient of the steps before, for dy (T, B, D)."""
        xp = span.xp
        before = self.kernel_size - 1
        dxs = self._last_bwd(xp, kept, None if dstate is None else dstate[0], span)
        dW = []
        for j in range(self.kernel_size):
            dW.append(total(xp, dy * kept[j : j + span.T, ...]))
            dxs[j : j + span.T, ...] += p["W"][:, j] * dy
        grads = {"W": xp.stack(dW, axis=1)}
        if self.bias:
            grads["b"] = total(xp, dy)
        return grads, dxs[before:, ...], (dxs[:before, ...],)

    def _last(self, xp: Namespace, xs: Array, span: Span) -> Array:
        """Return the last k - 1 of xs (k - 1 + T, B, D) at the end of each sequence."""
        before = self.kernel_size - 1
        if span.full:
            return xp.asarray(xs[span.T :, ...], copy=True)
        at = (span.lengths + np.arange(before)[:, None]) * span.B + np.arange(span.B)  # (k - 1, B)
        flat = xp.reshape(xs, (xs.shape[0] * span.B, self.size))
        rows = xp.take(flat, xp.asarray(at.ravel(), device=device_of(xs)), axis=0)
        return xp.reshape(rows, (before, span.B, self.size))

    def _last_bwd(self, xp: Namespace, xs: Array, d: Array | None, span: Span) -> Array:
        """Return the gradient of xs from that of the result of `_last`."""
        dxs = xp.zeros_like(xs)
        if d is None:
            return dxs
        if span.full:
            dxs[span.T :, ...] = d
            return dxs
        times = np.arange(xs.shape[0])[:, None]
        for j in range(self.kernel_size - 1):
            hit = xp.asarray(times == span.lengths + j, device=device_of(xs))  # (k - 1 + T, B)
            dxs += xp.astype(hit, xs.dtype)[..., None] * d[j, ...]
        return dxs
