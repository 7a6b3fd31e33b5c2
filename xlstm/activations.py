"""Activations as pairs: `f(xp, x)` and `f_bwd(xp, dy, x, y)` with `y = f(xp, x)`.

Each is a pure function of arrays and of their namespace. A backward pass is given both the input
and the output and uses whichever costs less. All but `exponential` are finite, and raise no
floating-point warning, for every finite input.

Those in `GATES` can be chosen for the gates of a cell by a text such as "tanh" or
"hard_sigmoid(0.2, 0.5)" (`parse`, `pair`); their derivatives need the output alone, so a cell keeps
no input of theirs. Parameters and defaults are those of ONNX.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import NamedTuple

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


def linear(xp: Namespace, x: Array) -> Array:
    return x


def linear_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return dy


def affine(xp: Namespace, x: Array, alpha: float = 1.0, beta: float = 0.0) -> Array:
    return alpha * x + beta


def affine_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 1.0, beta: float = 0.0) -> Array:
    return alpha * dy


def relu(xp: Namespace, x: Array) -> Array:
    return xp.maximum(x, xp.zeros_like(x))


def relu_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return dy * xp.astype(y > 0, y.dtype)


def leaky_relu(xp: Namespace, x: Array, alpha: float = 0.01) -> Array:
    return xp.where(x < 0, alpha * x, x)


def leaky_relu_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 0.01) -> Array:
    return xp.where(y < 0, alpha * dy, dy)


def thresholded_relu(xp: Namespace, x: Array, alpha: float = 1.0) -> Array:
    """x above alpha, else 0."""
    return xp.where(x <= alpha, xp.zeros_like(x), x)


def thresholded_relu_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 1.0) -> Array:
    return dy * xp.astype(y > alpha, y.dtype)


def scaled_tanh(xp: Namespace, x: Array, alpha: float = 1.0, beta: float = 1.0) -> Array:
    """alpha tanh(beta x)."""
    return alpha * xp.tanh(beta * x)


def scaled_tanh_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 1.0, beta: float = 1.0) -> Array:
    return dy * (beta * (alpha - y * y / alpha))


def hard_sigmoid(xp: Namespace, x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """alpha x + beta within [0, 1]."""
    y = alpha * x + beta
    return xp.minimum(xp.maximum(y, xp.zeros_like(y)), xp.ones_like(y))


def hard_sigmoid_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    return dy * (alpha * xp.astype((y > 0) & (y < 1), y.dtype))


def elu(xp: Namespace, x: Array, alpha: float = 1.0) -> Array:
    """x above 0, alpha (exp(x) - 1) below."""
    low = xp.minimum(x, xp.zeros_like(x))
    return xp.where(x > 0, x, alpha * xp.expm1(low))


def elu_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 1.0) -> Array:
    return xp.where(y > 0, dy, dy * (y + alpha))


SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017


def selu(xp: Namespace, x: Array) -> Array:
    return SELU_SCALE * elu(xp, x, SELU_ALPHA)


def selu_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return SELU_SCALE * elu_bwd(xp, dy, x, y / SELU_SCALE, SELU_ALPHA)


def softsign(xp: Namespace, x: Array) -> Array:
    """x / (1 + |x|)."""
    return x / (1 + xp.abs(x))


def softsign_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    slope = 1 - xp.abs(y)
    return dy * (slope * slope)


def softplus(xp: Namespace, x: Array) -> Array:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))


def softplus_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return dy * -xp.expm1(-y)


def exponential(xp: Namespace, x: Array) -> Array:
    return xp.exp(x)


def exponential_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    return dy * y


class Pair(NamedTuple):
    """An activation and its derivative, parameters bound."""

    fwd: Callable[..., Array]
    bwd: Callable[..., Array]


GATES: dict[str, Pair] = {
    "sigmoid": Pair(sigmoid, sigmoid_bwd),
    "tanh": Pair(tanh, tanh_bwd),
    "relu": Pair(relu, relu_bwd),
    "linear": Pair(linear, linear_bwd),
    "affine": Pair(affine, affine_bwd),
    "leaky_relu": Pair(leaky_relu, leaky_relu_bwd),
    "thresholded_relu": Pair(thresholded_relu, thresholded_relu_bwd),
    "scaled_tanh": Pair(scaled_tanh, scaled_tanh_bwd),
    "hard_sigmoid": Pair(hard_sigmoid, hard_sigmoid_bwd),
    "elu": Pair(elu, elu_bwd),
    "selu": Pair(selu, selu_bwd),
    "softsign": Pair(softsign, softsign_bwd),
    "softplus": Pair(softplus, softplus_bwd),
    "exponential": Pair(exponential, exponential_bwd),
}
# Logarithm of an exponential forget gate from its pre-activation: f = sigmoid(f~) or exp(f~) (Beck et al. 2024, eq. 11).
FORGET = {"sigmoid": Pair(log_sigmoid, log_sigmoid_bwd), "exponential": Pair(linear, linear_bwd)}
# The derivative is read off the output, which these parameters must leave possible.
POSITIVE = {"leaky_relu", "elu"}


def parse(text: str) -> tuple[str, tuple[float, ...]]:
    """Name and parameters of a gate activation, defaults filled in: "elu" -> ("elu", (1.0,)).

    Raises
    ------
    ValueError
        The name is unknown, or the parameters are not what it takes.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text) if isinstance(text, str) else None
    if match is None or match[1] not in GATES:
        raise ValueError(f"activations: {text!r} is unknown, expected one of {', '.join(GATES)}")
    name, given = match[1], [part for part in (match[2] or "").split(",") if part.strip()]
    defaults = [p.default for p in list(inspect.signature(GATES[name].fwd).parameters.values())[2:]]
    try:
        values = [float(part) for part in given]
    except ValueError:
        raise ValueError(f"activations: {text!r} has parameters that are not numbers") from None
    if len(values) > len(defaults) or not all(map(math.isfinite, values)):
        raise ValueError(f"activations: {text!r}, expected at most {len(defaults)} parameters, all finite")
    values += defaults[len(values) :]
    if (name in POSITIVE and values[0] <= 0) or (name == "thresholded_relu" and values[0] < 0):
        raise ValueError(f"activations: {text!r}, expected an alpha above 0")
    if name in ("scaled_tanh", "hard_sigmoid") and values[0] == 0:
        raise ValueError(f"activations: {text!r}, expected an alpha other than 0")
    return name, tuple(values)


