"""Embedding: a table with a row for each token."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import Array, Namespace, Params, check_library
from xlstm.arrays.scatter import add_rows
from xlstm.layers.initializers import normal
from xlstm.layers.module import Module, Weight
from xlstm.layers.saved import Saved


@dataclass(frozen=True)
class Embedding(Module):
    """A table `W` (V, D) with a row for each token, a whole number from 0 to V - 1.

    Parameters
    ----------
    vocab_size : int
        Number V of tokens.
    size : int
        Width D of a row.
    std : float, optional
        Deviation of the initial rows, by default sqrt(2 / (5 D)) (Nguyen & Salazar 2019).
    """

    vocab_size: int
    size: int
    _: KW_ONLY
    std: float | None = None

    @property
    def weights(self) -> dict[str, Weight]:
        std = math.sqrt(2 / (5 * self.size)) if self.std is None else self.std
        return {"W": ({"V": self.vocab_size, "D": self.size}, normal(std))}

    def forward(self, params: Params, x: Array) -> tuple[Any, ...]:
        """Return a row (..., D) for each of tokens x (...), and what `backward` needs."""
        params, x = from_foreign("Embedding", (params, x))
        xp = self.namespace(params, {})
        check_library("Embedding", "x", xp, x)
        y, kept = self.apply(xp, params, tokens_of("Embedding", "x", xp, x, self.vocab_size))
        return y, Saved(self, tuple(y.shape), kept)

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        """Return a row (..., D) for each of tokens x (...)."""
        flat = xp.reshape(x, (math.prod(x.shape),))
        return xp.reshape(xp.take(p["W"], flat, axis=0), (*x.shape, self.size)), x

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Any]:
        """Return the gradient of W, the rows of dy (..., D) added up by token, and None, as tokens have no gradient."""
        tokens, rows = xp.reshape(kept, (-1,)), xp.reshape(dy, (-1, self.size))
        return {"W": add_rows(xp, tokens, rows, self.vocab_size)}, None


def tokens_of(where: str, name: str, xp: Namespace, given: Array, vocab_size: int | None = None) -> Array:
    """Check that tokens are whole numbers, and below `vocab_size` where it is given, and return them as int64.

    Raises
    ------
    TypeError
        The tokens are not whole numbers.
    ValueError
        A token is not from 0 to V - 1. Tokens on a GPU are not looked at, as that would mean waiting for it.
    """
    if not xp.isdtype(given.dtype, "integral"):
        raise TypeError(f"{where}: {name} has dtype {given.dtype}, expected whole numbers")
    if vocab_size is not None:
        within(where, name, given, vocab_size)
    return xp.astype(xp.asarray(given), xp.int64, copy=not compiles(xp))  # NumPy 2.0 does not cast its scalars


def within(where: str, name: str, tokens: Array, vocab_size: int) -> None:
    """Raise ValueError unless tokens on the host are from 0 to V - 1; those on a GPU are not looked at."""
    if not isinstance(tokens, np.ndarray):
        return
    bad = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if bad.size:
        at = tuple(int(k) for k in bad[0])
        raise ValueError(
            f"{where}: {name} has {tokens[at]} at {at}, expected 0 to {vocab_size - 1}, as vocab_size is {vocab_size}"
        )
