"""Jacobian-vector and Hessian-vector products of functions of arrays, by dual numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import array_api_compat

from xlstm.arrays import checks
from xlstm.arrays.dual import Dual, deeper, dual_namespace, root_of
from xlstm.arrays.namespace import Array, namespace, namespace_of
from xlstm.arrays.trees import leaves_by_path, mapped

__all__ = ["hvp", "jvp"]


def jvp(f: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Return the value of a function and its derivative in a direction: forward-mode
    differentiation.

    The derivative is exact, and takes two to four times the time of the value. The function may
    call everything that is written against the array API: layers and models, their `forward` and
    `backward`, losses and activations, operators, functions of an array's namespace, and those of
    NumPy that the array API has too. The derivative of `backward` is a second derivative. Layers
    run step by step, on the reference engine.

    Parameters
    ----------
    f : callable
        `f(*primals)` returns an array, or a nesting of tuples, lists and dicts of arrays. It
        has to return the same for the same arguments: give layers that draw masks a seed.
    primals : tuple
        The arguments: arrays of one library, or nestings of them.
    tangents : tuple
        The direction, nested like `primals`, in their shapes and dtypes. None in place of any part
        of it is zero, as for tokens.

    Returns
    -------
    out : as `f` returns, with tuples in the place of lists
    dout : nested like `out`
        The derivative of `out`. At a kink, as of `relu` or `clip`, it is that of the branch that
        was taken.

    Raises
    ------
    TypeError
        Arguments are not floating-point arrays of one library and dtype, or are those of JAX, which
        has `jax.jvp`; or the function uses an operation that has no derivative here, or returns
        something that is no array, such as `float(loss)`.
    ValueError
        Tangents are not nested like primals, or have other shapes.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> lstm = xlstm.LSTM(1, 4)
    >>> params = lstm.init(0, "numpy")
    >>> x = np.ones((5, 2, 1), "float32")
    >>> y, dy = xlstm.jvp(lambda p, x: lstm(p, x)[0], (params, x), (params, None))
    >>> y.shape, dy.shape
    ((5, 2, 4), (5, 2, 4))
    """
    f = checks.function("jvp", "f", f)
    primals = checks.instance((tuple, list), "a tuple of arguments")("jvp", "primals", primals)
    with deeper() as depth:
        out = f(*_duals("", primals, tangents, depth))

    def tangent(path: str, array: Any) -> Array:
        if _is_dual(array, depth):
            return array.tangent
        if not array_api_compat.is_array_api_obj(array):
            raise TypeError(
                f"jvp: f returned {checks.shown(array)} at {path}, expected arrays alone"
            )
        return namespace_of(array).zeros_like(array)

    dout = mapped(out, tangent)
    return mapped(out, lambda _, a: a.value if _is_dual(a, depth) else a), dout


def hvp(loss: Callable[[Any], tuple[Any, Any]], params: Any, v: Any) -> Any:
    """Return the product of the Hessian of a loss with a vector, without the Hessian.

    It is the derivative of the gradients in the direction v (Pearlmutter 1994).

    Parameters
    ----------
    loss : callable
        `loss(params)` returns the value and the gradients, which are nested like `params`.
    params : dict of str to array
        Parameters, or another nesting of arrays.
    v : dict of str to array
        The vector, nested like `params`; None in place of any part of it is zero.

    Returns
    -------
    dict of str to array
        The product, nested like `params`.

    Raises
    ------
    TypeError, ValueError
        As for `jvp`; or the loss does not return a value and gradients like `params`.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> lstm = xlstm.LSTM(1, 4)
    >>> params = lstm.init(0, "numpy")
    >>> x = np.ones((5, 2, 1), "float32")
    >>> def loss(params):
    ...     y, _, saved = lstm.forward(params, x)
    ...     value, dy = xlstm.losses.mse(y, np.zeros_like(x) + np.ones(4, "float32"))
    ...     return value, lstm.backward(params, saved, dy)[0]
    >>> hv = xlstm.hvp(loss, params, params)
    >>> hv["0.Wh"].shape
    (16, 4)
    """
    loss = checks.function("hvp", "loss", loss)

    def gradients(params: Any) -> Any:
        both: Any = loss(params)
        if not isinstance(both, tuple) or len(both) != 2:
            raise TypeError(
                f"hvp: loss returned {checks.shown(both)}, expected a tuple (value, gradients)"
            )
        return both[1]

    hv = jvp(gradients, (params,), (v,))[1]
    shapes, expected = (
        {path: tuple(a.shape) for path, a in leaves_by_path(tree).items()} for tree in (hv, params)
    )
    if shapes != expected:
        raise ValueError(
            f"hvp: gradients have shapes {shapes}, expected those of params, {expected}"
        )
    return hv


def _is_dual(array: Any, depth: int) -> bool:
    return isinstance(array, Dual) and array.xp.depth == depth


def _duals(path: str, primal: Any, tangent: Any, depth: int) -> Any:
    """Return dual numbers of the arrays in two nestings; `path` is their place in both."""
    if tangent is None:
        return primal
    names = _names(primal)
    if names is not None:
        if _names(tangent) != names:
            raise ValueError(
                f"jvp: tangents{path} is {checks.shown(tangent)}, expected a nesting like that of"
                f" primals{path}, with the names {checks.few(map(str, names))}"
            )
        parts = {k: _duals(f"{path}[{k!r}]", primal[k], tangent[k], depth) for k in names}
        return parts if isinstance(primal, Mapping) else tuple(parts.values())
    if array_api_compat.is_jax_array(primal):
        raise TypeError(
            f"jvp: primals{path} is an array of JAX, expected one that can be written to; jax.jvp"
            " differentiates layers of xlstm.interop.jax"
        )
    xp = namespace("jvp", {f"primals{path}": primal, f"tangents{path}": tangent})
    if tuple(tangent.shape) != tuple(primal.shape):
        raise ValueError(
            f"jvp: tangents{path} has shape {tuple(tangent.shape)}, expected that of the primal,"
            f" {tuple(primal.shape)}"
        )
    return Dual(dual_namespace(root_of(xp), depth), primal, tangent)


def _names(tree: Any) -> list[Any] | None:
    """Return the keys of the parts of a nesting, or None for an array."""
    if isinstance(tree, Mapping):
        return sorted(tree)
    return list(range(len(tree))) if isinstance(tree, tuple | list) else None
