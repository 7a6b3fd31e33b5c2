"""The engine for NumPy arrays: the time loop of a cell, compiled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import blas, workspace
from xlstm.arrays.backend import Array, Params
from xlstm.engines import plan
from xlstm.engines.numba import codegen, jit
from xlstm.engines.numba.codegen import Kernel, Kernels
from xlstm.engines.segments import Segment, Widths, beside, split
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Kept, Tape

# Up to so many weights the loop multiplies a single sequence by them faster than BLAS: they fit the cache.
WEIGHTS = 1 << 17
# The products of x of so many steps of a single sequence are made at once.
STEPS = 512
NOTHING: dict[Any, Array] = {dtype: np.empty((0, 0), dtype=dtype) for dtype in codegen.DTYPES}
NO_ROW: dict[Any, Array] = {dtype: np.empty(0, dtype=dtype) for dtype in codegen.DTYPES}


class Numba:
    """Runs loops that Numba compiled from a cell's trace."""

    name = "numba"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step, or ""."""
        if step.xp is not np:
            return "it runs NumPy arrays"
        if not jit.enabled():
            return f"{jit.VARIABLE}=0 or Numba is missing"
        if not step.bare or step.obstacle:
            return f"no compiled loop does {step.obstacle}"
        if step.Wh.dtype.name not in codegen.DTYPES:
            return f"no compiled loop has {step.Wh.dtype}"
        return "" if _kernels(step) else "the cell is not element by element"

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps; see `Engine`."""
        tape = Tape(self, step, widths, x)
        tape.hs[: tape.first, :] = state[0][:, : tape.first].T
        tape.rule = plan.choose(step, x, tape.first, compiled=True)
        loop = _Loop(step)
        run = functools.partial(self._run, loop, tape, contiguous(x), state, keep)
        done = tape.rule.run(run, split(widths, tape.rule.parts))
        tape.kept = [kept for _, kept in done]
        idle = [s[:, tape.first :] for s in state]  # of sequences without any step
        return tape.y, [beside(np, s) for s in zip(*(final for final, _ in done), idle, strict=True)], tape

    def _run(
        self, loop: _Loop, tape: Tape, x: Array, state: Sequence[Array], keep: str, part: Sequence[Segment]
    ) -> tuple[list[Array], list[Kept]]:
        kept: list[Kept] = []
        ended: list[Sequence[Array]] = []  # states of the sequences that are over, the longest first
        state = [s[:, part[0].first : part[0].first + part[0].n] for s in state]
        for segment in part:
            if segment.n < state[0].shape[1]:
                ended.insert(0, [s[:, segment.n :] for s in state])
                state = [s[:, : segment.n] for s in state]
            state, found = loop.forward(segment, state, x, tape.y, keep != "nothing")
            if found is not None:
                kept.append(found if keep == "all" else found._replace(saved=None))
        return [beside(np, s) for s in zip(state, *ended, strict=True)], kept

    def backward(self, tape: Tape, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; see `Engine`."""
        step, found, loop = tape.step, Gradients(tape), _Loop(tape.step)
        N, dtype = tape.x.shape[0], tape.x.dtype
        dZ = workspace.empty(np, (N, step.R), tape.x)
        dQ = workspace.empty(np, (N, step.R), tape.x) if loop.kernels.apart else NOTHING[dtype.name]
        found.arrays = {"zx": dZ.T, "zh": dQ.T} if loop.kernels.apart else {"zx": dZ.T}
        dy = NOTHING[dtype.name] if dy is None else contiguous(dy)
        run = functools.partial(self._run_bwd, loop, tape, dstate, dy, dZ, dQ)
        starts = tape.rule.run(run, tape.kept)
        idle = [d[:, tape.first :] for d in dstate]
        return found, [beside(np, d) for d in zip(*starts, idle, strict=True)]

    def _run_bwd(
        self, loop: _Loop, tape: Tape, dend: Sequence[Array], dy: Array, dZ: Array, dQ: Array, part: Sequence[Kept]
    ) -> list[Array]:
        dstate = [d[:, :0] for d in dend]
        for kept in reversed(part):
            segment = kept.segment
            # The gradient of the sequences that end here is that of the final state.
            first, have = segment.first, dstate[0].shape[1]
            ends = [d[:, first + have : first + segment.n] for d in dend]
            dstate = [beside(np, pair) for pair in zip(dstate, ends, strict=True)]
            dstate = loop.backward(tape.complete(kept), dstate, dy, dZ, dQ)
        return dstate

    def step(self, step: Step, x: Array, state: Sequence[Array]) -> list[Array]:
        """Run one step of one sequence from x (1, D) and its state (1, H); return the state after it, (1, H)."""
        kernels = _kernels(step)
        assert kernels is not None
        kernel, after = kernels.lean, [np.array(s) for s in state]
        arrays: dict[str, Any] = dict(zip(kernels.step.carried, after[1:], strict=True))
        arrays |= {name: step.w[name].reshape(step.G, step.H) for name in step.added}
        arrays |= {name: p.reshape(-1, step.H) if p.ndim == 3 else p.reshape(step.H) for name, p in step.own.items()}
        arrays |= step.cell.numbers
        given = [arrays[name] for name in kernel.names]
        Wx, Wh = contiguous(step.w["Wx"]), contiguous(step.Wh)
        kernel.loops.forward_step(contiguous(x[0]), Wx, Wh, after[0][0], *given)
        return after


class _Loop:
    """The compiled loop of a step, one segment at a time."""

    def __init__(self, step: Step) -> None:
        found = _kernels(step)
        assert found is not None
        self.step, self.kernels = step, found
        self.Wh = contiguous(step.Wh)
        self.Wx = contiguous(step.w["Wx"]) if "Wx" in step.w else NOTHING[self.Wh.dtype.name]
        self.small = self.Wh.size <= WEIGHTS and self.Wx.size > 0 and not step.heads

    def forward(
        self, segment: Segment, state: Sequence[Array], x: Array, y: Array, keep: bool
    ) -> tuple[list[Array], Kept | None]:
        """Return the state after a segment and what is kept of it, from that before and rows x (N, D); y is written."""
        step, found, k, n = self.step, self.kernels, segment.k, segment.n
        kernel, M, at = found.forward if keep else found.lean, step.H * n, segment.at + segment.first
        h = np.array(state[0], order="C").reshape(M)
        carry = [workspace.empty(np, (k + 1 if keep else 1, M), h) for _ in found.step.carried]
        for kept, start in zip(carry, state[1:], strict=True):
            kept[0] = start.reshape(M)
        arrays: dict[str, Any] = dict(zip(found.step.carried, carry, strict=True))
        saved: Params = {}
        if keep:
            saved = {
                name: workspace.empty(np, (k, M) if rows is None else (k, rows, M), h)
                for name, rows in found.step.saved.items()
            }
            arrays |= saved
        given = self._complete(kernel, arrays, n)
        zh = np.empty((step.G, M), dtype=h.dtype)
        if n == segment.width == 1 and self.small:
            zx = np.empty((min(k, STEPS), step.G, M), dtype=h.dtype)
            kernel.loops.forward_alone(x, y, at, k, self.Wx.T, self.WhT, zx, zh, h, *given)
        else:
            zx = np.empty((1, step.G, M), dtype=h.dtype)
            (Wx, rowsx), (Wh, rowsh) = (_pieces(W, n) for W in (self.Wx, self.Wh))
            xs = np.empty((x.shape[1], n), dtype=h.dtype)
            kernel.loops.forward(x, y, at, segment.width, k, Wx, Wh, rowsx, rowsh, xs, zx, zh, h, *given)
        shape = (step.H, n)
        after = [h.reshape(shape), *(kept[-1].reshape(shape) for kept in carry)]
        if not keep:
            return after, None
        saved = {name: a.reshape(*a.shape[:-1], *shape) for name, a in saved.items()}
        return after, Kept(segment, [a.reshape(k + 1, *shape) for a in carry], found.step.restore(saved))

    def backward(self, kept: Kept, dstate: Sequence[Array], dy: Array, dZ: Array, dQ: Array) -> list[Array]:
        """Return the gradient of the state before a segment from that of the state after it.

        dZ and dQ (N, R) take the gradients of the products of x and of h; dQ is empty where those are one.
        """
        step, found, segment = self.step, self.kernels, kept.segment
        k, n, at, kernel = segment.k, segment.n, segment.at + segment.first, found.backward
        M = step.H * n
        dh, *dcarry = (np.array(d, order="C").reshape(M) for d in dstate)
        arrays: dict[str, Any] = {f"d{name}": d for name, d in zip(found.step.carried, dcarry, strict=True)}
        arrays |= {name: a[:-1].reshape(k, M) for name, a in zip(found.step.carried, kept.carry, strict=True)}
        arrays |= {
            f"s_{name}": np.ascontiguousarray(a).reshape(*a.shape[:-2], M)
            for name, a in kept.saved._asdict().items()
            if a is not None
        }
        given = self._complete(kernel, arrays, n)
        dz = np.empty((step.G, M), dtype=dh.dtype)
        dzh = np.empty_like(dz) if found.apart else dz
        dh0 = np.empty_like(dh) if found.direct else NO_ROW[dh.dtype.name]
        if n == segment.width == 1 and self.small:
            kernel.loops.backward_alone(dy, at, k, self.Wh, dZ, dQ, dz, dzh, dh0, dh, *given)
        else:
            kernel.loops.backward(dy, at, segment.width, k, *_pieces(self.WhT, n), dZ, dQ, dz, dzh, dh0, dh, *given)
        return [d.reshape(step.H, n) for d in (dh, *dcarry)]

    def _complete(self, kernel: Kernel, arrays: dict[str, Any], n: int) -> list[Any]:
        """Return the arrays of a kernel in order, with parameters as they stand beside the units of n sequences."""
        step = self.step
        given: dict[str, Array] = {name: step.w[name].reshape(step.G, step.H, 1) for name in step.added} | step.own
        for name, p in given.items():
            if name in kernel.names:
                p = p if n == 1 else np.repeat(p, n, axis=-1)
                arrays[name] = p.reshape((p.shape[0], -1) if p.ndim == 3 else (-1,))
        arrays.update(step.cell.numbers)
        return [arrays[name] for name in kernel.names]

    @functools.cached_property
    def WhT(self) -> Array:  # noqa: N802
        """Wh^T in memory: NumPy's copy takes ten times as long where rows are a power of two apart."""
        if self.step.heads:
            return np.ascontiguousarray(self.Wh.swapaxes(2, 3))
        found = np.empty(self.Wh.shape[::-1], dtype=self.Wh.dtype)
        self.kernels.backward.loops.to_rows(self.Wh, found, 0, 0)
        return found


def _kernels(step: Step) -> Kernels | None:
    return codegen.kernels(step.cell, step.Wh.dtype.name, step.own_rows, step.added)


def contiguous(a: Array) -> Array:
    """Return an array as compiled loops take it, contiguous and not read-only: one compilation serves all."""
    return a if a.flags.c_contiguous and a.flags.writeable else np.array(a, order="C")


def _pieces(W: Array, n: int) -> tuple[Array, int]:
    """Return W (R, K) in pieces (pieces, R, K) for products with n columns, and the rows of a tile, 0 for heads."""
    if W.ndim == 4:
        return W.reshape(-1, *W.shape[2:]), 0
    R, K = W.shape
    rows, pieces = blas.tiles(R, K, n)
    return np.ascontiguousarray(W.reshape(R, pieces, K // pieces).transpose(1, 0, 2)), rows


NUMBA = Numba()
