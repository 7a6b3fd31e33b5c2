"""The engine for CuPy arrays on an NVIDIA GPU: kernels for all steps, made from a cell's trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import constants
from xlstm.arrays.cached import cached_property
from xlstm.arrays.concat import concat
from xlstm.arrays.cuda import kernel_fallback, waits
from xlstm.arrays.cuda.kernel_fallback import Result
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Params, astype, device_of, dtype_name, reshape, room
from xlstm.engines.array_api import ARRAY_API, ArrayApi
from xlstm.engines.cell_step import Step, Stream
from xlstm.engines.cuda import cell_source, launch
from xlstm.engines.cuda.cell_source import ARRANGE
from xlstm.engines.cuda.choice import told
from xlstm.engines.cuda.kernel_source import KernelSource
from xlstm.engines.cuda.kernels import StepKernels, contiguous, plan
from xlstm.engines.cuda.tiling import ARRANGERS, Tiling
from xlstm.engines.tape import Gradients, SegmentTape, Tape, Widths, segments, starts_of, with_idle

# names in `Gradients`, by the names in kernels
GRADIENTS = {"dz": "zx", "dzh": "zh", "da": "a"}
AGAIN = "xlstm_again_step"  # the kernel that computes values again that were not kept
BLOCKS = 4  # blocks of rows; that kernel runs once for each
KERNELS = {"all": "forward", "states": "slim", "nothing": "lean"}  # kernels, by kept values


class Cuda:
    """Run kernels made from a cell's trace."""

    name = "cuda"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why the engine cannot run a step over a batch of these widths, or "".

        Raises
        ------
        TypeError
            The arrays are bfloat16, and operations of CuPy would turn them into float32.
        """
        device = launch.device(step.xp, step.Wh)
        if device is None:
            return "it runs arrays of CuPy"
        if not widths or widths[0][1] == 0:
            return "there is no step"
        choice, why = plan(step, widths, device)
        if choice.path != "loop":
            return ""
        if dtype_name(step.Wh.dtype) != "bfloat16":
            return why or "path 'loop' was asked for"
        if not why:
            why = "and it was asked for" if told()[0] == "loop" else "and no kernel works"
        raise TypeError(f"cuda: path 'loop' has no bfloat16, {why}; expected float16 or float32")

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps; see `Engine`."""
        tape = CudaTape(self, step, widths, x, state, keep)
        keep = "all" if keep == "states" and not kernel_fallback.works(AGAIN) else keep
        end = _attempt(tape.choice.name, tape.forward, keep)
        if end is None:
            return self._next(step, widths).forward(step, x, state, widths, keep)
        if keep == "nothing" and tape.projected:  # h is a view of y
            end[0] = step.xp.asarray(end[0], copy=True)
        return tape.y, end, tape

    def stream(self, step: Step) -> Stream:
        """Return a function that runs single steps; see `Engine`."""

        def run(w: Params, x: Array, state: Sequence[Array]) -> tuple[Array, Sequence[Array]]:
            again = step if w is step.layer_w else Step(step.xp, step.cell, w, step.masks)
            return self.step(again, x, state)

        return run

    def step(self, step: Step, x: Array, state: Sequence[Array]) -> tuple[Array, Sequence[Array]]:
        """Run a single step, like a function from `stream`."""
        widths = [(1, x.shape[0])]
        kernels = StepKernels(step, x, widths)
        after = _attempt(f"step {kernels.choice.name}", kernels.single, state)
        if after is not None:
            return after[0], after[1:]
        before = [s.T for s in state]
        _, end, _ = self._next(step, widths).forward(step, x, before, widths, "nothing")
        states = [s.T for s in end]
        return states[0], states

    def backward(
        self, tape: Tape, dy: Array | None, dstate: Sequence[Array]
    ) -> tuple[Gradients, list[Array]]:
        """Compute the gradients of all steps; see `Engine`."""
        assert isinstance(tape, CudaTape)
        gradients = _attempt(tape.choice.name, tape.backward, dy, dstate)
        if gradients is None:  # the forward pass runs again: the next path keeps other values
            engine = self._next(tape.step, tape.widths)
            _, _, again = engine.forward(tape.step, tape.x, tape.initial, tape.widths, "all")
            gradients = again.engine.backward(again, dy, dstate)
        return gradients

    def _next(self, step: Step, widths: Widths) -> Cuda | ArrayApi:
        """Return the engine of the next path after the broken ones."""
        return ARRAY_API if self.refuses(step, widths) else self


