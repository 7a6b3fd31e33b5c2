"""One time step of a cell with its options, and what is the same for all steps.

Inside the loop arrays have features before batch, (H, n). What needs no recurrence, the products of x, is done
for all steps at once or for blocks of them.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from xlstm.arrays import blas, workspace
from xlstm.arrays.backend import Array, Namespace, Params
from xlstm.cells.activations import normalize
from xlstm.engines.numba.fused import Fused, kernels_of
from xlstm.engines.numba.kernels import Kernels
from xlstm.engines.runs import Run, reshape

# A step with so many pre-activations is copied into room made for all steps; smaller ones are collected.
LARGE = 4096
# On a CPU the products of x are made for as many steps at once as make about this many numbers: they are
# still in the cache when their step comes.
BLOCK = 65536
# So many sequences at a step make a quick matrix product by themselves.
WIDE = 16

OWN = ("p", "gc", "bc")  # parameters that the cell itself uses


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
    - `numbers`, those among its options by name: arguments of code that is made of it (`cells/options.py`).

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
    def numbers(self) -> dict[str, float]: ...
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


class Loop:
    """One time step, and what is the same for all of them."""

    def __init__(self, xp: Namespace, cell: Cell, w: Params, noise: Noise) -> None:
        self.xp, self.noise = xp, noise
        self.cell: Any = cell  # with `inner` or `own_bwd` where it needs them
        self.Wh, self.inner = w["Wh"], None
        R, self.P = recurrent_shape(self.Wh)
        self.G = len(cell.GATES)
        self.H = R // self.G
        self.own = {}
        for name in OWN:
            if name in w:
                self.own[name] = reshape(xp, w[name], (-1, self.H, 1) if name == "p" else (-1, 1))
        if cell.INNER:
            self.Wh, self.inner = self.Wh[: R - self.H, :], self.Wh[R - self.H :, :]
        self.R = R - self.H if cell.INNER else R  # rows of the product of h
        self.Whr = w.get("Whr")
        self.zoneout = any(s is not None for s in noise.stay)
        self.gh = None if "gh" not in w else w["gh"][:, None]
        self.w, self.biases = w, _biases(cell, w)
        self.bh = self.biases["bh"][:, None] if "bh" in self.biases else None
        self.bare = not self.zoneout and noise.drop is None and self.Whr is None and self.gh is None
        self.plain = self.bare and not cell.SPLIT

    def __reduce__(self) -> tuple[Any, ...]:
        return _loop, (self.xp.__name__, self.cell, self.w, self.noise)

    @property
    def obstacle(self) -> str:
        """What makes a step more than one function of units beside the product of h; empty where nothing does."""
        there = {
            "zoneout": self.zoneout,
            "recurrent dropout": self.noise.drop is not None,
            "a projection": self.Whr is not None,
            "layer normalisation": self.gh is not None,
            "a reset before the product": self.inner is not None,
        }
        return " and ".join(name for name, is_there in there.items() if is_there)

    @functools.cached_property
    def kernels(self) -> Kernels | None:
        """The loop compiled, where it is to be and can be."""
        return kernels_of(self.cell, self.w["Wh"], self.own, self.biases) if self.bare and self.xp is np else None

    @functools.cached_property
    def fused(self) -> Fused:
        """The loop compiled, where there are kernels for it."""
        assert self.kernels is not None
        return Fused(self.kernels, self.w, self.own, self.biases, self.cell.numbers)

    def run(
        self, run: Run, state: Sequence[Array], inputs: Iterator[Array], y: Array, keep: bool
    ) -> tuple[Sequence[Array], list[Array]]:
        """The state after a run, and what is kept of every step, from the state before and products of x."""
        xp, k = self.xp, run.k
        W = blas.blocks(self.Wh, run.n) if xp is np and self.Wh.ndim == 2 else self.Wh
        step = self.plain_step(W) if self.plain else functools.partial(self.step, W)
        taken: list[list[Array]] = []
        room: list[Array] = []
        large = self.R * run.n >= LARGE and k > 1
        for t, here in enumerate(inputs):
            state, arrays = step(here, state, run, t)
            y[run.rows(t), :] = state[0].T
            if not keep:
                continue
            if not large:
                taken.append(arrays)
                continue
            if t == 0:
                room = _room(xp, y, [(k, *a.shape) for a in arrays])
            for whole, a in zip(room, arrays, strict=True):
                whole[t, ...] = a
        kept = [reshape(xp, xp.concat(arrays), (k, *arrays[0].shape)) for arrays in zip(*taken, strict=True)]
        return state, room or kept

    def through(self, W: Array, h: Array) -> Array:
        """The product Wh h, (R, n); heads (G, N, K, K) go by themselves."""
        n = h.shape[1]
        if W.ndim == 4:
            h = reshape(self.xp, h, (W.shape[1], W.shape[3], n))
        return reshape(self.xp, W @ h, (self.R, n))

    def plain_step(self, W: Array) -> Callable[..., tuple[list[Array], list[Array]]]:
        """`step` without options, for cells that take the sum of both products."""
        xp, G, H = self.xp, self.G, self.H
        gates = functools.partial(self.cell.gates, **self.own) if self.own else self.cell.gates

        def step(inputs: Array, state: Sequence[Array], run: Run, t: int) -> tuple[list[Array], list[Array]]:
            h, *carry = state
            z = self.through(W, h)
            z += inputs
            *new, saved = gates(xp, reshape(xp, z, (G, H, run.n)), *carry)
            return new, [*carry, *saved]

        return step

    def step(
        self, W: Array, inputs: Array, state: Sequence[Array], run: Run, t: int
    ) -> tuple[list[Array], list[Array]]:
        """From the products of x (R, n) and the state: the state after, and what backward needs of this step."""
        xp, cell, H, n = self.xp, self.cell, self.H, run.n
        h, *carry = state
        drop = None if self.noise.drop is None else self.noise.drop[:, run.columns]
        a = self.through(W, h if drop is None else h * drop)
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
            out, *new = self._stay(state, [out, *new], run.rows(t))
        return [out, *new], arrays

    def _stay(self, old: Sequence[Array], new: Sequence[Array], rows: slice) -> list[Array]:
        """Zoneout: some units, or some share of all, keep their old state."""
        shares = [columns(s, rows) for s in self.noise.stay]
        return [b if s is None else s * a + (1 - s) * b for a, b, s in zip(old, new, shares, strict=True)]


def _loop(xp: str, *arguments: Any) -> Loop:
    """Return a loop that is copied or pickled, with its namespace by name."""
    return Loop(importlib.import_module(xp), *arguments)


def recurrent_shape(Wh: Array) -> tuple[int, int]:
    """Rows and columns (R, P) of a recurrent weight, which is that, or (G, N, K, K), blocks of N heads."""
    if Wh.ndim == 2:
        return Wh.shape[0], Wh.shape[1]
    G, N, K, _ = Wh.shape
    return G * N * K, N * K


def product(W: Array, before: Array | None = None, after: Array | None = None) -> Callable[[Array], Array]:
    """The product with W inside a cell, with the mask on the side of h."""

    def apply(q: Array) -> Array:
        a = W @ (q if before is None else q * before)
        return a if after is None else a * after

    return apply


def columns(a: Any, rows: slice) -> Any:
    """One step of rows (N, P), seen as columns (P, n); numbers and None stay what they are."""
    return a[rows, :].T if hasattr(a, "shape") else a


def project(loop: Loop, x: Array) -> tuple[Array, tuple[Array, Array] | None]:
    """Wx x + b of all steps in one product, (R, N), and with layer_norm Wx x normalised and 1 / its deviation.

    Without a Wx, x (N, R) is that product already.
    """
    xp, w = loop.xp, loop.w
    inputs = w["Wx"] @ x.T if "Wx" in w else xp.asarray(x.T, copy=True)
    normal = None
    if "gx" in w:
        normal = normalize(xp, inputs, 0)
        inputs = w["gx"][:, None] * normal[0]
    if "b" in loop.biases:
        inputs += loop.biases["b"][:, None]
    return inputs, normal


def project_block(loop: Loop, x: Array) -> Array:
    """Wx x + b of steps x (k, n, D), each step by itself in memory: (k, R, n)."""
    k, n, D = x.shape
    bias = loop.biases.get("b")
    if "Wx" not in loop.w:
        z = np.array(x.transpose(0, 2, 1), order="C")
        if bias is not None:
            z += bias[:, None]
        return z
    Wx = loop.w["Wx"]
    R = Wx.shape[0]
    if n < WIDE:
        rows = x.reshape(k * n, D) @ Wx.T
        if bias is not None:
            rows += bias
        return np.ascontiguousarray(rows.reshape(k, n, R).transpose(0, 2, 1))
    W, columns = blas.blocks(Wx, n), np.ascontiguousarray(x.transpose(0, 2, 1))
    z = workspace.empty(np, (k, *W.shape[:-1], n), x)
    np.matmul(W, columns if W.ndim == 2 else columns[:, None], out=z)
    z = z.reshape(k, R, n)
    if bias is not None:
        z += bias[:, None]
    return z


def _biases(cell: Cell, w: Params) -> Params:
    """What is added to the product of x, b, and to that of h, bh, where it cannot be added to the former."""
    if "bh" not in w:
        return {"b": w["b"]} if "b" in w else {}
    return {"b": w["b"], "bh": w["bh"]} if cell.SPLIT and not cell.INNER else {"b": w["b"] + w["bh"]}


def _room(xp: Namespace, like: Array, shapes: list[tuple[int, ...]]) -> list[Array]:
    """Arrays of these shapes in one piece of memory.

    A large step then works in the memory that the step before gave back, where keeping its arrays would
    make the system provide fresh pages all along; and a piece of some megabytes comes in large pages.
    """
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    room = workspace.empty(xp, (ends[-1],), like)
    starts = [0, *ends[:-1]]
    return [reshape(xp, room[i:j], shape) for i, j, shape in zip(starts, ends, shapes, strict=True)]


def swap(xp: Namespace, array: Array) -> Array:
    """(k, G, H, n) seen as (G, k, H, n) and the reverse; (k, H, n) as it is."""
    return array if array.ndim == 3 else xp.permute_dims(array, (1, 0, 2, 3))
