"""Losses: each returns the loss and its gradient with respect to the prediction.

The loss is a 0-d array, the mean over all elements that `mask` selects. A mask covers the leading
axes of the target: a mask (T, B) selects whole time steps, and a mask in the target's own shape
selects single values. It is boolean, or holds weights of 0 or more for a weighted mean. Elements
with the weight 0 have no influence: predictions and targets may be NaN or infinite there.

The gradient is cast to the dtype of the prediction, because CuPy returns float32 for an operation
on bfloat16 and a Python number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xlstm.arrays import checks, constants
from xlstm.arrays.foreign import accepts_foreign
from xlstm.arrays.fuse import compiles, fuse
from xlstm.arrays.namespace import (
    Array,
    Namespace,
    Shape,
    astype,
    check_library,
    device_of,
    finfo,
    namespace,
)
from xlstm.arrays.rows import by_rows
from xlstm.cells.activations import clamp, sigmoid, softplus

__all__ = ["binary_cross_entropy", "cross_entropy", "huber", "mae", "mse", "pinball"]


@accepts_foreign
def mse(y: Array, target: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Return the mean squared error, mean((y - target)^2), and its gradient with respect to y.

    Parameters
    ----------
    y, target : array
        Prediction and truth, of the same shape.
    mask : bool array, or array of weights, optional
        Elements that count, or the weight of each element in the mean.

    Returns
    -------
    loss : 0-d array
    dy : array
        Gradient with respect to y, in its shape and dtype.

    Raises
    ------
    ValueError, TypeError
        Shapes, libraries or dtypes do not match.
    """
    xp, y, target, weight = _regression("mse", y, target, mask)
    e = y - target  # (1)
    de = weight * e  # (1)
    return xp.sum(de * e), astype(xp, 2 * de, y.dtype)  # (1)


