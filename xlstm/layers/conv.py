"""Causal depthwise convolution along time."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import constants
from xlstm.arrays.concat import Filled, concat
from xlstm.arrays.fuse import compiles, fuse, listed, total, windows
from xlstm.arrays.gather import add_rows
from xlstm.arrays.namespace import Array, Namespace, Params, device_of
from xlstm.arrays.rows import column_sums, summed
from xlstm.layers.initializers import uniform
from xlstm.layers.module import SameWidth, Weight, rows
from xlstm.layers.sequence import Derivatives, Leaf, SequenceLayer, State
from xlstm.recurrence.packing import Span


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
    """

    size: int
    kernel_size: int = 4

    @property
    def weights(self) -> dict[str, Weight]:
        D, draw = {"D": self.size}, uniform(self.kernel_size**-0.5)  # as `torch.nn.Conv1d`
        return {"W": ({**D, "k": self.kernel_size}, draw), "b": (D, draw)}

    @functools.cached_property
    def states(self) -> State:
        """The leaf of the k - 1 steps before."""
        return (Leaf("x", {"k - 1": self.kernel_size - 1}, {"D": self.size}),)

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        xp = span.xp
        xs = concat(xp, (state[0], x), 0)  # (k - 1 + T, B, D)
        y = fuse(xp, _convolved, *self._taps(xp, p), *self._windows(xs, span.T), p["b"], size=self.kernel_size)
        if span.full:
            end = xs[span.T :, ...]  # to which what is kept refers, too
            return y, (xp.asarray(end, copy=True) if span.keep or xp is np else end,), xs
        last = xp.take(rows(xp, xs), self._ends(xp, span, xs), axis=0)
        return y, (xp.reshape(last, state[0].shape),), xs

    def scan_bwd(self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span) -> Derivatives:
        xp = span.xp
        before, T = self.kernel_size - 1, span.T
        rest = Filled(0.0, before)
        dys = self._windows(concat(xp, (rest, dy, rest), 0), before + T)
        dxs = fuse(xp, _convolved, *self._taps(xp, p)[::-1], *dys, size=self.kernel_size)
        if dstate is not None and span.full:
            dxs[T:, ...] += dstate[0]
        elif dstate is not None:
            dlast = add_rows(xp, self._ends(xp, span, kept), rows(xp, dstate[0]), kept.shape[0] * span.B)
            dxs += xp.reshape(dlast, kept.shape)
        grads = {"b": column_sums(xp, dy)}
        if compiles(xp):
            grads["W"] = total(xp, dy[..., None], windows(kept, self.kernel_size), (0, 1))
        else:
            dW = summed(xp, _products, dy, *self._windows(kept, T), sums=self.kernel_size)
            grads["W"] = xp.stack(listed(dW), axis=1)
        return grads, dxs[before:, ...], (dxs[:before, ...],)

    def _taps(self, xp: Namespace, p: Params) -> list[Array]:
        """Return the weights of each step that a y sees, (D,), the earliest first."""
        taps = [p["W"][:, j] for j in range(self.kernel_size)]
        return taps if compiles(xp) else [tap + 0 for tap in taps]  # copies, whose numbers are side by side

    def _windows(self, xs: Array, T: int) -> list[Array]:
        """Return the T steps that each of the taps is multiplied by."""
        return [xs[j : j + T, ...] for j in range(self.kernel_size)]

    def _ends(self, xp: Namespace, span: Span, like: Array) -> Array:
        """Return where the last k - 1 steps of all sequences are among the (k - 1 + T) B rows, as one axis."""
        steps = span.lengths + np.arange(self.kernel_size - 1)[:, None]  # (k - 1, B)
        return constants.copied(xp, (steps * span.B + np.arange(span.B)).ravel(), device_of(like))


def _convolved(xp: Namespace, *arrays: Array, size: int) -> Array:
    """Return the sum of taps times steps, which are `size` arrays each, and of a bias, if there is one."""
    y = arrays[0] * arrays[size]
    for tap, x in zip(arrays[1:size], arrays[size + 1 : 2 * size], strict=True):
        y += tap * x
    for b in arrays[2 * size :]:
        y += b
    return y


def _products(xp: Namespace, dy: Array, *xs: Array) -> tuple[Array, ...]:
    return tuple(dy * x for x in xs)
