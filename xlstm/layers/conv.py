"""Causal depthwise convolution along time, with an optional SiLU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays.cached import cached_property
from xlstm.arrays.concat import concat
from xlstm.arrays.fuse import fuse, listed, windows
from xlstm.arrays.gather import add_rows
from xlstm.arrays.namespace import Array, Namespace, Params, add_over, reshape, room
from xlstm.arrays.rows import column_sums, summed
from xlstm.arrays.sliding import computes_again, of_windows, slid, steps_of
from xlstm.cells.activations import silu, silu_bwd
from xlstm.layers.in_parts import in_parts, in_parts_bwd
from xlstm.layers.initializers import uniform
from xlstm.layers.module import SameWidth, Weights, rows
from xlstm.layers.sequence import Derivatives, Leaf, Scanned, SequenceLayer, State
from xlstm.recurrence.packing import Span


@dataclass(frozen=True)
class CausalConv(SameWidth, SequenceLayer):
    """A convolution of each of D channels by itself: y_t = b + sum_j W_j x_(t - k + 1 + j).

    Parameters
    ----------
    size : int
        Number D of channels.
    kernel_size : int
        Number k of steps that each y sees; the last one is its own. Parameters are `W` (D, k) and
        `b` (D,). The state is (x,), the k - 1 steps before, (k - 1, B, D).
    silu : bool
        Whether SiLU is applied to y.
    """

    size: int
    kernel_size: int = 4
    silu: bool = False

    @property
    def weights(self) -> Weights:
        D = {"D": self.size}
        draw = uniform(self.kernel_size**-0.5)  # as `torch.nn.Conv1d`
        return {"W": ({**D, "k": self.kernel_size}, draw), "b": (D, draw)}

    @cached_property
    def states(self) -> State:
        """The leaf of the k - 1 steps before."""
        return (Leaf("x", {"k - 1": self.kernel_size - 1}, {"D": self.size}),)

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        if span.cut:
            return in_parts(span, self.states, functools.partial(self.scan, p), [x], state)
        xp = span.xp
        xs = concat(xp, (state[0], x), 0)  # (k - 1 + T, B, D)
        function = _convolved if not self.silu else _silu if computes_again(xp) else _activated
        *values, y = listed(slid(xp, function, p["W"].T, xs, p["b"]))
        tape = (xs, *values, y) if values else (xs,)
        if span.full:
            end = xs[span.T :, ...]  # the tape refers to it, too
            return y, (xp.asarray(end, copy=True) if span.keep or xp is np else end,), tape
        last = xp.take(rows(xs), span.after(xs), axis=0)
        return y, (reshape(last, state[0].shape),), tape

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span,
        add: Sequence[Array] = (), out: Sequence[Array] = (),
    ) -> Derivatives:  # fmt: skip
        """Return the gradients with respect to the parameters, x and the initial state.

        `add` is added to the gradient with respect to x, which is written to `out`, too.
        """
        xp = span.xp
        if span.cut:
            by_grid = functools.partial(self.scan_bwd, p)
            grads, dx, start = in_parts_bwd(span, self.states, by_grid, kept, dy, dstate)
            return grads, _added(xp, dx, add, out), start
        xs, *values = kept
        size = self.kernel_size
        before = self.kernel_size - 1
        T = span.T
        padded = room(xp, dy, (T + 2 * before, *dy.shape[1:]))
        padded[:before, ...] = 0
        padded[before + T :, ...] = 0
        dz = padded[before : before + T, ...]
        taps = p["W"].T
        if computes_again(xp):
            arrays = (dy, windows(xs, size), taps, p["b"])
            leading = (None, size, size)
            _, db, dW = summed(
                xp,
                _weights_bwd,
                *arrays,
                sums=2,
                leading=leading,
                out=[dz],
                size=size,
                activated=self.silu,
            )
        else:
            dz[...] = fuse(xp, silu_bwd, dy, *values) if values else dy
            db = column_sums(xp, dz)
            dW = xp.stack(
                listed(summed(xp, _products, dz, *steps_of(xs, size), sums=size)), axis=-1
            )
        grads = {"W": dW, "b": db}
        taps = xp.flip(taps, axis=0)
        if computes_again(xp) and dstate is None:
            dx = slid(xp, _convolved, taps, padded[before:, ...], *add, out=out)
            return grads, dx, (slid(xp, _convolved, taps, padded[: 2 * before, ...]),)
        dxs = slid(xp, _convolved, taps, padded)
        if dstate is not None and span.full:
            dxs[T:, ...] += dstate[0]
        elif dstate is not None:
            dlast = add_rows(xp, span.after(xs), rows(dstate[0]), xs.shape[0] * span.B)
            dxs += reshape(dlast, xs.shape)
        return grads, _added(xp, dxs[before:, ...], add, out), (dxs[:before, ...],)


def _added(xp: Namespace, dx: Array, add: Sequence[Array], out: Sequence[Array]) -> Array:
    """Return dx plus the arrays in `add`, and write the sum to `out`, too."""
    for a in add:
        dx = add_over(xp, dx, a)
    for to in out:
        to[...] = dx
    return dx


def _convolved(xp: Namespace, *arrays: Array, size: int) -> Array:
    """Return the sum of `size` taps times `size` steps, plus all further arrays."""
    y = arrays[0] * arrays[size]
    for tap, x in zip(arrays[1:size], arrays[size + 1 : 2 * size], strict=True):
        y = add_over(xp, y, tap * x)
    for b in arrays[2 * size :]:
        y = add_over(xp, y, b)
    return y


def _activated(xp: Namespace, *arrays: Array, size: int) -> tuple[Array, Array]:
    y = _convolved(xp, *arrays, size=size)
    return y, silu(xp, y)


def _silu(xp: Namespace, *arrays: Array, size: int) -> Array:
    return _activated(xp, *arrays, size=size)[1]


def _products(xp: Namespace, dy: Array, *xs: Array) -> tuple[Array, ...]:
    return tuple(dy * x for x in xs)


def _weights_bwd(
    xp: Namespace, dy: Array, xs: Array, W: Array, b: Array, size: int, activated: bool
) -> tuple[Array, Array, Array]:
    """Return the gradient before SiLU, and each row's gradients of the bias and of all taps."""
    dz = dy
    if activated:
        dz = silu_bwd(xp, dy, *of_windows(xp, W, xs, b, of=_activated, size=size))
    return dz, dz, dz * xs
