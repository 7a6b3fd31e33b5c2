"""One step of a layer in kernels: their weights and constants, and the products beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays.cached import cached_property
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, astype, dtype_name, reshape, room
from xlstm.cells.normalization import layer_norm
from xlstm.engines.cell_step import Step
from xlstm.engines.cuda import cell_source, launch
from xlstm.engines.cuda.choice import Choice, choose, told
from xlstm.engines.cuda.tiling import Device
from xlstm.engines.pointwise import Around, Pointwise, Rows, pointwise
from xlstm.engines.tape import Widths

REAL: dict[str, Any] = {"float": np.float32, "double": np.float64}


class StepKernels:
    """The kernels of a step, for some rows of x: the common part of a whole pass and a single step.

    Arrays of kernels are rows: products with x (N, R), h (N, H), saved arrays (N, rows, H), states
    (B, H).

    Attributes
    ----------
    step : Step
    x : array (N, D)
    choice : Choice
    """

    normal: tuple[Array, Array] | None

    def __init__(self, step: Step, x: Array, widths: Widths) -> None:
        self.step = step
        self.x = x
        self.choice, _ = plan(step, widths, self.device)
        self.projected = self.function.around.projected
        self.heads, self.width = heads_of(step)
        self.real = REAL[self.choice.arithmetic.real]
        self.Wh = contiguous(step.Wh)
        # the arrays and numbers that kernels take in every launch
        self.constants: dict[str, Any] = {
            f"p_{name}": self.as_read(step.own.get(name, step.w[name]))
            for name in (*step.own, *step.added, *["gh"] * ("gh" in step.w))
            if name != self.function.around.matrix
        }
        for name, value in step.cell.numbers.items():
            self.constants[f"p_{name}"] = self.real(value)
        for name, share in zip(step.cell.STATES, step.masks.zoneout, strict=False):
            if isinstance(share, float):
                self.constants[f"p_zone_{name}"] = self.real(share)
            elif share is not None:
                self.constants[f"zone_{name}"] = self.as_read(share)
        if step.masks.drop is not None:
            self.constants["drop"] = self.as_read(step.masks.drop.T)  # (B, P)

    @cached_property
    def device(self) -> Device:
        """The device of the arrays."""
        device = launch.device(self.step.xp, self.step.Wh)
        assert device is not None
        return device

    @cached_property
    def function(self) -> Pointwise:
        """The functions of the cell's step."""
        function = function_of(self.step)
        assert function is not None
        return function

    def ask(
        self, kind: str, arrays: dict[str, Any], h: Array, row0: int, keep_h: bool = False
    ) -> None:
        """Launch one step forward for the rows that begin at `row0`, from h (n, P) before it."""
        count = h.shape[0]
        drop = self.constants.get("drop")
        arrays["product"] = self.through(h if drop is None else h * drop[:count, :])
        self.multiply_inside("factor", arrays, row0, count)
        self.launch_step(kind, arrays, row0, count, keep_h)

    def ask_bwd(self, arrays: dict[str, Any], row0: int, count: int) -> None:
        """Launch one step backward, from `product`, the gradient (n, H) with respect to h through
        its product or its projection.
        """
        self.multiply_inside("factor_bwd", arrays, row0, count)
        self.launch_step("backward", arrays, row0, count)

    def multiply_inside(self, kind: str, arrays: dict[str, Any], row0: int, count: int) -> None:
        """Compute the product within the cell, if there is one."""
        matrix = self.function.around.matrix
        if not matrix:
            return
        arrays["after_factor"] = factor = self.empty({"": None}, count)[""]
        self.launch_step(kind, arrays, row0, count)
        W = self.step.own[matrix]
        inner = matmul(self.step.xp, factor, W.T if kind == "factor" else W)
        arrays["inner"] = self.as_read(inner)

    def launch_step(
        self, kind: str, arrays: dict[str, Any], row0: int, count: int, keep_h: bool = False
    ) -> None:
        if count == 0:  # CuPy would launch one block in place of none
            return
        source = cell_source.pointwise(
            self.function, kind, self.choice.arithmetic, self.heads, self.width, keep_h
        )
        arguments = [np.int64(row0), np.int32(count), *(arrays[name] for name in source.arrays)]
        threads = cell_source.threads_of(self.step.H)
        blocks = count, 1 if self.function.reduces else -(-self.step.H // threads)
        launch.launch(source, blocks, threads, arguments)

    def project(self, x: Array) -> Array:
        """Return Wx x (n, R) for rows (n, D), which layer_norm normalises."""
        w = self.step.w
        z = matmul(self.step.xp, x, w["Wx"].T) if "Wx" in w else x
        if "gx" in w:
            z, (n, r) = layer_norm(self.step.xp, z, w["gx"], -1)
            self.normal = n.T, r.T
        return self.as_read(z)

    def through(self, h: Array) -> Array:
        """Return the products Wh h (n, R) for rows (n, P)."""
        xp = self.step.xp
        if not self.step.recurrent:
            return self.step.zeros(h, h.shape[0], self.step.R)
        if self.heads == 1:
            return self.as_read(matmul(xp, h, self.Wh.T))
        h = xp.permute_dims(reshape(h, (-1, self.heads, self.width)), (1, 0, 2))
        z = matmul(xp, h, self.by_head)  # (N, n, G K)
        z = reshape(z, (self.heads, -1, self.step.G, self.width))
        return self.as_read(reshape(xp.permute_dims(z, (1, 2, 0, 3)), (-1, self.step.R)))

    def through_bwd(self, dz: Array) -> Array:
        """Return the products Wh^T dz (n, P) for rows (n, R)."""
        xp = self.step.xp
        if not self.step.recurrent:
            return self.step.zeros(dz, dz.shape[0], self.step.P)
        if self.heads == 1:
            return self.as_read(matmul(xp, dz, self.Wh))
        dz = reshape(dz, (-1, self.step.G, self.heads, self.width))
        dz = reshape(xp.permute_dims(dz, (2, 0, 1, 3)), (self.heads, dz.shape[0], -1))
        dh = matmul(xp, dz, xp.matrix_transpose(self.by_head))  # (N, n, K)
        return self.as_read(reshape(xp.permute_dims(dh, (1, 0, 2)), (-1, self.step.H)))

    @cached_property
    def by_head(self) -> Array:
        """Wh by heads, (N, K, G K)."""
        W = self.step.xp.permute_dims(self.Wh, (1, 3, 0, 2))
        return reshape(W, (self.heads, self.width, self.step.G * self.width))

    def empty(self, arrays: Rows, n: int | None = None) -> dict[str, Array]:
        """Return arrays (n, rows, H), or (n, H) without rows, by name; n is N by default."""
        xp = self.step.xp
        n = self.x.shape[0] if n is None else n
        H = self.step.H
        return {
            name: room(xp, self.Wh, (n, H) if rows is None else (n, rows, H))
            for name, rows in arrays.items()
        }

    def as_read(self, a: Array) -> Array:
        """Return an array in the form for kernels: contiguous, and of the weights' dtype, which
        CuPy may not keep.
        """
        return contiguous(astype(self.step.xp, a, self.Wh.dtype))

    def single(self, state: Sequence[Array]) -> list[Array]:
        """Run one step from the state (B, H), ..., as for streaming; return h and the state after
        it, as new arrays.
        """
        xp = self.step.xp
        names = self.function.carried if self.projected else ("h", *self.function.carried)
        arrays: dict[str, Any] = {"zx": self.project(self.x), **self.constants}
        arrays |= self.empty({"out" if self.projected else "y": None})
        after = []
        for name, s in zip(names, state[-len(names) :], strict=True):
            before = contiguous(astype(xp, s, self.real))
            after.append(room(xp, before, before.shape))
            arrays |= {f"before_{name}": before, f"after_{name}": after[-1]}
        self.ask("lean", arrays, self.as_read(state[0]), 0)
        after = [astype(xp, s, self.Wh.dtype) for s in after]
        if not self.projected:
            return [arrays["y"], *after]
        h = matmul(xp, arrays["out"], self.step.w["Whr"].T)
        return [h, h, *after]


def plan(step: Step, widths: Widths, device: Device) -> tuple[Choice, str]:
    """Return the path of a step, and why no kernel can run it, or ""."""
    function = function_of(step)
    why = "" if function is not None else f"no kernel does {_obstacle(step) or 'this cell'}"
    heads, width = heads_of(step)
    dtype = dtype_name(step.Wh.dtype)
    return choose(told(), function, why, dtype, width, heads, widths[0][1], device), why


def function_of(step: Step) -> Pointwise | None:
    """Return the functions of a step, or None if the step is not element by element; the step keeps
    them.
    """
    if step.compiled is None:
        rows = None if step.R == step.G * step.H else step.R // step.H
        drop = step.masks.drop is not None
        around = Around(drop, "gh" in step.w, step.Whr is not None, step.matrix, rows, units=True)
        traced = None
        if not _obstacle(step):
            traced = pointwise(step.cell, step.own_rows, step.added, step.zones, around)
        step.compiled = (traced,)
    function: Pointwise | None = step.compiled[0]
    return function


def _obstacle(step: Step) -> str:
    projected = step.Whr is not None and any(name == "h" for name, _ in step.zones)
    return "zoneout of a projection" if projected else ""


def heads_of(step: Step) -> tuple[int, int]:
    """Return the number of heads, and the units of each."""
    return (step.Wh.shape[1], step.Wh.shape[2]) if step.heads else (1, step.H)


def contiguous(a: Array) -> Array:
    """Return an array whose rows lie one after another; usually it is the array itself."""
    return a if a.flags.c_contiguous else a.copy(order="C")
