"""The engine for CuPy arrays on an NVIDIA GPU: the cell, traced, in kernels for all steps; no formula stands here."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, device_of, dtype_name
from xlstm.engines.cuda import launch, source
from xlstm.engines.cuda.choice import Choice, choose, told
from xlstm.engines.cuda.launch import Grid, Runtime
from xlstm.engines.cuda.source import ARRANGE, BLOCK
from xlstm.engines.cuda.tiling import ARRANGERS, Tiling
from xlstm.engines.pointwise import Pointwise, Rows, pointwise
from xlstm.engines.segments import Widths, beside, reshape, split, starts_of
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Kept, Tape

REAL: dict[str, Any] = {"float": np.float32, "double": np.float64}
KERNELS = {"all": "forward", "states": "slim", "nothing": "lean"}  # of kernels, by what is kept


class Cuda:
    """Runs kernels made from a cell's trace."""

    name = "cuda"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step over a batch of these widths, or "".

        Raises
        ------
        TypeError
            The arrays are bfloat16, and operations of CuPy would make float32 of them.
        """
        runtime = launch.runtime(step.xp, step.Wh)
        if runtime is None:
            return "it runs arrays of CuPy"
        if not widths or widths[0][1] == 0:
            return "there is no step"
        _, choice, why = _plan(step, widths, runtime)
        if choice.path != "loop":
            return ""
        if dtype_name(step.Wh.dtype) == "bfloat16":
            reason = why or "and it was asked for"
            raise TypeError(f"cuda: path 'loop' has no bfloat16, {reason}; expected float16 or float32")
        return why or "path 'loop' was asked for"

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], CudaTape]:
        """Run all steps; see `Engine`."""
        tape = CudaTape(self, step, widths, x, state[0])
        end = tape.forward(state, keep)
        return tape.y, end, tape

    def backward(self, tape: Tape, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; see `Engine`."""
        assert isinstance(tape, CudaTape)
        return tape.backward(dy, dstate)


