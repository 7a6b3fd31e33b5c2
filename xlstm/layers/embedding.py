"""Embedding: a table with a row for each symbol, and checks of symbols."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.gather import add_rows, rows_of_table
from xlstm.arrays.namespace import Array, Namespace, Params, check_library, device_of, reshape
from xlstm.arrays.rows import per_sequence
from xlstm.layers.initializers import normal
from xlstm.layers.module import Module, Saved, Weights, rows


@dataclass(frozen=True)
class Embedding(Module):
    """A table `W` (V, D) with a row for each symbol, such as a token of a text.

    Symbols are whole numbers from 0 to V - 1. x may have any shape, and y has a row (D,) in the
    place of each symbol. Symbols have no gradient: `backward` returns None in its place.

    A symbol out of range raises ValueError if x is on the host. On a GPU the host would have to
    wait to see it, so its row is NaN instead.

    Parameters
    ----------
    vocab_size : int
        Number V of symbols.
    size : int
        Width D of a row.
    std : float, optional
        Standard deviation of the initial rows, by default sqrt(2 / (5 D)) (Nguyen & Salazar 2019).

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> embedding = xlstm.Embedding(vocab_size=5, size=3)
    >>> params = embedding.init(backend="numpy")
    >>> y, saved = embedding.forward(params, np.array([[4, 0], [0, 1]]))
    >>> y.shape
    (2, 2, 3)
    >>> grads, dx = embedding.backward(params, saved, np.ones_like(y))
    >>> grads["W"][:, 0]  # how often each symbol is there
    array([2., 1., 0., 0., 1.], dtype=float32)
    """

    vocab_size: int
    size: int
    _: KW_ONLY
    std: float | None = None

    @property
    def symbols(self) -> int:
        """Number V of symbols."""
        return self.vocab_size

    @property
    def weights(self) -> Weights:
        std = math.sqrt(2 / (5 * self.size)) if self.std is None else self.std
        return {"W": ({"V": self.vocab_size, "D": self.size}, normal(std))}

    def forward(self, params: Params, x: Array) -> tuple[Any, ...]:
        """Return a row (..., D) for each symbol of x (...), and the values for `backward`."""
        if (views := self._views(params, x)) is not None:
            return views.run(self.forward, params, x)  # type: ignore[no-any-return]
        params, x = from_foreign("Embedding", (params, x))
        xp = self.namespace(params, {})
        check_library("Embedding", "x", xp, x)
        y, kept = self.apply(xp, params, tokens_of("Embedding", "x", xp, x, self.vocab_size))
        return y, Saved(self, tuple(y.shape), kept, home=device_of(y), xp=xp)

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        """Return a row (..., D) for each symbol of x (...), and x."""
        flat = reshape(x, (math.prod(x.shape),))
        return reshape(rows_of_table(xp, p["W"], flat), (*x.shape, self.size)), x

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Any]:
        """Return the gradient with respect to W, and None, as symbols have no gradient.

        It is the rows of dy (..., D), added up by symbol.
        """
        V = self.vocab_size
        B = per_sequence.get()
        if B is None:
            return {"W": add_rows(xp, reshape(kept, (-1,)), rows(dy), V)}, None
        # A symbol's rows of all sequences lie together, so a symbol outside the table is in no
        # sequence's.
        places = B * kept + xp.arange(B, dtype=kept.dtype, device=device_of(kept))
        tables = add_rows(xp, reshape(places, (-1,)), rows(dy), V * B)
        return {"W": xp.permute_dims(reshape(tables, (V, B, self.size)), (1, 0, 2))}, None


def tokens_of(
    where: str, name: str, xp: Namespace, tokens: Array, vocab_size: int | None = None
) -> Array:
    """Check that tokens are whole numbers, from 0 to V - 1 if V is known, and return them as int64.

    Raises
    ------
    TypeError
        The tokens are not whole numbers.
    ValueError
        A token is not from 0 to V - 1. Tokens on a GPU are not checked, as the host would wait for
        the GPU; the rows of wrong ones are NaN.
    """
    if not xp.isdtype(tokens.dtype, "integral"):
        raise TypeError(f"{where}: {name} has dtype {tokens.dtype}, expected whole numbers")
    if vocab_size is not None:
        within(where, name, tokens, vocab_size)
    # NumPy 2.0's `astype` takes no scalars
    return xp.astype(xp.asarray(tokens), xp.int64, copy=False)


def within(where: str, name: str, tokens: Array, vocab_size: int) -> None:
    """Raise ValueError unless tokens on the host are from 0 to V - 1.

    Tokens on a GPU are not checked.
    """
    if not isinstance(tokens, np.ndarray):
        return
    bad = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if bad.size:
        at = tuple(int(k) for k in bad[0])
        raise ValueError(
            f"{where}: {name} has {tokens[at]} at {at}, expected whole numbers from 0 to"
            f" {vocab_size - 1}"
        )
