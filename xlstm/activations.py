"""Activations as pairs: `f(xp, x)` and `f_bwd(xp, dy, x, y)` with `y = f(xp, x)`.

Each is a pure function of arrays and of their namespace. A backward pass is given both the input
and the output and uses whichever costs less. All are finite, and raise no floating-point warning,
for every finite input.
"""

from __future__ import annotations

from xlstm.backend import Array, Namespace


def sigmoid(xp: Namespace, x: Array) -> Array:
    """1 / (1 + exp(-x)), written as (1 + tanh(x/2)) / 2, which cannot overflow."""
    y = xp.tanh(x * 0.5)
    y *= 0.5
    y += 0.5
    return y


def sigmoid_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return dy * (y * (1 - y))


def tanh(xp: Namespace, x: Array) -> Array:
    return xp.tanh(x)


def tanh_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return dy * (1 - y * y)


def log_sigmoid(xp: Namespace, x: Array) -> Array:
    """log(sigmoid(x)) = min(x, 0) - log(1 + exp(-|x|)), exact where sigmoid(x) underflows."""
    return xp.minimum(x, xp.zeros_like(x)) - xp.log1p(xp.exp(-xp.abs(x)))


def log_sigmoid_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return dy * sigmoid(xp, -x)


def silu(xp: Namespace, x: Array) -> Array:
    """x sigmoid(x), also called swish."""
    return x * sigmoid(xp, x)


def silu_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    s = sigmoid(xp, x)
    return dy * (s + y * (1 - s))


def softmax(xp: Namespace, x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis."""
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def softmax_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True))


def log_softmax(xp: Namespace, x: Array) -> Array:
    """log(softmax(x)) over the last axis."""
    x = x - xp.max(x, axis=-1, keepdims=True)
    return x - xp.log(xp.sum(xp.exp(x), axis=-1, keepdims=True))


def log_softmax_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return dy - xp.exp(y) * xp.sum(dy, axis=-1, keepdims=True)


def clamp(xp: Namespace, x: Array, limit: float) -> Array:
    """x within [-limit, limit], without the synchronisation that `xp.clip` costs on CuPy."""
    high = xp.full_like(x, limit)
    return xp.minimum(xp.maximum(x, -high), high)
