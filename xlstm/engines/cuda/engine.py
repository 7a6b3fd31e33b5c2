"""The engine for CuPy arrays on an NVIDIA GPU: the cell, traced, in kernels for all steps; no formula stands here.

Arrays here are rows, as a packed batch has them (`segments.py`): products of x (N, R), y (N, H), what is kept
(N, rows, H), states (B, H). One kernel goes through all steps, or one a step beside a product of the array library.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, device_of, dtype_name
from xlstm.engines.cuda import launch, source
from xlstm.engines.cuda.choice import Choice, choose
from xlstm.engines.cuda.launch import Grid, Runtime
from xlstm.engines.cuda.source import ARRANGE, BLOCK
from xlstm.engines.cuda.tiling import Tiling
from xlstm.engines.pointwise import Pointwise, pointwise
from xlstm.engines.segments import Widths, beside, reshape, split
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Kept, Tape

Rows = dict[str, Array]  # states before every step and what the cell saved, (N, rows, H) or (N, H), by name


class Cuda:
    """Runs kernels made from a cell's trace."""

    name = "cuda"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step over a batch of these widths, or "".

        Raises
        ------
        TypeError
            The arrays are bfloat16, which CuPy alone makes float32 of.
        """
        runtime = None if type(step.Wh) is np.ndarray else launch.runtime(step.xp, step.Wh)
        if runtime is None:
            return "it runs arrays of CuPy"
        if not widths or widths[0][1] == 0:
            return "there is no step"
        found, choice, why = _choice(step, widths, runtime)
        if found is not None and choice.path != "loop":
            return ""
        reason = why if found is None else "and it was asked for"
        if dtype_name(step.Wh.dtype) == "bfloat16":
            raise TypeError(f"cuda: path 'loop' has no bfloat16, {reason}; expected float16 or float32")
        return reason

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps; see `Engine`."""
        tape = CudaTape(self, step, widths, x, state[0])
        found = tape.run = Pass(step, widths)
        ends, tape.rows_kept = found.forward(
            found.products(x), tape.hs, [s[:, : tape.first].T for s in state[1:]], keep
        )
        tape.recompute, tape.ends = keep == "states", ends
        return tape.y, [beside(step.xp, (e.T, s[:, tape.first :])) for e, s in zip(ends, state, strict=True)], tape

    def backward(self, tape: Tape, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; see `Engine`."""
        assert isinstance(tape, CudaTape)
        step, N, found = tape.step, tape.x.shape[0], Gradients(tape)
        dZ, dQ = (step.xp.empty((N, step.R), dtype=tape.x.dtype, device=device_of(tape.x)) for _ in range(2))
        apart = "dzh" in tape.run.step.gradients
        starts = tape.run.backward(dy, [d.T for d in dstate], tape.whole(), dZ, dQ if apart else dZ)
        found.arrays = {"zx": dZ.T, **({"zh": dQ.T} if apart else {})}
        return found, [beside(step.xp, (d.T, e[:, tape.first :])) for d, e in zip(starts, dstate, strict=True)]


class CudaTape(Tape):
    """What kernels keep, as rows; segments are views of them."""

    run: Pass
    rows_kept: Rows
    ends: list[Array]  # the states of each sequence at its own end, (first, H)
    recompute = False

    def whole(self) -> Rows:
        """Return what backward needs, with what was not kept of it made again."""
        if not self.recompute:
            return self.rows_kept
        return self.run.again(self.run.products(self.x), self.h0, self.rows_kept)

    @property
    def segments(self) -> list[Kept]:
        """What is kept, by segments."""
        xp, run = self.step.xp, self.run
        made, found = self.whole(), []
        after = [self.state(name) for name in run.step.carried]
        for segment in split(self.widths, 1)[0]:
            k = segment.k
            arrays = {
                name: xp.permute_dims(view := segment.steps(a, 0, k), (0, *range(2, view.ndim), 1))
                for name, a in made.items()
            }
            last = [xp.permute_dims(segment.steps(a, k - 1, k), (0, 2, 1)) for a in after]
            carry = [xp.concat((arrays[c], end)) for c, end in zip(run.step.carried, last, strict=True)]
            found.append(Kept(segment, carry, run.step.restore(arrays)))
        return found

    def state(self, name: str) -> Array:
        """A state after every step, (N, H): that before the next step of the sequence, or that at its end."""
        if name == "h" or name not in self.run.step.carried:
            return super().state(name)
        xp, end = self.step.xp, self.ends[1 + self.run.step.carried.index(name)]
        starts, widths, N = self.run.starts, self.run.widths, self.x.shape[0]
        following = [*widths[1:], 0]
        places = np.concatenate(
            [
                np.where(np.arange(n) < more, start + n + np.arange(n), N + np.arange(n))
                for start, n, more in zip(starts[:-1], widths, following, strict=True)
            ]
        )
        rows = xp.concat((self.rows_kept[name], end))
        return xp.take(rows, xp.asarray(places, device=device_of(rows)), axis=0)


def _choice(step: Step, widths: Widths, runtime: Runtime) -> tuple[Pointwise | None, Choice, str]:
    """Return a step's functions, the path that it takes, and why it has no functions."""
    found = None if step.obstacle else pointwise(step.cell, step.own_rows, step.added)
    why = f"no kernel does {step.obstacle or 'this cell'}"
    heads, width = heads_of(step.Wh)
    dtype = dtype_name(step.Wh.dtype)
    return found, choose("cuda", found, why, dtype, width, heads, widths[0][1], runtime.device), why


class Pass:
    """One pass over one layer and direction: arrays for the kernels, and the launches."""

    def __init__(self, step: Step, widths: Widths) -> None:
        runtime = launch.runtime(step.xp, step.Wh)
        assert runtime is not None
        found, self.choice, _ = _choice(step, widths, runtime)
        assert found is not None
        self.xp, self.runtime, self.step, self.w = step.xp, runtime, found, step.w
        self.Wh = _rows(step.Wh)
        real = {"float": np.float32, "double": np.float64}[self.choice.arithmetic.real]
        given = step.own | {name: step.w[name] for name in step.added}
        self.constants: dict[str, Any] = {name: self._given(p) for name, p in given.items()}
        self.constants |= {name: real(value) for name, value in step.cell.numbers.items()}
        self.heads, self.width = heads_of(step.Wh)
        self.H, self.G = step.H, step.G
        self.runs, self.even = widths, len(widths) == 1
        self.first, self.steps = widths[0][1], sum(k for k, _ in widths)  # sequences of the first step

    def products(self, x: Array) -> Array:
        """Return Wx x of all steps, (N, R)."""
        return x @ self.w["Wx"].T if "Wx" in self.w else x

    @functools.cached_property
    def widths(self) -> list[int]:
        """Rows of every step."""
        return [n for k, n in self.runs for _ in range(k)]

    @functools.cached_property
    def starts(self) -> list[int]:
        """First row of every step, and their number."""
        return [0, *np.cumsum(self.widths).tolist()]

    @functools.cached_property
    def offsets(self) -> Array | None:
        """The first row of every step, on the device, where steps differ in width."""
        if self.even:
            return None
        return self.xp.asarray(np.asarray(self.starts, dtype=np.int32), device=device_of(self.Wh))

    def forward(self, zx: Array, hs: Array, carry: Sequence[Array], keep: str) -> tuple[list[Array], Rows]:
        """The states of each sequence at its own end, and what is kept.

        Parameters
        ----------
        zx : array (N, R)
            Products of x.
        hs : array (first + N, H)
            h before the first step, and room for y.
        carry : arrays (first, H)
            The other states.
        keep : {"all", "states", "nothing"}
        """
        kind = {"all": "forward", "states": "slim", "nothing": "lean"}[keep]
        y, N = hs[self.first :, :], zx.shape[0]
        names = self.step.carried if keep != "nothing" else ()
        kept = {name: self._empty((N, self.H)) for name in names}
        if keep == "all":
            kept |= {name: self._empty(self._shape(N, rows)) for name, rows in self.step.saved.items()}
        arrays = {"zx": self._given(zx), "y": y, **self._kept(kept), **self.constants}
        states = dict(zip(("h", *self.step.carried), (hs[: self.first, :], *carry), strict=True))
        if self.choice.forward is None:
            return self._steps_forward(kind, arrays, hs, states), kept
        ends = {name: self._empty((self.first, self.H)) for name in states}
        arrays |= {f"{name}_0": self._given(s) for name, s in states.items()}
        arrays |= {f"{name}_end": s for name, s in ends.items()}
        self._loop(kind, arrays, self.choice.forward)
        return list(ends.values()), kept

    def backward(self, dy: Array | None, dstate: Sequence[Array], kept: Rows, dZ: Array, dQ: Array) -> list[Array]:
        """Gradients of the states before the first step (first, H), from those of y (N, H) and of the last states.

        dZ and dQ (N, R) take the gradients of the products of x and of h, which are one array where those are added.
        """
        arrays = {"dy": None if dy is None else self._given(dy), "dZ": dZ, **self._kept(kept), **self.constants}
        if dQ is not dZ:
            arrays["dQ"] = dQ
        names = ("h", *self.step.carried)
        states = {name: self._given(d[: self.first, :]) for name, d in zip(names, dstate, strict=True)}
        if self.choice.backward is None:
            return self._steps_backward(arrays, states, dQ)
        starts = {name: self._empty((self.first, self.H)) for name in names}
        arrays |= {f"d{name}_end": d for name, d in states.items()}
        arrays |= {f"d{name}_0": d for name, d in starts.items()}
        self._loop("backward", arrays, self.choice.backward)
        return list(starts.values())

    def again(self, zx: Array, before: Array, kept: Rows) -> Rows:
        """With what the cell saves, from products of x (N, R), h before every step (N, H), and the carried states."""
        N = zx.shape[0]
        saved = {name: self._empty(self._shape(N, rows)) for name, rows in self.step.saved.items()}
        arrays = {"zx": self._given(zx), "product": self._through(before), "h_kept": before}
        self._step("again", arrays | self._kept(kept | saved) | self.constants, 0, N)
        return kept | saved

    def _loop(self, kind: str, arrays: Mapping[str, Array | None], tiling: Tiling) -> None:
        """One kernel for all steps; where not all groups fit the device, one after the other."""
        made = source.loop(self.step, kind, self.choice.arithmetic, tiling)
        a, xp, launch = self.choice.arithmetic, self.xp, self.runtime.launch
        here = device_of(self.Wh)
        vectors = tiling.heads * tiling.blocks * tiling.M * tiling.K * a.size // 16
        arranged = xp.empty((vectors * 4,), dtype=xp.uint32, device=here)
        launch(made, ARRANGE, Grid(-(-vectors // BLOCK), 1, BLOCK), [self.Wh, arranged])
        groups = -(-self.first // tiling.columns) * tiling.heads
        at_once = groups if tiling.cluster else min(groups, self.runtime.device.sms // tiling.blocks)
        flags = exchange = None
        if not tiling.cluster:
            exchange = xp.empty((tiling.exchange(kind, a) * at_once,), dtype=xp.uint8, device=here)
        for group in range(0, groups, at_once):
            count = min(at_once, groups - group)
            if not tiling.cluster:
                flags = xp.zeros((count * tiling.blocks,), dtype=xp.uint32, device=here)
            numbers = [np.int32(self.steps), np.int32(self.first), np.int32(group)]
            given = [self.offsets, *numbers, flags, exchange, arranged, *(arrays[name] for name in made.arrays)]
            launch(made, made.name, Grid(tiling.blocks, count, tiling.threads, tiling.shared), given)

    def _steps_forward(
        self, kind: str, arrays: dict[str, Array | None], hs: Array, states: Mapping[str, Array]
    ) -> list[Array]:
        """A product and a kernel a step."""
        arrays |= {f"state_{name}": self._real(s) for name, s in states.items()}
        before = hs[: self.first, :]
        for at, n in zip(self.starts, self.widths, strict=False):
            arrays["product"] = self._through(before[:n, :])
            self._step(kind, arrays, at, n)
            before = hs[self.first + at : self.first + at + n, :]
        return [self.xp.astype(arrays[f"state_{name}"], hs.dtype) for name in states]

    def _steps_backward(self, arrays: dict[str, Array | None], states: Mapping[str, Array], dQ: Array) -> list[Array]:
        xp = self.xp
        arrays |= {f"state_{name}": self._real(d) for name, d in states.items()}
        product, have = None, 0  # of the step after, for so many sequences
        for at, n in zip(reversed(self.starts[:-1]), reversed(self.widths), strict=True):
            if product is not None and have < n:
                more = xp.zeros((n - have, self.H), dtype=product.dtype, device=device_of(product))
                product = xp.concat((product, more), axis=0)
            arrays["product"] = product
            self._step("backward", arrays, at, n)
            product, have = self._through_bwd(dQ[at : at + n, :]), n
        starts = [xp.astype(arrays[f"state_{name}"], dQ.dtype) for name in states]
        if product is not None:
            starts[0] = starts[0] + product
        return starts

    def _step(self, kind: str, arrays: Mapping[str, Array | None], row0: int, count: int) -> None:
        made = source.pointwise(self.step, kind, self.choice.arithmetic, self.heads, self.width)
        grid = Grid(-(-count * self.H // BLOCK), 1, BLOCK)
        given = [np.int64(row0), np.int32(count), *(arrays[name] for name in made.arrays)]
        self.runtime.launch(made, made.name, grid, given)

    def _through(self, h: Array) -> Array:
        """The products Wh h of rows (n, H): (n, R)."""
        if self.heads == 1:
            return self._given(h @ self._matrix.T)
        xp, n, N, K = self.xp, h.shape[0], self.heads, self.width
        z = matmul(xp, xp.permute_dims(reshape(h, (n, N, K)), (1, 0, 2)), self._by_head)  # (N, n, G K)
        z = xp.permute_dims(reshape(z, (N, n, self.G, K)), (1, 2, 0, 3))
        return self._given(reshape(z, (n, self.G * self.H)))

    def _through_bwd(self, dz: Array) -> Array:
        """The products Wh^T dz of rows (n, R): (n, H)."""
        if self.heads == 1:
            return self._given(dz @ self._matrix)
        xp, n, N, K = self.xp, dz.shape[0], self.heads, self.width
        dz = xp.permute_dims(reshape(dz, (n, self.G, N, K)), (2, 0, 1, 3))
        dh = matmul(xp, reshape(dz, (N, n, self.G * K)), xp.matrix_transpose(self._by_head))
        return self._given(reshape(xp.permute_dims(dh, (1, 0, 2)), (n, self.H)))

    @functools.cached_property
    def _matrix(self) -> Array:
        return reshape(self.Wh, (self.G * self.H, self.H))

    @functools.cached_property
    def _by_head(self) -> Array:
        """(N, K, G K)."""
        W = self.xp.permute_dims(self.Wh, (1, 3, 0, 2))
        return reshape(W, (self.heads, self.width, self.G * self.width))

    def _kept(self, kept: Rows) -> dict[str, Array]:
        """Under the names of kernels."""
        return {f"{name}_kept" if name in self.step.carried else name: a for name, a in kept.items()}

    def _shape(self, N: int, rows: int | None) -> tuple[int, ...]:
        return (N, self.H) if rows is None else (N, rows, self.H)

    def _empty(self, shape: tuple[int, ...]) -> Array:
        return self.xp.empty(shape, dtype=self.Wh.dtype, device=device_of(self.Wh))

    def _given(self, a: Array) -> Array:
        """As kernels read arrays: of one dtype, which products of CuPy may not keep, and in the order of their axes."""
        return _rows(a if a.dtype == self.Wh.dtype else self.xp.astype(a, self.Wh.dtype))

    def _real(self, state: Array) -> Array:
        """A copy of a state in the type that is computed in."""
        dtype = getattr(self.xp, {"float": "float32", "double": "float64"}[self.choice.arithmetic.real])
        return _rows(self.xp.astype(state, dtype, copy=True))


def heads_of(Wh: Array) -> tuple[int, int]:
    """Heads, and the units of each, of a recurrent weight (R, H) or (G, N, K, K)."""
    return (Wh.shape[1], Wh.shape[2]) if Wh.ndim == 4 else (1, Wh.shape[1])


def _rows(a: Array) -> Array:
    """The array in the order of its axes in memory; a copy where it is not."""
    return a if a.flags.c_contiguous else a.copy(order="C")


CUDA = Cuda()
