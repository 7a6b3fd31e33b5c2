"""Adding at places, which the array API has no function for."""

from __future__ import annotations

import numpy as np

from xlstm.arrays.concat import concat
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, device_of

COMPARED = 1 << 24  # pairs of a place and a row that are compared at once


def add_rows(xp: Namespace, places: Array, rows: Array, count: int) -> Array:
    """Return (count, D) with each of rows (N, D) added at its place, a whole number of places (N,)."""
    if xp is np:
        found = np.zeros((count, rows.shape[1]), dtype=rows.dtype)
        np.add.at(found, places, rows)
        return found
    # A product with a matrix of ones and zeros does it, some rows of the result at a time.
    parts, step = [], max(1, COMPARED // max(1, places.shape[0]))
    for first in range(0, max(1, count), step):
        some = xp.arange(first, min(first + step, count), dtype=places.dtype, device=device_of(places))
        parts.append(matmul(xp, xp.astype(some[:, None] == places[None, :], rows.dtype), rows))
    return parts[0] if len(parts) == 1 else concat(xp, parts, 0)
