"""The time loop, once, for every gated cell; `bptt.py` is the way back.

Batches are packed (`runs.py`): nothing is computed past the end of a sequence. The batch can be divided into
parts whose loops run side by side.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import blas, workspace
from xlstm.arrays.backend import Array, Namespace, Params, device_of
from xlstm.arrays.threads import Team
from xlstm.engines.numba import fused
from xlstm.engines.numba.fused import plain
from xlstm.engines.plan import Plan
from xlstm.engines.runs import Run, Runs, split
from xlstm.recurrence.loop import BLOCK, Cell, Loop, Noise, project, project_block, swap
from xlstm.recurrence.ondevice import OnDevice, on_device
from xlstm.recurrence.parts import Later, Part, beside, put
from xlstm.recurrence.recompute import again


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
    device: OnDevice | None  # where the pass ran in kernels of its own

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
    compilable = all(p.device is None and p.loop.kernels is not None for p in passes)
    weights = [p.loop.Wh for p in passes]
    N, D = one.x.shape
    plan = Plan.of(one.xp, weights, D, one.loop.P, one.state[0].shape[1], N, compilable)

    def work(team: Team) -> list[tuple[Array, Sequence[Array], Saved | None]]:
        tasks = [p.tasks(plan, team) for p in passes]
        parts = iter(plan.run(team, [task for some in tasks for task in some]))
        return [p.finish(plan, [next(parts) for _ in some]) for p, some in zip(passes, tasks, strict=True)]

    return plan.work(work)


def step(xp: Namespace, cell: Cell, w: Params, x: Array, state: Sequence[Array], noise: Noise) -> None:
    """One step of one layer from x (B, D); the state, (B, P) and (B, H), is changed in place."""
    largest = x.shape[0] * max(w["Wh"].size, w["Wx"].size if "Wx" in w else 0) if xp is np else 0
    if largest <= blas.SINGLE:
        _step(xp, cell, w, x, state, noise)
    else:
        blas.in_turn(lambda: _step(xp, cell, w, x, state, noise))


def _step(xp: Namespace, cell: Cell, w: Params, x: Array, state: Sequence[Array], noise: Noise) -> None:
    loop = Loop(xp, cell, w, noise)
    small = x.shape[0] == 1 and math.prod(w["Wh"].shape) <= blas.SMALL
    if small and w["Wh"].ndim == 2 and "Wx" in w and loop.kernels is not None:
        given = {name: p.reshape(-1, loop.H) for name, p in (*loop.biases.items(), *loop.own.items())}
        fused.step(loop.kernels, w, given | cell.numbers, x[0, :], [s[0, :] for s in state])
        return
    inputs, _ = project(loop, x)
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
        Packed rows; where `w` has no Wx, they are the products of x, (N, R), and their gradient is that by x.
    state : arrays (P, B) and (H, B)
        The initial state.
    keep : bool
        Keep what the backward pass needs.
    recompute : bool
        Keep of that only the states, and make the rest again when it is asked for.
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
        recompute: bool = False,
    ) -> None:
        self.xp, self.x, self.runs, self.state, self.keep, self.recompute = xp, x, runs, state, keep, recompute
        self.loop = loop = Loop(xp, cell, w, noise)
        # h before and after every step: y with the initial state in front
        self.first = runs[0][1] if runs else 0  # sequences of the first step
        self.hs = workspace.empty(xp, (self.first + x.shape[0], self.loop.P), x)
        self.hs[: self.first, :] = state[0][:, : self.first].T
        self.y = self.hs[self.first :, :]
        self.device = on_device(loop, x, runs, self.hs, keep, recompute)
        self.inputs: Array | None = None
        self.normal: tuple[Array, Array] | None = None

    def tasks(self, plan: Plan, team: Team) -> list[Callable[[], Part]]:
        """What is to be done for each part of the batch; the parts can be done side by side."""
        run: Callable[..., tuple[Sequence[Array], list[Array]]] = self._run
        if self.device is not None:
            return [functools.partial(self.device.forward, self.state[1:])]
        if plan.shared:
            inputs = plain(self.x)
            if "Wx" in self.loop.w:
                Wx = self.loop.w["Wx"]
                inputs = workspace.empty(self.xp, (self.x.shape[0], Wx.shape[0]), self.x)
                team.product(self.x, Wx.T, inputs)
            shared = self.loop.fused.run_shared
            run = functools.partial(shared, inputs=inputs, y=self.y, keep=self.keep, team=team)
        elif plan.compiled:
            run = functools.partial(self.loop.fused.run, x=plain(self.x), y=self.y, keep=self.keep)
        elif self.xp is not np or "gx" in self.loop.w:
            # On a GPU one large product for all steps, on a CPU blocks that stay in the cache.
            self.inputs, self.normal = project(self.loop, self.x)
        return [functools.partial(self._part, part, run) for part in split(self.runs, plan.parts)]

    def finish(self, plan: Plan, parts: list[Part]) -> tuple[Array, Sequence[Array], Saved | None]:
        """From the results of the tasks."""
        idle = [s[:, self.first :] for s in self.state]  # of sequences without any step
        final = [beside(self.xp, states) for states in zip(*(part.final for part in parts), idle, strict=True)]
        if not self.keep:
            return self.y, final, None
        if self.recompute and self.device is None:
            make = functools.partial(again, self.loop, self.x, self.y)
            parts = [part._replace(kept=Later(functools.partial(make, part), len(part.runs))) for part in parts]
        saved = Saved(self.loop, plan, self.runs, self.x, self.hs, parts, self.normal, self.device)
        return self.y, final, saved

    def _part(self, runs: list[Run], go: Callable[..., tuple[Sequence[Array], list[Array]]]) -> Part:
        starts: list[Array] = []
        ends: list[Sequence[Array]] = []
        keeps: list[list[Array]] = []
        finals: list[Sequence[Array]] = []  # of the sequences that end, the shortest first
        width = runs[0].n
        state: Sequence[Array] = [s[:, runs[0].columns] for s in self.state]
        for run in runs:
            if run.n < width:
                finals.append([s[:, run.n :] for s in state])
                state, width = [s[:, : run.n] for s in state], run.n
            starts.append(state[0])
            state, kept = go(run, state)
            ends.append(state)
            keeps.append(kept[: len(state) - 1] if self.recompute else kept)
        return Part(runs, starts, ends, keeps, [beside(self.xp, s) for s in zip(state, *finals[::-1], strict=True)])

    def _run(self, run: Run, state: Sequence[Array]) -> tuple[Sequence[Array], list[Array]]:
        return self.loop.run(run, state, itertools.chain.from_iterable(self._blocks(run)), self.y, self.keep)

    def _blocks(self, run: Run) -> Iterator[Any]:
        """Products of x of consecutive steps, each (R, n), a block (k, R, n) at a time."""
        if self.inputs is not None:
            yield [self.inputs[:, run.rows(t)] for t in range(run.k)]
            return
        size = max(1, BLOCK // (self.loop.G * self.loop.H * run.n))
        for start in range(0, run.k, size):
            yield project_block(self.loop, run.steps(self.xp, self.x, start, min(run.k, start + size)))
