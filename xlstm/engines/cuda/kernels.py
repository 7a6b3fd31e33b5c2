"""One step of a layer in kernels: its weights and constants as they take them, and the products beside them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, device_of, dtype_name
from xlstm.engines.cuda import launch, source
from xlstm.engines.cuda.choice import Choice, choose, told
from xlstm.engines.cuda.launch import Grid, Runtime
from xlstm.engines.cuda.source import BLOCK
from xlstm.engines.pointwise import Pointwise, Rows, pointwise
from xlstm.engines.segments import Widths, reshape
from xlstm.engines.step import Step

REAL: dict[str, Any] = {"float": np.float32, "double": np.float64}


class Kernels:
    """The kernels of a step, for some rows of x; a whole pass and a single step have these in common.

    Arrays of kernels are rows: products of x (N, R), h (N, H), saved arrays (N, rows, H), states (B, H).

    Attributes
    ----------
    step : Step
    x : array (N, D)
    choice : Choice
    """

    step: Step
    x: Array

    def prepare(self, widths: Widths) -> None:
        """Make the arrays that kernels are given in every launch."""
        step = self.step
        self.choice: Choice = plan(step, widths, self.runtime)[1]
        self.heads, self.width = heads_of(step)
        self.real = REAL[self.choice.arithmetic.real]
        self.Wh = contiguous(step.Wh)
        given = step.own | {name: step.w[name] for name in step.added}
        self.constants: dict[str, Any] = {f"p_{name}": self.given(p) for name, p in given.items()}
        self.constants |= {f"p_{name}": self.real(value) for name, value in step.cell.numbers.items()}
        for name, share in zip(step.cell.STATES, step.masks.zoneout, strict=False):
            if isinstance(share, float):
                self.constants[f"p_zone_{name}"] = self.real(share)
            elif share is not None:
                self.constants[f"zone_{name}"] = self.given(share)

    @functools.cached_property
    def runtime(self) -> Runtime:
        """The device of the arrays."""
        found = launch.runtime(self.step.xp, self.step.Wh)
        assert found is not None
        return found

    @functools.cached_property
    def function(self) -> Pointwise:
        """The functions of the cell's step."""
        found = pointwise(self.step.cell, self.step.own_rows, self.step.added, self.step.zones)
        assert found is not None
        return found

    def launch_step(self, kind: str, arrays: dict[str, Any], row0: int, count: int) -> None:
        made = source.pointwise(self.function, kind, self.choice.arithmetic, self.heads, self.width)
        grid = Grid(-(-count * self.step.H // BLOCK), 1, BLOCK)
        given = [np.int64(row0), np.int32(count), *(arrays[name] for name in made.arrays)]
        self.runtime.launch(made, made.name, grid, given)

    @property
    def projected(self) -> Array:
        """Wx x of all steps, (N, R)."""
        w = self.step.w
        return self.given(matmul(self.step.xp, self.x, w["Wx"].T) if "Wx" in w else self.x)

    def through(self, h: Array) -> Array:
        """Return the products Wh h of rows (n, H): (n, R)."""
        if self.heads == 1:
            return self.given(matmul(self.step.xp, h, reshape(self.Wh, (self.step.R, self.step.H)).T))
        xp, n, N, K, G = self.step.xp, h.shape[0], self.heads, self.width, self.step.G
        z = matmul(xp, xp.permute_dims(reshape(h, (n, N, K)), (1, 0, 2)), self.by_head)  # (N, n, G K)
        z = xp.permute_dims(reshape(z, (N, n, G, K)), (1, 2, 0, 3))
        return self.given(reshape(z, (n, self.step.R)))

    def through_bwd(self, dz: Array) -> Array:
        """Return the products Wh^T dz of rows (n, R): (n, H)."""
        if self.heads == 1:
            return self.given(matmul(self.step.xp, dz, reshape(self.Wh, (self.step.R, self.step.H))))
        xp, n, N, K, G = self.step.xp, dz.shape[0], self.heads, self.width, self.step.G
        dz = xp.permute_dims(reshape(dz, (n, G, N, K)), (2, 0, 1, 3))
        dh = matmul(xp, reshape(dz, (N, n, G * K)), xp.matrix_transpose(self.by_head))
        return self.given(reshape(xp.permute_dims(dh, (1, 0, 2)), (n, self.step.H)))

    @functools.cached_property
    def by_head(self) -> Array:
        """Wh by heads, (N, K, G K)."""
        W = self.step.xp.permute_dims(self.Wh, (1, 3, 0, 2))
        return reshape(W, (self.heads, self.width, self.step.G * self.width))

    def empty(self, arrays: Rows, n: int | None = None) -> dict[str, Array]:
        """Return arrays (n, rows, H), or (n, H) without rows, by name; n is N by default."""
        xp, n, H = self.step.xp, self.x.shape[0] if n is None else n, self.step.H
        return {
            name: xp.empty((n, H) if rows is None else (n, rows, H), dtype=self.Wh.dtype, device=device_of(self.Wh))
            for name, rows in arrays.items()
        }

    def given(self, a: Array) -> Array:
        """Return an array as kernels read it: contiguous, and of the weights' dtype, which CuPy may not keep."""
        return contiguous(a if a.dtype == self.Wh.dtype else self.step.xp.astype(a, self.Wh.dtype))


class Single(Kernels):
    """A single step, as for streaming, from x (B, D) and the state (B, H), ...."""

    def __init__(self, step: Step, x: Array) -> None:
        self.step, self.x = step, x
        self.prepare([(1, x.shape[0])])

    def run(self, state: Sequence[Array]) -> list[Array]:
        """Return h after the step, and the state after it; all are new arrays."""
        xp, B, names = self.step.xp, self.x.shape[0], ("h", *self.function.carried)
        before = [contiguous(s if s.dtype == self.real else xp.astype(s, self.real)) for s in state]
        after = [xp.empty(s.shape, dtype=self.real, device=device_of(s)) for s in before]
        arrays = {"zx": self.projected, "product": self.through(self.given(state[0])), **self.constants}
        arrays |= self.empty({"y": None})
        arrays |= {f"before_{name}": s for name, s in zip(names, before, strict=True)}
        arrays |= {f"after_{name}": s for name, s in zip(names, after, strict=True)}
        self.launch_step("lean", arrays, 0, B)
        return [arrays["y"], *(s if s.dtype == self.Wh.dtype else xp.astype(s, self.Wh.dtype) for s in after)]


def plan(step: Step, widths: Widths, runtime: Runtime) -> tuple[Pointwise | None, Choice, str]:
    """Return the functions of a step, or None; the path that it takes; and why it has no functions."""
    obstacle = step.product_obstacle
    found = None if obstacle else pointwise(step.cell, step.own_rows, step.added, step.zones)
    why = "" if found is not None else f"no kernel does {obstacle or 'this cell'}"
    (heads, width), dtype = heads_of(step), dtype_name(step.Wh.dtype)
    return found, choose("cuda", told(), found, why, dtype, width, heads, widths[0][1], runtime.device), why


def heads_of(step: Step) -> tuple[int, int]:
    """Return the heads, and the units of each."""
    return (step.Wh.shape[1], step.Wh.shape[2]) if step.heads else (1, step.H)


def contiguous(a: Array) -> Array:
    """Return an array whose rows lie one after the other, which it is as a rule."""
    return a if a.flags.c_contiguous else a.copy(order="C")
