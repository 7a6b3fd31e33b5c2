"""Packed weights of a layer, and products over all steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from xlstm.arrays import workspace
from xlstm.arrays.namespace import Array
from xlstm.engines.step import Step


class Weights:
    """The weights of a step as compiled loops take them, packed when they are asked for first."""

    def __init__(self, step: Step, compiled: ModuleType) -> None:
        self.step, self.compiled = step, compiled

    @functools.cached_property
    def Wx(self) -> Array:  # noqa: N802
        """Wx for products with x, (slivers of all gates, D, columns); empty where x are the products already."""
        step = self.step
        if "Wx" not in step.w:
            return np.empty((0, 0, 0), step.Wh.dtype)
        return self._packed(self.compiled.pack_transposed, step.w["Wx"].reshape(step.G, step.H, -1), step.H)

    @functools.cached_property
    def forward(self) -> Array:
        """Wh for products with h, (heads, slivers of all gates, K, columns)."""
        pack = self.compiled.pack_transposed
        return np.stack([self._packed(pack, W, W.shape[1]) for W in self._by_head])

    @functools.cached_property
    def backward(self) -> Array:
        """Wh for products with the gradients of a gate, (heads, G, slivers, K, columns)."""
        heads, G, K, _ = self._by_head.shape
        packed = np.stack([self._packed(self.compiled.pack, W, K) for W in self._by_head])
        return packed.reshape(heads, G, -1, *packed.shape[2:])

    @property
    def _by_head(self) -> Array:
        """Wh by heads and gates, (heads, G, K, K)."""
        step = self.step
        return step.Wh.transpose(1, 0, 2, 3) if step.heads else step.Wh.reshape(1, step.G, step.H, step.H)

    def _packed(self, pack: Callable[[Array, Array], None], W: Array, width: int) -> Array:
        """Return matrices packed one after the other, each of which has so many columns for its product."""
        columns, K = self.compiled.COLUMNS, W[0].size // width
        packed = np.empty((W.shape[0], -(-width // columns), K, columns), W.dtype)
        for one, room in zip(W, packed, strict=True):
            pack(contiguous(one), room)
        return packed.reshape(-1, K, columns)


def product(compiled: ModuleType, a: Array, b: Array) -> tuple[Array, Callable[[int, int], Any]]:
    """Return room for a @ b, and a function that computes its rows from one to another.

    Either a or its transposed is contiguous.
    """
    K, width = b.shape
    out = workspace.empty(np, (a.shape[0], width), b)
    if not a.flags.c_contiguous:
        over = compiled.vector_over_rows if width == 1 else compiled.product_over_rows
        return out, functools.partial(over, contiguous(a.T), contiguous(b), out)
    packed = np.empty((-(-width // compiled.COLUMNS), K, compiled.COLUMNS), b.dtype)
    compiled.pack(contiguous(b), packed)
    rows = contiguous(a)

    def call(i: int, j: int) -> None:
        compiled.product(rows, i * K, K, j - i, packed, 0, packed.shape[0], out, i * width, width, 0, width, False)

    return out, call


def contiguous(a: Array) -> Array:
    """Return an array as compiled loops take it, contiguous and not read-only: one compilation serves all."""
    flags = a.flags
    return a if flags.c_contiguous and flags.writeable else np.array(a, order="C")
