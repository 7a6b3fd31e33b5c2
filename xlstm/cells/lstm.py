"""The LSTM cell of Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

The order of the gates is i o f g (input, output, forget, candidate; ONNX calls g "c"), which keeps
the sigmoid gates together. The gate axis always comes first. The axes after it are (H, B) for one
step and (k, H, B) for k steps.

The backward pass is linear in the upstream gradients dh and dc. `derivatives` computes its
coefficients for any number of steps at once, since they need no recurrence; `gates_bwd` applies
them to one step. A number in brackets names the line of `gates` that a line differentiates. Options
of the cell are in `cells/lstm_options.py`, and initial weights in `layers/initializers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells import cell
from xlstm.cells.activations import sigmoid, sigmoid_bwd, tanh_bwd


class Saved(NamedTuple):
    """The values that the backward pass needs."""

    s: Array  # gates i, o, f (3, H, B)
    g: Array  # candidate (H, B)
    u: Array  # tanh(c) (H, B)


class Local(NamedTuple):
    """The local derivatives of one step: first dc += k dh, then dz = (ai dc, ao dh, af dc, ag dc)
    and dc0 = f dc.
    """

    # ai, ao, af, ag (4, H, B): derivatives with respect to the pre-activations, ao of h and the
    # others of c
    a: Array
    k: Array  # derivative of h with respect to c (H, B)
    f: Array  # derivative of c with respect to c0 (H, B)


def gates(xp: Namespace, zx: Array, zh: Array, h0: Array, c0: Array) -> tuple[Array, Array, Saved]:
    """Run one step: return h and c (H, B), from the products zx and zh (4, H, B) and the states
    before the step.
    """
    z = zx + zh  # (1) (2) pre-activations
    s = sigmoid(xp, z[:3, ...])  # (1) i, o, f
    g = xp.tanh(z[3, ...])  # (2)
    i, o, f = s[0, ...], s[1, ...], s[2, ...]
    c = f * c0 + i * g  # (3)
    u = xp.tanh(c)  # (4)
    return o * u, c, Saved(s, g, u)  # (5) h


def derivatives(xp: Namespace, saved: Saved, c0: Array) -> Local:
    """Return the local derivatives of `gates`."""
    s, g, u = saved
    i, o, f = s[0, ...], s[1, ...], s[2, ...]
    ai = sigmoid_bwd(xp, g, i, i)  # (3) through i, (1)
    ao = sigmoid_bwd(xp, u, o, o)  # (5) through o, (1)
    af = sigmoid_bwd(xp, c0, f, f)  # (3) through f, (1)
    ag = tanh_bwd(xp, i, g, g)  # (3) through g, (2)
    return Local(xp.stack((ai, ao, af, ag)), tanh_bwd(xp, o, u, u), f)  # (5) through u, (4)


def gates_bwd(
    xp: Namespace, local: Local, dh: Array, dc: Array
) -> tuple[Array, Array, None, Array]:
    """Return dz (4, H, B), the gradient with respect to both zx and zh, and dc0 (H, B), from dh and
    dc (H, B).
    """
    a, k, f = local
    dc = dc + k * dh  # (5) (4)
    dz = a * dc  # (3) i, f, g
    dz[1, ...] = a[1, ...] * dh  # (5) o
    return dz, dz, None, f * dc  # (3) through c0


@dataclass(frozen=True)
class Cell(cell.Summed):
    """The plain LSTM cell, made of the functions of this file."""

    GATES = ("i", "o", "f", "g")
    STATES = ("h", "c")
    REST = (0.0, 0.0)
    SHARES = ("i", "o", "f")

    gates = staticmethod(gates)
    derivatives = staticmethod(derivatives)
    gates_bwd = staticmethod(gates_bwd)  # type: ignore[assignment]

    def activated(self, xp: Namespace, saved: Saved) -> Array:
        """Return the gate values (4, ...) in the order of GATES."""
        return xp.concat((saved.s, saved.g[None, ...]))

    def retained(self, xp: Namespace, saved: Saved) -> Array:
        """Return the forget gate (H, ...), which is f in (3)."""
        return saved.s[2, ...]
