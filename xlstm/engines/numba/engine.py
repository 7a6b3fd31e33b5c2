"""The engine for NumPy arrays: the time loop of a cell, compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import threads, workspace
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import codegen, jit
from xlstm.engines.numba.codegen import Kernels
from xlstm.engines.segments import Segment, Widths, beside, joined, split
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Kept, Tape

# Rows of x whose products are made at once: of several steps, where a step has few.
ROWS = 48
# So many multiplications are worth a second thread: to wake it costs as much as some millions.
LARGE = 10**7
COLUMNS = 8  # a part of the batch has at least so many sequences
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
        tape.loop = loop = _Loop(step)
        parts = split(widths, _parts(step.Wh.size * x.shape[0], tape.first))
        run = functools.partial(loop.run, contiguous(x), tape.y, state, keep)
        done = threads.team(len(parts)).run([functools.partial(run, part) for part in parts])
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
        starts = threads.team(len(tape.kept)).run([functools.partial(run, part) for part in tape.kept])
        return found, joined(np, starts, dstate, tape.first)

    def products(self, tape: Tape, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
        """Return the products a @ b of matrices, each over all steps; see `Engine`."""
        calls = [_product(a, b) for a, b in pairs]
        work = sum(a.size * b.shape[1] for a, b in pairs)
        size = 1 if work <= LARGE else threads.wanted()

        def share(k: int) -> None:
            for (a, _), (_, call) in zip(pairs, calls, strict=True):
                call(a.shape[0] * k // size, a.shape[0] * (k + 1) // size)

        threads.team(size).run([functools.partial(share, k) for k in range(size)])
        return [out for out, _ in calls]

    def step(self, step: Step, x: Array, state: Sequence[Array]) -> list[Array]:
        """Run one step of one sequence from x (1, D) and its state (1, H); return the state after it, (1, H)."""
        loop, after = _Loop(step), [np.array(s) for s in state]
        kernel = loop.kernels.lean
        arrays = {**loop.given, **dict(zip(loop.kernels.step.carried, after[1:], strict=True))}
        given = [arrays[name] for name in kernel.names]
        kernel.loops.forward_step(
            contiguous(x[0, :]), contiguous(step.w["Wx"]), contiguous(step.Wh), after[0][0, :], *given
        )
        return after


class _Loop:
    """The compiled loop of a step, with its weights as the loop takes them."""

    def __init__(self, step: Step) -> None:
        kernels: Kernels = step.compiled or _kernels(step)
        self.step, self.kernels = step, kernels
        self.common = jit.shared(DTYPES[step.Wh.dtype])
        # For one sequence: parameters that the cell uses beside its units, (rows, H) or (H,), and its numbers.
        self.given: dict[str, Any] = {name: step.w[name].reshape(step.G, step.H) for name in step.added}
        if step.own:
            self.given |= {name: p[..., 0] for name, p in step.own.items()}
        if step.cell.numbers:
            self.given |= step.cell.numbers

    @functools.cached_property
    def by_gate(self) -> Array:
        """The recurrent weights by heads and gates, (heads, G, K, K)."""
        step = self.step
        if step.heads:
            return step.Wh.transpose(1, 0, 2, 3)
        return step.Wh.reshape(1, step.G, step.H, step.H)

    @functools.cached_property
    def Wx(self) -> Array:  # noqa: N802
        """Wx packed, or an empty array where x are the products already."""
        if "Wx" not in self.step.w:
            return np.empty((0, 0, 0), self.step.Wh.dtype)
        W = self.step.w["Wx"].reshape(self.step.G, self.step.H, -1)
        return self._packed(self.common.pack_transposed, W, W.shape[1])

    @functools.cached_property
    def forward_weights(self) -> Array:
        """Wh packed for the products with h, (heads, slivers of all gates, K, columns)."""
        return np.stack([self._packed(self.common.pack_transposed, W, W.shape[1]) for W in self.by_gate])

    @functools.cached_property
    def backward_weights(self) -> Array:
        """Wh packed for the products with gradients, (heads, G, slivers, K, columns)."""
        heads, G, K, _ = self.by_gate.shape
        packed = np.stack([self._packed(self.common.pack, W, K) for W in self.by_gate])
        return packed.reshape(heads, G, -1, *packed.shape[2:])

    def _packed(self, pack: Any, W: Array, width: int) -> Array:
        """Return matrices of so many columns packed, one after the other."""
        columns = self.common.COLUMNS
        K = W[0].size // width
        packed = np.empty((W.shape[0], -(-width // columns), K, columns), W.dtype)
        for one, room in zip(W, packed, strict=True):
            pack(contiguous(one), room)
        return packed.reshape(-1, K, columns)

    def run(
        self, x: Array, y: Array, state: Sequence[Array], keep: str, part: Sequence[Segment]
    ) -> tuple[list[Array], list[Kept]]:
        """Run a part of the batch: the state of each sequence at its own end, and what is kept of each segment."""
        kept: list[Kept] = []
        ended: list[Sequence[Array]] = []  # states of the sequences that are over, the longest first
        state = [s[:, part[0].first : part[0].first + part[0].n] for s in state]
        for segment in part:
            if segment.n < state[0].shape[1]:
                ended.insert(0, [s[:, segment.n :] for s in state])
                state = [s[:, : segment.n] for s in state]
            state, found = self.forward(segment, state, x, y, keep)
            if found is not None:
                kept.append(found)
        return [beside(np, s) for s in zip(state, *ended, strict=True)] if ended else list(state), kept

    def run_bwd(
        self, tape: Tape, dend: Sequence[Array], dy: Array, dZ: Array, dQ: Array, part: Sequence[Kept]
    ) -> list[Array]:
        """Differentiate a part of the batch; return the gradient of its initial state."""
        dstate = [d[:, :0] for d in dend]
        for kept in reversed(part):
            segment, have = kept.segment, dstate[0].shape[1]
            if have < segment.n:  # the gradient of the sequences that end here is that of the final state
                ends = [d[:, segment.first + have : segment.first + segment.n] for d in dend]
                dstate = [beside(np, pair) for pair in zip(dstate, ends, strict=True)] if have else ends
            dstate = self.backward(tape.complete(kept), dstate, dy, dZ, dQ)
        return dstate

    def forward(
        self, segment: Segment, state: Sequence[Array], x: Array, y: Array, keep: str
    ) -> tuple[list[Array], Kept | None]:
        """Return the state after a segment and what is kept of it, from that before and rows x (N, D); y is written."""
        step, found, k, n = self.step, self.kernels, segment.k, segment.n
        kernel, at = found.lean if keep == "nothing" else found.forward, segment.at + segment.first
        G, H, M, times = step.G, step.H, step.H * n, 1 if keep == "nothing" else k + 1
        h = _rows(state[0])
        arrays = self._beside(kernel.names, n)
        carry = []
        for name, start in zip(found.step.carried, state[1:], strict=True):
            arrays[name] = a = workspace.empty(np, (times, M), h)
            a[0] = _rows(start)
            carry.append(a)
        if keep != "nothing":
            for name, rows in found.step.saved.items():
                arrays[name] = workspace.empty(np, (k, M) if rows is None else (k, rows, M), h)
        given = [arrays[name] for name in kernel.names]
        block = min(k, max(1, ROWS // n)) if segment.width == n else 1
        zx, zh = np.empty((G, block, M), h.dtype), np.empty((G, M), h.dtype)
        kernel.loops.forward(x, y, at, segment.width, k, self.Wx, self.forward_weights, zx, zh, h, *given)
        after = [_columns(a, n) for a in (h, *(a[-1] for a in carry))]
        if keep == "nothing":
            return after, None
        saved = None
        if keep == "all":
            saved = found.step.restore({s: _columns(arrays[s], n) for s in found.step.saved})
        return after, Kept(segment, [_columns(a, n) for a in carry], saved)

    def backward(self, kept: Kept, dstate: Sequence[Array], dy: Array, dZ: Array, dQ: Array) -> list[Array]:
        """Return the gradient of the state before a segment from that of the state after it.

        dZ and dQ (N, R) take the gradients of the products of x and of h; dQ is empty where those are one.
        """
        step, found, segment = self.step, self.kernels, kept.segment
        k, n, at, kernel = segment.k, segment.n, segment.at + segment.first, found.backward
        dh, *dcarry = [_rows(d) for d in dstate]
        arrays = self._beside(kernel.names, n)
        for name, a, d in zip(found.step.carried, kept.carry, dcarry, strict=True):
            arrays[name], arrays[f"d{name}"] = _flat(a[:-1]), d
        for name, a in zip(kept.saved._fields, kept.saved, strict=True):
            if a is not None:
                arrays[f"s_{name}"] = _flat(a)
        given, dz = [arrays[name] for name in kernel.names], np.empty((step.G, dh.size), dh.dtype)
        dzh = np.empty_like(dz) if found.apart else dz
        dh0 = np.empty_like(dh) if found.direct else NO_ROW[dh.dtype]
        kernel.loops.backward(dy, at, segment.width, k, self.backward_weights, dZ, dQ, dz, dzh, dh0, dh, *given)
        return [_columns(d, n) for d in (dh, *dcarry)]

    def _beside(self, names: Sequence[str], n: int) -> dict[str, Any]:
        """Return the parameters and numbers as they stand beside the units of n sequences."""
        if n == 1:
            return dict(self.given)
        return {name: np.tile(p, n) if hasattr(p, "ndim") else p for name, p in self.given.items() if name in names}


def _rows(columns: Array) -> Array:
    """Return columns (H, n) as the loops have them, a new array (n * H,)."""
    return np.array(columns.T, order="C").reshape(columns.size)


def _columns(a: Array, n: int) -> Array:
    """View an array (..., n * H) of the loops as columns (..., H, n)."""
    return a.reshape(*a.shape[:-1], n, a.shape[-1] // n).swapaxes(-1, -2)


def _flat(a: Array) -> Array:
    """Return columns (..., H, n) as an array (..., n * H) of the loops; those that `_columns` made are not copied."""
    return contiguous(a.swapaxes(-1, -2)).reshape(*a.shape[:-2], a.shape[-1] * a.shape[-2])


def _parts(work: int, B: int) -> int:
    """Return how many parts of the batch run side by side."""
    return 1 if work <= LARGE else max(1, min(threads.wanted(), B // COLUMNS))


def _product(a: Array, b: Array) -> tuple[Array, Callable[[int, int], object]]:
    """Return room for a @ b, and a function that computes its rows from one to another.

    Either a or its transposed is contiguous.
    """
    common, (K, width) = jit.shared(DTYPES[b.dtype]), b.shape
    out = workspace.empty(np, (a.shape[0], width), b)
    if not a.flags.c_contiguous and width == 1:
        return out, functools.partial(common.vector_over_rows, contiguous(a.T), contiguous(b), out)
    if not a.flags.c_contiguous:
        return out, functools.partial(common.product_over_rows, contiguous(a.T), contiguous(b), out)
    packed = np.empty((-(-width // common.COLUMNS), K, common.COLUMNS), b.dtype)
    common.pack(contiguous(b), packed)
    rows = contiguous(a)
    return out, lambda i, j: common.product(rows, i * K, K, j - i, packed, out, i * width, width, 0, width, False)


def _kernels(step: Step) -> Any:
    return codegen.kernels(step.cell, DTYPES[step.Wh.dtype], step.own_rows, step.added)


def contiguous(a: Array) -> Array:
    """Return an array as compiled loops take it, contiguous and not read-only: one compilation serves all."""
    flags = a.flags
    return a if flags.c_contiguous and flags.writeable else np.array(a, order="C")


NUMBA = Numba()
