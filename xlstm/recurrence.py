"""The time loop, once, for every gated cell; `bptt.py` is the way back.

Batches are packed: the rows of all steps follow each other, (N, D), a step having as many rows as there
are sequences that long, the longest first. Nothing is computed past the end of a sequence. Steps of
equal width n make a run; without `lengths` there is one run, and the packed batch is the batch itself.

What needs no recurrence happens outside the loop: the input products of all steps are one matrix
product, and so is each weight gradient. Inside the loop arrays have features before batch, (H, n).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from xlstm.activations import normalize
from xlstm.backend import Array, Namespace, Params, device_of

# A step with so many pre-activations is copied into room made for all steps; smaller ones are collected.
LARGE = 4096

OWN = ("p", "gc", "bc")  # parameters that the cell itself uses

Runs = Sequence[tuple[int, int]]  # (steps, width n) of each run, n falling


class Cell(Protocol):
    """What a file in `cells/` provides; the states are h and the carried ones, such as c.

    - `gates(xp, z, *carry, **own) -> h, *carry, saved`: one step from pre-activations z (G, H, n).
      With SPLIT it is `gates(xp, zx, zh, h, *carry)`, the products of x and of h apart; with INNER
      the last gate's product is made inside: `gates(xp, zx, zh, h, *carry, product)`.
    - `slopes(xp, *carry, saved, **own) -> arrays`: the part of the derivative that needs no recurrence,
      for one step (..., H, n) or for k steps (..., k, H, n).
    - `gates_bwd(xp, dh, *dcarry, slopes) -> dz, *dcarry`: gradients of the step's inputs from those of
      its outputs; with SPLIT `dzx, dzh, dh, *dcarry`, with INNER given the transposed product last.
      Rows of dz after the G gates belong to the cell's own parameters.
    - `activated(xp, saved) -> array (G, ...)`: gate values in the order of GATES.

    A cell with parameters of its own has `own_bwd`, one with INNER has `inner`.
    """

    @property
    def GATES(self) -> tuple[str, ...]: ...  # noqa: N802
    @property
    def STATES(self) -> tuple[str, ...]: ...  # noqa: N802
    @property
    def SPLIT(self) -> bool: ...  # noqa: N802
    @property
    def INNER(self) -> bool: ...  # noqa: N802
    @property
    def gates(self) -> Callable[..., tuple[Any, ...]]: ...
    @property
    def slopes(self) -> Callable[..., tuple[Array, ...]]: ...
    @property
    def gates_bwd(self) -> Callable[..., tuple[Array, ...]]: ...
    @property
    def activated(self) -> Callable[..., Array]: ...


class Noise(NamedTuple):
    """Masks of one layer and direction; None where there are none."""

    drop: Array | None  # (P, B), what h is multiplied by before Wh, the same at all steps
    stay: tuple[Array | float | None, ...]  # zoneout of h (N, P) and c (N, H): the share of the old state


@dataclass(frozen=True)
class Saved:
    """What a forward pass over one layer and direction keeps for the backward pass.

    It refers to the arrays `x` and `y` of the call: do not change those in place before `backward`.
    """

    xp: Namespace
    cell: Cell
    runs: Runs
    x: Array  # (N, D)
    y: Array  # (N, P)
    starts: list[Array]  # h at the start of each run, (P, n)
    ends: list[tuple[Array, ...]]  # the states at the end of each run
    kept: list[list[Array]]  # of each run: carried states before, and what was saved, at every step: (k, ..., n)
    noise: Noise
    H: int
    normal: tuple[Array, Array] | None  # Wx x normalised (R, N) and 1 / its deviation, with layer_norm

    def state(self, name: str) -> Array:
        """A state after every step, (N, P) or (N, H)."""
        if name not in self.cell.STATES:
            raise AttributeError(f"this cell has no state {name}, only {', '.join(self.cell.STATES)}")
        if name == "h":
            return self.y
        k = self.cell.STATES.index(name)
        after = [
            self.xp.concat((kept[k - 1][1:, ...], end[k][None, ...]))
            for kept, end in zip(self.kept, self.ends, strict=True)
        ]
        return self.rows(after, (self.H,))

    @property
    def gates(self) -> Array:
        """Value of every gate at every step in the order of the cell's GATES, (N, G, H)."""
        xp, first = self.xp, len(self.cell.STATES) - 1
        values = [self.cell.activated(xp, [swap(xp, a) for a in kept[first:]]) for kept in self.kept]  # (G, k, H, n)
        return self.rows([xp.permute_dims(v, (1, 0, 2, 3)) for v in values], (len(self.cell.GATES), self.H))

    def rows(self, runs: list[Array], shape: tuple[int, ...]) -> Array:
        """Arrays (k, ..., H, n) of each run as one (N, ..., H), `shape` being (..., H)."""
        xp = self.xp
        if not runs:
            return xp.zeros((0, *shape), dtype=self.y.dtype, device=device_of(self.y))
        rows = []
        for a in runs:
            a = xp.permute_dims(a, (0, a.ndim - 1, *range(1, a.ndim - 1)))  # (k, n, ..., H)
            rows.append(reshape(xp, a, (a.shape[0] * a.shape[1], *a.shape[2:])))
        return xp.concat(rows)


