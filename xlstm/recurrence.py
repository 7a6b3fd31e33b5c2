"""The time loop and backpropagation through time, once, for every gated cell.

What needs no recurrence happens outside the loop: the input products of all steps are one matrix
product, and so is each weight gradient. Inside the loop arrays have features before batch, (H, B).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from xlstm.backend import Array, Namespace, device_of

# `slopes` takes as many steps at once as make about this many elements: few large calls where a
# step is small and calls cost most, one step at a time where a step by itself fills the cache.
BLOCK = 32768
# A step with so many pre-activations is copied into room made for all steps; smaller ones are collected.
LARGE = 4096


class Cell(Protocol):
    """What a file in `cells/` provides; the states are h and the carried ones, such as c.

    - `gates(xp, z, *carry) -> h, *carry, saved`: one step from pre-activations z (G, H, B).
    - `slopes(xp, *carry, saved) -> arrays`: the part of the derivative that needs no recurrence, for one
      step (..., H, B) or for n steps (..., n, H, B).
    - `gates_bwd(xp, dh, *dcarry, slopes) -> dz, *dcarry`: gradients of the step's inputs from those of
      its outputs.
    - `activated(xp, saved) -> array (G, H, B)`: gate values in the order of GATES.
    """

    @property
    def GATES(self) -> tuple[str, ...]: ...  # noqa: N802
    @property
    def STATES(self) -> tuple[str, ...]: ...  # noqa: N802
    @property
    def gates(self) -> Callable[..., tuple[Any, ...]]: ...
    @property
    def slopes(self) -> Callable[..., tuple[Array, ...]]: ...
    @property
    def gates_bwd(self) -> Callable[..., tuple[Array, ...]]: ...
    @property
    def activated(self) -> Callable[..., Array]: ...


class Weights(NamedTuple):
    """Weights of one layer and direction, or their gradients."""

    Wx: Array  # (G*H, D)
    Wh: Array  # (G*H, H)
    b: Array  # (G*H,)


@dataclass(frozen=True)
class Saved:
    """What a forward pass keeps for the backward pass, readable by name.

    It refers to the arrays `x` and `y` of the call: do not change those in place before `backward`.
    """

    xp: Namespace
    cell: Cell
    x: Array  # (T, B, D)
    y: Array  # (T, B, H)
    h0: Array  # (H, B)
    end: tuple[Array, ...]  # the final state, each (H, B)
    kept: tuple[Array, ...]  # carried states before, and what `cell.gates` saved at, every step: (T, ..., H, B)

    @property
    def h(self) -> Array:
        """Hidden state after every step, (T, B, H)."""
        return self.y

    @property
    def c(self) -> Array:
        """Cell state after every step, (T, B, H)."""
        if "c" not in self.cell.STATES:
            raise AttributeError(f"this cell has no cell state, only {', '.join(self.cell.STATES)}")
        k = self.cell.STATES.index("c")
        after = self.xp.concat((self.kept[k - 1][1:, ...], self.end[k][None, ...]))
        return self.xp.permute_dims(after, (0, 2, 1))

    @property
    def gates(self) -> Array:
        """Value of every gate at every step in the order of the cell's GATES, (T, G, B, H)."""
        saved = self.kept[len(self.cell.STATES) - 1 :]
        values = self.cell.activated(self.xp, [_swap(self.xp, a) for a in saved])  # (G, T, H, B)
        return self.xp.permute_dims(values, (1, 0, 3, 2))


def forward(
    xp: Namespace, cell: Cell, weights: Weights, x: Array, state: Sequence[Array], keep: bool
) -> tuple[Array, tuple[Array, ...], Saved | None]:
    """Run a cell over x (T, B, D) from `state`, each (H, B): y (T, B, H), the final state, and Saved if `keep`."""
    T, B, _ = x.shape
    G, H = len(cell.GATES), weights.Wh.shape[1]
    large = G * H * B >= LARGE
    inputs = _project(xp, weights, x)  # (T, G*H, B)
    h, *carry = state
    before = carry
    rows: list[Array] = []
    taken: list[list[Array]] = []  # of every step: the carried states before it, and what it saved
    room: list[Array] = []  # the same of all steps, where a step is large
    for t in range(T):
        z = weights.Wh @ h
        z += inputs[t, ...]
        h, *carry, saved = cell.gates(xp, _reshape(xp, z, (G, H, B)), *carry)
        rows.append(h.T)
        if keep:
            arrays = [*before, *saved]
            before = carry
            if not large:
                taken.append(arrays)
                continue
            if t == 0:
                room = _room(xp, x, [(T, *a.shape) for a in arrays])
            for whole, a in zip(room, arrays, strict=True):
                whole[t, ...] = a
    y, end = xp.reshape(xp.concat(rows), (T, B, H)), (h, *carry)
    if not keep:
        return y, end, None
    kept = room or [xp.reshape(xp.concat(arrays), (T, *arrays[0].shape)) for arrays in zip(*taken, strict=True)]
    return y, end, Saved(xp, cell, x, y, state[0], end, tuple(kept))


