"""Arrays joined along an axis: on CuPy by one launch, not by a copy of each as in CuPy itself."""

from __future__ import annotations

from collections.abc import Sequence

from xlstm.arrays import compiled, constants, fuse
from xlstm.arrays.namespace import Array, Namespace, device_of


def concat(xp: Namespace, arrays: Sequence[Array], axis: int) -> Array:
    """Return arrays joined along an axis.

    Parameters
    ----------
    xp : namespace
    arrays : sequence of array
        At least one. All have the same dtype, and the same shape except along the axis.
    axis : int

    Returns
    -------
    array
    """
    if not fuse.compiles(xp):
        return xp.concat(arrays, axis=axis)
    return compiled.module("cupy.concat").concat(xp, arrays, axis)


def filled(xp: Namespace, like: Array, value: float, width: int, axis: int) -> Array:
    """Return a view of one number as an array, `width` wide along the axis, to join by `concat`.

    The view is read-only by convention.
    """
    shape = list(like.shape)
    shape[axis] = width
    return xp.broadcast_to(constants.number(xp, value, like.dtype, device_of(like)), tuple(shape))


def stack(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Stack arrays of one shape and dtype along a new first axis.

    On CuPy a single array is not copied.
    """
    if not fuse.compiles(xp):
        return xp.stack(arrays)
    return (
        arrays[0][None, ...] if len(arrays) == 1 else concat(xp, [a[None, ...] for a in arrays], 0)
    )
