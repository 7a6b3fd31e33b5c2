"""New arrays with one value each, such as states before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from xlstm.arrays import compiled, fuse
from xlstm.arrays.namespace import Array, Namespace, Shape, device_of

ALIGNED = 64  # elements to whose multiples the arrays of one fill are aligned


def filled_at_once(
    xp: Namespace, like: Array, wanted: Iterable[tuple[Shape, Any, float]]
) -> Iterator[Array] | None:
    """Return arrays of CuPy with a shape, a dtype and a value each, on the device of another array.

    Each fill is a launch, so there is one array for each value and dtype, and the results are its
    parts. For libraries without launches the result is None.
    """
    if not fuse.compiles(xp):
        return None
    ends: dict[Any, int] = {}  # elements of all arrays of a value and dtype
    places = []
    for shape, dtype, value in wanted:
        start = ends.get((value, dtype), 0)
        ends[value, dtype] = start + -(-math.prod(shape) // ALIGNED) * ALIGNED
        places.append(((value, dtype), start, shape))
    device = device_of(like)
    whole = {
        (value, dtype): xp.full((size,), value, dtype=dtype, device=device)
        for (value, dtype), size in ends.items()
    }
    views = compiled.module("cupy.foreach").views
    return (views(whole[kind], [shape], [start])[0] for kind, start, shape in places)
