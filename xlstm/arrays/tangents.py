"""Jacobian-vector and Hessian-vector products of functions of arrays, by dual numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import array_api_compat

from xlstm.arrays import checks
from xlstm.arrays.dual import Dual, DualNamespace, deeper
from xlstm.arrays.namespace import Array, Namespace, namespace, namespace_of, root_of
from xlstm.arrays.trees import leaves_by_path, mapped

__all__ = ["hvp", "jvp"]


def jvp(f: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Return the value of a function and its derivative in a direction (forward mode).

    The derivative is exact. The function may call any code written against the array API: layers
    and models, their `forward` and `backward`, losses and activations, operators, and functions of
    `x.__array_namespace__()` or of NumPy. A function without a rule raises an error with its name.
    The derivative of `backward` is a second derivative.

    Layers run step by step on the reference engine, which takes two to four times as long as
    without tangents. docs/second_derivatives.md has examples.

    Parameters
    ----------
    f : callable
        `f(*primals)` returns an array, or a nesting of tuples, lists and dicts of arrays. It must
        return the same for the same arguments: give a seed to layers that draw masks. Arguments
        with a tangent are copies, so `f` may change them in place. Inside `f`, float() of an array
        is an error, since a number has no tangent.
    primals : tuple
        The arguments: arrays of NumPy, CuPy or PyTorch, or nestings of them.
    tangents : tuple
        The direction, nested like `primals`, in their shapes and dtypes. None in place of any part
        means zero, as for tokens.

    Returns
    -------
    out : as `f` returns, with tuples in the place of lists
        The value.
    dout : nested like `out`
        The derivative of `out`. At a kink, as in `relu` or `clip`, it is the derivative of the
        branch that was taken. If several numbers are the maximum, it is the mean of their
        tangents.

    Raises
    ------
    TypeError
        Arguments are not floating-point arrays of one library and dtype, or are arrays of JAX,
        which has `jax.jvp`; or the function uses an operation without a derivative here, or returns
        something other than arrays, such as `float(loss)`.
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
    arguments = checks.instance((tuple, list), "a tuple of arguments")
    primals = arguments("jvp", "primals", primals)
    tangents = arguments("jvp", "tangents", tangents)
    names = "primals", "tangents"
    return _differentiated("jvp", lambda duals: f(*duals), names, primals, tangents)


def hvp(loss: Callable[[Any], tuple[Any, Any]], params: Any, v: Any) -> Any:
    """Return the product of a loss's Hessian with a vector, without computing the Hessian.

    The product is the derivative of the gradients in the direction v (Pearlmutter 1994).

    Parameters
    ----------
    loss : callable
        `loss(params)` returns the value and the gradients, nested like `params`. As in `jvp`,
        float() of an array is an error.
    params : dict of str to array
        Parameters, or another nesting of arrays.
    v : dict of str to array
        The vector, nested like `params`; None in place of any part means zero.

    Returns
    -------
    dict of str to array
        The product, nested like `params`.

    Raises
    ------
    TypeError, ValueError
        As for `jvp`; or the loss does not return a value and gradients nested like `params`.

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

    hv = _differentiated("hvp", gradients, ("params", "v"), params, v)[1]
    shapes, expected = (mapped(tree, lambda _, a: str(tuple(a.shape))) for tree in (hv, params))
    if shapes != expected:
        came = leaves_by_path(shapes).items() - leaves_by_path(expected).items()
        raise ValueError(
            f"hvp: gradients have other names or shapes than params, such as {sorted(came)[:1]}"
        )
    return hv


def _differentiated(
    where: str,
    f: Callable[[Any], Any],
    names: tuple[str, str],
    primal: Any,
    tangent: Any,
) -> tuple[Any, Any]:
    """Return the value and the derivative of a function of one nesting; errors name both
    nestings.
    """

    def is_dual(array: Any) -> bool:
        return isinstance(array, Dual) and array.xp is over(array.xp.root)

    def derivative(path: str, array: Any) -> Array:
        if is_dual(array):
            return array.tangent
        if not array_api_compat.is_array_api_obj(array):
            raise TypeError(
                f"{where}: the function returned {checks.shown(array)} at {path}, expected arrays"
            )
        return namespace_of(array).zeros_like(array)

    with deeper((primal, tangent)) as over:
        out = f(_dual(where, names, "", primal, tangent, over))
        dout = mapped(out, derivative)
        return mapped(out, lambda _, a: a.value if is_dual(a) else a), dout


def _dual(
    where: str,
    names: tuple[str, str],
    path: str,
    primal: Any,
    tangent: Any,
    over: Callable[[Namespace], DualNamespace],
) -> Any:
    """Return dual numbers of the arrays in two nestings; `path` is the place in both.

    The arrays are copied, as functions may write to their arguments.
    """
    if tangent is None:
        return primal
    of_primal, of_tangent = (f"{name}{path}" for name in names)
    keys = _keys(primal)
    if keys is not None:
        came = _keys(tangent)
        if came is None or set(came) != set(keys):
            has = f"is {checks.shown(tangent)}" if came is None else f"has {_listed(came)}"
            raise ValueError(
                f"{where}: {of_tangent} {has}, expected what {of_primal} has, {_listed(keys)}"
            )
        parts = {
            key: _dual(where, names, f"{path}[{key!r}]", primal[key], tangent[key], over)
            for key in keys
        }
        if isinstance(primal, Mapping):
            return parts
        return getattr(primal, "_make", tuple)(parts.values())
    if array_api_compat.is_jax_array(primal):
        raise TypeError(
            f"{where}: {of_primal} is an array of JAX, expected one that can be written to; jax.jvp"
            " differentiates layers of xlstm.interop.jax"
        )
    xp = namespace(where, {of_primal: primal, of_tangent: tangent})
    if tuple(tangent.shape) != tuple(primal.shape):
        raise ValueError(
            f"{where}: {of_tangent} has shape {tuple(tangent.shape)}, expected that of"
            f" {of_primal}, {tuple(primal.shape)}"
        )
    copies = (xp.asarray(a, copy=True) for a in (primal, tangent))
    return Dual(over(root_of(xp)), *copies)


def _keys(tree: Any) -> list[Any] | None:
    """Return the keys of the parts of a nesting, or None for an array."""
    if isinstance(tree, Mapping):
        return list(tree)
    return list(range(len(tree))) if isinstance(tree, tuple | list) else None


def _listed(keys: list[Any]) -> str:
    return checks.few(map(str, keys)) or "nothing"
