"""Activations as pairs: `f(xp, x)` and `f_bwd(xp, dy, x, y)` with `y = f(xp, x)`.

Each function is pure and takes the namespace first. All work element by element, except `softmax`.
A backward pass gets both the input and the output, and uses the cheaper one. For every finite
input, results are finite without a floating-point warning, except those of `exponential` and
`square_relu`.

A text such as "tanh" or "hard_sigmoid(0.2, 0.5)" chooses a pair in `GATE_ACTIVATIONS` for the gates
of a cell. Parameters and defaults are those of ONNX. `register` adds a pair.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Namespace


def sigmoid(xp: Namespace, x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), as e / (1 + e) with e = exp(x), which keeps all digits of small
    results.
    """
    # At the bound sigmoid(x) rounds to 1, and exp(x) is still finite in the dtype of x.
    bound = 10.0 if getattr(x.dtype, "itemsize", 4) == 2 else 40.0
    # NumPy takes a number, which is faster; other libraries need an array.
    e = xp.exp(xp.minimum(x, bound if xp is np else xp.full_like(x, bound)))  # (1)
    e /= 1 + e  # (1)
    return e


def sigmoid_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `sigmoid`."""
    return dy * (y * (1 - y))  # (1)


def tanh(xp: Namespace, x: Array) -> Array:
    """Return tanh(x)."""
    return xp.tanh(x)  # (2)


def tanh_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `tanh`."""
    return dy * (1 - y * y)  # (2)


def log_sigmoid(xp: Namespace, x: Array) -> Array:
    """Return log(sigmoid(x)), as min(x, 0) - log(1 + exp(-|x|)), which is exact even if sigmoid(x)
    underflows.
    """
    return xp.minimum(x, xp.zeros_like(x)) - xp.log1p(xp.exp(-xp.abs(x)))  # (3)


def log_sigmoid_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `log_sigmoid`."""
    return dy * sigmoid(xp, -x)  # (3)


def silu(xp: Namespace, x: Array) -> Array:
    """Return x sigmoid(x), which is also called swish."""
    return x * sigmoid(xp, x)


def silu_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `silu`."""
    s = sigmoid(xp, x)
    return dy * (s + y * (1 - s))


def erf(xp: Namespace, x: Array) -> Array:
    """Return 2/sqrt(pi) times the integral of exp(-t^2) from 0 to x, to the last digits of the
    dtype.

    The rational functions are those of Cody 1969 in float64. In float32 they are those of the Eigen
    library, of about half the degree.
    """
    if x.dtype == xp.float32:
        u = clamp(xp, x, 4.0)
        z = u * u
        return u * (_polynomial(ERF_SINGLE[0], z) / _polynomial(ERF_SINGLE[1], z))
    u = xp.abs(x)
    z = xp.minimum(u, xp.full_like(u, 0.5))
    v = xp.maximum(u, xp.full_like(u, 0.4))
    z = z * z
    near = x * (_polynomial(ERF_NEAR[0], z) / _polynomial(ERF_NEAR[1], z))
    v = xp.minimum(v, xp.full_like(v, 10.0))
    far = 1 - xp.exp(-v * v) * (_polynomial(ERF_FAR[0], v) / _polynomial(ERF_FAR[1], v))
    return xp.where(u < 0.46875, near, xp.where(x < 0, -far, far))


def gelu(xp: Namespace, x: Array) -> Array:
    """Return x times the probability that a normal variable is below x (Hendrycks & Gimpel
    2016).
    """
    return 0.5 * x * (1 + erf(xp, x * math.sqrt(0.5)))


def gelu_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `gelu`."""
    below = 0.5 * (1 + erf(xp, x * math.sqrt(0.5)))
    u = clamp(xp, x, 50.0)  # beyond, the density is 0
    return dy * (below + u * xp.exp(-0.5 * u * u) * (1 / math.sqrt(2 * math.pi)))


def square_relu(xp: Namespace, x: Array) -> Array:
    """Return max(x, 0)^2 (So et al. 2021)."""
    y = relu(xp, x)
    return y * y


def square_relu_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `square_relu`."""
    return dy * (2 * relu(xp, x))


def soft_cap(xp: Namespace, x: Array, cap: float) -> Array:
    """Return cap tanh(x / cap), which is nearly x for small x and always within [-cap, cap]."""
    return cap * xp.tanh(x / cap)


def soft_cap_bwd(xp: Namespace, dy: Array, x: Array, y: Array, cap: float) -> Array:
    """Return dx from dy for `soft_cap`."""
    t = y / cap
    return dy * (1 - t * t)


