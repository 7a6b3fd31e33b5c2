"""The engine for NumPy arrays: the time loop of a cell, compiled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import blas, workspace
from xlstm.arrays.namespace import Array
from xlstm.arrays.threads import Team
from xlstm.engines import plan
from xlstm.engines.numba import codegen, jit, shared
from xlstm.engines.numba.codegen import Kernels
from xlstm.engines.segments import Segment, Widths, beside, joined, split
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Kept, Tape

# Up to so many weights the loop multiplies a single sequence by them faster than BLAS: they fit the cache.
WEIGHTS = 1 << 17
# The products of x of so many steps of a single sequence are made at once.
STEPS = 512
DTYPES = {np.dtype(name): name for name in ("float32", "float64")}
NO_ROWS = {dtype: np.empty((0, 0), dtype) for dtype in DTYPES}
NO_ROW = {dtype: np.empty(0, dtype) for dtype in DTYPES}


class Numba:
    """Runs loops that Numba compiled from a cell's trace."""

    name = "numba"

    def __reduce__(self) -> str:
        """Copy and pickle it as the one there is."""
        return "NUMBA"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step, or ""."""
        if step.xp is not np:
            return "it runs NumPy arrays"
        if not jit.enabled():
            return f"{jit.VARIABLE} is 0, or Numba is not installed"
        if step.obstacle:
            return f"no compiled loop does {step.obstacle}"
        if step.Wh.dtype not in DTYPES:
            return f"no compiled loop has {step.Wh.dtype}"
        step.compiled = _kernels(step)
        return "" if step.compiled else "the cell is not element by element"

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps; see `Engine`."""
        tape = Tape(self, step, widths, x, state[0])
        tape.rule = plan.choose(step, x, tape.first, compiled=True)
        tape.loop = loop = _Loop(step)
        run, parts = functools.partial(loop.run, contiguous(x), tape.y, state, keep), split(widths, tape.rule.parts)
        if tape.rule.shared:
            done = tape.rule.together(lambda team: [run(part, team) for part in parts])
        else:
            done = tape.rule.run(run, parts)
        tape.kept = [kept for _, kept in done]
        return tape.y, joined(np, [final for final, _ in done], state, tape.first), tape

    def backward(self, tape: Tape, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; see `Engine`."""
        found, loop, x = Gradients(tape), tape.loop or _Loop(tape.step), tape.x
        dZ = workspace.empty(np, (x.shape[0], tape.step.R), x)
        found.arrays["zx"], dQ = dZ.T, NO_ROWS[x.dtype]
        if loop.kernels.apart:
            dQ = workspace.empty(np, dZ.shape, x)
            found.arrays["zh"] = dQ.T
        dy = NO_ROWS[x.dtype] if dy is None else contiguous(dy)
        run = functools.partial(loop.run_bwd, tape, dstate, dy, dZ, dQ)
        if tape.rule.shared:
            starts = tape.rule.together(lambda team: [run(part, team) for part in tape.kept])
        else:
            starts = tape.rule.run(run, tape.kept)
        return found, joined(np, starts, dstate, tape.first)

    def step(self, step: Step, x: Array, state: Sequence[Array]) -> list[Array]:
        """Run one step of one sequence from x (1, D) and its state (1, H); return the state after it, (1, H)."""
        loop, after = _Loop(step), [np.array(s) for s in state]
        kernel = loop.kernels.lean
        arrays = {**loop.given, **dict(zip(loop.kernels.step.carried, after[1:], strict=True))}
        given = [arrays[name] for name in kernel.names]
        kernel.loops.forward_step(contiguous(x[0, :]), loop.Wx, loop.Wh, after[0][0, :], *given)
        return after


class _Loop:
    """The compiled loop of a step, with its weights as the loop takes them."""

    def __init__(self, step: Step) -> None:
        kernels: Kernels = step.compiled or _kernels(step)
        self.step, self.kernels = step, kernels
        self.Wh = contiguous(step.Wh)
        self.Wx = contiguous(step.w["Wx"]) if "Wx" in step.w else NO_ROWS[self.Wh.dtype]
        self.small = self.Wh.size <= WEIGHTS and self.Wx.size > 0 and not step.heads
        # For one sequence: parameters that the cell uses beside its units, (rows, H) or (H,), and its numbers.
        self.given: dict[str, Any] = {name: step.w[name].reshape(step.G, step.H) for name in step.added}
        if step.own:
            self.given |= {name: p[..., 0] for name, p in step.own.items()}
        if step.cell.numbers:
            self.given |= step.cell.numbers

    def run(
        self, x: Array, y: Array, state: Sequence[Array], keep: str, part: Sequence[Segment], team: Team | None = None
    ) -> tuple[list[Array], list[Kept]]:
        """Run a part of the batch: the state of each sequence at its own end, and what is kept of each segment."""
        if team is not None and self.Wx.size:
            products = workspace.empty(np, (x.shape[0], self.step.R), x)
            team.product(x, self.Wx.T, products)
            x = products
        kept: list[Kept] = []
        ended: list[Sequence[Array]] = []  # states of the sequences that are over, the longest first
        state = [s[:, part[0].first : part[0].first + part[0].n] for s in state]
        for segment in part:
            if segment.n < state[0].shape[1]:
                ended.insert(0, [s[:, segment.n :] for s in state])
                state = [s[:, : segment.n] for s in state]
            state, found = self.forward(segment, state, x, y, keep, team)
            if found is not None:
                kept.append(found)
        return [beside(np, s) for s in zip(state, *ended, strict=True)] if ended else list(state), kept

    def run_bwd(
        self,
        tape: Tape,
        dend: Sequence[Array],
        dy: Array,
        dZ: Array,
        dQ: Array,
        part: Sequence[Kept],
        team: Team | None = None,
    ) -> list[Array]:
        """Differentiate a part of the batch; return the gradient of its initial state."""
        dstate = [d[:, :0] for d in dend]
        for kept in reversed(part):
            segment, have = kept.segment, dstate[0].shape[1]
            if have < segment.n:  # the gradient of the sequences that end here is that of the final state
                ends = [d[:, segment.first + have : segment.first + segment.n] for d in dend]
                dstate = [beside(np, pair) for pair in zip(dstate, ends, strict=True)] if have else ends
            dstate = self.backward(tape.complete(kept), dstate, dy, dZ, dQ, team)
        return dstate

    def forward(
        self, segment: Segment, state: Sequence[Array], x: Array, y: Array, keep: str, team: Team | None
    ) -> tuple[list[Array], Kept | None]:
        """Return the state after a segment and what is kept of it, from that before and rows x (N, D); y is written."""
        step, found, k, n = self.step, self.kernels, segment.k, segment.n
        kernel, at = found.lean if keep == "nothing" else found.forward, segment.at + segment.first
        G, H, M, times = step.G, step.H, step.H * n, 1 if keep == "nothing" else k + 1
        h = np.array(state[0], order="C").reshape(M)
        arrays = self._beside(kernel.names, n)
        carry = []
        for name, start in zip(found.step.carried, state[1:], strict=True):
            arrays[name] = a = workspace.empty(np, (times, M), h)
            a[0] = start.reshape(M)
            carry.append(a)
        if keep != "nothing":
            for name, rows in found.step.saved.items():
                arrays[name] = workspace.empty(np, (k, M) if rows is None else (k, rows, M), h)
        given, zh = [arrays[name] for name in kernel.names], np.empty((G, M), h.dtype)
        if team is not None:
            zx = np.empty((1, G, M), h.dtype)
            shared.forward(team, kernel.loops, self.Wh, segment, x, y, zx, zh, h, given)
        elif n == 1 and self.small and segment.width == 1:
            zx = np.empty((min(k, STEPS), G, M), h.dtype)
            kernel.loops.forward_alone(x, y, at, k, self.Wx.T, self.WhT, zx, zh, h, *given)
        else:
            zx, xs = np.empty((1, G, M), h.dtype), np.empty((x.shape[1], n), h.dtype)
            (Wx, rowsx), (Wh, rowsh) = _pieces(self.Wx, n), _pieces(self.Wh, n)
            kernel.loops.forward(x, y, at, segment.width, k, Wx, Wh, rowsx, rowsh, xs, zx, zh, h, *given)
        after = [h.reshape(H, n), *(a[-1].reshape(H, n) for a in carry)]
        if keep == "nothing":
            return after, None
        saved = None
        if keep == "all":
            saved = found.step.restore({s: arrays[s].reshape(*arrays[s].shape[:-1], H, n) for s in found.step.saved})
        return after, Kept(segment, [a.reshape(k + 1, H, n) for a in carry], saved)

    def backward(
        self, kept: Kept, dstate: Sequence[Array], dy: Array, dZ: Array, dQ: Array, team: Team | None
    ) -> list[Array]:
        """Return the gradient of the state before a segment from that of the state after it.

        dZ and dQ (N, R) take the gradients of the products of x and of h; dQ is empty where those are one.
        """
        step, found, segment = self.step, self.kernels, kept.segment
        k, n, at, kernel = segment.k, segment.n, segment.at + segment.first, found.backward
        H, M = step.H, step.H * n
        dh, *dcarry = [np.array(d, order="C").reshape(M) for d in dstate]
        arrays = self._beside(kernel.names, n)
        for name, a, d in zip(found.step.carried, kept.carry, dcarry, strict=True):
            arrays[name], arrays[f"d{name}"] = a[:-1].reshape(k, M), d
        for name, a in zip(kept.saved._fields, kept.saved, strict=True):
            if a is not None:
                arrays[f"s_{name}"] = contiguous(a).reshape(*a.shape[:-2], M)
        given, dz = [arrays[name] for name in kernel.names], np.empty((step.G, M), dh.dtype)
        dzh = np.empty_like(dz) if found.apart else dz
        dh0 = np.empty_like(dh) if found.direct else NO_ROW[dh.dtype]
        if team is not None:
            shared.backward(team, kernel.loops, self.WhT, segment, dy, dZ, dQ, dz, dzh, dh0, dh, given)
        elif n == 1 and self.small and segment.width == 1:
            kernel.loops.backward_alone(dy, at, k, self.Wh, dZ, dQ, dz, dzh, dh0, dh, *given)
        else:
            kernel.loops.backward(dy, at, segment.width, k, *_pieces(self.WhT, n), dZ, dQ, dz, dzh, dh0, dh, *given)
        return [d.reshape(H, n) for d in (dh, *dcarry)]

    @functools.cached_property
    def WhT(self) -> Array:  # noqa: N802
        """Wh^T in memory: NumPy's copy takes ten times as long where rows are a power of two apart."""
        if self.step.heads:
            return np.ascontiguousarray(self.Wh.swapaxes(2, 3))
        found = np.empty(self.Wh.shape[::-1], dtype=self.Wh.dtype)
        self.kernels.backward.loops.to_rows(self.Wh, found, 0, 0)
        return found

    def _beside(self, names: Sequence[str], n: int) -> dict[str, Any]:
        """Return the parameters and numbers as they stand beside the units of n sequences."""
        if n == 1:
            return dict(self.given)
        return {
            name: np.repeat(p, n, axis=-1) if hasattr(p, "ndim") else p
            for name, p in self.given.items()
            if name in names
        }


def _kernels(step: Step) -> Any:
    return codegen.kernels(step.cell, DTYPES[step.Wh.dtype], step.own_rows, step.added)


def contiguous(a: Array) -> Array:
    """Return an array as compiled loops take it, contiguous and not read-only: one compilation serves all."""
    flags = a.flags
    return a if flags.c_contiguous and flags.writeable else np.array(a, order="C")


def _pieces(W: Array, n: int) -> tuple[Array, int]:
    """Return W (R, K) in pieces (pieces, R, K) for products with n columns, and the rows of a tile; 0 for heads."""
    if W.ndim == 4:
        return W.reshape(-1, *W.shape[2:]), 0
    R, K = W.shape
    rows, pieces = blas.tiles(R, K, n)
    return np.ascontiguousarray(W.reshape(R, pieces, K // pieces).transpose(1, 0, 2)), rows


NUMBA = Numba()
