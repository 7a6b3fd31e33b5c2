"""The minimal cells of Feng et al. 2024 ("Were RNNs all we needed?"), whose gates do not see h.

In the log-space form, the candidate is g of its pre-activation. It is above 0, so that h stays
positive. In the linear form, the candidate is the pre-activation itself. The paper computes the
log-space form with logarithms, since its parallel scan divides by products of gates. The scan here
does not divide, and gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells.activations import sigmoid, sigmoid_bwd
from xlstm.cells.linear_scan import LinearCell


def g(xp: Namespace, x: Array) -> Array:
    """Return x + 0.5 if x is 0 or more, else sigmoid(x) (appendix B.3)."""
    return xp.where(x < 0, sigmoid(xp, x), x + 0.5)


def g_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `g`; x decides the branch, because y may be rounded to 0.5."""
    low = xp.minimum(y, xp.full_like(y, 0.5))  # the unused branch must not overflow
    return xp.where(x < 0, sigmoid_bwd(xp, dy, x, low), dy)


@dataclass(frozen=True)
class Minimal(LinearCell):
    """The base of both cells: it makes the candidate n from its pre-activation."""

    log_space: bool = True

    def activated(self, xp: Namespace, saved: Any) -> Array:
        """Return the gate values (G, ...) in the order of GATES."""
        gates = [getattr(saved, name) for name in self.SHARES]
        return xp.stack([*gates, self._candidate(xp, saved.zn)])

    def _candidate(self, xp: Namespace, zn: Array) -> Array:
        return g(xp, zn) if self.log_space else zn

    def _candidate_bwd(self, xp: Namespace, dn: Array, zn: Array, n: Array) -> Array:
        return g_bwd(xp, dn, zn, n) if self.log_space else dn


class SavedGRU(NamedTuple):
    """The coefficients of a minGRU, and the values that the backward pass needs."""

    a: Array
    b: Array | None
    z: Array
    zn: Array  # pre-activation of the candidate
    h0: Array | None = None


@dataclass(frozen=True)
class MinGRU(Minimal):
    """A minGRU, h = (1 - z) h0 + z n, with gates in the order z n."""

    GATES = ("z", "n")
    SHARES = ("z",)

    def coefficients(self, xp: Namespace, zx: Array) -> SavedGRU:  # type: ignore[override]
        """Return 1 - z and z n, from zx (2, ..., H, B)."""
        z = sigmoid(xp, zx[0, ...])  # (1)
        n = self._candidate(xp, zx[1, ...])  # (2)
        return SavedGRU(1 - z, z * n, z, zx[1, ...])  # (3) a, b

    def coefficients_bwd(  # type: ignore[override]
        self, xp: Namespace, saved: SavedGRU, da: Array, db: Array
    ) -> Array:
        """Return the gradient with respect to zx (2, ..., H, B)."""
        z = saved.z
        zn = saved.zn
        n = self._candidate(xp, zn)
        dz = sigmoid_bwd(xp, db * n - da, z, z)  # (3) through z, (1)
        return xp.stack((dz, self._candidate_bwd(xp, db * z, zn, n)))  # (3) through n, (2)


class SavedLSTM(NamedTuple):
    """The coefficients of a minLSTM, and the values that the backward pass needs."""

    a: Array  # f; both gates are divided by their sum
    b: Array | None
    i: Array
    zn: Array  # pre-activation of the candidate
    w: Array  # the part of both i and f: i - w is i sigmoid(-f~), and f - w is f sigmoid(-i~)
    h0: Array | None = None

    @property
    def f(self) -> Array:
        """The forget gate."""
        return self.a


@dataclass(frozen=True)
class MinLSTM(Minimal):
    """A minLSTM, h = f h0 + i n, with gates in the order f i n; f and i are divided by their sum.

    f is (1 + exp(-i~)) / (2 + exp(-f~) + exp(-i~)), and i likewise. Every term is divided by the
    largest of 1, exp(-f~) and exp(-i~), so that nothing overflows and the denominator is 1 or more.
    The paper writes the same as the sigmoid of a difference of softplus.
    """

    GATES = ("f", "i", "n")
    SHARES = ("f", "i")

    def coefficients(self, xp: Namespace, zx: Array) -> SavedLSTM:  # type: ignore[override]
        """Return f and i n, from zx (3, ..., H, B)."""
        zf = zx[0, ...]
        zi = zx[1, ...]
        m = xp.maximum(xp.maximum(-zf, -zi), xp.zeros_like(zf))
        s = xp.exp(-m)
        ef = xp.exp(-zf - m)
        ei = xp.exp(-zi - m)
        r = 1 / (s + s + ef + ei)
        w = s * r
        f = w + ei * r  # (1)
        i = w + ef * r  # (1)
        n = self._candidate(xp, zx[2, ...])  # (2)
        return SavedLSTM(f, i * n, i, zx[2, ...], w)  # (3) a, b

    def coefficients_bwd(  # type: ignore[override]
        self, xp: Namespace, saved: SavedLSTM, da: Array, db: Array
    ) -> Array:
        """Return the gradient with respect to zx (3, ..., H, B)."""
        f, _, i, zn, w, _ = saved
        n = self._candidate(xp, zn)
        d = da - db * n  # (3) through f and i, whose sum is 1
        dn = self._candidate_bwd(xp, db * i, zn, n)  # (3) through n, (2)
        return xp.stack((f * (i - w) * d, i * (w - f) * d, dn))  # (1)
