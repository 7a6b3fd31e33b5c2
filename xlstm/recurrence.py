"""The time loop and backpropagation through time, once, for every gated cell.

What needs no recurrence happens outside the loop: the input products of all steps are one matrix
product, and so is each weight gradient. Inside the loop arrays have features before batch, (H, B).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from xlstm.backend import Array, Namespace

# `slopes` takes as many steps at once as make about this many elements: few large calls where a
# step is small and calls cost most, one step at a time where a step by itself fills the cache.
BLOCK = 32768


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
    carry: list[Sequence[Array]]  # T + 1 times the carried states (H, B), initial ones first
    steps: list[tuple[Array, ...]]  # T times what `cell.gates` saved

    @property
    def h(self) -> Array:
        """Hidden state after every step, (T, B, H)."""
        return self.y

    @property
    def c(self) -> Array:
        """Cell state after every step, (T, B, H)."""
        if "c" not in self.cell.STATES:
            raise AttributeError(f"this cell has no cell state, only {', '.join(self.cell.STATES)}")
        c = self.cell.STATES.index("c") - 1
        return self.xp.stack([self.xp.matrix_transpose(states[c]) for states in self.carry[1:]])

    @property
    def gates(self) -> Array:
        """Value of every gate at every step in the order of the cell's GATES, (T, G, B, H)."""
        xp = self.xp
        return xp.stack([xp.matrix_transpose(self.cell.activated(xp, saved)) for saved in self.steps])


def forward(
    xp: Namespace, cell: Cell, weights: Weights, x: Array, state: Sequence[Array], keep: bool
) -> tuple[Array, tuple[Array, ...], Saved | None]:
    """Run a cell over x (T, B, D) from `state`, each (H, B): y (T, B, H), the final state, and Saved if `keep`."""
    T, B, _ = x.shape
    G, H = len(cell.GATES), weights.Wh.shape[1]
    inputs = _project(xp, weights, x)  # (T, G*H, B)
    h, carry = state[0], state[1:]
    rows, carries, steps = [], [carry], []
    for t in range(T):
        z = weights.Wh @ h
        z += inputs[t, ...]
        h, *carry, saved = cell.gates(xp, _reshape(xp, z, (G, H, B)), *carry)
        rows.append(h.T)
        if keep:
            carries.append(carry)
            steps.append(saved)
    y = xp.reshape(xp.concat(rows), (T, B, H))
    return y, (h, *carry), Saved(xp, cell, x, y, state[0], carries, steps) if keep else None


def backward(
    xp: Namespace, weights: Weights, saved: Saved, dy: Array | None, dstate: Sequence[Array]
) -> tuple[Weights, Array, tuple[Array, ...]]:
    """Gradients of weights, x and initial state from dy (T, B, H) and from those of the final state, each (H, B)."""
    cell, x = saved.cell, saved.x
    T, B, D = x.shape
    R, H = weights.Wh.shape  # R = G*H
    WhT = xp.reshape(xp.reshape(weights.Wh.T, (R * H,)), (H, R))  # a copy: OpenBLAS is 10 % quicker than on a view
    dh, *dcarry = dstate
    dz: list[Array] = [None] * T
    n = max(1, BLOCK // max(1, R * B))
    for end in range(T, 0, -n):
        start = max(0, end - n)
        carry = _together(xp, saved.carry[start:end])
        slopes = _apart(xp, cell.slopes(xp, *carry, _together(xp, saved.steps[start:end])), end - start)
        for t in range(end - 1, start - 1, -1):
            if dy is not None:
                dh = dh + dy[t, ...].T
            da, *dcarry = cell.gates_bwd(xp, dh, *dcarry, slopes[t - start])
            dz[t] = _reshape(xp, da, (R, B))
            dh = WhT @ dz[t]
    dZ = _columns(xp, dz)  # (G*H, T*B)
    before = xp.concat((saved.h0.T[None, ...], saved.y[:-1, ...]))  # h0 of every step, (T, B, H)
    gradients = Weights(
        dZ @ xp.reshape(x, (T * B, D)),
        dZ @ xp.reshape(before, (T * B, H)),
        xp.sum(dZ, axis=1),
    )
    dx = xp.reshape(dZ.T @ weights.Wx, (T, B, D))
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


def _columns(xp: Namespace, steps: list[Array]) -> Array:
    """T arrays (R, B) side by side as one matrix (R, T*B)."""
    R, B = steps[0].shape
    if B == 1:
        return xp.reshape(xp.concat(steps), (len(steps), R)).T
    return xp.concat(steps, axis=1)


def _together(xp: Namespace, steps: Sequence[Sequence[Array]]) -> Sequence[Array]:
    """Arrays (..., H, B) of n steps as arrays (..., n, H, B); those of one step as they are."""
    n = len(steps)
    if n == 1:
        return steps[0]
    H, B = steps[0][0].shape[-2:]
    return [  # concat is cheaper than stack
        xp.reshape(xp.concat(arrays, axis=-2), (*arrays[0].shape[:-2], n, H, B)) for arrays in zip(*steps, strict=True)
    ]


def _apart(xp: Namespace, arrays: Sequence[Array], n: int) -> list[Sequence[Array]]:
    """The reverse of `_together`: for each of n steps its arrays (..., H, B)."""
    if n == 1:
        return [arrays]
    first = [array if array.ndim == 3 else xp.permute_dims(array, (1, 0, 2, 3)) for array in arrays]
    return [[array[k, ...] for array in first] for k in range(n)]


def _reshape(xp: Namespace, array: Array, shape: tuple[int, ...]) -> Array:
    """The method, where the library has one: it costs a quarter of the function, once a step."""
    return array.reshape(shape) if hasattr(array, "reshape") else xp.reshape(array, shape)
