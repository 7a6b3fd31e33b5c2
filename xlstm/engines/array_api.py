"""The reference engine: every option, on any array library, one step after the other."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import workspace
from xlstm.arrays.namespace import Array
from xlstm.engines import plan
from xlstm.engines.options import Options
from xlstm.engines.segments import Segment, Widths, beside, joined, reshape, split
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Kept, Tape, swap

# On a CPU the products of x are made for as many steps at once as make about this many numbers, which are still in the
# cache when their step comes; and local derivatives for as many steps as make about this many.
PROJECTED, DERIVED = 65536, 32768
WIDE = 16  # so many sequences at a step make a quick matrix product by themselves


class ArrayApi:
    """Runs the cell's own functions step by step."""

    name = "array_api"

    def __reduce__(self) -> str:
        """Copy and pickle it as the one there is."""
        return "ARRAY_API"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return "", for it takes everything."""
        return ""

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps; see `Engine`."""
        tape = Tape(self, step, widths, x, state[0])
        zx = None
        if step.xp is not np or "gx" in step.w:  # one large product; elsewhere blocks that stay in the cache
            zx, tape.normal = step.project(x)
        tape.rule = rule = plan.choose(step, x, tape.first)
        parts = split(widths, rule.parts)
        done = rule.run(functools.partial(self._run, tape, zx, state, keep), parts)
        tape.kept = [kept for _, kept in done]
        return tape.y, joined(step.xp, [final for final, _ in done], state, tape.first), tape

    def _run(
        self, tape: Tape, projected: Array | None, state: Sequence[Array], keep: str, part: Sequence[Segment]
    ) -> tuple[list[Array], list[Kept]]:
        """Run a part of the batch: the state of each sequence at its own end, and what is kept of each segment."""
        step, y = tape.step, tape.y
        xp, gates, own = step.xp, step.cell.gates, step.own
        kept: list[Kept] = []
        ended: list[Sequence[Array]] = []  # states of the sequences that are over, the longest first
        state = [s[:, part[0].first : part[0].first + part[0].n] for s in state]
        for segment in part:
            k, n, row = segment.k, segment.n, segment.at + segment.first
            if n < state[0].shape[1]:
                ended.insert(0, [s[:, n:] for s in state])
                state = [s[:, :n] for s in state]
            options = None if step.bare else Options(step, segment)
            # Arrays for all steps: a large step then works in the memory that the step before gave back.
            rooms: list[list[Any]] = []
            groups: Sequence[Any] = ()
            carry = [workspace.empty(xp, (k + 1, *s.shape), s) for s in state[1:]] if keep != "nothing" else []
            for room, s in zip(carry, state[1:], strict=False):
                room[0, ...] = s
            for t, zx in enumerate(_projected(tape, projected, segment)):
                if options is None:
                    *state, saved = gates(xp, zx, step.recur(step.Wh, state[0]), *state, **own)
                    groups = (saved,)
                else:
                    state, *groups = options.forward(t, step.Wh, zx, state)
                y[row : row + n, :] = state[0].T
                row += segment.width
                if keep == "nothing":
                    continue
                for room, s in zip(carry, state[1:], strict=True):
                    room[t + 1, ...] = s
                if keep == "states":
                    continue
                if t == 0:
                    rooms = [
                        [None if a is None else workspace.empty(xp, (k, *a.shape), a) for a in group]
                        for group in groups
                    ]
                for group, arrays in zip(rooms, groups, strict=True):
                    for room, a in zip(group, arrays, strict=True):
                        if a is not None:
                            room[t, ...] = a
            if keep != "nothing":
                saved = groups[0]._make(rooms.pop(0)) if rooms else None
                kept.append(Kept(segment, carry, saved, *map(tuple, rooms)))
        return [beside(xp, s) for s in zip(state, *ended, strict=True)] if ended else list(state), kept

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
        return found, joined(step.xp, starts, dstate, tape.first)

    def _run_bwd(
        self, tape: Tape, WT: Array, dy: Array | None, dend: Sequence[Array], found: Gradients, part: Sequence[Kept]
    ) -> list[Array]:
        """Differentiate a part of the batch; return the gradient of its initial state."""
        step = tape.step
        xp, cell = step.xp, step.cell
        dstate = [d[:, :0] for d in dend]
        for kept in reversed(part):
            segment, have, kept = kept.segment, dstate[0].shape[1], tape.complete(kept)
            n, first = segment.n, segment.first
            if have < n:  # the gradient of the sequences that end here is that of the final state
                ends = [d[:, first + have : first + n] for d in dend]
                dstate = [beside(xp, pair) for pair in zip(dstate, ends, strict=True)] if have else ends
            options = None if step.bare else Options(step, segment)
            own = step.own if options is None else options.own
            block = max(1, DERIVED // max(1, step.G * step.H * n))
            for stop in range(segment.k, 0, -block):
                start = max(0, stop - block)
                carry = [c[start:stop, ...] for c in kept.carry]
                saved = kept.saved._make([None if a is None else swap(xp, a[start:stop, ...]) for a in kept.saved])
                local = cell.derivatives(xp, saved, *carry, **own)
                for t in range(stop - 1, start - 1, -1):
                    here = local._make([None if a is None else a[..., t - start, :, :] for a in local])
                    rows = segment.rows(t)
                    if dy is not None:
                        dstate[0] = dstate[0] + dy[rows, :].T
                    if options is None:
                        dzx, dzh, dh0, *dcarry = cell.gates_bwd(xp, here, *dstate, **own)
                        dh = step.recur_bwd(WT, found.put_products(rows, dzx, dzh))
                        dstate = [dh if dh0 is None else dh + dh0, *dcarry]
                    else:
                        normal = [a[t, ...] for a in kept.normal]
                        dstate = options.backward(t, WT, here, dstate, normal, found)
        return dstate


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
    """Return Wx x + b of steps x (k, n, D) of NumPy, each step by itself in memory: (k, G H, n)."""
    k, n, D = x.shape
    if "Wx" not in step.w:
        z = np.array(x.transpose(0, 2, 1), order="C")
    elif n < WIDE:
        z = np.ascontiguousarray((x.reshape(k * n, D) @ step.w["Wx"].T).reshape(k, n, -1).transpose(0, 2, 1))
    else:
        z = workspace.empty(np, (k, step.G * step.H, n), x)
        np.matmul(step.w["Wx"], np.ascontiguousarray(x.transpose(0, 2, 1)), out=z)
    if step.b is not None:
        z += step.b[:, None]
    return z


def _transposed(W: Array) -> Array:
    """Return W^T as a copy: OpenBLAS is 10 % quicker than on a view."""
    return reshape(reshape(W.T, (W.shape[0] * W.shape[1],)), (W.shape[1], W.shape[0]))


ARRAY_API = ArrayApi()
