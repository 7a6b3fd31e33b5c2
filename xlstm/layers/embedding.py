"""Rows of a table by number."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Namespace, Params, device_of
from xlstm.layers.part import Part, Values


@dataclass(frozen=True)
class Embedding(Part):
    """Tokens, whole numbers from 0 to V - 1, to rows of `W` (V, D).

    Parameters
    ----------
    vocab_size : int
        V.
    size : int
        D.
    std : float, optional
        Of the initial rows, by default sqrt(2 / (5 D)) (Nguyen & Salazar 2019).
    """

    vocab_size: int
    size: int
    _: KW_ONLY
    std: float | None = None

    def __post_init__(self) -> None:
        checks.fields(self, vocab_size=checks.size, size=checks.size, std=checks.optional(checks.squared))

    @property
    def _own(self) -> dict[str, checks.Dims]:
        return {"W": {"V": self.vocab_size, "D": self.size}}

    def _draw_own(self, rng: np.random.Generator) -> Values:
        std = math.sqrt(2 / (5 * self.size)) if self.std is None else self.std
        return {"W": rng.normal(0.0, std, (self.vocab_size, self.size))}

    def apply(self, xp: Namespace, p: Params, tokens: Array) -> Array:
        """tokens (...) -> (..., D)."""
        flat = xp.reshape(tokens, (math.prod(tokens.shape),))
        return xp.reshape(xp.take(p["W"], flat, axis=0), (*tokens.shape, self.size))

    def apply_bwd(self, xp: Namespace, tokens: Array, dy: Array) -> Params:
        """The gradient of W: rows of dy (..., D) added up by token."""
        flat, rows = xp.reshape(tokens, (-1,)), xp.reshape(dy, (-1, self.size))
        if xp is np:
            dW = np.zeros((self.vocab_size, self.size), dtype=dy.dtype)
            np.add.at(dW, flat, rows)
            return {"W": dW}
        # The array API cannot add at places; a product can, some rows of the table at a time.
        parts, step = [], max(1, (1 << 24) // max(1, flat.shape[0]))
        for first in range(0, self.vocab_size, step):
            some = xp.arange(first, min(first + step, self.vocab_size), dtype=flat.dtype, device=device_of(flat))
            parts.append(xp.astype(some[:, None] == flat[None, :], dy.dtype) @ rows)
        return {"W": xp.concat(parts)}
