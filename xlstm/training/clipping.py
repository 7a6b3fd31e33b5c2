"""The norm of gradients, and limits for it and for each value."""

from __future__ import annotations

from typing import Any

from xlstm.arrays import checks, foreach
from xlstm.arrays.foreign import accepts_foreign
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import Array, Namespace, Params, namespace
from xlstm.cells.activations import clamp


@accepts_foreign
def global_norm(grads: Params) -> Array:
    """Return the Euclidean norm of all gradients together, a 0-d array.

    Parameters
    ----------
    grads : dict of str to array

    Returns
    -------
    0-d array

    Raises
    ------
    TypeError, ValueError
        `grads` is no dict of arrays, or they do not belong together.
    """
    checks.mapping("global_norm", grads, "gradients")
    xp = namespace("global_norm", grads)
    return foreach.norm(xp, list(grads.values()))


@accepts_foreign
def clip_global_norm(grads: Params, limit: float, norm: Array | None = None) -> Params:
    """Scale all gradients together so that their global norm is at most `limit` (Pascanu et al. 2013).

    Parameters
    ----------
    grads : dict of str to array
    limit : float
    norm : 0-d array, optional
        The global norm, where it is known already.

    Returns
    -------
    dict of str to array

    Raises
    ------
    TypeError, ValueError
        `grads` is no dict of arrays, or they do not belong together; `limit` is not above 0.
    """
    limit = checks.above_0("clip_global_norm", "limit", limit)
    checks.mapping("clip_global_norm", grads, "gradients")
    xp = namespace("clip_global_norm", grads)
    norm = global_norm(grads) if norm is None else norm
    if compiles(xp):
        found = foreach.apply(xp, _scaled, [list(grads.values())], (norm, limit))
        return {name: g for name, (g,) in zip(grads, found, strict=True)}
    scale = _scale(xp, norm, limit)
    return {name: g * scale for name, g in grads.items()}


def _scaled(xp: Namespace, g: Array, norm: Array, limit: Any) -> Array:
    return g * _scale(xp, norm, limit)


def _scale(xp: Namespace, norm: Array, limit: Any) -> Array:
    """Return the factor that makes a norm `limit` at most."""
    return limit / xp.maximum(norm, xp.full_like(norm, limit))


@accepts_foreign
def clip_value(grads: Params, limit: float) -> Params:
    """Clip every element of every gradient to [-limit, limit].

    Parameters
    ----------
    grads : dict of str to array
    limit : float

    Returns
    -------
    dict of str to array

    Raises
    ------
    TypeError, ValueError
        `grads` is no dict of arrays, or they do not belong together; `limit` is not above 0.
    """
    limit = checks.above_0("clip_value", "limit", limit)
    checks.mapping("clip_value", grads, "gradients")
    xp = namespace("clip_value", grads)
    return {name: clamp(xp, g, limit) for name, g in grads.items()}
