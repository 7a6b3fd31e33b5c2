"""A pass over one layer and direction on a GPU: arrays for the kernels, and the launches.

Arrays here are rows, as a packed batch has them (`runs.py`): products of x (N, R), y (N, H), what is kept (N, rows, H),
states (B, H). One kernel goes through all steps, or one a step beside a product of the array library.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from xlstm.arrays.backend import Array, Namespace, device_of
from xlstm.arrays.matmul import matmul
from xlstm.engines.cuda import source
from xlstm.engines.cuda.choice import Choice
from xlstm.engines.cuda.launch import Grid, Runtime
from xlstm.engines.cuda.source import ARRANGE, BLOCK
from xlstm.engines.cuda.tiling import Tiling
from xlstm.engines.pointwise import Pointwise
from xlstm.engines.runs import Runs, reshape

Kept = dict[str, Array]  # carried states before every step and what the cell saved, (N, rows, H) or (N, H), by name


class DevicePass:
    """Of one cell with its weights over packed rows.

    Parameters
    ----------
    Wh : array (R, H) or (G, N, K, K)
    constants : dict
        The parameters that the cell itself uses and the biases, under their last names.
    numbers : dict
        Those of the cell.
    """

    def __init__(
        self,
        xp: Namespace,
        runtime: Runtime,
        choice: Choice,
        step: Pointwise,
        Wh: Array,
        constants: Mapping[str, Array],
        numbers: Mapping[str, float],
        runs: Runs,
    ) -> None:
        self.xp, self.runtime, self.choice, self.step = xp, runtime, choice, step
        self.Wh = _rows(Wh)
        real = {"float": np.float32, "double": np.float64}[choice.arithmetic.real]
        self.constants = {name: self._given(p) for name, p in constants.items()}
        self.constants |= {name: real(value) for name, value in numbers.items()}
        self.heads, self.width = heads_of(Wh)
        self.H, self.G = self.heads * self.width, int(step.before["zx"] or 1)
        self.runs, self.even = runs, len(runs) == 1
        self.first, self.steps = runs[0][1], sum(k for k, _ in runs)  # sequences of the first step

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

    def forward(self, zx: Array, hs: Array, carry: Sequence[Array], keep: str) -> tuple[list[Array], Kept]:
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

    def backward(self, dy: Array | None, dstate: Sequence[Array], kept: Kept, dZ: Array, dQ: Array) -> list[Array]:
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

    def again(self, zx: Array, before: Array, kept: Kept) -> Kept:
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
        z = matmul(xp, xp.permute_dims(reshape(xp, h, (n, N, K)), (1, 0, 2)), self._by_head)  # (N, n, G K)
        z = xp.permute_dims(reshape(xp, z, (N, n, self.G, K)), (1, 2, 0, 3))
        return self._given(reshape(xp, z, (n, self.G * self.H)))

    def _through_bwd(self, dz: Array) -> Array:
        """The products Wh^T dz of rows (n, R): (n, H)."""
        if self.heads == 1:
            return self._given(dz @ self._matrix)
        xp, n, N, K = self.xp, dz.shape[0], self.heads, self.width
        dz = xp.permute_dims(reshape(xp, dz, (n, self.G, N, K)), (2, 0, 1, 3))
        dh = matmul(xp, reshape(xp, dz, (N, n, self.G * K)), xp.matrix_transpose(self._by_head))
        return self._given(reshape(xp, xp.permute_dims(dh, (1, 0, 2)), (n, self.H)))

    @functools.cached_property
    def _matrix(self) -> Array:
        return reshape(self.xp, self.Wh, (self.G * self.H, self.H))

    @functools.cached_property
    def _by_head(self) -> Array:
        """(N, K, G K)."""
        W = self.xp.permute_dims(self.Wh, (1, 3, 0, 2))
        return reshape(self.xp, W, (self.heads, self.width, self.G * self.width))

    def _kept(self, kept: Kept) -> dict[str, Array]:
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