class CudaTape(Tape):
    """A pass over one layer and direction: it makes the arrays, launches the kernels, and keeps what they wrote.

    Arrays of kernels are rows: products of x (N, R), h (N, H), saved arrays (N, rows, H), states (B, H).

    Attributes
    ----------
    choice : Choice
    rows_kept : dict of str to array
        The carried states before every step, and what the cell saved.
    """

    def __init__(self, engine: Cuda, step: Step, widths: Widths, x: Array, h0: Array) -> None:
        super().__init__(engine, step, widths, x, h0)
        self.choice: Choice = _plan(step, widths, self.runtime)[1]
        self.heads, self.width = _heads(step)
        self.real = REAL[self.choice.arithmetic.real]
        self.Wh = _contiguous(step.Wh)
        given = step.own | {name: step.w[name] for name in step.added}
        self.constants: dict[str, Any] = {f"p_{name}": self._given(p) for name, p in given.items()}
        self.constants |= {f"p_{name}": self.real(value) for name, value in step.cell.numbers.items()}
        self.rows_kept: dict[str, Array] = {}
        self.end: list[Array] = []  # the state of each sequence at its own end

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle it without what belongs to the device and to the process."""
        return {name: a for name, a in super().__getstate__().items() if name not in ("runtime", "function")}

    @functools.cached_property
    def runtime(self) -> Runtime:
        """The device of the arrays."""
        found = launch.runtime(self.step.xp, self.step.Wh)
        assert found is not None
        return found

    @functools.cached_property
    def function(self) -> Pointwise:
        """The functions of the cell's step."""
        found = pointwise(self.step.cell, self.step.own_rows, self.step.added)
        assert found is not None
        return found

    def forward(self, state: Sequence[Array], keep: str) -> list[Array]:
        """Run all steps; return the state of each sequence at its own end."""
        if keep != "nothing":
            self.rows_kept = self._empty(dict.fromkeys(self.function.carried))
        if keep == "all":
            self.rows_kept |= self._empty(self.function.saved)
        arrays = {"zx": self._products, "y": self.y, **self.rows_kept, **self.constants}
        self.end = self._run(KERNELS[keep], arrays, state)
        return self.end

    def backward(self, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; return the gradients of every step, and those of the initial state."""
        found, rows = Gradients(self), self.function.gradients
        made = self._empty({name: rows[name] for name in ("dz", "dzh") if name in rows})
        dy = self.step.xp.zeros_like(self.y) if dy is None else self._given(dy)
        arrays = {"dy": dy, **made, **self._whole(), **self.constants}
        start = self._run("backward", arrays, dstate)
        found.arrays = {f"z{'x' if name == 'dz' else 'h'}": reshape(a, (a.shape[0], -1)).T for name, a in made.items()}
        return found, start

    @property
    def segments(self) -> list[Kept]:
        """The kept arrays, by segments; saved ones that were not kept are made again."""
        xp, made, found = self.step.xp, self._whole(), []
        following = [*(n for _, n in self.widths[1:]), 0]
        for segment, more in zip(split(self.widths, 1)[0], following, strict=True):
            k, n, last = segment.k, segment.n, segment.at + segment.k * segment.n
            steps = {name: segment.steps(a, 0, k) for name, a in made.items()}  # (k, n, rows, H) or (k, n, H)
            arrays = {name: xp.permute_dims(a, (0, *range(2, a.ndim), 1)) for name, a in steps.items()}
            carry = []
            for name, end in zip(self.function.carried, self.end[1:], strict=True):
                # The state after the last step is that before the next one, or at the end of a sequence.
                after = xp.concat((made[name][last : last + more, :].T, end[:, more:n]), axis=1)
                carry.append(xp.concat((arrays[name], after[None, ...])))
            found.append(Kept(segment, carry, self.function.restore(arrays)))
        return found

    def _whole(self) -> dict[str, Array]:
        """Return the arrays that backward needs; saved ones that were not kept are made again from the states."""
        missing = {name: rows for name, rows in self.function.saved.items() if name not in self.rows_kept}
        if not missing:
            return self.rows_kept
        h0, made = self.h0, self._empty(missing)
        before = {f"before_{name}": a for name, a in {"h": h0, **self.rows_kept}.items()}
        arrays = {"zx": self._products, "product": self._through(h0), **before, **made, **self.constants}
        self._step("again", arrays, 0, h0.shape[0])
        return self.rows_kept | made

    def _run(self, kind: str, arrays: dict[str, Any], states: Sequence[Array]) -> list[Array]:
        """Run all steps of a kind of kernel from states (H, B), and return the states after the last of them."""
        xp, names, first = self.step.xp, ("h", *self.function.carried), self.first
        tiling = self.choice.backward if kind == "backward" else self.choice.forward
        before = [s[:, :first].T for s in states]
        if tiling is not None:
            before = [self._given(s) for s in before]
            after = list(self._empty(dict.fromkeys(names), first).values())
        else:  # each step overwrites them
            before = after = [_contiguous(xp.astype(s, self.real, copy=True)) for s in before]
        arrays |= {f"before_{name}": s for name, s in zip(names, before, strict=True)}
        arrays |= {f"after_{name}": s for name, s in zip(names, after, strict=True)}
        if tiling is not None:
            self._loop(kind, arrays, tiling)
        elif kind == "backward":
            after = [after[0] + self._steps_backward(arrays), *after[1:]]
        else:
            self._steps_forward(kind, arrays)
        after = [s if s.dtype == self.Wh.dtype else xp.astype(s, self.Wh.dtype) for s in after]
        return [beside(xp, (a.T, s[:, first:])) for a, s in zip(after, states, strict=True)]

    def _loop(self, kind: str, arrays: dict[str, Any], tiling: Tiling) -> None:
        """Launch one kernel for all steps; where not all groups fit the device, one after the other."""
        made, run, xp = source.loop(self.function, kind, tiling), self.runtime.launch, self.step.xp
        where = device_of(self.Wh)
        arranged = xp.empty((tiling.arranged // 4,), dtype=xp.uint32, device=where)
        run(made, ARRANGE, Grid(tiling.arrangers, 1, ARRANGERS, 32), [self.Wh, arranged])
        groups = -(-self.first // tiling.columns) * tiling.heads
        at_once = groups if tiling.cluster else min(groups, self.runtime.device.sms // tiling.blocks)
        offsets = flags = exchange = None
        if len(self.widths) > 1:  # the first row of every step, where steps differ in width
            offsets = xp.asarray(np.asarray(self._starts, dtype=np.int32), device=where)
        if not tiling.cluster:
            exchange = xp.empty((tiling.exchange * at_once,), dtype=xp.uint8, device=where)
        for group in range(0, groups, at_once):
            count = min(at_once, groups - group)
            if not tiling.cluster:
                flags = xp.zeros((count * tiling.blocks,), dtype=xp.uint32, device=where)
            numbers = [np.int32(len(self._starts) - 1), np.int32(self.first), np.int32(group)]
            given = [offsets, *numbers, flags, exchange, arranged, *(arrays[name] for name in made.arrays)]
            run(made, made.name, Grid(tiling.blocks, count, tiling.threads, tiling.shared), given)

    def _steps_forward(self, kind: str, arrays: dict[str, Any]) -> None:
        """Launch a product and a kernel a step."""
        before = 0  # first row of h before the step
        for at, end in itertools.pairwise(self._starts):
            arrays["product"] = self._through(self.hs[before : before + end - at, :])
            self._step(kind, arrays, at, end - at)
            before = self.first + at

    def _steps_backward(self, arrays: dict[str, Any]) -> Array:
        """Launch a kernel and a product a step; return the last product."""
        xp, dz = self.step.xp, arrays.get("dzh", arrays["dz"])
        product = self._empty({"product": None}, 0)["product"]
        for at, end in reversed(list(itertools.pairwise(self._starts))):
            ending = (end - at - product.shape[0], self.step.H)  # sequences whose last step this is
            if ending[0]:
                product = xp.concat((product, xp.zeros(ending, dtype=product.dtype, device=device_of(product))))
            arrays["product"] = product
            self._step("backward", arrays, at, end - at)
            product = self._through_bwd(reshape(dz[at:end, ...], (end - at, self.step.R)))
        return product

    def _step(self, kind: str, arrays: dict[str, Any], row0: int, count: int) -> None:
        made = source.pointwise(self.function, kind, self.choice.arithmetic, self.heads, self.width)
        grid = Grid(-(-count * self.step.H // BLOCK), 1, BLOCK)
        given = [np.int64(row0), np.int32(count), *(arrays[name] for name in made.arrays)]
        self.runtime.launch(made, made.name, grid, given)

    @property
    def _products(self) -> Array:
        """Wx x of all steps, (N, R)."""
        w = self.step.w
        return self._given(self.x @ w["Wx"].T if "Wx" in w else self.x)

    def _through(self, h: Array) -> Array:
        """Return the products Wh h of rows (n, H): (n, R)."""
        if self.heads == 1:
            return self._given(h @ reshape(self.Wh, (self.step.R, self.step.H)).T)
        xp, n, N, K, G = self.step.xp, h.shape[0], self.heads, self.width, self.step.G
        z = matmul(xp, xp.permute_dims(reshape(h, (n, N, K)), (1, 0, 2)), self._by_head)  # (N, n, G K)
        z = xp.permute_dims(reshape(z, (N, n, G, K)), (1, 2, 0, 3))
        return self._given(reshape(z, (n, self.step.R)))

    def _through_bwd(self, dz: Array) -> Array:
        """Return the products Wh^T dz of rows (n, R): (n, H)."""
        if self.heads == 1:
            return self._given(dz @ reshape(self.Wh, (self.step.R, self.step.H)))
        xp, n, N, K, G = self.step.xp, dz.shape[0], self.heads, self.width, self.step.G
        dz = xp.permute_dims(reshape(dz, (n, G, N, K)), (2, 0, 1, 3))
        dh = matmul(xp, reshape(dz, (N, n, G * K)), xp.matrix_transpose(self._by_head))
        return self._given(reshape(xp.permute_dims(dh, (1, 0, 2)), (n, self.step.H)))

    @functools.cached_property
    def _by_head(self) -> Array:
        """Wh by heads, (N, K, G K)."""
        W = self.step.xp.permute_dims(self.Wh, (1, 3, 0, 2))
        return reshape(W, (self.heads, self.width, self.step.G * self.width))

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The first row of every step, and the number of rows."""
        found: list[int] = starts_of(self.widths).tolist()
        return found

    def _empty(self, arrays: Rows, n: int | None = None) -> dict[str, Array]:
        """Return arrays (n, rows, H), or (n, H) without rows, by name; n is N by default."""
        xp, n, H = self.step.xp, self.x.shape[0] if n is None else n, self.step.H
        return {
            name: xp.empty((n, H) if rows is None else (n, rows, H), dtype=self.Wh.dtype, device=device_of(self.Wh))
            for name, rows in arrays.items()
        }

    def _given(self, a: Array) -> Array:
        """Return an array as kernels read it: contiguous, and of the weights' dtype, which CuPy may not keep."""
        return _contiguous(a if a.dtype == self.Wh.dtype else self.step.xp.astype(a, self.Wh.dtype))


def _plan(step: Step, widths: Widths, runtime: Runtime) -> tuple[Pointwise | None, Choice, str]:
    """Return the functions of a step, or None; the path that it takes; and why it has no functions."""
    found = None if step.obstacle else pointwise(step.cell, step.own_rows, step.added)
    why = "" if found is not None else f"no kernel does {step.obstacle or 'this cell'}"
    (heads, width), dtype = _heads(step), dtype_name(step.Wh.dtype)
    return found, choose("cuda", told(), found, why, dtype, width, heads, widths[0][1], runtime.device), why


def _heads(step: Step) -> tuple[int, int]:
    """Return the heads, and the units of each."""
    return (step.Wh.shape[1], step.Wh.shape[2]) if step.heads else (1, step.H)


def _contiguous(a: Array) -> Array:
    return a if a.flags.c_contiguous else a.copy(order="C")


CUDA = Cuda()