@accepts_foreign
def mae(y: Array, target: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Return the mean absolute error, `mean(|y - target|)`, and its gradient with respect to y.

    The gradient is 0 where y equals the target.

    Parameters
    ----------
    y, target : array
        Prediction and truth, of the same shape.
    mask : bool array, or array of weights, optional
        Elements that count, or the weight of each element in the mean.

    Returns
    -------
    loss : 0-d array
    dy : array
        Gradient with respect to y, in its shape and dtype.

    Raises
    ------
    ValueError, TypeError
        Shapes, libraries or dtypes do not match.
    """
    xp, y, target, weight = _regression("mae", y, target, mask)
    e = y - target  # (2)
    return xp.sum(weight * xp.abs(e)), astype(xp, weight * xp.sign(e), y.dtype)  # (2)


@accepts_foreign
def huber(
    y: Array, target: Array, mask: Array | None = None, delta: float = 1.0
) -> tuple[Array, Array]:
    """Return the Huber loss (Huber 1964) and its gradient with respect to y.

    For errors e = y - target, the loss is the mean of `e^2/2` where `|e| <= delta`, and of `delta
    (|e| - delta/2)` elsewhere.

    Parameters
    ----------
    y, target : array
        Prediction and truth, of the same shape.
    mask : bool array, or array of weights, optional
        Elements that count, or the weight of each element in the mean.
    delta : float
        The largest `|e|` at which the loss is quadratic, above 0.

    Returns
    -------
    loss : 0-d array
    dy : array
        Gradient with respect to y, in its shape and dtype.

    Raises
    ------
    ValueError, TypeError
        Shapes, libraries or dtypes do not match, or `delta` is not above 0.
    """
    delta = checks.above_0("huber", "delta", delta)
    xp, y, target, weight = _regression("huber", y, target, mask)
    e = y - target  # (3)
    de = clamp(xp, e, delta)  # (3)
    return xp.sum(weight * de * (e - 0.5 * de)), astype(xp, weight * de, y.dtype)  # (3)


@accepts_foreign
def pinball(
    y: Array, target: Array, mask: Array | None = None, quantiles: Sequence[float] = (0.1, 0.5, 0.9)
) -> tuple[Array, Array]:
    """Return the quantile (pinball) loss and its gradient with respect to y.

    For errors e = target - y, the loss is the mean of max(q e, (q - 1) e), summed over the
    quantiles q. The y that minimises it is the quantile q of the target given the inputs (Koenker &
    Bassett 1978). The gradient is 0 where e is 0.

    Parameters
    ----------
    y : array (..., Q)
        A prediction for each quantile.
    target : array (...)
        The truth.
    mask : bool array, or array of weights, optional
        Elements of the target that count, or the weight of each element in the mean.
    quantiles : list of Q floats
        The quantiles, each between 0 and 1.

    Returns
    -------
    loss : 0-d array
    dy : array (..., Q)
        Gradient with respect to y, in its dtype.

    Raises
    ------
    ValueError, TypeError
        Shapes, libraries or dtypes do not match, or a quantile is not between 0 and 1.
    """
    expected = "a list of numbers between 0 and 1"
    share = checks.real(0, 1, strict=True)
    levels = checks.several("pinball", "quantiles", quantiles, expected, share)
    xp = namespace("pinball", {"y": y, "target": target})
    of = f"target and one axis of {len(levels)} quantiles"
    _check_shape("pinball: y has", y, of, (*target.shape, len(levels)))
    weight = _weight("pinball", xp, target, mask, y)
    target = target[..., None]
    if mask is not None:
        weight = weight[..., None]
        y, target = fuse(xp, _counted, weight, y, target)
    q = xp.astype(constants.copied(xp, np.array(levels), device_of(y)), y.dtype, copy=False)
    e = target - y  # (4)
    slope = q - xp.astype(e < 0, y.dtype)  # (4) the derivative of the loss with respect to e
    dy = -weight * xp.where(e == 0, xp.zeros_like(e), slope)  # (4)
    return xp.sum(weight * slope * e), astype(xp, dy, y.dtype)  # (4)


@accepts_foreign
def binary_cross_entropy(
    logits: Array, target: Array, mask: Array | None = None
) -> tuple[Array, Array]:
    """Return the binary cross-entropy in nats and its gradient with respect to the logits.

    The loss is the mean of -t log p - (1 - t) log(1 - p), where p = sigmoid(logit). Each logit
    answers a question of its own, such as whether a sequence has a label.

    Parameters
    ----------
    logits : array (...)
    target : array (...)
        The truth t, 0 or 1, or its probability. The function does not check these values, as that
        would stall a GPU.
    mask : bool array, or array of weights, optional
        Elements that count, or the weight of each element in the mean.

    Returns
    -------
    loss : 0-d array
    dlogits : array (...)
        Gradient with respect to the logits, in their dtype.


    Raises
    ------
    ValueError, TypeError
        Shapes, libraries or dtypes do not match.
    """
    xp, logits, target, weight = _regression("binary_cross_entropy", logits, target, mask, "logits")
    loss = xp.sum(weight * (softplus(xp, logits) - target * logits))  # (8)
    return loss, astype(xp, weight * (sigmoid(xp, logits) - target), logits.dtype)  # (8)


@accepts_foreign
def cross_entropy(logits: Array, labels: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Return the cross-entropy in nats and its gradient with respect to the logits.

    The loss is the mean of -log softmax(logits)[label].

    Parameters
    ----------
    logits : array (..., V)
        A number for each of V classes.
    labels : integer array (...)
        From 0 to V - 1. A label outside that range makes the loss NaN, unless it is masked: looking
        at the values to raise an error would stall a GPU.
    mask : bool array, or array of weights, optional
        Labels that count, or the weight of each label in the mean.

    Returns
    -------
    loss : 0-d array
    dlogits : array (..., V)
        Gradient with respect to the logits, in their dtype.

    Raises
    ------
    ValueError, TypeError
        Shapes, libraries or dtypes do not match.
    """
    xp = namespace("cross_entropy", {"logits": logits})
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"cross_entropy: logits have shape {tuple(logits.shape)}, expected (..., V), V of 1 or"
            " more"
        )
    _belongs("cross_entropy", "labels", xp, labels, "integral")
    outer = tuple(logits.shape[:-1])
    _check_shape("cross_entropy: labels have", labels, "the logits without the last axis", outer)
    weight = _weight("cross_entropy", xp, labels, mask, logits)
    V = logits.shape[-1]
    device = device_of(logits)
    # The dtype of the logits, if it can represent every label.
    kind = logits.dtype if V * finfo(xp, logits.dtype).eps < 1 else xp.float64
    share = (
        xp.full((1,), weight, dtype=logits.dtype, device=device)
        if mask is None
        else weight[..., None]
    )
    classes = constants.steps(xp, V, kind, device)
    if compiles(xp):
        label = xp.astype(labels, kind)[..., None]
        error, lost = by_rows(xp, _entropy, logits, label, classes, share, width=V)
        return xp.sum(lost), xp.astype(error, logits.dtype, copy=False)
    if mask is not None:
        (logits,) = _counted(xp, share, logits)
    label = xp.asarray(labels, dtype=xp.int64)
    inside = label % V
    top = xp.max(logits, axis=-1, keepdims=True)
    error, mean = by_rows(
        xp, _softmax_error, logits, top, xp.astype(inside, kind)[..., None], classes, share, width=V
    )
    picked = xp.take_along_axis(logits, inside[..., None], axis=-1)[..., 0]
    log_p = picked - (top + xp.log(V * mean))[..., 0]  # (5)
    lost = weight * xp.where(inside == label, log_p, xp.full_like(log_p, xp.nan))
    if mask is not None:
        (lost,) = _counted(xp, weight, lost)
    return -xp.sum(lost), xp.astype(error, logits.dtype, copy=False)  # (5)