def _room(xp: Namespace, x: Array, shapes: list[tuple[int, ...]]) -> list[Array]:
    """Arrays of these shapes in one piece of memory.

    A large step then works in the memory that the step before gave back, where keeping its arrays would
    make the system provide fresh pages all along; and a piece of some megabytes comes in large pages.
    """
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    room = xp.empty((ends[-1],), dtype=x.dtype, device=device_of(x))
    starts = [0, *ends[:-1]]
    return [xp.reshape(room[i:j], shape) for i, j, shape in zip(starts, ends, shapes, strict=True)]


def backward(
    xp: Namespace, weights: Weights, saved: Saved, dy: Array | None, dstate: Sequence[Array]
) -> tuple[Weights, Array, tuple[Array, ...]]:
    """Gradients of weights, x and initial state from dy (T, B, H) and from those of the final state, each (H, B)."""
    cell, x = saved.cell, saved.x
    T, B, D = x.shape
    R, H = weights.Wh.shape  # R = G*H
    WhT = xp.reshape(xp.reshape(weights.Wh.T, (R * H,)), (H, R))  # a copy: OpenBLAS is 10 % quicker than on a view
    dh, *dcarry = dstate
    # (T, R, B), stored so that all of it is one matrix (R, T*B) for the products below
    order = (0, 1, 2) if B == 1 else (1, 0, 2)
    shape = (T, R, B) if B == 1 else (R, T, B)
    dZ = xp.permute_dims(xp.empty(shape, dtype=x.dtype, device=device_of(x)), order)
    n = max(1, BLOCK // max(1, R * B))
    for end in range(T, 0, -n):
        steps = slice(max(0, end - n), end)
        carry_and_saved = [_swap(xp, a[steps, ...]) for a in saved.kept]
        carry, gates = carry_and_saved[: len(dcarry)], carry_and_saved[len(dcarry) :]
        slopes = [_swap(xp, a) for a in cell.slopes(xp, *carry, gates)]
        for t in range(end - 1, steps.start - 1, -1):
            if dy is not None:
                dh = dh + dy[t, ...].T
            dz, *dcarry = cell.gates_bwd(xp, dh, *dcarry, [a[t - steps.start, ...] for a in slopes])
            dz = _reshape(xp, dz, (R, B))
            dZ[t, ...] = dz
            dh = WhT @ dz
    columns = xp.reshape(dZ, (T, R)).T if B == 1 else xp.reshape(xp.permute_dims(dZ, order), (R, T * B))
    before = xp.concat((saved.h0.T[None, ...], saved.y[:-1, ...]))  # h0 of every step, (T, B, H)
    gradients = Weights(
        columns @ xp.reshape(x, (T * B, D)),
        columns @ xp.reshape(before, (T * B, H)),
        xp.sum(columns, axis=1),
    )
    dx = xp.reshape(columns.T @ weights.Wx, (T, B, D))
    return gradients, dx, (dh, *dcarry)


def _project(xp: Namespace, weights: Weights, x: Array) -> Array:
    """Wx x + b of all steps in one product, seen as (T, G*H, B)."""
    T, B, D = x.shape
    rows = xp.reshape(x, (T * B, D))
    if B == 1:  # one column a step: the product itself has the order (T, G*H)
        inputs = rows @ weights.Wx.T
        inputs += weights.b
        return inputs[..., None]
    inputs = weights.Wx @ rows.T
    inputs += weights.b[:, None]
    return xp.permute_dims(xp.reshape(inputs, (weights.Wx.shape[0], T, B)), (1, 0, 2))


def _swap(xp: Namespace, array: Array) -> Array:
    """(T, G, H, B) seen as (G, T, H, B) and the reverse; (T, H, B) as it is."""
    return array if array.ndim == 3 else xp.permute_dims(array, (1, 0, 2, 3))


def _reshape(xp: Namespace, array: Array, shape: tuple[int, ...]) -> Array:
    """The method, where the library has one: it costs a quarter of the function, once a step."""
    return array.reshape(shape) if hasattr(array, "reshape") else xp.reshape(array, shape)