def _attempt(name: str, run: Callable[..., Result], *args: Any) -> Result | None:
    """Do the same as `kernel_fallback.attempt`, but raise the error if you asked for a path."""
    return kernel_fallback.attempt(name, run, *args) if told()[0] == "auto" else run(*args)


class CudaTape(StepKernels, Tape):
    """A pass over one layer and direction: it makes the arrays, launches the kernels, and keeps
    their results.

    Attributes
    ----------
    initial : sequence of array
        The state before the first step.
    rows_kept : dict of str to array
        The carried states before every step, and the saved values of the cell.
    """

    def __init__(
        self, engine: Cuda, step: Step, widths: Widths, x: Array, state: Sequence[Array], keep: str
    ) -> None:
        StepKernels.__init__(self, step, x, widths)
        self.initial = state
        # If steps differ in width, the rows of h before every step are no part of `hs`, so kernels
        # keep them.
        self.uneven = len(widths) > 1
        self.keep_h = self.uneven and not self.projected
        apart = (self.uneven or keep == "nothing") and self.choice.forward is not None
        Tape.__init__(self, engine, step, widths, x, None if apart else state[0])
        self.rows_kept: dict[str, Array] = {}
        self.end: list[Array] = []  # the state of each sequence at its own end

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the tape without the parts that belong to the device and to the
        process.
        """
        return {
            name: value
            for name, value in super().__getstate__().items()
            if name not in ("device", "function")
        }

    def forward(self, keep: str) -> list[Array]:
        """Run all steps; return the state of each sequence at its own end."""
        # before the kept arrays, since a norm needs memory that is free again then
        zx = self.project(self.x)
        if keep != "nothing":
            self.rows_kept = self.empty(
                dict.fromkeys((*["h"] * self.keep_h, *self.function.carried))
            )
        if keep == "all":
            self.rows_kept |= self.empty(self.function.saved)
        if self.projected:
            self.rows_kept |= self.empty({"out": None})
        arrays = {"zx": zx, "y": self.y, **self.rows_kept, **self.constants}
        self.end = self._run(KERNELS[keep], arrays, self.initial)
        return self.end

    def backward(self, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Compute the gradients of all steps; return those of every step, and those with respect to
        the initial state.
        """
        gradients = Gradients(self)
        rows = self.function.gradients
        whole = self._whole()
        by_name = self.empty({name: rows[name] for name in GRADIENTS if name in rows})
        dy = self.step.xp.zeros_like(self.y) if dy is None else self.as_read(dy)
        if self.projected:
            dy = self.step.xp.asarray(dy, copy=True)  # collects the whole gradient of h
            gradients.arrays["out"] = dy.T
        start = self._run("backward", {"dy": dy, **by_name, **whole, **self.constants}, dstate)
        for name, a in by_name.items():
            gradients.arrays[GRADIENTS[name]] = reshape(a, (a.shape[0], -1)).T
        return gradients, start

    @property
    def passed(self) -> Array:
        """h before every step as the recurrent weight gets it, (N, P)."""
        return self.h0 if self.keep_h else super().passed  # kernels keep h with its mask

    @property
    def out(self) -> Array:
        """h of every step before its projection, (N, H)."""
        return self.rows_kept["out"]

    @property
    def product(self) -> Array:
        """The normalised product with h at every step, (N, R)."""
        return reshape(self.rows_kept["n_zh"], (-1, self.step.R))

    @cached_property
    def h0(self) -> Array:
        """h before every step, (N, P), times its mask if kernels keep it."""
        return self.rows_kept["h"] if self.keep_h else super().h0

    @property
    def segments(self) -> list[SegmentTape]:
        """The kept arrays by segments; saved arrays that were not kept are computed again."""
        xp = self.step.xp
        by_segment = []
        rows = kernel_fallback.attempt(AGAIN, self._whole) or self.rows_kept
        whole = rows.keys() >= self.function.saved.keys()
        following = [*(n for _, n in self.widths[1:]), 0]
        for segment, more in zip(segments(tuple(self.widths)), following, strict=True):
            last = segment.at + segment.k * segment.n
            arrays = {}
            for name, a in rows.items():
                steps = segment.steps(a, 0, segment.k)  # (k, n, rows, H) or (k, n, H)
                arrays[name] = xp.permute_dims(steps, (0, *range(2, steps.ndim), 1))
            carry = []
            for name, end in zip(self.function.carried, self.end[1:], strict=True):
                # The state after the last step is the state before the next one, or at the end of a
                # sequence.
                after = rows[name][last : last + more, :].T, end[:, more : segment.n]
                carry.append(xp.concat((arrays[name], xp.concat(after, axis=1)[None, ...])))
            saved = self.function.restore(arrays) if whole else None
            by_segment.append(self.complete(SegmentTape(segment, carry, saved)))
        return by_segment

    def _whole(self) -> dict[str, Array]:
        """Return the arrays that the backward pass needs; saved arrays that were not kept are
        computed again from the states.

        They are computed in blocks of rows, so that the products need less memory than the
        gradients do later.
        """
        missing = {
            name: rows for name, rows in self.function.saved.items() if name not in self.rows_kept
        }
        if not missing:
            return self.rows_kept
        h0 = self.h0
        again = self.empty(missing)
        before = {f"before_{name}": a for name, a in {"h": h0, **self.rows_kept}.items()}
        N = h0.shape[0]
        block = -(-N // BLOCKS)
        for at in range(0, N, block):
            rows = slice(at, at + block)
            arrays = {name: a[rows, ...] for name, a in (before | again).items()}
            arrays |= {"zx": self.project(self.x[rows, :]), "product": self.through(h0[rows, :])}
            self.launch_step("again", arrays | self.constants, 0, min(block, N - at))
        return self.rows_kept | again

    def _run(self, kind: str, arrays: dict[str, Any], states: Sequence[Array]) -> list[Array]:
        """Run all steps with a kind of kernel, from states (H, B), and return the states after the
        last step.
        """
        xp = self.step.xp
        names = ("h", *self.function.carried)
        first = self.first
        tiling = self.choice.backward if kind == "backward" else self.choice.forward
        before = [s[:, :first].T for s in states]
        if tiling is not None:
            after = list(self.empty(dict.fromkeys(names), first).values())
            for name, old, new in zip(names, before, after, strict=True):
                arrays |= {f"before_{name}": self.as_read(old), f"after_{name}": new}
            self._loop(kind, arrays, tiling)
        elif kind == "backward":
            after = self.steps_backward(arrays, before)
        else:
            after = self.steps_forward(kind, arrays, before)
        after = [astype(xp, s, self.Wh.dtype) for s in after]
        return with_idle(xp, [a.T for a in after], states, first)

    def _loop(self, kind: str, arrays: dict[str, Any], tiling: Tiling) -> None:
        """Launch one kernel for all steps, or one after another if not all groups fit the
        device.
        """
        xp = self.step.xp
        Wh = self.Wh
        offsets = flags = exchange = None
        if self.uneven:  # the first row of every step, if steps differ in width
            offsets = constants.copied(
                xp, starts_of(tuple(self.widths)).astype(np.int32), device_of(Wh)
            )
        sizes = [np.int32(len(self.starts) - 1), np.int32(self.first)]
        if not self.step.recurrent:
            source = cell_source.scan(self.function, kind, tiling, self.keep_h)
            blocks = -(-self.first * self.step.H // tiling.threads)
            arguments = [offsets, *sizes, *(arrays[name] for name in source.arrays)]
            launch.launch(source, (blocks, 1), tiling.threads, arguments)
            return
        source = cell_source.loop(self.function, kind, tiling, self.keep_h)
        arranged = room(xp, Wh, (tiling.arranged // 4,), np.uint32)
        resident = min(self.device.sms, launch.resident(source, tiling.threads))
        launch.launch(
            KernelSource(ARRANGE, source.text, shared=32),
            (tiling.arrangers, 1),
            ARRANGERS,
            [Wh, arranged],
        )
        groups = -(-self.first // tiling.columns) * tiling.heads
        at_once = groups if tiling.cluster else min(groups, resident // tiling.blocks)
        if not tiling.cluster:
            exchange = room(xp, Wh, (tiling.exchange * at_once,), np.uint8)
        for group in range(0, groups, at_once):
            count = min(at_once, groups - group)
            if not tiling.cluster:
                flags = xp.zeros((count * tiling.blocks,), dtype=xp.uint32, device=device_of(Wh))
            arguments = [
                offsets,
                *sizes,
                np.int32(group),
                flags,
                exchange,
                arranged,
                *waits.arguments(source.name, self.choice.name),
                *(arrays[name] for name in source.arrays),
            ]
            launch.launch(source, (tiling.blocks, count), tiling.threads, arguments)

    # A pass with kernels for each single step, and products of the array library between them.
    # States are (B, H), and h is (B, P).

    @cached_property
    def starts(self) -> list[int]:
        """The first row of every step, and the number of rows."""
        starts: list[int] = starts_of(tuple(self.widths)).tolist()
        return starts

    def steps_forward(
        self, kind: str, arrays: dict[str, Any], states: Sequence[Array]
    ) -> list[Array]:
        """Run all steps forward; return the state of each sequence at its own end."""
        after = self._states(arrays, states)
        if self.projected:
            self.y[...] = 0
        before = 0  # first row of h before the step
        for at, end in itertools.pairwise(self.starts):
            self.ask(kind, arrays, self.hs[before : before + end - at, :], at, self.keep_h)
            if self.projected:
                matmul(
                    self.step.xp,
                    arrays["out"][at:end, :],
                    self.step.w["Whr"].T,
                    add=self.y[at:end, :],
                )
            before = self.first + at
        return [self._last(), *after] if self.projected else after

    def steps_backward(self, arrays: dict[str, Any], states: Sequence[Array]) -> list[Array]:
        """Run all steps backward from the gradient of the final state; return the gradient with
        respect to the initial state.
        """
        after = self._states(arrays, states)
        if self.projected:
            return [self._back_through_projection(arrays, states[0]), *after]
        xp = self.step.xp
        Wh = self.Wh
        have = 0
        for at, end in reversed(list(itertools.pairwise(self.starts))):
            new = end - at - have  # sequences whose last step this is
            if new:
                zeros = xp.zeros((new, self.step.H), dtype=Wh.dtype, device=device_of(Wh))
                arrays["product"] = xp.concat((arrays["product"], zeros)) if have else zeros
            have = end - at
            self.ask_bwd(arrays, at, have)
            arrays["product"] = self._by_h(arrays, at, end)
        return [after[0] + self._masked(arrays["product"]), *after[1:]]

    def _back_through_projection(self, arrays: dict[str, Any], dend: Array) -> Array:
        """Run all steps backward; the gradient with respect to y, (N, P), becomes that with respect
        to h of every step.
        """
        dh = arrays["dy"]
        have = 0
        d0 = dh[:0, :]
        for start, (at, end) in reversed(
            list(zip([0, *self.starts], itertools.pairwise(self.starts), strict=False))
        ):
            n = end - at
            if n > have:  # sequences whose last step this is
                dh[at + have : end, :] += self.as_read(dend[have:n, :])
            have = n
            arrays["product"] = self.as_read(
                matmul(self.step.xp, dh[at:end, :], self.step.w["Whr"])
            )
            self.ask_bwd(arrays, at, n)
            if at == 0:
                d0 = self._masked(self._by_h(arrays, at, end))
            elif "drop" in self.constants:
                dh[start : start + n, :] += self._masked(self._by_h(arrays, at, end))
            else:
                matmul(
                    self.step.xp,
                    self._passed_on(arrays, at, end),
                    self.Wh,
                    add=dh[start : start + n, :],
                )
        return d0

    def _states(self, arrays: dict[str, Any], states: Sequence[Array]) -> list[Array]:
        """Return copies of the states for kernels, which each step overwrites."""
        xp = self.step.xp
        names = ("h", *self.function.carried)
        if self.projected:
            names = names[1:]
            states = states[1:]
        copies = [contiguous(xp.astype(s, self.real, copy=True)) for s in states]
        for name, s in zip(names, copies, strict=True):
            arrays[f"before_{name}"] = arrays[f"after_{name}"] = s
        return copies

    def _by_h(self, arrays: dict[str, Any], at: int, end: int) -> Array:
        """Return the gradient with respect to h through its product at a step, without its mask."""
        return self.through_bwd(self._passed_on(arrays, at, end))

    def _passed_on(self, arrays: dict[str, Any], at: int, end: int) -> Array:
        """Return the gradient with respect to the product with h at a step, (n, R)."""
        dz = next(arrays[name] for name in ("da", "dzh", "dz") if name in arrays)
        return reshape(dz[at:end, ...], (end - at, self.step.R))

    def _masked(self, dh: Array) -> Array:
        drop = self.constants.get("drop")
        return dh if drop is None else dh * drop[: dh.shape[0], :]

    def _last(self) -> Array:
        """Return h of each sequence after its own last step."""
        ends: list[Array] = []
        following = [*(n for _, n in self.widths[1:]), 0]
        row = 0
        for (k, n), more in zip(self.widths, following, strict=True):
            row += k * n
            ends.insert(0, self.y[row - n + more : row, :])  # the longest come first
        return ends[0] if len(ends) == 1 else concat(self.step.xp, ends, 0)


CUDA = Cuda()
