"""The time loop, once, for every gated cell; `bptt.py` is the way back.

Batches are packed (`runs.py`): nothing is computed past the end of a sequence. The batch can be divided into
parts whose loops run side by side. What needs no recurrence, the products of x, is done for blocks of steps.
Inside the loop arrays have features before batch, (H, n).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from xlstm import blas, fused, workspace
from xlstm.activations import normalize
from xlstm.backend import Array, Namespace, Params, device_of
from xlstm.fused import Fused, kernels_of, plain
from xlstm.kernels import Kernels
from xlstm.plan import Plan
from xlstm.runs import Run, Runs, reshape, split
from xlstm.threads import SOLO, Team

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


class Part(NamedTuple):
    """What a part of the batch went through, run by run."""

    runs: list[Run]
    starts: list[Array]  # h at the start of each run, (P, n)
    ends: list[Sequence[Array]]  # the states at the end of each run
    kept: list[list[Array]]  # of each run: carried states before, and what was saved, at every step: (k, ..., n)
    final: Sequence[Array]  # the state of each sequence at its own end


@dataclass(frozen=True)
class Saved:
    """What a forward pass over one layer and direction keeps for the backward pass.

    It refers to the arrays `x` and `y` of the call: do not change those in place before `backward`.
    """

    loop: Loop
    plan: Plan
    runs: Runs
    x: Array  # (N, D)
    hs: Array  # h before and after every step: (n, P) of the initial state, then y (N, P)
    parts: list[Part]
    normal: tuple[Array, Array] | None  # Wx x normalised (R, N) and 1 / its deviation, with layer_norm

    @property
    def xp(self) -> Namespace:
        return self.loop.xp

    @property
    def cell(self) -> Cell:
        return self.loop.cell  # type: ignore[no-any-return]

    @property
    def y(self) -> Array:
        """h after every step, (N, P)."""
        return self.hs[self.hs.shape[0] - self.x.shape[0] :, :]

    def state(self, name: str) -> Array:
        """A state after every step, (N, P) or (N, H)."""
        if name not in self.cell.STATES:
            raise AttributeError(f"this cell has no state {name}, only {', '.join(self.cell.STATES)}")
        if name == "h":
            return self.y
        k = self.cell.STATES.index(name)

        def after(kept: list[Array], end: Sequence[Array]) -> Array:
            return self.xp.concat((kept[k - 1][1:, ...], end[k][None, ...]))

        return self.rows(after, (self.loop.H,))

    @property
    def gates(self) -> Array:
        """Value of every gate at every step in the order of the cell's GATES, (N, G, H)."""
        xp, first = self.xp, len(self.cell.STATES) - 1

        def values(kept: list[Array], end: Sequence[Array]) -> Array:
            return swap(xp, self.cell.activated(xp, [swap(xp, a) for a in kept[first:]]))

        return self.rows(values, (len(self.cell.GATES), self.loop.H))

    def rows(self, of: Callable[[list[Array], Sequence[Array]], Array], shape: tuple[int, ...]) -> Array:
        """Arrays (k, ..., H, n) of every run, made of what is kept and of the end, as rows (N, ..., H)."""
        xp = self.xp
        found = xp.empty((self.x.shape[0], *shape), dtype=self.y.dtype, device=device_of(self.y))
        for part in self.parts:
            for run, kept, end in zip(part.runs, part.kept, part.ends, strict=True):
                a = of(kept, end)
                put(xp, found, run, xp.permute_dims(a, (0, a.ndim - 1, *range(1, a.ndim - 1))))
        return found


def run(passes: Sequence[Forward]) -> list[tuple[Array, Sequence[Array], Saved | None]]:
    """Run the directions of a layer: y (N, P), the final state, and Saved if that is kept, of each."""
    one = passes[0]
    compilable = all(p.loop.kernels is not None for p in passes)
    plan = Plan.of(one.xp, [p.loop.Wh for p in passes], one.state[0].shape[1], one.x.shape[0], compilable)
    with plan.team() as team:
        tasks = [p.tasks(plan, team) for p in passes]
        parts = iter(team.run([task for some in tasks for task in some]))
        return [p.finish(plan, [next(parts) for _ in some]) for p, some in zip(passes, tasks, strict=True)]


