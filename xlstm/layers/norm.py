"""Normalisation of the last axis: of the whole axis, or head by head."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Namespace, Params, add_over, reshape
from xlstm.arrays.rows import column_sums, summed
from xlstm.arrays.sliding import computes_again
from xlstm.cells.normalization import (
    EPS,
    MEAN_AND_VARIANCE,
    MEAN_SQUARE,
    Normal,
    normalize_bwd,
    normed,
    scaled,
)
from xlstm.layers.initializers import constant
from xlstm.layers.module import Module, SameWidth, Weights


@dataclass(frozen=True)
class LayerNorm(SameWidth, Module):
    """A norm to mean 0 and variance 1, times a gain: y = n w (Ba et al. 2016).

    Parameters
    ----------
    size : int
        Width D. The parameter is the gain `w` (D,).
    eps : float
        Number added to the variance, or to the mean square.
    residual : bool
        Whether the gain is 1 + w, where w begins at 0.
    bias : bool
        Whether there is a `b` (D,), added to y.
    """

    size: int
    _: KW_ONLY
    eps: float = EPS
    residual: bool = False
    bias: bool = False

    CHECKS: ClassVar = {"eps": checks.divisor}
    NORMAL: ClassVar[Normal] = MEAN_AND_VARIANCE
    num_heads = 1  # each head is normalised by itself

    @property
    def weights(self) -> Weights:
        D = {"D": self.size}
        weights: Weights = {"w": (D, constant(0.0 if self.residual else 1.0))}
        return weights | ({"b": (D, constant(0.0))} if self.bias else {})

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        arrays = [self._split(a) for a in (x, *map(p.__getitem__, self.shapes))]
        n, r, y = normed(
            xp, _normed, *arrays, formula=self.NORMAL.row, eps=self.eps, residual=self.residual
        )
        return reshape(y, x.shape), (n, r)

    def apply_bwd(
        self, xp: Namespace, p: Params, kept: Any, dy: Array, add: Array | None = None
    ) -> tuple[Params, Array]:
        """Return the gradients with respect to the parameters and x, the latter plus `add`."""
        n, r = kept
        if computes_again(xp):
            keep = 1 if self.num_heads == 1 else 2
            more = [] if add is None else [self._split(add)]
            arrays = (self._split(dy), n, r, self._split(p["w"]), *more)
            dx, *sums = summed(
                xp,
                _normed_bwd,
                *arrays,
                formula=self.NORMAL.row_bwd,
                residual=self.residual,
                bias=self.bias,
                sums=len(self.shapes),
                keep=keep,
            )
            grads = {
                name: reshape(d, (*d.shape[:-keep], self.size))
                for name, d in zip(self.shapes, sums, strict=True)
            }
            return grads, reshape(dx, dy.shape)
        dn, dw = summed(xp, _scale_bwd, dy, reshape(n, dy.shape), _gain(p["w"], self.residual))
        grads = {"w": dw} | ({"b": column_sums(xp, dy)} if self.bias else {})
        dx = reshape(normalize_bwd(xp, self._split(dn), n, r, -1, self.NORMAL), dy.shape)
        return grads, dx if add is None else add + dx

    def _split(self, x: Array) -> Array:
        if self.num_heads == 1:
            return x
        return reshape(x, (*x.shape[:-1], self.num_heads, self.size // self.num_heads))


class RMSNorm(LayerNorm):
    """A norm to mean square 1 (Zhang & Sennrich 2019); otherwise as `LayerNorm`."""

    NORMAL = MEAN_SQUARE


@dataclass(frozen=True)
class MultiHeadNorm(LayerNorm):
    """A norm of each head to mean 0 and variance 1; otherwise as `LayerNorm`.

    It is the group normalisation of Wu & He (2018).

    Parameters
    ----------
    num_heads : int
        Number N of heads; it divides D.
    """

    _: KW_ONLY
    num_heads: int = 1

    HEADED = ("size",)


def _gain(w: Array, residual: bool) -> Array:
    return 1 + w if residual else w


def _normed(
    xp: Namespace,
    x: Array,
    w: Array,
    *bias: Array,
    formula: Any,
    eps: float,
    limit: float | None,
    residual: bool,
) -> tuple[Array, Array, Array]:
    """Return a normalised row n, the factor that normalised it, and n times gain plus bias."""
    n, r = scaled(xp, x, formula, -1, eps, limit)
    y = n * _gain(w, residual)  # (4)
    for b in bias:
        y = add_over(xp, y, b)  # (4)
    return n, r, y


def _normed_bwd(
    xp: Namespace,
    dy: Array,
    n: Array,
    r: Array,
    w: Array,
    *add: Array,
    formula: Any,
    residual: bool,
    bias: bool,
) -> tuple[Array, ...]:
    """Return the gradient with respect to a row, plus `add`, and its gradients of gain and bias."""
    dn, dw = _scale_bwd(xp, dy, n, _gain(w, residual))
    dx = formula(xp, dn, n, r, -1)  # (3)
    for a in add:
        dx = add_over(xp, dx, a)
    return (dx, dw, dy) if bias else (dx, dw)  # (4)


def _scale_bwd(xp: Namespace, dy: Array, n: Array, gain: Array) -> tuple[Array, Array]:
    """Return the gradients with respect to n and to the gain, the latter row by row."""
    return dy * gain, dy * n  # (4)