def _polynomial(coefficients: tuple[float, ...], z: Array) -> Array:
    """Return the polynomial in z with these coefficients, the highest first."""
    y = coefficients[0] * z + coefficients[1]
    for c in coefficients[2:]:
        y *= z
        y += c
    return y


# Numerators and denominators of the rational functions in `erf`.
ERF_SINGLE = (
    (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    ),
    (
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    ),
)
ERF_NEAR = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e00,
        1.13864154151050156e02,
        3.77485237685302021e02,
        3.20937758913846947e03,
    ),
    (
        1.0,
        2.36012909523441209e01,
        2.44024637934444173e02,
        1.28261652607737228e03,
        2.84423683343917062e03,
    ),
)
ERF_FAR = (
    (
        2.15311535474403846e-8,
        5.64188496988670089e-1,
        8.88314979438837594e0,
        6.61191906371416295e01,
        2.98635138197400131e02,
        8.81952221241769090e02,
        1.71204761263407058e03,
        2.05107837782607147e03,
        1.23033935479799725e03,
    ),
    (
        1.0,
        1.57449261107098347e01,
        1.17693950891312499e02,
        5.37181101862009858e02,
        1.62138957456669019e03,
        3.29079923573345963e03,
        4.36261909014324716e03,
        3.43936767414372164e03,
        1.23033935480374942e03,
    ),
)


def softmax(xp: Namespace, x: Array) -> Array:
    """Return exp(x) / sum(exp(x)) over the last axis."""
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def softmax_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `softmax`."""
    return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True))


def linear(xp: Namespace, x: Array) -> Array:
    """Return x."""
    return x


def linear_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `linear`."""
    return dy


