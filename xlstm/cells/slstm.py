"""The sLSTM cell: exponential gates and a normaliser (Beck et al. 2024, eqs. 8 to 18).

The order of the gates is i f z o. c and n are divided by exp(m), so that nothing overflows (eqs. 15
to 17). The state before the first step is c = n = 0 with m = -inf, which needs no special case. m
is a state like the others, with its own gradient. The backward pass is split into `derivatives` and
`gates_bwd`, as in `cells/lstm.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells import cell
from xlstm.cells.activations import FORGET, sigmoid, sigmoid_bwd, tanh_bwd

SPLIT = 2.0**16 + 1  # leaves 8 of the 24 binary digits of float32


class Saved(NamedTuple):
    """The values that the backward pass needs."""

    s: Array  # gates i, f, z, o (4, H, B), i and f divided by exp(m)
    af: Array  # pre-activation of f
    n: Array
    q: Array  # c / n


class Local(NamedTuple):
    """The local derivatives of one step."""

    ao: Array  # of h, with respect to the pre-activation of o
    kc: Array  # of h, with respect to c
    kn: Array  # of h, with respect to n
    az: Array  # of c, with respect to the pre-activation of z
    i: Array  # of n, with respect to log i
    iz: Array  # of c, with respect to log i
    f: Array  # of c, with respect to c0, and of n, with respect to n0
    fc: Array  # of c, with respect to log f
    fn: Array  # of n, with respect to log f
    wrote: Array  # 1 where m is the logarithm of i, else 0
    r: Array  # of log f, with respect to its pre-activation


@dataclass(frozen=True)
class Cell(cell.Summed):
    """An sLSTM cell; log f is log_sigmoid(f~), or f~ with forget_gate "exponential".

    With `forget_limit`, a pre-activation f~ above that number is lowered to it.
    """

    forget_gate: str = "sigmoid"
    forget_limit: float | None = None

    GATES = ("i", "f", "z", "o")
    STATES = ("h", "c", "n", "m")
    REST = (0.0, 0.0, 0.0, -math.inf)
    SHARES = ("o",)  # not i and f: divided by exp(m), one of them is always 1

    def gates(
        self, xp: Namespace, zx: Array, zh: Array, h0: Array, c0: Array, n0: Array, m0: Array
    ) -> tuple[Array, Array, Array, Array, Saved]:
        """Run one step: return h, c, n, m (H, B), from the products zx and zh (4, H, B) and the
        states before the step.
        """
        a = zx + zh
        ai, af = a[0, ...], a[1, ...]
        old = self._log_forget(xp, af) + m0  # (1) logarithm of the old state's share
        m = xp.maximum(old, ai)  # (2)
        i = xp.exp(ai - m)
        f = xp.exp(old - m)  # (3)
        z = xp.tanh(a[2, ...])
        o = sigmoid(xp, a[3, ...])  # (4)
        c = f * c0 + i * z  # (5)
        n = f * n0 + i  # (6)
        q = c / n  # (7)
        return o * q, c, n, m, Saved(xp.stack((i, f, z, o)), af, n, q)  # (8) h = o q

    def derivatives(self, xp: Namespace, saved: Saved, c0: Array, n0: Array, m0: Array) -> Local:
        """Return the local derivatives of `gates`."""
        s, af, n, q = saved
        i, f, z, o = s[0, ...], s[1, ...], s[2, ...], s[3, ...]
        ao = sigmoid_bwd(xp, q, o, o)  # (8) through o, (4)
        k = o / n  # (8) through c, (7)
        az = tanh_bwd(xp, i, z, z)  # (5) through z, (4)
        wrote = xp.where(i < 1, xp.zeros_like(i), xp.ones_like(i))  # (2) m is the logarithm of i
        r = self._log_forget_bwd(xp, af)  # (1)
        # (7) through n, (5) (6)
        return Local(ao, k, -k * q, az, i, i * z, f, f * c0, f * n0, wrote, r)

    def gates_bwd(
        self, xp: Namespace, local: Local, dh: Array, dc: Array, dn: Array, dm: Array
    ) -> tuple[Array, Array, None, Array, Array, Array]:
        """Return dz (4, H, B), the gradient with respect to both zx and zh, and dc0, dn0, dm0 (H,
        B).
        """
        ao, kc, kn, az, i, iz, f, fc, fn, wrote, r = local
        dc = dc + kc * dh  # (8) (7)
        dn = dn + kn * dh  # (8) (7)
        di = iz * dc + i * dn  # (5) (6) through i, (3)
        df = fc * dc + fn * dn  # (5) (6) through f, (3)
        dm = dm - di - df  # (3) through m
        dmi = wrote * dm  # (2)
        df = df + (dm - dmi)  # (2) through log f + m0
        dz = xp.stack((di + dmi, r * df, az * dc, ao * dh))  # (2) (1) (4) (8)
        return dz, dz, None, f * dc, f * dn, df  # (5) (6) through c0, n0; (1) through m0

    def activated(self, xp: Namespace, saved: Saved) -> Array:
        """Return the gate values (4, ...) in the order of GATES; i and f are divided by exp(m)."""
        return saved.s

    def retained(self, xp: Namespace, saved: Saved) -> Array:
        """Return the forget gate before it is divided by exp(m), (H, ...)."""
        return xp.exp(self._log_forget(xp, saved.af))

    def _log_forget(self, xp: Namespace, af: Array) -> Array:
        """Return log f from its pre-activation."""
        return FORGET[self.forget_gate].fwd(xp, self._limited(xp, af))  # (1)

    def _log_forget_bwd(self, xp: Namespace, af: Array) -> Array:
        """Return the derivative of log f with respect to its pre-activation."""
        limited = self._limited(xp, af)
        r = FORGET[self.forget_gate].bwd(xp, xp.ones_like(af), limited, limited)  # (1)
        # (1)
        return r if self.forget_limit is None else r * xp.astype(af < self.forget_limit, af.dtype)

    def _limited(self, xp: Namespace, af: Array) -> Array:
        return (
            af if self.forget_limit is None else xp.minimum(af, xp.full_like(af, self.forget_limit))
        )


@dataclass(frozen=True)
class Rounded(Cell):
    """An sLSTM cell in float32 that rounds the product with h and every state to bfloat16.

    The published package of TiRex computes this way when it runs without a CUDA kernel. Gradients
    are those of the cell without rounding.
    """

    def gates(
        self, xp: Namespace, zx: Array, zh: Array, *state: Array
    ) -> tuple[Array, Array, Array, Array, Saved]:
        """Run one step; see `Cell.gates`."""
        h, c, n, m, saved = super().gates(xp, zx, to_bfloat16(xp, zh), *state)
        return *(to_bfloat16(xp, s) for s in (h, c, n, m)), saved


def to_bfloat16(xp: Namespace, x: Array) -> Array:
    """Return float32 numbers rounded to the 8 binary digits of bfloat16, to nearest, ties to even.

    The splitting of Veltkamp (Dekker 1971) needs only arithmetic, so that it runs in every engine.
    """
    a = xp.abs(x)
    # the maximum changes nothing, but keeps compilers from fusing the product away
    c = xp.maximum(a * SPLIT, a)
    r = c - (c - a)
    return xp.where(x < 0, -r, r)
