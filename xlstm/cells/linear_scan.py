"""Cells whose recurrence is linear in the state, h = a h0 + b, and the scan over all their steps.

The coefficients a and b depend only on the input, so that all steps are computed at once. The rest
is one scan over time, and its derivative is the same scan in the reverse direction. No step divides
by a product of coefficients, so that any of them may be 0.
"""

from __future__ import annotations

from typing import Any

from xlstm.arrays.concat import concat
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import Array, Namespace, device_of
from xlstm.cells import cell


def scan(xp: Namespace, a: Array, b: Array, h0: Array) -> Array:
    """Return h before the first of k steps and after every step, (k + 1, ...).

    The recurrence is h_t = a_t h_{t-1} + b_t, with a and b (k, ...) and h0 (...). On a GPU, where a
    step costs more than its numbers, each round combines twice as many steps as the round before.
    Elsewhere the steps follow one another, so that the bits of a result do not depend on k.
    """
    k = a.shape[0]
    if doubles(xp):
        done = 1
        while done < k:
            b = concat(
                xp, (b[:done, ...], a[done:, ...] * b[:-done, ...] + b[done:, ...]), 0
            )  # (1)
            a = concat(xp, (a[:done, ...], a[done:, ...] * a[:-done, ...]), 0)  # (1)
            done *= 2
        return concat(xp, (h0[None, ...], a * h0 + b), 0)  # (1)
    h = xp.empty((k + 1, *h0.shape), dtype=b.dtype, device=device_of(b))
    h[0, ...] = h0
    for t in range(k):
        h0 = a[t, ...] * h0 + b[t, ...]  # (1)
        h[t + 1, ...] = h0
    return h


def scan_bwd(xp: Namespace, a: Array, dy: Array, dend: Array) -> tuple[Array, Array]:
    """Return the gradients with respect to h after every step, (k, ...), and to h0.

    dy (k, ...) are the upstream gradients of each h, and dend (...) is that of the last state.
    """
    if doubles(xp):
        after = concat(xp, (a[1:, ...], xp.ones_like(a[:1, ...])), 0)
        # (1) the same recurrence in the reverse direction
        dh = scan(xp, xp.flip(after, axis=0), xp.flip(dy, axis=0), dend)[1:, ...]
        dh = xp.flip(dh, axis=0)
        return dh, a[0, ...] * dh[0, ...]  # (1) through h0
    dh = xp.empty_like(dy)
    for t in reversed(range(a.shape[0])):
        d = dy[t, ...] + dend
        dh[t, ...] = d
        dend = a[t, ...] * d  # (1) through h_{t-1}
    return dh, dend


def doubles(xp: Namespace) -> bool:
    """Return whether a scan combines steps: it does for arrays of CuPy and their dual numbers."""
    return compiles(getattr(xp, "base", xp))


class LinearCell(cell.Cell):
    """A cell with one state, h = a h0 + b, whose coefficients a and b do not depend on h.

    Write `coefficients` and `coefficients_bwd`, element by element, in place of `gates` and
    `gates_bwd`. Engines then compute all steps at once with a scan. If an option of the layer needs
    single steps, engines run the cell step by step.
    """

    RECURRENT = False

    def coefficients(self, xp: Namespace, zx: Array, **own: Array) -> Any:
        """Compute the coefficients of one step, or of many.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        zx : array (G, ..., H, B)
            The products of the weights with x, biases included.
        **own : arrays
            The cell's own parameters by name.

        Returns
        -------
        NamedTuple
            The coefficients as fields `a` and `b` (..., H, B), a field `h0`, which is None, and
            other values that `coefficients_bwd` needs.
        """
        raise NotImplementedError

    def coefficients_bwd(
        self, xp: Namespace, saved: Any, da: Array, db: Array, **own: Array
    ) -> Array:
        """Compute the gradient with respect to zx from those with respect to the coefficients.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        saved : NamedTuple
            The result of `coefficients`, but with `b` None and with `h0`, the state before each
            step.
        da, db : arrays (..., H, B)
            The gradients with respect to a and b.
        **own : arrays
            The cell's own parameters by name.

        Returns
        -------
        dzx : array (G, ..., H, B)
            The gradient with respect to zx.
        """
        raise NotImplementedError

    def gates(self, xp: Namespace, zx: Array, zh: Array, h0: Array, **own: Array) -> Any:
        """Run one step: return h (H, B), from zx (G, H, B) and h0 (H, B); zh is zero."""
        saved = self.coefficients(xp, zx, **own)
        cell.check_results(self, "coefficients", saved)
        return saved.a * h0 + saved.b, saved._replace(b=None, h0=h0)  # (1) h

    def gates_bwd(self, xp: Namespace, saved: Any, dh: Array, **own: Array) -> Any:
        """Return the gradient dzx (G, H, B), twice, and dh0 (H, B)."""
        dz = self.coefficients_bwd(xp, saved, dh * saved.h0, dh, **own)  # (1) through a and b
        return dz, dz, saved.a * dh  # (1) through h0

    def retained(self, xp: Namespace, saved: Any) -> Array:
        """Return a (H, ...)."""
        return saved.a