def canonical(text: str) -> str:
    """The one way to write a gate activation: "hard_sigmoid" -> "hard_sigmoid(0.2, 0.5)"."""
    name, values = parse(text)
    return f"{name}({', '.join(map(repr, values))})" if values else name


@functools.cache
def pair(text: str) -> Pair:
    """The functions of a gate activation; see `parse`."""
    name, values = parse(text)
    if not values:
        return GATES[name]
    given = dict(zip(("alpha", "beta"), values, strict=False))
    return Pair(*(functools.partial(f, **given) for f in GATES[name]))


EPS = 1e-5  # of torch.nn.LayerNorm


def normalize(xp: Namespace, x: Array, axis: int) -> tuple[Array, Array]:
    """x with mean 0 and variance 1 along `axis` (Ba et al. 2016, eq. 3), and 1 / its standard deviation."""
    x = x - xp.mean(x, axis=axis, keepdims=True)
    r = 1 / xp.sqrt(xp.mean(x * x, axis=axis, keepdims=True) + EPS)
    return x * r, r


def normalize_bwd(xp: Namespace, dn: Array, n: Array, r: Array, axis: int) -> Array:
    """Gradient of x from that of n, with `n, r = normalize(xp, x, axis)`."""
    mean, along = (xp.mean(a, axis=axis, keepdims=True) for a in (dn, dn * n))
    return r * (dn - mean - n * along)


def clamp(xp: Namespace, x: Array, limit: float) -> Array:
    """x within [-limit, limit], without the synchronisation that `xp.clip` costs on CuPy."""
    high = xp.full_like(x, limit)
    return xp.minimum(xp.maximum(x, -high), high)


def clamp_bwd(xp: Namespace, dy: Array, x: Array, limit: float) -> Array:
    return dy * xp.astype(xp.abs(x) < limit, dy.dtype)