def forward(
    xp: Namespace,
    cell: Cell,
    w: Params,
    x: Array,
    runs: Runs,
    state: Sequence[Array],
    noise: Noise,
    keep: bool,
) -> tuple[Array, tuple[Array, ...], Saved | None]:
    """Run a cell over packed rows x (N, D) from `state`, (P, B) and (H, B): y (N, P), the final state, Saved if `keep`.

    `w` has the parameters of the layer and direction under their last names, such as Wx.
    """
    R, P = w["Wh"].shape
    width = state[0].shape[1]  # of the run, at first the batch
    inputs, normal = _project(xp, cell, w, x, width)  # (R, N)
    loop = Loop(xp, cell, w, noise)
    step = loop.plain_step() if loop.plain else loop.step
    rows: list[Array] = []
    finals: list[tuple[Array, ...]] = []  # states of the sequences that end, the shortest first
    starts, ends, kept = [], [], []
    at = 0
    for k, n in runs:
        if n < width:
            finals.append(tuple(s[:, n:] for s in state))
            state, width = [s[:, :n] for s in state], n
        starts.append(state[0])
        large = R * n >= LARGE and k > 1
        taken: list[list[Array]] = []
        room: list[Array] = []
        for t in range(k):
            state, arrays = step(inputs[:, at : at + n], state, at, n)
            at += n
            rows.append(state[0].T)
            if not keep:
                continue
            if not large:
                taken.append(arrays)
                continue
            if t == 0:
                room = _room(xp, x, [(k, *a.shape) for a in arrays])
            for whole, a in zip(room, arrays, strict=True):
                whole[t, ...] = a
        if keep:
            ends.append(tuple(state))
            kept.append(
                room or [reshape(xp, xp.concat(arrays), (k, *arrays[0].shape)) for arrays in zip(*taken, strict=True)]
            )
    end = (
        tuple(xp.concat(parts, axis=1) for parts in zip(state, *finals[::-1], strict=True)) if finals else tuple(state)
    )
    y = xp.concat(rows) if rows else xp.zeros((0, P), dtype=x.dtype, device=device_of(x))
    return y, end, Saved(xp, cell, runs, x, y, starts, ends, kept, noise, loop.H, normal) if keep else None


