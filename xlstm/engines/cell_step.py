"""One time step of a layer in one direction: the cell, its weights, and the options around it."""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xlstm.arrays import compiled
from xlstm.arrays.fuse import compiles
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, Params, device_of, is_of_duals, reshape
from xlstm.cells.cell import Cell
from xlstm.cells.linear_scan import LinearCell
from xlstm.cells.normalization import layer_norm, layer_norm_bwd
from xlstm.engines.pointwise import pointwise

# A function that runs a single step, (w, x, state) -> (y, state); see `Engine.stream`.
Stream: TypeAlias = "Callable[[Params, Array, Sequence[Array]], tuple[Array, Sequence[Array]]]"


class Masks(NamedTuple):
    """The masks of one layer and direction; None if there are none."""

    drop: Array | None = None  # (P, B), a factor of h before Wh, the same at all steps
    # The share of the old state, for each state: rows (N, H) or one number.
    zoneout: tuple[Array | float | None, ...] = ()


class Step:
    """A time step: everything that does not change from step to step. Attributes are never written.

    Parameters
    ----------
    xp : namespace
    cell : Cell
    w : dict
        Weights under their last names. Wh is (R, P), or (G, N, K, K) for N heads, or missing.
        Optional weights are Wx (R, D), without which x (N, R) are already the products; the biases
        b and bh (R,); the gains gx and gh (R,) of normalised products; a projection Whr (P, H) of
        h; and the cell's own parameters.
    masks : Masks
    """

    def __init__(self, xp: Namespace, cell: Cell, w: Params, masks: Masks) -> None:
        self.xp = xp
        self.cell: Any = cell
        self.layer_w = w
        self.masks = masks
        self.w = w = cell.weights(xp, w)
        # A cell without a product with h has the shapes of a cell whose weights are zero.
        self.G = len(cell.GATES)
        self.recurrent = "Wh" in w
        if self.recurrent:
            Wh = w["Wh"]
        else:
            R = w["Wx"].shape[0]
            Wh = xp.zeros((R, R // self.G), dtype=w["Wx"].dtype, device=device_of(w["Wx"]))
        if Wh.ndim == 4 and Wh.shape[1] == 1:  # a single head is an ordinary matrix
            Wh = reshape(Wh, (-1, Wh.shape[3]))
        self.heads = Wh.ndim == 4
        self.Wh = Wh
        if self.heads:
            _, N, K, _ = Wh.shape
            self.R = self.G * N * K
            self.P = N * K
        else:
            self.R, self.P = Wh.shape
        self.Whr = w.get("Whr")
        self.H = self.P if self.Whr is None else self.Whr.shape[1]
        self.b = w.get("b")
        self.bh = w.get("bh")
        biases = () if self.b is None else ("b",)
        self.added = biases if self.bh is None else (*biases, "bh")
        self.zoneout = bool(masks.zoneout) and any(share is not None for share in masks.zoneout)
        # Only the cell and the product with h.
        self.bare = not self.zoneout and masks.drop is None and self.Whr is None and "gh" not in w
        # Whether all steps are one scan over time.
        self.linear = self.bare and isinstance(cell, LinearCell)
        # The cell's own parameters, (rows, H, 1) or (H, 1); a matrix stays unchanged.
        self.own: Params = {}
        for name in cell.OWN:
            if name in w:
                p = w[name]
                rows = (-1,) if p.shape[0] > self.H else ()
                self.own[name] = p if p.ndim == 2 else reshape(p, (*rows, self.H, 1))
        by_steps = self.bare and not self.linear
        on_dual_numbers = is_of_duals(xp) and compiles(xp.base)
        if by_steps and on_dual_numbers and pointwise(cell, self.own_rows, ()) is not None:
            self.cell = compiled.module("jvp.cells").CompiledCell(cell)
        self.compiled: Any = None  # the step as an engine compiled it
        # Looked up only once, since they run at every step.
        on_cupy = xp is not np and compiles(xp)
        self._times: Any = functools.partial(matmul, xp) if on_cupy else operator.matmul
        # in-place, except with dual numbers: a constant product has no room for a bias's tangent
        self._add: Any = operator.add if is_of_duals(xp) else operator.iadd
        self.reshape: Any = np.ndarray.reshape if xp is np else reshape

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the step with its namespace by name, and without its compiled form."""
        return _step, (self.xp.__name__, self.cell, self.layer_w, self.masks)

    @property
    def own_rows(self) -> tuple[tuple[str, int | None], ...]:
        """Names of the cell's own parameters, and the rows of each; None for a parameter without
        that axis.
        """
        return tuple([(name, p.shape[0] if p.ndim == 3 else None) for name, p in self.own.items()])

    @property
    def matrix(self) -> str:
        """The name of the cell's own parameter that is a matrix, "" if there is none."""
        return next((name for name, p in self.own.items() if p.ndim == 2 and p.shape[1] > 1), "")

    @property
    def zones(self) -> tuple[tuple[str, bool], ...]:
        """The states with zoneout, and whether their share is a number and not a mask."""
        pairs = zip(self.cell.STATES, self.masks.zoneout, strict=False)
        return tuple(
            [(name, isinstance(share, float)) for name, share in pairs if share is not None]
        )

    @property
    def obstacle(self) -> str:
        """The options beside the cell and the product with h, in words."""
        there = {
            "zoneout": self.zoneout,
            "recurrent dropout": self.masks.drop is not None,
            "a projection": self.Whr is not None,
            "layer normalisation": "gh" in self.w,
            "a product within the cell": self.matrix,
        }
        return " and ".join(name for name, is_there in there.items() if is_there)

    def project(self, x: Array) -> tuple[Array, tuple[Array, Array] | None]:
        """Return Wx x + b (R, N) for rows x (N, D).

        With layer_norm, also return the normalised Wx x and 1 / its deviation.
        """
        xp = self.xp
        w = self.w
        zx = self._times(w["Wx"], x.T) if "Wx" in w else xp.asarray(x.T, copy=True)  # (1)
        normal = None
        if "gx" in w:
            zx, normal = layer_norm(xp, zx, w["gx"][:, None], 0)  # (7)
        if self.b is not None:
            zx = self._add(zx, self.b[:, None])  # (1)
        return zx, normal

    def project_bwd(self, dzx: Array, normal: tuple[Array, Array] | None) -> Array:
        """Return the gradient with respect to Wx x from that with respect to zx (R, N)."""
        if normal is None:
            return dzx
        return layer_norm_bwd(self.xp, dzx, self.w["gx"][:, None], *normal, 0)  # (7)

    def zeros(self, like: Array, *shape: int) -> Array:
        """Return zeros of this shape, with the dtype and device of another array."""
        return self.xp.zeros(shape, dtype=like.dtype, device=device_of(like))

    def recur(self, W: Array, h: Array) -> Array:
        """Return W h + bh (gates, H, n), with the recurrent weight W; each head has its own
        product.
        """
        n = h.shape[1]
        if not self.recurrent:
            return self.zeros(h, self.G, self.H, n)
        if self.heads:
            h = self.reshape(h, (W.shape[1], W.shape[3], n))
        zh = self.reshape(self._times(W, h), (self.R // self.H, self.H, n))  # (3)
        return zh if self.bh is None else zh + reshape(self.bh, (-1, self.H, 1))  # (3)

    def recur_bwd(self, WT: Array, da: Array) -> Array:
        """Return W^T da (P, n)."""
        n = da.shape[1]
        if not self.recurrent:
            return self.zeros(da, self.P, n)
        if self.heads:
            G, N, K, _ = WT.shape
            # (3) by heads
            return reshape(
                self.xp.sum(self._times(WT, reshape(da, (G, N, K, n))), axis=0), (self.P, n)
            )
        dh = self._times(WT, da)  # (3)
        return dh if dh.ndim == 2 else reshape(dh, (self.P, n))


def _step(xp: str, *arguments: Any) -> Step:
    return Step(importlib.import_module(xp), *arguments)
