"""The reference engine: every option, on any array library, step by step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from xlstm.arrays.matmul import product
from xlstm.arrays.namespace import Array, Params, reshape
from xlstm.cells.normalization import layer_norm, layer_norm_bwd
from xlstm.engines import scans
from xlstm.engines.cell_step import Step, Stream
from xlstm.engines.tape import (
    Gradients,
    Segment,
    SegmentTape,
    Tape,
    Widths,
    beside,
    segments,
    swap,
    with_idle,
)

# Local derivatives are computed for several steps at once: about this many numbers, which stay in a
# CPU's cache.
DERIVED = 32768


class ArrayApi:
    """The engine that runs the cell's own functions step by step."""

    name = "array_api"

    def __reduce__(self) -> str:
        """Copy and pickle the engine as its only instance."""
        return "ARRAY_API"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return "": it runs every step."""
        return ""

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps; see `Engine`."""
        tape = Tape(self, step, widths, x, state[0])
        xp = step.xp
        y = tape.y
        recur = step.recur
        gates = step.cell.gates
        own = step.own
        device = x.device
        zx, tape.normal = step.project(x)  # (1) all steps at once, (R, N)
        # final states of the sequences that have ended, the longest first
        ended: list[Sequence[Array]] = []
        parts = segments(tuple(widths))
        for segment in scans.blocks(step, parts) if step.linear else parts:
            k, n, row = segment
            if n < state[0].shape[1]:
                ended.insert(0, [s[:, n:] for s in state])
                state = [s[:, :n] for s in state]
            options = None if step.bare else Options(step, segment)
            groups: Sequence[Any] = ()
            # Arrays for all steps: a large step can then reuse the memory of the step before.
            carry = []
            buffers = []
            for s in state[1:] if keep != "nothing" else ():
                carry.append(buffer := xp.empty((k + 1, *s.shape), dtype=s.dtype, device=device))
                buffer[0, ...] = s
                buffers.append(buffer[1:, ...])
            products = step.reshape(zx[:, row : row + k * n], (step.G, step.H, k, n))
            if step.linear:
                h, saved = scans.forward(step, segment, products, state[0], y)
                state = [h]
                if keep != "nothing":
                    tape.kept.append(SegmentTape(segment, (), saved if keep == "all" else None))
                continue
            for t in range(k):
                if options is None:
                    # (3) (4)
                    *state, saved = gates(
                        xp, products[:, :, t, :], recur(step.Wh, state[0]), *state, **own
                    )
                    groups = (saved,)
                else:
                    state, *groups = options.forward(t, step.Wh, products[:, :, t, :], state)
                y[row : row + n, :] = state[0].T  # (8)
                row += n
                if keep == "nothing":
                    continue
                values = [*state[1:], *itertools.chain(*groups)] if keep == "all" else state[1:]
                if len(buffers) < len(values):
                    more = values[len(buffers) :]
                    buffers += [
                        None if a is None else xp.empty((k, *a.shape), dtype=a.dtype, device=device)
                        for a in more
                    ]
                for buffer, a in zip(buffers, values, strict=True):
                    if a is not None:
                        buffer[t, ...] = a
            if keep != "nothing":
                saved = None
                others = []
                if keep == "all":
                    left = iter(buffers[len(carry) :])
                    first, *others = [tuple(itertools.islice(left, len(group))) for group in groups]
                    saved = groups[0]._make(first)
                tape.kept.append(SegmentTape(segment, carry, saved, *others))
        end = [beside(xp, s) for s in zip(state, *ended, strict=True)] if ended else list(state)
        if keep == "nothing":  # a cell may return a state unchanged
            end = list(map(functools.partial(xp.asarray, copy=True), end))
        return y, end, tape

    def stream(self, step: Step) -> Stream:
        """Return a function that runs single steps; see `Engine`."""

        def run(w: Params, x: Array, state: Sequence[Array]) -> tuple[Array, Sequence[Array]]:
            return self.step(Step(step.xp, step.cell, w, step.masks), x, state)

        return run

    def step(self, step: Step, x: Array, state: Sequence[Array]) -> tuple[Array, Sequence[Array]]:
        """Run a single step, like a function from `stream`."""
        zx, _ = step.project(x)
        zx = reshape(zx, (step.G, step.H, x.shape[0]))
        before = [s.T for s in state]
        if step.bare:
            zh = step.recur(step.Wh, before[0])
            *after, _ = step.cell.gates(step.xp, zx, zh, *before, **step.own)
        else:
            options = Options(step, Segment(1, x.shape[0], 0))
            after, *_ = options.forward(0, step.Wh, zx, before)
        # A cell may return a state unchanged.
        states = [step.xp.asarray(s.T, copy=True) for s in after]
        return states[0], states

    def backward(
        self, tape: Tape, dy: Array | None, dstate: Sequence[Array]
    ) -> tuple[Gradients, list[Array]]:
        """Compute the gradients of all steps; see `Engine`."""
        step = tape.step
        gradients = Gradients(tape)
        xp = step.xp
        cell = step.cell
        dend = dstate
        WT = step.Wh
        if step.heads:
            WT = xp.asarray(xp.matrix_transpose(WT), copy=True)
        elif step.recurrent:
            WT = _transposed(WT)
        dstate = [d[:, :0] for d in dend]
        for segment_tape in map(tape.complete, reversed(tape.kept)):
            segment = segment_tape.segment
            have = dstate[0].shape[1]
            n = segment.n
            if have < n:  # sequences that end here begin with the final state's gradient
                dstate = [
                    beside(xp, (d, end[:, have:n])) for d, end in zip(dstate, dend, strict=True)
                ]
            options = None if step.bare else Options(step, segment)
            own = step.own if options is None else options.own
            if step.linear:
                dstate = [scans.backward(step, segment_tape, dy, dstate[0], gradients)]
                continue
            block = max(1, DERIVED // max(1, step.R * n))
            for stop in range(segment.k, 0, -block):
                start = max(0, stop - block)
                carry = [c[start:stop, ...] for c in segment_tape.carry]
                saved = segment_tape.saved._make(
                    [
                        None if a is None else swap(xp, a[start:stop, ...])
                        for a in segment_tape.saved
                    ]
                )
                local = cell.derivatives(xp, saved, *carry, **own)
                for t in range(stop - 1, start - 1, -1):
                    here = local._make(
                        [None if a is None else a[..., t - start, :, :] for a in local]
                    )
                    rows = segment.rows(t)
                    if dy is not None:
                        dstate[0] = dstate[0] + dy[rows, :].T  # (8)
                    if options is None:
                        dzx, dzh, dh0, *dcarry = cell.gates_bwd(xp, here, *dstate, **own)  # (4)
                        dh = step.recur_bwd(WT, gradients.put_products(rows, dzx, dzh))  # (3)
                        # (3) and (4) through h0
                        dstate = [dh if dh0 is None else dh + dh0, *dcarry]
                    else:
                        normal = [a[t, ...] for a in segment_tape.normal]
                        dstate = options.backward(t, WT, here, dstate, normal, gradients)
        return gradients, with_idle(xp, dstate, dend, tape.first)


class Options:
    """The steps of one segment with the options around the cell.

    The options are recurrent dropout, normalisation of the product with h, projection of h, and
    zoneout.
    """

    def __init__(self, step: Step, segment: Segment) -> None:
        self.step = step
        self.segment = segment
        self.gh = step.w["gh"][:, None] if "gh" in step.w else None
        self.drop = step.masks.drop
        self.own: Params = step.own
        if self.drop is not None:
            self.drop = self.drop[:, : segment.n]
            if "drop" in step.cell.OWN:
                self.own = {**step.own, "drop": self.drop}

    def forward(
        self, t: int, W: Array, zx: Array, state: Sequence[Array]
    ) -> tuple[list[Array], Any, tuple[Array, ...], tuple[Array, ...]]:
        """Return the state after step t, the `saved` of the cell, the normalised product with h,
        and h before projection.
        """
        step = self.step
        xp = step.xp
        h = state[0] if self.drop is None else state[0] * self.drop  # (2)
        normal: tuple[Array, ...] = ()
        if self.gh is None:
            zh = step.recur(W, h)  # (3)
        else:
            # (3) (7)
            zh, normal = layer_norm(
                xp, reshape(product(xp, W, h), (step.R, h.shape[1])), self.gh, 0
            )
            zh = reshape(
                zh if step.bh is None else zh + step.bh[:, None],
                (step.R // step.H, step.H, h.shape[1]),
            )
        h, *carry, saved = step.cell.gates(xp, zx, zh, *state, **self.own)  # (4)
        out: tuple[Array, ...] = ()
        if step.Whr is not None:
            out = (h,)
            h = product(xp, step.Whr, h)  # (5)
        new = [h, *carry]
        if step.zoneout:
            # (6)
            new = [
                b if s is None else s * a + (1 - s) * b
                for a, b, s in zip(state, new, self._shares(t), strict=True)
            ]
        return new, saved, normal, out

    def backward(
        self,
        t: int,
        WT: Array,
        local: Any,
        dstate: Sequence[Array],
        normal: Sequence[Array],
        found: Gradients,
    ) -> list[Array]:
        """Return the gradients of the states before step t from those after it; other gradients go
        to `found`.
        """
        step = self.step
        xp = step.xp
        rows = self.segment.rows(t)
        # The gradients that zoneout passes directly to the old state.
        direct: list[Array | None] = [None] * len(dstate)
        if step.zoneout:
            # (6)
            direct = [
                None if s is None else s * d for d, s in zip(dstate, self._shares(t), strict=True)
            ]
            # (6)
            dstate = [
                d if passed is None else d - passed
                for d, passed in zip(dstate, direct, strict=True)
            ]
        dh, *dcarry = dstate
        if step.Whr is not None:
            found.put("out", rows, dh)  # (5)
            dh = product(xp, step.Whr.T, dh)  # (5)
        dzx, dzh, dh0, *dcarry = step.cell.gates_bwd(xp, local, dh, *dcarry, **self.own)  # (4)
        da = found.put_products(rows, dzx, dzh)
        if self.gh is not None:
            # (7)
            da = found.put("a", rows, layer_norm_bwd(xp, da, self.gh, normal[0], normal[1], 0))
        dh = step.recur_bwd(WT, da)  # (3)
        if self.drop is not None:
            dh = dh * self.drop  # (2)
        if dh0 is not None:
            dh = dh + dh0  # (2) and (4) through h0
        # (6)
        return [
            d if passed is None else d + passed
            for d, passed in zip((dh, *dcarry), direct, strict=True)
        ]

    def _shares(self, t: int) -> list[Any]:
        rows = self.segment.rows(t)
        return [
            s if s is None or isinstance(s, float) else s[rows, :].T
            for s in self.step.masks.zoneout
        ]


def _transposed(W: Array) -> Array:
    """Return a copy of W^T: OpenBLAS is 10 % faster with it than with a view."""
    return reshape(reshape(W.T, (W.shape[0] * W.shape[1],)), (W.shape[1], W.shape[0]))


ARRAY_API = ArrayApi()
