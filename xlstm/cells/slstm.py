"""The sLSTM cell: exponential gates and a normaliser (Beck et al. 2024, eqs. 8 to 18).

Gate order is i f z o. c and n are kept divided by exp(m), so that nothing overflows (eqs. 15 to 17); c = n = 0 with
m = -inf is the state before the first step, which needs no case of its own. Layout and the division of the backward
pass into `slopes` and `gates_bwd` are as in `cells/lstm.py`; m is a state like the others, with its gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from xlstm.arrays.backend import Array, Namespace
from xlstm.cells.activations import FORGET, Pair, sigmoid, sigmoid_bwd, tanh_bwd
from xlstm.cells.options import Options

REST = (0.0, 0.0, 0.0, -math.inf)  # h, c, n and m before the first step


@dataclass(frozen=True)
class Cell(Options):
    """An sLSTM cell; log f is log_sigmoid(f~), or f~ with forget_gate "exponential"."""

    forget_gate: str = "sigmoid"

    GATES = ("i", "f", "z", "o")
    STATES = ("h", "c", "n", "m")
    SPLIT = False
    INNER = False

    def gates(
        self, xp: Namespace, a: Array, c0: Array, n0: Array, m0: Array
    ) -> tuple[Array, Array, Array, Array, tuple[Array, ...]]:
        """One step from pre-activations a (4, H, B) and the state c0, n0, m0 (H, B): h, c, n, m and what is kept."""
        ai, af = a[0, ...], a[1, ...]
        kept = self._forget.fwd(xp, af) + m0  # (1) logarithm of what is kept of the old state
        m = xp.maximum(kept, ai)  # (2)
        i, f = xp.exp(ai - m), xp.exp(kept - m)  # (3)
        z, o = xp.tanh(a[2, ...]), sigmoid(xp, a[3, ...])  # (4)
        c = f * c0 + i * z  # (5)
        n = f * n0 + i  # (6)
        q = c / n  # (7)
        return o * q, c, n, m, (xp.stack((i, f, z, o)), af, n, q)  # (8) h = o q

    def slopes(self, xp: Namespace, c0: Array, n0: Array, m0: Array, saved: Sequence[Array]) -> tuple[Array, ...]:
        """Coefficients of the step's derivative, by the names that `gates_bwd` gives them."""
        s, af, n, q = saved
        i, f, z, o = s[0, ...], s[1, ...], s[2, ...], s[3, ...]
        ao = sigmoid_bwd(xp, q, None, o)  # (8) through o, (4)
        k = o / n  # (8) through c, (7)
        az = tanh_bwd(xp, i, None, z)  # (5) through z, (4)
        wrote = xp.where(i < 1, xp.zeros_like(i), xp.ones_like(i))  # (2) m is the logarithm of i
        r = self._forget.bwd(xp, xp.ones_like(af), af, af)  # (1)
        return (xp.stack((ao, k, -k * q, az, i, i * z, f, f * c0, f * n0, wrote, r)),)

    def gates_bwd(
        self, xp: Namespace, dh: Array, dc: Array, dn: Array, dm: Array, slopes: Sequence[Array]
    ) -> tuple[Array, Array, Array, Array]:
        """Gradients da (4, H, B) and dc0, dn0, dm0 (H, B) from those of h, c, n and m."""
        ao, kc, kn, az, i, iz, f, fc, fn, wrote, r = (slopes[0][j, ...] for j in range(11))
        dc = dc + kc * dh  # (8) (7)
        dn = dn + kn * dh
        di = iz * dc + i * dn  # (5) (6) through i, (3)
        df = fc * dc + fn * dn  # (5) (6) through f, (3)
        dm = dm - di - df  # (3) through m
        dmi = wrote * dm  # (2)
        df = df + (dm - dmi)
        return xp.stack((di + dmi, r * df, az * dc, ao * dh)), f * dc, f * dn, df  # (1) through m0

    def activated(self, xp: Namespace, saved: Sequence[Array]) -> Array:
        """Gate values (4, ...) in the order of GATES; i and f are divided by exp(m)."""
        return saved[0]

    @functools.cached_property
    def _forget(self) -> Pair:
        return FORGET[self.forget_gate]


# The cell without options, as functions.
PLAIN = Cell()
GATES, STATES = PLAIN.GATES, PLAIN.STATES
gates, gates_bwd, slopes, activated = PLAIN.gates, PLAIN.gates_bwd, PLAIN.slopes, PLAIN.activated
