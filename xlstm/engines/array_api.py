"""The reference engine: every option, on any array library, one step after the other."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import blas, workspace
from xlstm.arrays.backend import Array
from xlstm.engines import plan
from xlstm.engines.options import Options
from xlstm.engines.segments import Segment, Widths, beside, reshape, split
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Kept, Tape, swap

# On a CPU the products of x are made for as many steps at once as make about this many numbers, which are still in the
# cache when their step comes; and local derivatives for as many steps as make about this many.
PROJECTED, DERIVED = 65536, 32768
WIDE = 16  # so many sequences at a step make a quick matrix product by themselves


class ArrayApi:
    """Runs the cell's own functions step by step."""

    name = "array_api"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return "", for it takes everything."""
        return ""

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps; see `Engine`."""
        tape = Tape(self, step, widths, x)
        tape.hs[: tape.first, :] = state[0][:, : tape.first].T
        zx = None
        if step.xp is not np or "gx" in step.w:  # one large product; elsewhere blocks that stay in the cache
            zx, tape.normal = step.project(x)
        tape.rule = plan.choose(step, x, tape.first, compiled=False)
        done = tape.rule.run(functools.partial(self._run, tape, zx, state, keep), split(widths, tape.rule.parts))
        tape.kept = [kept for _, kept in done]
        idle = [s[:, tape.first :] for s in state]  # of sequences without any step
        return tape.y, [beside(step.xp, s) for s in zip(*(final for final, _ in done), idle, strict=True)], tape

    def _run(
        self, tape: Tape, projected: Array | None, state: Sequence[Array], keep: str, part: Sequence[Segment]
    ) -> tuple[list[Array], list[Kept]]:
        step, y = tape.step, tape.y
        xp, gates, H, bh, own = step.xp, step.cell.gates, step.H, step.bh, step.own
        kept: list[Kept] = []
        ended: list[Sequence[Array]] = []  # states of the sequences that are over, the longest first
        state = [s[:, part[0].first : part[0].first + part[0].n] for s in state]
        for segment in part:
            n = segment.n
            if n < state[0].shape[1]:
                ended.insert(0, [s[:, n:] for s in state])
                state = [s[:, :n] for s in state]
            W = blas.blocks(step.Wh, n) if xp is np and not step.heads else step.Wh
            options = None if step.bare else Options(step, segment)
            room = _Room(step, segment, state) if keep != "nothing" else None
            normal = out = ()
            for t, zx in enumerate(_projected(tape, projected, segment)):
                if options is None:
                    zh = step.recur(W, state[0])
                    if bh is not None:
                        zh = zh + bh[:, None]
                    *state, saved = gates(xp, zx, reshape(zh, (-1, H, n)), *state, **own)
                else:
                    state, saved, normal, out = options.forward(t, W, zx, state)
                y[segment.rows(t), :] = state[0].T
                if room is not None:
                    room.put(t, state, saved if keep == "all" else None, normal, out)
            if room is not None:
                kept.append(room.kept())
        return [beside(xp, s) for s in zip(state, *ended, strict=True)], kept

    def step(self, step: Step, x: Array, state: Sequence[Array]) -> list[Array]:
        """Run one step from x (B, D); return the state after it."""
        zx, _ = step.project(x)
        zx = reshape(zx, (step.G, step.H, x.shape[0]))
        options = Options(step, Segment(1, x.shape[0], 0, 0, x.shape[0]))
        return options.forward(0, step.Wh, zx, [s.T for s in state])[0]

    def backward(self, tape: Tape, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; see `Engine`."""
        step, found = tape.step, Gradients(tape)
        WT = step.xp.asarray(step.xp.matrix_transpose(step.Wh), copy=True) if step.heads else _transposed(step.Wh)
        starts = tape.rule.run(functools.partial(self._run_bwd, tape, WT, dy, dstate, found), tape.kept)
        idle = [d[:, tape.first :] for d in dstate]
        return found, [beside(step.xp, d) for d in zip(*starts, idle, strict=True)]

    def _run_bwd(
        self, tape: Tape, WT: Array, dy: Array | None, dend: Sequence[Array], found: Gradients, part: Sequence[Kept]
    ) -> list[Array]:
        step = tape.step
        xp, cell = step.xp, step.cell
        dstate = [d[:, :0] for d in dend]
        for kept in reversed(part):
            kept = tape.complete(kept)
            segment = kept.segment
            n, first = segment.n, segment.first
            # The gradient of the sequences that end here is that of the final state.
            have = dstate[0].shape[1]
            dstate = [beside(xp, (d, e[:, first + have : first + n])) for d, e in zip(dstate, dend, strict=True)]
            W = blas.blocks(WT, n) if xp is np and not step.heads else WT
            options = None if step.bare else Options(step, segment)
            own = step.own if options is None else options.own
            block = max(1, DERIVED // max(1, step.R * n))
            for stop in range(segment.k, 0, -block):
                start = max(0, stop - block)
                carry = [c[start:stop, ...] for c in kept.carry]
                saved = kept.saved._make([None if a is None else swap(xp, a[start:stop, ...]) for a in kept.saved])
                local = cell.derivatives(xp, saved, *carry, **own)
                for t in range(stop - 1, start - 1, -1):
                    rows = segment.rows(t)
                    here = local._make([None if a is None else a[..., t - start, :, :] for a in local])
                    if dy is not None:
                        dstate[0] = dstate[0] + dy[rows, :].T
                    if options is None:
                        dzx, dzh, dh0, *dcarry = cell.gates_bwd(xp, here, *dstate, **own)
                        dh = step.recur_bwd(W, found.put_products(rows, dzx, dzh))
                        dstate = [dh if dh0 is None else dh + dh0, *dcarry]
                    else:
                        normal = [a[t, ...] for a in kept.normal]
                        dstate = options.backward(t, W, here, dstate, normal, found)
        return dstate


class _Room:
    """Arrays for what is kept of every step of a segment.

    A large step then works in the memory that the step before gave back, where keeping its arrays would make the
    system provide fresh pages all along.
    """

    def __init__(self, step: Step, segment: Segment, state: Sequence[Array]) -> None:
        self.step, self.segment = step, segment
        self.carry = [self._empty(segment.k + 1, s) for s in state[1:]]
        for kept, s in zip(self.carry, state[1:], strict=True):
            kept[0, ...] = s
        self.arrays: list[list[Any]] | None = None  # of what the cell saved, of the normalisation, of the projection
        self.saved: Any = None

    def put(self, t: int, state: Sequence[Array], saved: Any, normal: Sequence[Array], out: Sequence[Array]) -> None:
        """Keep step t."""
        for kept, s in zip(self.carry, state[1:], strict=True):
            kept[t + 1, ...] = s
        groups = (() if saved is None else saved, normal, out)
        if self.arrays is None:
            self.saved = saved
            k = self.segment.k
            self.arrays = [[None if a is None else self._empty(k, a) for a in group] for group in groups]
        for group, arrays in zip(self.arrays, groups, strict=True):
            for kept, a in zip(group, arrays, strict=True):
                if kept is not None:
                    kept[t, ...] = a

    def kept(self) -> Kept:
        """Return what was kept, under its names."""
        assert self.arrays is not None
        saved, normal, out = self.arrays
        made = None if self.saved is None else self.saved._make(saved)
        return Kept(self.segment, self.carry, made, tuple(normal), tuple(out))

    def _empty(self, k: int, like: Array) -> Array:
        return workspace.empty(self.step.xp, (k, *like.shape), like)


def _projected(tape: Tape, zx: Array | None, segment: Segment) -> Iterator[Array]:
    """Yield the products of x at each step of a segment, (G, H, n)."""
    step, n = tape.step, segment.n
    shape = (step.G, step.H, n)
    if zx is not None:
        for t in range(segment.k):
            yield reshape(zx[:, segment.rows(t)], shape)
        return
    size = max(1, PROJECTED // (step.G * step.H * n))
    for start in range(0, segment.k, size):
        for one in _project_block(step, segment.steps(tape.x, start, min(segment.k, start + size))):
            yield one.reshape(shape)


def _project_block(step: Step, x: Array) -> Array:
    """Return Wx x + b of steps x (k, n, D) of NumPy, each step by itself in memory: (k, R, n)."""
    k, n, D = x.shape
    if "Wx" not in step.w:
        z = np.array(x.transpose(0, 2, 1), order="C")
    elif n < WIDE:
        z = np.ascontiguousarray((x.reshape(k * n, D) @ step.w["Wx"].T).reshape(k, n, -1).transpose(0, 2, 1))
    else:
        W, columns = blas.blocks(step.w["Wx"], n), np.ascontiguousarray(x.transpose(0, 2, 1))
        z = workspace.empty(np, (k, *W.shape[:-1], n), x)
        np.matmul(W, columns if W.ndim == 2 else columns[:, None], out=z)
        z = z.reshape(k, -1, n)
    if step.b is not None:
        z += step.b[:, None]
    return z


def _transposed(W: Array) -> Array:
    """Return W^T as a copy: OpenBLAS is 10 % quicker than on a view."""
    return reshape(reshape(W.T, (W.shape[0] * W.shape[1],)), (W.shape[1], W.shape[0]))


ARRAY_API = ArrayApi()