class Loop:
    """One time step, and what is the same for all of them."""

    def __init__(self, xp: Namespace, cell: Cell, w: Params, noise: Noise) -> None:
        self.xp, self.noise = xp, noise
        self.cell: Any = cell  # with `inner` or `own_bwd` where it needs them
        R = w["Wh"].shape[0]
        self.H = R // len(cell.GATES)
        self.own = {
            name: reshape(xp, w[name], (-1, self.H, 1) if name == "p" else (-1, 1)) for name in OWN if name in w
        }
        outer = R - self.H if cell.INNER else R
        self.Wh, self.inner = w["Wh"][:outer, :], w["Wh"][outer:, :]
        self.Whr = w.get("Whr")
        self.zoneout = any(s is not None for s in noise.stay)
        self.gh = None if "gh" not in w else w["gh"][:, None]
        self.bh = w["bh"][:, None] if cell.SPLIT and not cell.INNER and "bh" in w else None
        options = (noise.drop, self.Whr, self.gh)
        self.plain = not (cell.SPLIT or self.zoneout or any(option is not None for option in options))
        self.G = len(cell.GATES)

    def plain_step(self) -> Callable[..., tuple[list[Array], list[Array]]]:
        """`step` without options, for cells that take the sum of both products."""
        xp, Wh, G, H = self.xp, self.Wh, self.G, self.H
        gates = functools.partial(self.cell.gates, **self.own) if self.own else self.cell.gates

        def step(inputs: Array, state: Sequence[Array], at: int, n: int) -> tuple[list[Array], list[Array]]:
            h, *carry = state
            z = Wh @ h
            z += inputs
            *new, saved = gates(xp, reshape(xp, z, (G, H, n)), *carry)
            return new, [*carry, *saved]

        return step

    def step(self, inputs: Array, state: Sequence[Array], at: int, n: int) -> tuple[list[Array], list[Array]]:
        """From the products of x (R, n) and the state: the state after, and what backward needs of this step."""
        xp, cell, H = self.xp, self.cell, self.H
        h, *carry = state
        drop = None if self.noise.drop is None else self.noise.drop[:, :n]
        a = self.Wh @ (h if drop is None else h * drop)
        normal: tuple[Array, ...] = ()
        if self.gh is not None:
            normal = normalize(xp, a, 0)
            a = self.gh * normal[0]
        if cell.SPLIT:
            if self.bh is not None:
                a += self.bh
            zx, zh = (reshape(xp, z, (z.shape[0] // H, H, n)) for z in (inputs, a))
            if cell.INNER:
                out, *new, saved = cell.gates(xp, zx, zh, *state, product(self.inner, before=drop))
            else:
                out, *new, saved = cell.gates(xp, zx, zh, *state, **self.own)
        else:
            a += inputs
            out, *new, saved = cell.gates(xp, reshape(xp, a, (self.G, H, n)), *carry, **self.own)
        arrays = [*carry, *saved, *normal]
        if self.Whr is not None:
            arrays.append(out)
            out = self.Whr @ out
        if self.zoneout:
            out, *new = self._stay(state, [out, *new], at, n)
        return [out, *new], arrays

    def _stay(self, old: Sequence[Array], new: Sequence[Array], at: int, n: int) -> list[Array]:
        """Zoneout: some units, or some share of all, keep their old state."""
        shares = [columns(s, at, n) for s in self.noise.stay]
        return [b if s is None else s * a + (1 - s) * b for a, b, s in zip(old, new, shares, strict=True)]


def product(W: Array, before: Array | None = None, after: Array | None = None) -> Callable[[Array], Array]:
    """The product with W inside a cell, with the mask on the side of h."""

    def apply(q: Array) -> Array:
        a = W @ (q if before is None else q * before)
        return a if after is None else a * after

    return apply


def columns(rows: Any, at: int, n: int) -> Any:
    """One step of rows (N, P), seen as columns (P, n); numbers and None stay what they are."""
    return rows[at : at + n, :].T if hasattr(rows, "shape") else rows


def _project(xp: Namespace, cell: Cell, w: Params, x: Array, B: int) -> tuple[Array, tuple[Array, Array] | None]:
    """Wx x + b of all steps in one product, (R, N), and with layer_norm Wx x normalised and 1 / its deviation."""
    # With one sequence a step is one column: stored as (N, R) it lies together.
    inputs = (x @ w["Wx"].T).T if B == 1 else w["Wx"] @ x.T
    normal = None
    if "gx" in w:
        normal = normalize(xp, inputs, 0)
        inputs = w["gx"][:, None] * normal[0]
    if "b" in w:
        inputs += w["b"][:, None]
    if "bh" in w and (cell.INNER or not cell.SPLIT):
        inputs += w["bh"][:, None]
    return inputs, normal


def _room(xp: Namespace, x: Array, shapes: list[tuple[int, ...]]) -> list[Array]:
    """Arrays of these shapes in one piece of memory.

    A large step then works in the memory that the step before gave back, where keeping its arrays would
    make the system provide fresh pages all along; and a piece of some megabytes comes in large pages.
    """
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    room = xp.empty((ends[-1],), dtype=x.dtype, device=device_of(x))
    starts = [0, *ends[:-1]]
    return [reshape(xp, room[i:j], shape) for i, j, shape in zip(starts, ends, shapes, strict=True)]


def swap(xp: Namespace, array: Array) -> Array:
    """(k, G, H, n) seen as (G, k, H, n) and the reverse; (k, H, n) as it is."""
    return array if array.ndim == 3 else xp.permute_dims(array, (1, 0, 2, 3))


def reshape(xp: Namespace, array: Array, shape: tuple[int, ...]) -> Array:
    """The method, where the library has one: it costs a quarter of the function, once a step."""
    return array.reshape(shape) if hasattr(array, "reshape") else xp.reshape(array, shape)