def affine(xp: Namespace, x: Array, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """Return alpha x + beta."""
    return alpha * x + beta


def affine_bwd(
    xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 1.0, beta: float = 0.0
) -> Array:
    """Return dx from dy for `affine`."""
    return alpha * dy


def relu(xp: Namespace, x: Array) -> Array:
    """Return max(x, 0)."""
    return xp.maximum(x, xp.zeros_like(x))


def relu_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `relu`."""
    return dy * xp.astype(y > 0, y.dtype)


def leaky_relu(xp: Namespace, x: Array, alpha: float = 0.01) -> Array:
    """Return x if x is above 0, else alpha x."""
    return xp.where(x < 0, alpha * x, x)


def leaky_relu_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 0.01) -> Array:
    """Return dx from dy for `leaky_relu`."""
    return xp.where(y < 0, alpha * dy, dy)


def thresholded_relu(xp: Namespace, x: Array, alpha: float = 1.0) -> Array:
    """Return x if x is above alpha, else 0."""
    return xp.where(x <= alpha, xp.zeros_like(x), x)


def thresholded_relu_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 1.0) -> Array:
    """Return dx from dy for `thresholded_relu`."""
    return dy * xp.astype(y > alpha, y.dtype)


def scaled_tanh(xp: Namespace, x: Array, alpha: float = 1.0, beta: float = 1.0) -> Array:
    """Return alpha tanh(beta x)."""
    return alpha * xp.tanh(beta * x)


def scaled_tanh_bwd(
    xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 1.0, beta: float = 1.0
) -> Array:
    """Return dx from dy for `scaled_tanh`."""
    return dy * (beta * (alpha - y * y / alpha))


def hard_sigmoid(xp: Namespace, x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """Return alpha x + beta, limited to [0, 1]."""
    y = alpha * x + beta
    return xp.minimum(xp.maximum(y, xp.zeros_like(y)), xp.ones_like(y))


def hard_sigmoid_bwd(
    xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 0.2, beta: float = 0.5
) -> Array:
    """Return dx from dy for `hard_sigmoid`."""
    return dy * (alpha * xp.astype((y > 0) & (y < 1), y.dtype))


def elu(xp: Namespace, x: Array, alpha: float = 1.0) -> Array:
    """Return x if x is above 0, else alpha (exp(x) - 1)."""
    low = xp.minimum(x, xp.zeros_like(x))
    return xp.where(x > 0, x, alpha * xp.expm1(low))


def elu_bwd(xp: Namespace, dy: Array, x: Array, y: Array, alpha: float = 1.0) -> Array:
    """Return dx from dy for `elu`."""
    return xp.where(y > 0, dy, dy * (y + alpha))


SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772  # Klambauer et al. 2017


def selu(xp: Namespace, x: Array) -> Array:
    """Return `elu` with the scale and the alpha of Klambauer et al. 2017."""
    return SELU_SCALE * elu(xp, x, SELU_ALPHA)


def selu_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `selu`."""
    return SELU_SCALE * elu_bwd(xp, dy, x, y / SELU_SCALE, SELU_ALPHA)


def softsign(xp: Namespace, x: Array) -> Array:
    """Return x / (1 + |x|)."""
    return x / (1 + xp.abs(x))


def softsign_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `softsign`."""
    slope = 1 - xp.abs(y)
    return dy * (slope * slope)


def softplus(xp: Namespace, x: Array) -> Array:
    """Return log(1 + exp(x)), as max(x, 0) + log(1 + exp(-|x|))."""
    return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))


def softplus_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `softplus`."""
    return dy * -xp.expm1(-y)


def exponential(xp: Namespace, x: Array) -> Array:
    """Return exp(x)."""
    return xp.exp(x)


def exponential_bwd(xp: Namespace, dy: Array, x: Array, y: Array) -> Array:
    """Return dx from dy for `exponential`."""
    return dy * y


def clamp(xp: Namespace, x: Array, limit: float) -> Array:
    """Return x limited to [-limit, limit], without the synchronisation of `xp.clip` on CuPy."""
    high = xp.full_like(x, limit)
    return xp.minimum(xp.maximum(x, -high), high)  # (4)


def clamp_bwd(xp: Namespace, dy: Array, x: Array, limit: float) -> Array:
    """Return dx from dy for `clamp`."""
    return dy * xp.astype(xp.abs(x) < limit, dy.dtype)  # (4)


class Pair(NamedTuple):
    """An activation and its derivative, with their parameters bound."""

    fwd: Callable[..., Array]
    bwd: Callable[..., Array]
    from_input: bool = False  # whether the derivative needs the input x, beside the output


# The activations for the gates of a cell.
GATE_ACTIVATIONS: dict[str, Pair] = {
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
SHARES = ("sigmoid", "hard_sigmoid")  # activations whose values are shares, from 0 to 1
# The activations of gated feed-forward layers.
FEED_FORWARD = {
    "gelu": Pair(gelu, gelu_bwd, from_input=True),
    "silu": Pair(silu, silu_bwd, from_input=True),
    "relu": Pair(relu, relu_bwd),
    "square_relu": Pair(square_relu, square_relu_bwd, from_input=True),
    "sigmoid": Pair(sigmoid, sigmoid_bwd),
    "selu": Pair(selu, selu_bwd),
}
# The logarithm of a forget gate as a function of its pre-activation, for f = sigmoid(f~) or exp(f~)
# (Beck et al. 2024, eq. 11).
FORGET = {"sigmoid": Pair(log_sigmoid, log_sigmoid_bwd), "exponential": Pair(linear, linear_bwd)}
# alpha must be above 0: the derivative is computed from the output
POSITIVE = {"leaky_relu", "elu"}
ALPHA_BETA = ("alpha", "beta")  # parameters of gate activations, in order


def register(
    name: str,
    forward: Callable[..., Array],
    backward: Callable[..., Array],
    *,
    derivative_from: str = "output",
) -> None:
    """Add an activation, which you can then name in the option `activations` of layers.

    A file keeps only the activation's name. So register the activation again before you load a
    layer that uses it.

    Parameters
    ----------
    name : str
        A new name, of letters, digits and underscores.
    forward : callable
        `forward(xp, x)` returns y, element by element. It may use arithmetic, comparisons and
        functions of the namespace, such as `xp.tanh`, `xp.exp` and `xp.where`. It may have a
        parameter alpha, or alpha and beta, with numbers as defaults; the text "name(0.2)" sets
        their values.
    backward : callable
        `backward(xp, dy, x, y)` returns dx from the upstream gradient dy. It has the same
        parameters as `forward`.
    derivative_from : {"output", "input"}
        The values that `backward` needs. With "output", it uses y alone, and x may be None. With
        "input", it also uses x, and cells keep x for the backward pass.

    Raises
    ------
    ValueError
        `name` is not valid, or belongs to other functions already. `derivative_from` is neither
        "output" nor "input". `forward` or `backward` has other parameters.
    TypeError
        `forward` or `backward` is not a function.

    Examples
    --------
    >>> import xlstm
    >>> from xlstm.cells import activations
    >>> def soft_relu(xp, x, alpha=4.0):
    ...     return (x + xp.sqrt(x * x + alpha)) / 2
    >>> def soft_relu_bwd(xp, dy, x, y, alpha=4.0):
    ...     return dy * (y * y / (y * y + alpha / 4))
    >>> activations.register("soft_relu", soft_relu, soft_relu_bwd)
    >>> xlstm.RNN(3, 8, activations="soft_relu").activations
    ('soft_relu(4.0)',)
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise ValueError(
            f"register: name is {checks.shown(name)}, expected letters, digits and underscores"
        )
    for role, function, first in (("forward", forward, 2), ("backward", backward, 4)):
        checks.function("register", role, function)
        parameters = list(inspect.signature(function).parameters.values())
        more = [(p.name, isinstance(p.default, int | float)) for p in parameters[first:]]
        if len(parameters) < first or more != [(p, True) for p in ALPHA_BETA][: len(more)]:
            raise ValueError(
                f"register: {role} takes {inspect.signature(function)}, expected"
                f" {'(xp, x)' if role == 'forward' else '(xp, dy, x, y)'} and perhaps numbers"
                " alpha, beta"
            )
    checks.choice(("output", "input"))("register", "derivative_from", derivative_from)
    new = Pair(forward, backward, derivative_from == "input")
    if GATE_ACTIVATIONS.setdefault(name, new) != new:
        raise ValueError(f"register: {name} is the name of another activation already")


class Activation(NamedTuple):
    """A gate activation: its name and the values of its parameters.

    Attributes
    ----------
    name : str
        A name in `GATE_ACTIVATIONS`, such as "elu".
    values : tuple of float
        The values of its parameters, in order.
    """

    name: str
    values: tuple[Any, ...]


def parse(text: str | Activation) -> Activation:
    """Return the name and the parameter values of a gate activation.

    Parameters that the text leaves out get their defaults: "elu" gives ("elu", (1.0,)).

    Parameters
    ----------
    text : str or Activation
        A name, with or without parameters in brackets. An `Activation` is returned unchanged.

    Returns
    -------
    Activation

    Raises
    ------
    ValueError
        The name is unknown. There are too many parameters, or one is not a finite number or is out
        of range.
    """
    if isinstance(text, Activation):
        return text
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", str(text))
    if match is None or match[1] not in GATE_ACTIVATIONS:
        raise ValueError(
            f"activations: {text!r} is unknown, expected one of {', '.join(GATE_ACTIVATIONS)}"
        )
    name = match[1]
    defaults = _defaults(name)
    try:
        values = [float(part) for part in (match[2] or "").split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"activations: {text!r} has parameters that are not numbers") from None
    if len(values) > len(defaults) or not all(map(math.isfinite, values)):
        raise ValueError(
            f"activations: {text!r}, expected at most {len(defaults)} parameters, all finite"
        )
    values += defaults[len(values) :]
    if (name in POSITIVE and values[0] <= 0) or (name == "thresholded_relu" and values[0] < 0):
        raise ValueError(f"activations: {text!r}, expected an alpha above 0")
    if name in ("scaled_tanh", "hard_sigmoid") and values[0] == 0:
        raise ValueError(f"activations: {text!r}, expected an alpha other than 0")
    return Activation(name, tuple(values))


@functools.cache
def _defaults(name: str) -> tuple[float, ...]:
    """Return the defaults of the parameters of a gate activation, in order.

    They can be cached, since a name always has the same functions.
    """
    parameters = inspect.signature(GATE_ACTIVATIONS[name].fwd).parameters
    return tuple(float(p.default) for p in list(parameters.values())[2:])


def canonical(text: str) -> str:
    """Return the canonical text of a gate activation: "hard_sigmoid" gives "hard_sigmoid(0.2,
    0.5)".

    Parameters
    ----------
    text : str
        A name, with or without parameters in brackets.

    Returns
    -------
    str
        The name, with the values of all its parameters in brackets, if it has parameters.

    Raises
    ------
    ValueError
        As for `parse`.
    """
    name, values = parse(text)
    return f"{name}({', '.join(map(repr, values))})" if values else name


def pair(text: str | Activation) -> Pair:
    """Return the functions of a gate activation, with its parameters bound; `text` is as for
    `parse`.
    """
    name, values = parse(text)
    activation = GATE_ACTIVATIONS[name]
    if not values:
        return activation
    options = dict(zip(ALPHA_BETA, values, strict=False))
    return Pair(
        functools.partial(activation.fwd, **options),
        functools.partial(activation.bwd, **options),
        activation.from_input,
    )
