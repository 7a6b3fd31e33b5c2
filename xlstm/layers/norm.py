"""Normalisation of the last axis, whole or by heads."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Array, Namespace, Params
from xlstm.cells.activations import EPS, normalize, normalize_bwd, normalize_root, normalize_root_bwd
from xlstm.layers.module import Module, Values, total


@dataclass(frozen=True)
class Norm(Module):
    """y = n w, with n normalised by heads.

    Parameters
    ----------
    size : int
        Width D. The parameter is the gain `w` (D,).
    eps : float
        Added to the variance, or the mean square.
    residual : bool
        The gain is 1 + w, and w is 0 at first.
    bias : bool
        Whether a `b` (D,) is added.
    """

    size: int
    _: KW_ONLY
    eps: float = EPS
    residual: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        checks.fields(self, size=checks.size, eps=checks.divisor, residual=checks.flag, bias=checks.flag)

    @property
    def heads(self) -> int:
        """Number of heads, each normalised by itself."""
        return 1

    @property
    def input_size(self) -> int:
        """Width of x, and of y."""
        return self.size

    @property
    def _own(self) -> dict[str, checks.Dims]:
        D = {"D": self.size}
        return {"w": D, **({"b": D} if self.bias else {})}

    def _draw_own(self, rng: np.random.Generator) -> Values:
        w = np.zeros(self.size) if self.residual else np.ones(self.size)
        return {"w": w, "b": np.zeros(self.size)} if self.bias else {"w": w}

    def normal(self, xp: Namespace, x: Array) -> tuple[Array, Array]:
        """Return x normalised along the last axis, and 1 / its divisor."""
        return normalize(xp, x, -1, self.eps)

    def normal_bwd(self, xp: Namespace, dn: Array, n: Array, r: Array) -> Array:
        """Return the gradient of x from that of n."""
        return normalize_bwd(xp, dn, n, r, -1)

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        """Return y (..., D) for x (..., D)."""
        n, r = self.normal(xp, self._split(xp, x))
        whole = xp.reshape(n, x.shape)
        y = whole * self._gain(p)
        if self.bias:
            y += p["b"]
        return y, (n, r)

    def apply_bwd(self, xp: Namespace, p: Params, kept: Any, dy: Array) -> tuple[Params, Array]:
        """Return gradients and dx (..., D) for dy (..., D)."""
        n, r = kept
        grads = {"w": total(xp, dy * xp.reshape(n, dy.shape))}
        if self.bias:
            grads["b"] = total(xp, dy)
        dn = self._split(xp, dy * self._gain(p))
        return grads, xp.reshape(self.normal_bwd(xp, dn, n, r), dy.shape)

    def _gain(self, p: Params) -> Array:
        return 1 + p["w"] if self.residual else p["w"]

    def _split(self, xp: Namespace, x: Array) -> Array:
        return x if self.heads == 1 else xp.reshape(x, (*x.shape[:-1], self.heads, self.size // self.heads))


class LayerNorm(Norm):
    """Mean 0 and variance 1 (Ba et al. 2016); otherwise as `Norm`."""


class RMSNorm(Norm):
    """Mean square 1 (Zhang & Sennrich 2019); otherwise as `Norm`."""

    def normal(self, xp: Namespace, x: Array) -> tuple[Array, Array]:
        """Return x normalised along the last axis, and 1 / its divisor."""
        return normalize_root(xp, x, -1, self.eps)

    def normal_bwd(self, xp: Namespace, dn: Array, n: Array, r: Array) -> Array:
        """Return the gradient of x from that of n."""
        return normalize_root_bwd(xp, dn, n, r, -1)


@dataclass(frozen=True)
class MultiHeadNorm(Norm):
    """Mean 0 and variance 1 of each head by itself (Wu & He 2018, group normalisation); otherwise as `Norm`.

    Parameters
    ----------
    num_heads : int
        Number N of heads, which divides D.
    """

    _: KW_ONLY
    num_heads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.fields(self, num_heads=checks.size)
        checks.heads("MultiHeadNorm", self.num_heads, size=self.size)

    @property
    def heads(self) -> int:
        """Number of heads, each normalised by itself."""
        return self.num_heads
