"""Causal depthwise convolution along time."""

from __future__ import annotations

import functools
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from xlstm.arrays.namespace import Array, Namespace, Params, device_of
from xlstm.arrays.scatter import add_rows
from xlstm.layers.initializers import uniform
from xlstm.layers.module import SameWidth, Weight, rows, total
from xlstm.layers.sequence import SequenceLayer
from xlstm.layers.state import Leaf, Span, State


@dataclass(frozen=True)
class CausalConv(SameWidth, SequenceLayer):
    """A convolution of each of D channels by itself: y_t = b + sum_j W_j x_(t - k + 1 + j).

    Parameters
    ----------
    size : int
        Number D of channels.
    kernel_size : int
        Number k of steps that each y sees, the last of which is its own. Parameters are `W` (D, k) and `b` (D,). The
        state is (x,), the k - 1 steps before, (k - 1, B, D).
    bias : bool
        Whether there is a `b`.
    """

    size: int
    kernel_size: int = 4
    _: KW_ONLY
    bias: bool = True

    @property
    def weights(self) -> dict[str, Weight]:
        D, draw = {"D": self.size}, uniform(self.kernel_size**-0.5)  # as `torch.nn.Conv1d`
        found: dict[str, Weight] = {"W": ({**D, "k": self.kernel_size}, draw)}
        return found | ({"b": (D, draw)} if self.bias else {})

    @functools.cached_property
    def states(self) -> State:
        """The leaf of the k - 1 steps before."""
        return (Leaf("x", {"k - 1": self.kernel_size - 1}, {"D": self.size}),)

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        xp = span.xp
        xs = xp.concat((state[0], x))  # (k - 1 + T, B, D)
        y = p["W"][:, 0] * xs[: span.T, ...]
        for j in range(1, self.kernel_size):
            y += p["W"][:, j] * xs[j : j + span.T, ...]
        if self.bias:
            y += p["b"]
        if span.full:
            return y, (xp.asarray(xs[span.T :, ...], copy=True),), xs
        last = xp.take(rows(xp, xs), self._ends(xp, span, xs), axis=0)
        return y, (xp.reshape(last, state[0].shape),), xs

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        xp = span.xp
        before = self.kernel_size - 1
        dxs = xp.zeros_like(kept)
        if dstate is not None and span.full:
            dxs[span.T :, ...] = dstate[0]
        elif dstate is not None:
            dlast = add_rows(xp, self._ends(xp, span, kept), rows(xp, dstate[0]), kept.shape[0] * span.B)
            dxs += xp.reshape(dlast, kept.shape)
        dW = []
        for j in range(self.kernel_size):
            dW.append(total(xp, dy * kept[j : j + span.T, ...]))
            dxs[j : j + span.T, ...] += p["W"][:, j] * dy
        grads = {"W": xp.stack(dW, axis=1)}
        if self.bias:
            grads["b"] = total(xp, dy)
        return grads, dxs[before:, ...], (dxs[:before, ...],)

    def _ends(self, xp: Namespace, span: Span, like: Array) -> Array:
        """Return where the last k - 1 steps of all sequences are among the (k - 1 + T) B rows, as one axis."""
        steps = span.lengths + np.arange(self.kernel_size - 1)[:, None]  # (k - 1, B)
        return xp.asarray((steps * span.B + np.arange(span.B)).ravel(), device=device_of(like))
