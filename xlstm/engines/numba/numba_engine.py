"""The engine for NumPy arrays: it runs the compiled time loop of a cell, on several threads."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from ctypes import addressof, c_char
from typing import Any

import numpy as np

from xlstm.arrays import cores
from xlstm.arrays.compiled import VARIABLE
from xlstm.arrays.namespace import Array, Params
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Step, Stream
from xlstm.engines.numba import codegen, jit
from xlstm.engines.numba.codegen import Kernel, Kernels
from xlstm.engines.numba.packed_products import (
    DTYPES,
    contiguous,
    for_gradients,
    for_states,
    products,
)
from xlstm.engines.numba.team import address, run_parallel
from xlstm.engines.tape import Gradients, SegmentTape, Tape, Widths, segments, starts_of, with_idle

# Rows of x whose products are computed at once, from several steps if a step has few rows.
ROWS = 48
# Least multiplications of a thread at a step, some 2 us, so that waiting for other threads is
# little.
STEP = 1 << 17
# Up to this many weights, threads share the batch, at least COLUMNS sequences each: weights stay in
# the cache of a core, and nothing passes between cores. With more weights, threads share the
# products of each step.
NEAR = 1 << 20
COLUMNS = 8
# Least multiplications of a pass for threads to share it: to wake a thread costs as much as some
# millions.
LARGE = 10**7
LINE = 8  # numbers of a cache line: threads that count in the same line wait for each other
# Up to this many recurrent weights, a step of one sequence is one compiled call. For more, BLAS
# runs the products on all cores.
SMALL = 10**6


class Numba:
    """The engine that runs loops that Numba compiles from a cell's trace."""

    name = "numba"

    def __reduce__(self) -> str:
        """Copy and pickle the engine as its only instance."""
        return "NUMBA"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why the engine cannot run a step, or ""."""
        if not jit.enabled():
            return f"{VARIABLE} is 0, or Numba is not installed"
        if step.obstacle:
            return f"no compiled loop does {step.obstacle}"
        if step.Wh.dtype not in DTYPES:
            return f"no compiled loop has {step.Wh.dtype}"
        step.compiled = kernels(step)
        return "" if step.compiled else "the cell is not element by element"

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape | None]:
        """Run all steps; see `Engine`."""
        alone = keep == "nothing" and state[0].shape[1] == 1 and not step.heads and "Wx" in step.w
        if alone and 0 < x.shape[0] * step.Wh.size <= LARGE:
            y, *end = OneSequence(step).run(step.layer_w, x, [s.T for s in state])
            return y, [y[-1:].T.copy(), *[s.T for s in end]], None
        tape = NumbaTape(self, step, widths, x, state[0])
        end = with_idle(np, tape.forward(state, keep), state, tape.first)
        if keep == "nothing":  # h is a view of y
            return tape.y, [end[0].copy(), *end[1:]], None
        return tape.y, end, tape

    def stream(self, step: Step) -> Stream:
        """Return a function that runs single steps; see `Engine`.

        A step of several sequences, or of a large layer, is little more than products. The
        reference engine runs these with BLAS on all cores.
        """
        small = not step.heads and "Wx" in step.w and step.Wh.size <= SMALL
        reference = ARRAY_API.stream(step)
        return OneSequence(step, reference).step if small else reference

    def backward(
        self, tape: Any, dy: Array | None, dstate: Sequence[Array]
    ) -> tuple[Gradients, list[Array]]:
        """Compute the gradients of all steps; see `Engine`."""
        gradients, start = tape.backward(dy, dstate)
        return gradients, with_idle(np, start, dstate, tape.first)


class OneSequence:
    """The compiled passes of one sequence through a layer in one direction, which keep nothing.

    A small step takes as long as some twenty calls of Python functions around it. So everything
    that does not depend on the arrays is looked up once: the order of arguments, and shapes.

    Parameters
    ----------
    step : Step
        A step that Numba does not refuse, with weights of x and one head.
    reference : function, optional
        Runs single steps of several sequences.
    """

    def __init__(self, step: Step, reference: Stream | None = None) -> None:
        compiled: Kernels = kernels(step)
        self.reference = reference
        self.cell = step.cell
        self.loop = compiled.lean.loops.forward_alone
        self.product = compiled.lean.loops.PRODUCT
        self.H = step.H
        self.Wh = step.Wh.shape
        self.vectors = {
            name: (step.G, step.H) if name in step.added else step.own[name].shape[:-1]
            for name in compiled.vectors
        }
        self.numbers = [step.cell.numbers[name] for name in compiled.lean.numbers]

    def step(self, w: Params, x: Array, state: Sequence[Array]) -> tuple[Array, Sequence[Array]]:
        """Run a single step, as in `Engine.stream`."""
        if x.shape[0] != 1 and self.reference is not None:
            return self.reference(w, x, state)
        after = self.run(w, x, state)
        return after[0], after

    def run(self, w: Params, x: Array, state: Sequence[Array]) -> list[Array]:
        """Run all steps of x (T, D) from the state (1, H) before them.

        Returns
        -------
        h : array (T, H)
            h after every step.
        *state : arrays (1, H)
            The other states after the last step.
        """
        w = self.cell.weights(np, w)
        T = x.shape[0]
        H = self.H
        hs = np.empty((T + 1, H), x.dtype)
        hs[0] = state[0]
        rooms = []  # each holds a state before a step and after it, in turn
        for before in state[1:]:
            rooms.append(room := np.empty(2 * H, x.dtype))
            room[:H] = before
        vectors = [contiguous(w[name]).reshape(shape) for name, shape in self.vectors.items()]
        Wx = contiguous(w["Wx"])
        Wh = contiguous(w["Wh"]).reshape(self.Wh) if "Wh" in w else Wx[:, :0]
        self.loop(self.product, contiguous(x), Wx, Wh, hs, *rooms, *vectors, *self.numbers)
        last = T % 2 * H
        return [hs[1:], *[room[None, last : last + H] for room in rooms]]


class NumbaTape(Tape):
    """A pass over one layer and direction: it makes the arrays, runs the loops, and keeps the
    results.

    Attributes
    ----------
    carry : dict of str to array (n + N, H)
        The states except h, in rows like those of `hs`; inference keeps none.
    saved : dict of str to array (rows, N, H) or (N, H)
        Arrays that the cell saved.
    shares : (int, int)
        Parts of the batch, and threads that share each step.
    """

    def __init__(self, engine: Any, step: Step, widths: Widths, x: Array, h0: Array) -> None:
        super().__init__(engine, step, widths, x, h0)
        self.x = contiguous(x)
        self.carry: dict[str, Array] = {}
        self.saved: dict[str, Array] = {}
        self.starts = starts_of(tuple(widths))
        self.shares = division(step.Wh.size, self.first, self.starts.size - 1)

    @property
    def kernels(self) -> Kernels:
        """The compiled loops of the cell; a copy of the tape looks them up again."""
        compiled: Kernels = kernels(self.step)
        return compiled

    def forward(self, state: Sequence[Array], keep: str) -> list[Array]:
        """Run all steps; return the final state of each sequence, at its own end."""
        step = self.step
        lean = keep == "nothing"
        compiled = self.kernels
        kernel = compiled.forward if keep == "all" else compiled.lean
        H = step.H
        G = step.G
        first = self.first
        N = self.x.shape[0]
        dtype = self.x.dtype
        for name, start in zip(compiled.step.carried, state[1:], strict=True):
            self.carry[name] = room = np.empty((2 * first if lean else first + N, H), dtype)
            room[:first] = start[:, :first].T
        if keep == "all":
            for name, rows in compiled.step.saved.items():
                self.saved[name] = np.empty((N, H) if rows is None else (rows, N, H), dtype)
        zx = np.empty((G, max(first, min(N, ROWS)) * H), dtype)
        zh = (np.empty if step.recurrent else np.zeros)((G, first * H), dtype)
        weights = for_states(step, kernel.loops.COLUMNS, self.shares[0])
        arrays = {"zx": zx, "zh": zh, "h": self.hs, **self.carry, **self.saved}
        own = self.x, self.hs, self.starts, zx, zh
        self._run(kernel, kernel.loops.forward, arrays, own, weights, lean)
        # the rows of `hs` and `carry` with the state of each sequence at its own end
        if len(self.widths) == 1:
            place = (self.starts.size - 1) % 2 * first if lean else N
            ends: Any = slice(N, N + first)
            places: Any = slice(place, place + first)
        else:
            sequences = np.arange(first)
            n = np.diff(self.starts)
            last = n.size - 1 - np.searchsorted(n[::-1], sequences, side="right")
            ends = first + self.starts[last] + sequences
            places = (last + 1) % 2 * first + sequences if lean else ends
        after = [self.hs[ends].T, *[c[places].T for c in self.carry.values()]]
        if lean:
            self.carry = {}
        return after

    def backward(self, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Compute the gradients of all steps; return those of every step, and those with respect to
        the initial state.
        """
        step = self.step
        first = self.first
        gradients = Gradients(self)
        compiled = self.kernels
        kernel = compiled.backward
        N = self.x.shape[0]
        dtype = self.x.dtype
        dh, *dcarry = [np.array(d[:, :first].T, order="C") for d in dstate]
        dZ = np.empty((N, step.R), dtype)
        gradients.arrays["zx"] = dZ.T
        dQ = np.empty((0, 0), dtype)
        dz = dzh = np.empty((step.G, first * step.H), dtype)
        if "dzh" in compiled.step.gradients:
            dQ = np.empty_like(dZ)
            dzh = np.empty_like(dz)
            gradients.arrays["zh"] = dQ.T
        dy = np.empty((0, 0), dtype) if dy is None else contiguous(dy)
        arrays = {"dz": dz, "dzh": dzh, "dh0": dh, "dh": dh, **self.carry, **self._whole()}
        arrays |= {f"d{name}": d for name, d in zip(self.carry, dcarry, strict=True)}
        weights = for_gradients(step, kernel.loops.COLUMNS, self.shares[0])
        own = dy, self.starts, dZ, dQ, dz, dzh, dh.reshape(-1)
        direct = "dh0" in compiled.step.gradients
        self._run(kernel, kernel.loops.backward, arrays, own, weights, direct)
        return gradients, [d.T for d in (dh, *dcarry)]

    def _run(
        self,
        kernel: Kernel,
        loop: Any,
        named: dict[str, Array],
        arrays: tuple[Array, ...],
        weights: Any,
        flag: bool,
    ) -> None:
        """Run a loop on as many threads as its steps are worth.

        `named` has the arrays of the step, and `weights` those of each part of the batch.
        """
        steps = self.starts.size - 1
        first = self.first
        parts, size = self.shares
        if steps == 0:
            return
        at = self.step
        for name in (*at.added, *at.own):
            p = at.w[name].reshape(at.G, at.H) if name in at.added else at.own[name][..., 0]
            named[name] = p[..., None, :].repeat(first, axis=-2)
        table = address_table([named[name] for name in kernel.arrays], kernel.rows)
        numbers = np.array([self.step.cell.numbers[name] for name in kernel.numbers], np.float64)
        step = kernel.loops.PRODUCT, kernel.loops.step_address(), table, numbers
        # A single thread skips the calls that divide the work, which take as long as a small pass.
        if parts == size == 1:
            loop(step, (0, 1, np.zeros(2, np.int64)), arrays, weights[0], flag, 0, first)
            return
        # Counts for both parts of every step, and for packing two arrays; a single thread counts no
        # others.
        room = 2 if size == 1 else 2 * (steps + 1) * -(-(size + 1) // LINE) * LINE
        pieces = []
        for packed, span in zip(weights, spans(self.widths, parts), strict=False):
            counts = np.zeros(room, np.int64)
            teams = [(k, size, counts) for k in range(size)]
            pieces += [((step, team, arrays, packed, flag), *span) for team in teams]
        run_parallel([(loop, pieces)], len(pieces))

    def products(self, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
        """Return the products a @ b of matrices, each over all steps."""
        return products(self.kernels.backward.loops, pairs)

    @property
    def segments(self) -> list[SegmentTape]:
        """The kept values by segments; values of the cell that were not kept are computed again."""
        first = self.first
        H = self.step.H
        saved = self._whole()
        tapes = []
        for segment in segments(tuple(self.widths)):
            k, n, at = segment
            before = self.starts[np.searchsorted(self.starts, at) - 1] + first if at else 0
            carry = []
            for c in self.carry.values():
                rows = np.concatenate((c[before : before + n], c[first + at : first + at + k * n]))
                carry.append(rows.reshape(k + 1, n, H).swapaxes(1, 2))
            steps = {
                name: a[..., at : at + k * n, :].reshape(*a.shape[:-2], k, n, H)
                for name, a in saved.items()
            }
            by_steps = {name: np.moveaxis(a, -3, 0).swapaxes(-1, -2) for name, a in steps.items()}
            tapes.append(SegmentTape(segment, carry, self.kernels.step.restore(by_steps)))
        return tapes

    def _whole(self) -> dict[str, Array]:
        """Return the cell's saved values, from another pass if they were not kept."""
        if self.saved or not self.kernels.step.saved:
            return self.saved
        again = copy.copy(self)
        again.hs = self.hs.copy()
        again.carry = {}
        again.saved = {}
        again.forward([a[: self.first].T for a in (self.hs, *self.carry.values())], "all")
        return again.saved


def division(weights: int, sequences: int, steps: int) -> tuple[int, int]:
    """Return the number of parts into which threads divide the batch, and the number of threads
    that share each step.

    `weights` is the number of recurrent weights. Threads share steps only if they do not divide the
    batch.
    """
    cores.given()  # raises if the setting is wrong, however small the work is
    work = weights * sequences
    if work * steps <= LARGE:
        return 1, 1
    most = cores.threads()
    parts = min(most, sequences // COLUMNS) if weights <= NEAR else 1
    return (parts, 1) if parts > 1 else (1, min(most, max(1, work // STEP)))


def spans(widths: Widths, parts: int) -> list[tuple[int, int]]:
    """Return the first and the end of at most `parts` ranges of sequences with about equal work."""
    steps = np.zeros(widths[0][1], dtype=np.int64)  # of each sequence
    for k, n in widths:
        steps[:n] += k
    work = np.cumsum(steps)
    ends = np.searchsorted(work, work[-1] * np.arange(1, parts + 1) / parts) + 1
    return list(itertools.pairwise(sorted({0, *ends.tolist()})))


def address_table(arrays: Sequence[Array], rows: Sequence[int]) -> Array:
    """Return the table of a step (arrays, 2): the address of each array, and the length of its
    rows.

    The arrays must outlive the table.
    """
    table = np.empty((len(arrays), 2), np.int64)
    for k, (a, count) in enumerate(zip(arrays, rows, strict=True)):
        try:  # like `address`, inlined: calls of it are a fifth of all in a small pass
            table[k] = addressof(c_char.from_buffer(a)), a.size // count
        except (TypeError, ValueError):
            table[k] = address(a), a.size // count
    return table


def kernels(step: Step) -> Any:
    """Return the compiled loops of a step, or None if there are none."""
    dtype = DTYPES[step.Wh.dtype]
    form = step.cell.form
    return step.compiled or codegen.kernels(
        form, dtype, step.own_rows, step.added, jit.shape(dtype)
    )


NUMBA = Numba()
