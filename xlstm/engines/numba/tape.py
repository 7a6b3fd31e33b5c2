"""A pass of compiled loops over one layer and direction: its arrays, how threads share it, and what it keeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import cores, workspace
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import codegen
from xlstm.engines.numba.codegen import Kernel, Kernels
from xlstm.engines.numba.team import together
from xlstm.engines.numba.weights import contiguous, for_gradients, for_inputs, for_states, products
from xlstm.engines.segments import Widths, segments, starts_of
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Kept, Tape

# Rows of x whose products are made at once: of several steps, where a step has few.
ROWS = 48
# A thread has at least so many multiplications at a step, some 5 us, beside which waiting for the others is little.
STEP = 1 << 19
# Up to so many weights the threads share the batch, at least COLUMNS sequences each: weights stay in the cache of a
# core, and nothing goes from one to another. With more of them they share the products of each step.
NEAR, COLUMNS = 1 << 20, 8
# Multiplications of a pass from which on threads share it: to wake one costs as much as some millions.
LARGE = 10**7
LINE = 8  # numbers of a cache line: threads that count in one wait for each other
DTYPES = {np.dtype(name): name for name in ("float32", "float64")}
NO_ROWS = {dtype: np.empty((0, 0), dtype) for dtype in DTYPES}


class NumbaTape(Tape):
    """A pass over one layer and direction: it makes the arrays, runs the loops, and keeps what they wrote.

    Attributes
    ----------
    carry : dict of str to array (n + N, H)
        The states but h, in rows as `hs` has them; none are kept of inference.
    saved : dict of str to array (rows, N, H) or (N, H)
        Arrays that the cell saved.
    shares : Division
    units : list of (int, int)
        The first of the units of each part of the heads, and their end.
    """

    def __init__(self, engine: Any, step: Step, widths: Widths, x: Array, h0: Array) -> None:
        super().__init__(engine, step, widths, x, h0)
        self.x = contiguous(x)
        self.carry: dict[str, Array] = {}
        self.saved: dict[str, Array] = {}
        self.starts = starts_of(widths)
        heads = step.Wh.shape[1] if step.heads else 1
        self.shares = division(step.Wh.size, self.first, self.starts.size - 1, heads)
        K, parts = step.H // heads, self.shares.heads
        self.units = [(K * (heads * k // parts), K * (heads * (k + 1) // parts)) for k in range(parts)]

    @property
    def kernels(self) -> Kernels:
        """The compiled loops of the cell, which a copy looks up again."""
        found: Kernels = self.step.compiled or kernels(self.step)
        return found

    def forward(self, state: Sequence[Array], keep: str) -> list[Array]:
        """Run all steps; return the state of each sequence of the first step at its own end."""
        step, found, lean = self.step, self.kernels.step, keep == "nothing"
        kernel = self.kernels.forward if keep == "all" else self.kernels.lean
        loops = kernel.loops
        H, first, N = step.H, self.first, self.x.shape[0]
        for name, start in zip(found.carried, state[1:], strict=True):
            self.carry[name] = room = workspace.empty(np, (2 * first if lean else first + N, H), self.x)
            room[:first] = start[:, :first].T
        if keep == "all":
            for name, rows in found.saved.items():
                self.saved[name] = workspace.empty(np, (N, H) if rows is None else (rows, N, H), self.x)
        zx = np.empty((step.G, max(first, min(N, ROWS)) * H), self.x.dtype)
        zh = np.empty((step.G, first * H), self.x.dtype)
        weights = for_states(step, loops, self.shares.parts * self.shares.size == 1)
        given = [
            (self.x, self.hs, self.starts, for_inputs(step, loops, units), *weights, zx, zh, lean)
            for units in self.units
        ]
        self._run(kernel, "forward", given, (zx, zh, self.hs.reshape(-1)), self.carry | self.saved)
        end, place = self._ends(lean)
        after = [self.hs[end].T, *[c[place].T for c in self.carry.values()]]
        if lean:
            self.carry = {}
        return after

    def backward(self, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; return the gradients of every step, and those of the initial state."""
        step, first, found, kernels = self.step, self.first, Gradients(self), self.kernels
        dh, *dcarry = [np.array(d[:, :first].T, order="C") for d in dstate]
        dZ = workspace.empty(np, (self.x.shape[0], step.R), self.x)
        found.arrays["zx"], dQ = dZ.T, NO_ROWS[dZ.dtype]
        dz = dzh = np.empty((step.G, first * step.H), dZ.dtype)
        if kernels.apart:
            dQ, dzh = workspace.empty(np, dZ.shape, self.x), np.empty_like(dz)
            found.arrays["zh"] = dQ.T
        dy = NO_ROWS[dZ.dtype] if dy is None else contiguous(dy)
        arrays = self.carry | self._whole()
        arrays |= {f"d{name}": d for name, d in zip(self.carry, dcarry, strict=True)}
        W, flat = for_gradients(step, kernels.backward.loops), dh.reshape(-1)
        given = [(dy, self.starts, W, dZ, dQ, dz, dzh, kernels.direct, flat)] * len(self.units)
        self._run(kernels.backward, "backward", given, (dz, dzh, flat, flat), arrays)
        return found, [d.T for d in (dh, *dcarry)]

    def _run(
        self,
        kernel: Kernel,
        loop: str,
        given: Sequence[tuple[Any, ...]],
        first: tuple[Array, ...],
        arrays: dict[str, Array],
    ) -> None:
        """Run a loop on as many threads as its steps are worth; the step takes some arrays first, others by name.

        `given` has the loop's own arguments for each of `units`.
        """
        steps, step = self.starts.size - 1, self.step
        if steps == 0:
            return
        flat = {name: a.reshape(-1) if a.ndim == 2 else a.reshape(a.shape[0], -1) for name, a in arrays.items()}
        flat |= constants(step, self.first)
        call, loops = getattr(kernel.loops, loop), kernel.loops
        taken = [*first, *[flat[name] for name in kernel.names if name not in kernel.numbers]]
        table = np.empty((len(taken), 2), np.int64)
        for k, a in enumerate(taken):
            loops.enter(table, k, a)
        numbers = np.array([flat[name] for name in kernel.numbers], np.float64)

        def arguments(k: int, size: int, first: int, last: int, part: int, counts: Array) -> tuple[Any, ...]:
            own = (loops.PRODUCT, loops.step_address(), k, size, first, last, *self.units[part])
            return (*own, counts, table, numbers, *given[part])

        parts, heads, size = self.shares
        if parts == heads == 1:
            counts = _counts(steps, size)
            together(call, [arguments(k, size, 0, self.first, 0, counts) for k in range(size)])
            return
        pairs = itertools.product(spans(self.widths, parts), range(heads))
        together(call, [arguments(0, 1, *span, part, _counts(steps, 1)) for span, part in pairs])

    def products(self, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
        """Return the products a @ b of matrices, each over all steps."""
        return products(self.kernels.backward.loops, pairs)

    @property
    def segments(self) -> list[Kept]:
        """The kept values by segments; those of the cell are made again where they were not kept."""
        return list(self._segments())

    def _segments(self) -> Iterator[Kept]:
        first, H = self.first, self.step.H
        for segment in segments(self.widths):
            k, n, at = segment
            before = self.starts[np.searchsorted(self.starts, at) - 1] + first if at else 0
            carry = []
            for c in self.carry.values():
                rows = slice(first + at, first + at + k * n)
                whole = (
                    c[before : rows.stop]
                    if rows.start == before + n
                    else np.concatenate((c[before : before + n], c[rows]))
                )
                carry.append(whole.reshape(k + 1, n, H).swapaxes(1, 2))
            saved = None
            if self.saved:
                steps = {name: a[..., at : at + k * n, :] for name, a in self.saved.items()}
                steps = {name: a.reshape(*a.shape[:-2], k, n, H) for name, a in steps.items()}
                saved = self.kernels.step.restore(
                    {name: np.moveaxis(a, -3, 0).swapaxes(-1, -2) for name, a in steps.items()}
                )
            yield self.complete(Kept(segment, carry, saved))

    def _whole(self) -> dict[str, Array]:
        """Return what the cell saved, which is made again where it was not kept."""
        if self.saved or not self.kernels.step.saved:
            return self.saved
        H, N = self.step.H, self.x.shape[0]
        rows = self.kernels.step.saved
        made = {name: np.empty((N, H) if r is None else (r, N, H), self.x.dtype) for name, r in rows.items()}
        for kept in self._segments():
            k, n, at = kept.segment.k, kept.segment.n, kept.segment.at
            for name, a in kept.saved._asdict().items():
                if a is not None:
                    a = np.moveaxis(a.swapaxes(-1, -2), 0, -3)
                    made[f"s_{name}"][..., at : at + k * n, :] = a.reshape(*a.shape[:-3], k * n, H)
        return made

    def _ends(self, lean: bool) -> tuple[Any, Any]:
        """Return the rows of `hs` and those of `carry` that hold the state of each sequence at its own end."""
        first, steps = self.first, self.starts.size - 1
        if len(self.widths) == 1:
            at, place = first + int(self.starts[-2]), steps % 2 * first
            end = slice(at, at + first)
            return end, slice(place, place + first) if lean else end
        rows, n = np.arange(first), np.diff(self.starts)
        last = steps - 1 - np.searchsorted(n[::-1], rows, side="right")
        ends = first + self.starts[last] + rows
        return ends, (last + 1) % 2 * first + rows if lean else ends


class Division(NamedTuple):
    """How threads divide a pass: into how many parts of the batch and of the heads, or how many share each step."""

    parts: int = 1
    heads: int = 1
    size: int = 1


def division(weights: int, sequences: int, steps: int, heads: int) -> Division:
    """Return how threads divide a pass of a layer with so many recurrent weights."""
    work = weights * sequences
    if work * steps <= LARGE:
        cores.given()  # raises an error of the setting, however small the work is
        return Division()
    most = cores.threads()
    if heads > 1:  # each thread has the weights of its heads alone
        heads = min(heads, most)
        return Division(max(1, min(most // heads, sequences // COLUMNS)), heads)
    parts = min(most, sequences // COLUMNS) if weights <= NEAR else 1
    return Division(parts) if parts > 1 else Division(size=min(most, max(1, work // STEP)))


def spans(widths: Widths, parts: int) -> list[tuple[int, int]]:
    """Divide the sequences into at most `parts` ranges of about equal work; return the first and the end of each."""
    B = widths[0][1]
    if len(widths) == 1:
        cuts = [B * part // parts for part in range(parts + 1)]
    else:
        steps = np.zeros(B, dtype=np.int64)  # of each sequence
        for k, n in widths:
            steps[:n] += k
        work = np.cumsum(steps)
        ends = np.searchsorted(work, work[-1] * np.arange(1, parts) / parts) + 1
        cuts = [0, *np.minimum(ends, B).tolist(), B]
    return list(itertools.pairwise(sorted(set(cuts))))


def _counts(steps: int, size: int) -> Array:
    """Return room in which so many threads count the pieces of both parts of every step; a thread alone needs two."""
    return np.zeros(2 if size == 1 else 2 * steps * -(-(size + 1) // LINE) * LINE, np.int64)


def constants(step: Step, n: int) -> dict[str, Any]:
    """Return the numbers of a cell, and the parameters that it uses beside its units, once for each of n sequences."""
    given: dict[str, Any] = {**step.cell.numbers}
    for name in step.added:
        given[name] = _repeated(step.w[name].reshape(step.G, step.H), n)
    for name, p in step.own.items():
        given[name] = _repeated(p[..., 0], n)
    return given


def _repeated(p: Array, n: int) -> Array:
    return contiguous(p) if n == 1 else np.tile(p, n)


def kernels(step: Step) -> Any:
    """Return the compiled loops of a step, or None where there are none."""
    return codegen.kernels(step.cell, DTYPES[step.Wh.dtype], step.own_rows, step.added)