def _softmax_error(
    xp: Namespace, z: Array, top: Array, label: Array, classes: Array, weight: Array, width: int
) -> tuple[Array, Array]:
    """Return weight (softmax(z) - one-hot(label)), and the mean of exp(z - top), along the last
    axis.
    """
    e = xp.exp(z - top)  # (5)
    mean = xp.mean(e, axis=-1, keepdims=True)  # (5)
    return weight * (e / (mean * width) - _hit(xp, classes, label)), mean  # (6)


def _hit(xp: Namespace, classes: Array, label: Array) -> Array:
    """Return 1 for the class that is the label, and 0 for the others."""
    return 1 - xp.minimum(xp.abs(classes - label), xp.ones_like(classes))  # (6)


def _entropy(
    xp: Namespace, z: Array, label: Array, classes: Array, weight: Array, width: int
) -> tuple[Array, Array]:
    """Return the gradient with respect to a row, and -weight log softmax(z)[label].

    The loss is NaN for a label outside the classes.
    """
    (z,) = _counted(xp, weight, z)
    top = xp.max(z, axis=-1, keepdims=True)
    error, mean = _softmax_error(xp, z, top, label, classes, weight, width)
    hit = _hit(xp, classes, label)
    below = z - top
    valid = width * xp.mean(hit, axis=-1, keepdims=True)
    picked = width * xp.mean(
        xp.where(hit > 0.5, below, xp.zeros_like(below)), axis=-1, keepdims=True
    )
    lost = weight * (xp.log(width * mean) - picked) * (valid / valid)  # (5)
    return error, *_counted(xp, weight, lost)


def _regression(
    where: str, y: Array, target: Array, mask: Array | None, name: str = "y"
) -> tuple[Namespace, Array, Array, Array]:
    """Check the arguments; return the namespace, the elements that count with 0 for the others, and
    their weights.
    """
    xp = namespace(where, {name: y, "target": target})
    _check_shape(f"{where}: target has", target, name, tuple(y.shape))
    weight = _weight(where, xp, target, mask, y)
    if mask is not None:
        y, target = fuse(xp, _counted, weight, y, target)
    return xp, y, target, weight


def _check_shape(given: str, array: Array, of: str, expected: Shape) -> None:
    """Raise ValueError unless an array has the expected shape; if steps may be missing, the error
    names the options that decide about them.
    """
    shape = tuple(array.shape)
    if shape != expected:
        hint = "; every_step=True of data and last=False of a SequenceModel mean one for each step"
        hint = "" if shape[:-1] == expected[:-1] else hint
        raise ValueError(f"{given} shape {shape}, expected that of {of}, {expected}{hint}")


def _weight(where: str, xp: Namespace, target: Array, mask: Array | None, like: Array) -> Array:
    """Return the weight of every element in the mean, as one number if there is no mask.

    The weights add up to 1.
    """
    if mask is None:
        return 1 / max(1, math.prod(target.shape))  # (7)
    _belongs(where, "mask", xp, mask, "bool", "real floating")
    if tuple(mask.shape) != tuple(target.shape[: mask.ndim]):
        raise ValueError(
            f"{where}: mask has shape {tuple(mask.shape)}, expected the leading axes of"
            f" {tuple(target.shape)}"
        )
    ones = xp.ones(target.shape, dtype=like.dtype, device=device_of(like))
    mask = xp.reshape(mask, (*mask.shape, *(1,) * (target.ndim - mask.ndim)))
    weight = ones * xp.astype(mask, like.dtype)
    total = xp.sum(weight)
    return weight / xp.where(total > 0, total, xp.ones_like(total))  # (7)


def _counted(xp: Namespace, weight: Array, *arrays: Array) -> tuple[Array, ...]:
    """Return arrays with 0 in place of the elements whose weight is 0.

    They may be NaN or infinite, and 0 times these is NaN.
    """
    return tuple([xp.where(weight > 0, a, xp.zeros_like(a)) for a in arrays])


def _belongs(where: str, name: str, xp: Namespace, array: Array, *kinds: str) -> None:
    check_library(where, name, xp, array)
    if not xp.isdtype(array.dtype, kinds):
        expected = " or ".join(kinds)
        raise TypeError(f"{where}: {name} has dtype {array.dtype}, expected {expected} values")
