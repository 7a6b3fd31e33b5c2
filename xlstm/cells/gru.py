"""The GRU cell: Cho et al. 2014, in two forms that differ in where the reset gate acts.

Gate order is z r n (update, reset, candidate), ONNX's. `Cell` resets the product Wh h, as cuDNN, PyTorch
and Keras do by default; `ResetBefore` resets h before the product, as the paper does. Layout and the
division of the backward pass into `slopes` and `gates_bwd` are as in `cells/lstm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xlstm.arrays.backend import Array, Namespace
from xlstm.cells.activations import clamp, clamp_bwd
from xlstm.cells.options import Options


@dataclass(frozen=True)
class Cell(Options):
    """n = act(zx + r zh), with the products of x and of h apart."""

    activations: tuple[str, ...] = ("sigmoid", "tanh")
    clip: float | None = None

    GATES = ("z", "r", "n")
    STATES = ("h",)
    SPLIT = True
    INNER = False

    def gates(self, xp: Namespace, zx: Array, zh: Array, h0: Array) -> tuple[Array, tuple[Array, ...]]:
        """One step from the products zx and zh (3, H, B) and the state h0 (H, B): h and what backward needs."""
        s, pre = self._activate(xp, 0, zx[:2, ...] + zh[:2, ...])  # (1) z, r
        m = zh[2, ...]
        n, last = self._activate(xp, 1, zx[2, ...] + s[1, ...] * m)  # (2)
        return self._leak(s, n, h0), (s, n, h0, m, *pre, *last)

    def slopes(self, xp: Namespace, saved: Sequence[Array]) -> tuple[Array, ...]:
        """Coefficients: dzx = a dh, dzh = dzx but for n, where it is r dzx, dh0 = z dh."""
        s, n, h0, m, *pre = saved
        az, an = self._outer(xp, s, n, h0, pre)
        ar = self._gate_bwd(xp, an * m, s, 1, pre)  # (2) through r, (1)
        return xp.stack((az, ar, an)), s[1, ...], s[0, ...]

    def gates_bwd(self, xp: Namespace, dh: Array, slopes: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Gradients dzx and dzh (3, H, B) and dh0 (H, B) from dh (H, B)."""
        a, r, z = slopes
        dzx = a * dh
        dzh = xp.asarray(dzx, copy=True)
        dzh[2, ...] *= r  # (2)
        return dzx, dzh, z * dh  # (3) through h0

    def activated(self, xp: Namespace, saved: Sequence[Array]) -> Array:
        """Gate values (3, ...) in the order of GATES."""
        return xp.concat((saved[0], saved[1][None, ...]))

    def _leak(self, s: Array, n: Array, h0: Array) -> Array:
        return n + s[0, ...] * (h0 - n)  # (3) h = (1 - z) n + z h0

    def _outer(self, xp: Namespace, s: Array, n: Array, h0: Array, pre: Sequence[Array]) -> tuple[Array, Array]:
        """Coefficients of z and n in (3)."""
        az = self._gate_bwd(xp, h0 - n, s, 0, pre)  # (3) through z, (1)
        (x,) = self._rows(xp, pre[1][None, ...] if pre else None, 0)
        an = self._pairs[1].bwd(xp, 1 - s[0, ...], x, n)  # (3) through n, (2)
        return az, an if self.clip is None else clamp_bwd(xp, an, pre[1], self.clip)

    def _gate_bwd(self, xp: Namespace, dy: Array, s: Array, k: int, pre: Sequence[Array]) -> Array:
        (x,) = self._rows(xp, pre[0] if pre else None, k)
        dz = self._pairs[0].bwd(xp, dy, x, s[k, ...])
        return dz if self.clip is None else clamp_bwd(xp, dz, pre[0][k, ...], self.clip)

    def _activate(self, xp: Namespace, k: int, z: Array) -> tuple[Array, tuple[Array, ...]]:
        """Activation k of pre-activations, and these where `clip` or an activation makes backward need them."""
        y = self._pairs[k].fwd(xp, z if self.clip is None else clamp(xp, z, self.clip))
        keeps_z = self.clip is not None or any(pair.from_input for pair in self._pairs)
        return y, (z,) if keeps_z else ()


class ResetBefore(Cell):
    """n = act(zx + Wn (r h0)): the candidate has a product of its own, between the gates and it."""

    INNER = True

    def gates(  # type: ignore[override]
        self, xp: Namespace, zx: Array, zh: Array, h0: Array, product: Callable[[Array], Array]
    ) -> tuple[Array, tuple[Array, ...]]:
        """One step from zx (3, H, B), zh (2, H, B) and h0 (H, B); `product` multiplies by the last rows of Wh."""
        s, pre = self._activate(xp, 0, zx[:2, ...] + zh)  # (1) z, r
        n, last = self._activate(xp, 1, zx[2, ...] + product(s[1, ...] * h0))  # (2)
        return self._leak(s, n, h0), (s, n, h0, *pre, *last)

    def slopes(self, xp: Namespace, saved: Sequence[Array]) -> tuple[Array, ...]:
        """Coefficients: dz = (az dh, ar dq, an dh) and dh0 = z dh + r dq, with dq = Wn^T (an dh)."""
        s, n, h0, *pre = saved
        az, an = self._outer(xp, s, n, h0, pre)
        return xp.stack((az, self._gate_bwd(xp, h0, s, 1, pre), an)), s[1, ...], s[0, ...]  # ar: (2) through r, (1)

    def gates_bwd(  # type: ignore[override]
        self, xp: Namespace, dh: Array, slopes: Sequence[Array], product: Callable[[Array], Array]
    ) -> tuple[Array, Array, Array]:
        """Gradients dzx and dzh (3, H, B), the same here, and dh0 (H, B); `product` is the transposed one."""
        a, r, z = slopes
        dz = a * dh
        dq = product(dz[2, ...])  # (2)
        dz[1, ...] = a[1, ...] * dq
        return dz, dz, z * dh + r * dq  # (3) and (2) through h0

    def inner(self, saved: Sequence[Array]) -> Array:
        """What the inner product multiplies, r h0."""
        return saved[0][1, ...] * saved[2]