def step(xp: Namespace, cell: Cell, w: Params, x: Array, state: Sequence[Array], noise: Noise) -> None:
    """One step of one layer from x (B, D); the state, (B, P) and (B, H), is changed in place."""
    loop = Loop(xp, cell, w, noise)
    if x.shape[0] == 1 and w["Wh"].shape[0] * w["Wh"].shape[1] <= blas.SMALL and loop.kernels is not None:
        given = {name: p.reshape(-1, loop.H) for name, p in (*loop.biases.items(), *loop.own.items())}
        fused.step(loop.kernels, w, given, x[0, :], [s[0, :] for s in state])
        return
    inputs, _ = _project(loop, x, SOLO)
    one = loop.plain_step(loop.Wh) if loop.plain else functools.partial(loop.step, loop.Wh)
    after, _ = one(inputs, [s.T for s in state], Run(1, x.shape[0], 0, 0, x.shape[0]), 0)
    for s, new in zip(state, after, strict=True):
        s[...] = new.T


class Forward:
    """A pass over one layer and direction.

    Parameters
    ----------
    w : dict
        Parameters of the layer and direction under their last names, such as Wx.
    x : array (N, D)
        Packed rows.
    state : arrays (P, B) and (H, B)
        The initial state.
    keep : bool
        Keep what the backward pass needs.
    """

    def __init__(
        self,
        xp: Namespace,
        cell: Cell,
        w: Params,
        x: Array,
        runs: Runs,
        state: Sequence[Array],
        noise: Noise,
        keep: bool,
    ) -> None:
        self.xp, self.x, self.runs, self.state, self.keep = xp, x, runs, state, keep
        self.loop = Loop(xp, cell, w, noise)
        # h before and after every step: y with the initial state in front
        self.first = runs[0][1] if runs else 0  # sequences of the first step
        self.hs = workspace.empty(xp, (self.first + x.shape[0], w["Wh"].shape[1]), x)
        self.hs[: self.first, :] = state[0][:, : self.first].T
        self.y = self.hs[self.first :, :]
        self.inputs = self.normal = None

    def tasks(self, plan: Plan, team: Team) -> list[Callable[[], Part]]:
        """What is to be done for each part of the batch; the parts can be done side by side."""
        if self.xp is not np or "gx" in self.loop.w or plan.shared:
            # On a GPU one large product for all steps, on a CPU blocks that stay in the cache.
            self.inputs, self.normal = _project(self.loop, self.x, team)
        run: Callable[..., tuple[Sequence[Array], list[Array]]] = self._run
        if plan.shared:
            shared = self.loop.fused.run_shared
            run = functools.partial(shared, inputs=self.inputs, y=self.y, keep=self.keep, team=team)
        elif plan.compiled:
            run = functools.partial(self.loop.fused.run, x=plain(self.x), y=self.y, keep=self.keep)
        return [functools.partial(self._part, part, run) for part in split(self.runs, plan.parts)]

    def finish(self, plan: Plan, parts: list[Part]) -> tuple[Array, Sequence[Array], Saved | None]:
        """From the results of the tasks."""
        idle = [s[:, self.first :] for s in self.state]  # of sequences without any step
        final = [beside(self.xp, states) for states in zip(*(part.final for part in parts), idle, strict=True)]
        if not self.keep:
            return self.y, final, None
        return self.y, final, Saved(self.loop, plan, self.runs, self.x, self.hs, parts, self.normal)

    def _part(self, runs: list[Run], go: Callable[..., tuple[Sequence[Array], list[Array]]]) -> Part:
        part = Part(runs, [], [], [], [])
        finals: list[Sequence[Array]] = []  # of the sequences that end, the shortest first
        width = runs[0].n
        state: Sequence[Array] = [s[:, runs[0].columns] for s in self.state]
        for run in runs:
            if run.n < width:
                finals.append([s[:, run.n :] for s in state])
                state, width = [s[:, : run.n] for s in state], run.n
            part.starts.append(state[0])
            state, kept = go(run, state)
            part.ends.append(state)
            part.kept.append(kept)
        return part._replace(final=[beside(self.xp, s) for s in zip(state, *finals[::-1], strict=True)])

    def _run(self, run: Run, state: Sequence[Array]) -> tuple[Sequence[Array], list[Array]]:
        return self.loop.run(run, state, itertools.chain.from_iterable(self._blocks(run)), self.y, self.keep)

    def _blocks(self, run: Run) -> Iterator[Any]:
        """Products of x of consecutive steps, each (R, n), a block (k, R, n) at a time."""
        if self.inputs is not None:
            yield [self.inputs[:, run.rows(t)] for t in range(run.k)]
            return
        size = max(1, BLOCK // (self.loop.w["Wx"].shape[0] * run.n))
        for start in range(0, run.k, size):
            yield _project_block(self.loop, run.steps(self.xp, self.x, start, min(run.k, start + size)))


class Loop:
    """One time step, and what is the same for all of them."""

    def __init__(self, xp: Namespace, cell: Cell, w: Params, noise: Noise) -> None:
        self.xp, self.noise = xp, noise
        self.cell: Any = cell  # with `inner` or `own_bwd` where it needs them
        R = w["Wh"].shape[0]
        self.G = len(cell.GATES)
        self.H = R // self.G
        self.own = {}
        for name in OWN:
            if name in w:
                self.own[name] = reshape(xp, w[name], (-1, self.H, 1) if name == "p" else (-1, 1))
        self.Wh, self.inner = w["Wh"], None
        if cell.INNER:
            self.Wh, self.inner = self.Wh[: R - self.H, :], self.Wh[R - self.H :, :]
        self.Whr = w.get("Whr")
        self.zoneout = any([s is not None for s in noise.stay])
        self.gh = None if "gh" not in w else w["gh"][:, None]
        self.w, self.biases = w, _biases(cell, w)
        self.bh = self.biases["bh"][:, None] if "bh" in self.biases else None
        self.bare = not self.zoneout and noise.drop is None and self.Whr is None and self.gh is None
        self.plain = self.bare and not cell.SPLIT

    @functools.cached_property
    def kernels(self) -> Kernels | None:
        """The loop compiled, where it is to be and can be."""
        return kernels_of(self.cell, self.w["Wh"], self.own, self.biases) if self.bare and self.xp is np else None

    @functools.cached_property
    def fused(self) -> Fused:
        """The loop compiled, where there are kernels for it."""
        assert self.kernels is not None
        return Fused(self.kernels, self.w, self.own, self.biases)

    def run(
        self, run: Run, state: Sequence[Array], inputs: Iterator[Array], y: Array, keep: bool
    ) -> tuple[Sequence[Array], list[Array]]:
        """The state after a run, and what is kept of every step, from the state before and products of x."""
        xp, k = self.xp, run.k
        W = blas.blocks(self.Wh, run.n) if xp is np else self.Wh
        step = self.plain_step(W) if self.plain else functools.partial(self.step, W)
        taken: list[list[Array]] = []
        room: list[Array] = []
        large = self.Wh.shape[0] * run.n >= LARGE and k > 1
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

    def plain_step(self, W: Array) -> Callable[..., tuple[list[Array], list[Array]]]:
        """`step` without options, for cells that take the sum of both products."""
        xp, R, G, H = self.xp, self.Wh.shape[0], self.G, self.H
        gates = functools.partial(self.cell.gates, **self.own) if self.own else self.cell.gates

        def step(inputs: Array, state: Sequence[Array], run: Run, t: int) -> tuple[list[Array], list[Array]]:
            h, *carry = state
            z = reshape(xp, W @ h, (R, run.n))
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
        a = reshape(xp, W @ (h if drop is None else h * drop), (self.Wh.shape[0], n))
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


def product(W: Array, before: Array | None = None, after: Array | None = None) -> Callable[[Array], Array]:
    """The product with W inside a cell, with the mask on the side of h."""

    def apply(q: Array) -> Array:
        a = W @ (q if before is None else q * before)
        return a if after is None else a * after

    return apply


def columns(a: Any, rows: slice) -> Any:
    """One step of rows (N, P), seen as columns (P, n); numbers and None stay what they are."""
    return a[rows, :].T if hasattr(a, "shape") else a


def beside(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Columns side by side; one array with any is returned as it is."""
    some = [a for a in arrays if a.shape[1]] or arrays[:1]
    return some[0] if len(some) == 1 else xp.concat(some, axis=1)


def put(xp: Namespace, rows: Array, run: Run, values: Array) -> None:
    """Write (k, n, ...) to the rows of a run."""
    if run.n == run.width:
        rows[run.at : run.at + run.k * run.n, ...] = reshape(xp, values, (run.k * run.n, *values.shape[2:]))
    else:
        run.steps(xp, rows, 0, run.k)[...] = values


def _project(loop: Loop, x: Array, team: Team) -> tuple[Array, tuple[Array, Array] | None]:
    """Wx x + b of all steps in one product, (R, N), and with layer_norm Wx x normalised and 1 / its deviation."""
    xp, w = loop.xp, loop.w
    if team.size == 1:
        inputs = w["Wx"] @ x.T
    else:
        inputs = workspace.empty(xp, (w["Wx"].shape[0], x.shape[0]), x)
        team.product(w["Wx"], x.T, inputs)
    normal = None
    if "gx" in w:
        normal = normalize(xp, inputs, 0)
        inputs = w["gx"][:, None] * normal[0]
    if "b" in loop.biases:
        inputs += loop.biases["b"][:, None]
    return inputs, normal


def _project_block(loop: Loop, x: Array) -> Array:
    """Wx x + b of steps x (k, n, D), each step by itself in memory: (k, R, n)."""
    k, n, D = x.shape
    Wx, bias = loop.w["Wx"], loop.biases.get("b")
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
