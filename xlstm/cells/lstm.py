"""The LSTM cell: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

Gate order is i o f g (input, output, forget, candidate; ONNX calls g "c"), which keeps the three
sigmoid gates together. Only the gate axis has a fixed place, the first; what follows it is free:
(H, B) for one step, (n, H, B) for n steps.

The backward pass is linear in what flows back, (dh, dc). `gates_bwd` applies its coefficients to one
step; `slopes` computes them, which needs no recurrence, for any number of steps at once.
"""

from __future__ import annotations

from xlstm.activations import sigmoid, sigmoid_bwd, tanh_bwd
from xlstm.backend import Array, Namespace

GATES = ("i", "o", "f", "g")
STATES = ("h", "c")


def gates(xp: Namespace, z: Array, c0: Array) -> tuple[Array, Array, tuple[Array, ...]]:
    """One step from pre-activations z (4, H, B) and the cell state c0 (H, B): h, c and what backward needs."""
    s = sigmoid(xp, z[:3, ...])  # (1) i, o, f
    g = xp.tanh(z[3, ...])  # (2)
    i, o, f = s[0, ...], s[1, ...], s[2, ...]
    c = f * c0  # (3) c = f c0 + i g
    c += i * g
    u = xp.tanh(c)  # (4)
    return o * u, c, (s, g, u)  # (5) h = o * u


def gates_bwd(xp: Namespace, dh: Array, dc: Array, coefficients: tuple[Array, ...]) -> tuple[Array, Array]:
    """Gradients dz (4, H, B) and dc0 (H, B) from dh and dc (H, B)."""
    a, k, f = coefficients
    dc = dc + k * dh  # (5) (4)
    dz = a * dc  # (3) i, f, g
    dz[1, ...] = a[1, ...] * dh  # (5) o
    return dz, f * dc  # (3) through c0


def slopes(xp: Namespace, c0: Array, saved: tuple[Array, ...]) -> tuple[Array, ...]:
    """Coefficients of the step's derivative: dz = (ai dc, ao dh, af dc, ag dc), dc += k dh, dc0 = f dc."""
    s, g, u = saved
    i, o, f = s[0, ...], s[1, ...], s[2, ...]
    ai = sigmoid_bwd(xp, g, None, i)  # (3) through i, (1)
    ao = sigmoid_bwd(xp, u, None, o)  # (5) through o, (1)
    af = sigmoid_bwd(xp, c0, None, f)  # (3) through f, (1)
    ag = tanh_bwd(xp, i, None, g)  # (3) through g, (2)
    k = tanh_bwd(xp, o, None, u)  # (5) through u, (4)
    return xp.stack((ai, ao, af, ag)), k, f


def activated(xp: Namespace, saved: tuple[Array, ...]) -> Array:
    """Gate values (4, ...) in the order of GATES."""
    s, g, _ = saved
    return xp.concat((s, g[None, ...]))
