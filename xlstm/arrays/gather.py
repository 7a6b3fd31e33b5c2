"""Rows of arrays at places: gathered, or added up as in the gradient of an embedding.

On CuPy one launch gathers the rows of several arrays, with zeros for missing rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xlstm.arrays import compiled, fuse
from xlstm.arrays.concat import concat, filled
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace, device_of


def gather(
    xp: Namespace, arrays: Sequence[Array], places: Sequence[Array], zeros: range = range(0)
) -> list[Array]:
    """Return the rows of each array at its places.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    arrays : sequence of array (N, ...)
        They have one dtype.
    places : sequence of int64 array (M,)
        The numbers of the rows, for each array.
    zeros : range
        The numbers of the arrays whose places may be N, which gives a row of zeros.

    Returns
    -------
    list of array (M, ...)
    """
    if fuse.compiles(xp):
        gathered: list[Array] | None = compiled.module("cupy.gather").gather(arrays, places)
        if gathered is not None:
            return gathered
    if zeros:
        arrays = [
            concat(xp, (a, filled(xp, a, 0.0, 1, 0)), 0) if k in zeros else a
            for k, a in enumerate(arrays)
        ]
    return [xp.take(a, at, axis=0) for a, at in zip(arrays, places, strict=True)]


def rows_of_table(xp: Namespace, table: Array, places: Array) -> Array:
    """Return the rows of a table (V, D) at its places, (M, D).

    NumPy's places are checked before, and those of an exported graph are not known. Elsewhere a
    place outside of the table gives NaN, since the host would wait for a device to refuse it.
    """
    if xp is np or xp.__name__.startswith("xlstm."):  # a library of symbols
        return xp.take(table, places, axis=0)
    if fuse.compiles(xp):
        rows = compiled.module("cupy.gather").gather([table], [places], missing=-1)
        if rows is not None:
            return rows[0]
    inside = places % table.shape[0]
    rows = xp.take(table, inside, axis=0)
    return fuse.where(xp, (inside == places)[:, None], rows, xp.full_like(rows, xp.nan))


COMPARED = 1 << 24  # pairs of a place and a row compared at once


def add_rows(xp: Namespace, places: Array, rows: Array, count: int) -> Array:
    """Return (count, D) with each row of `rows` (N, D) added at its place in `places` (N,).

    On CuPy rows with places out of range are left out.
    """
    if xp is np:
        total = np.zeros((count, rows.shape[1]), dtype=rows.dtype)
        np.add.at(total, places, rows)
        return total
    if fuse.compiles(xp):
        sums = compiled.module("cupy.gather").add_rows(places, rows, count)
        if sums is not None:
            return sums
    # Multiply by a matrix of ones and zeros, for some rows of the result at a time.
    parts = []
    step = max(1, COMPARED // max(1, places.shape[0]))
    home = device_of(places)
    for first in range(0, max(1, count), step):
        numbers = xp.arange(first, min(first + step, count), dtype=places.dtype, device=home)
        ones = xp.astype(numbers[:, None] == places[None, :], rows.dtype)
        parts.append(matmul(xp, ones, rows))
    return parts[0] if len(parts) == 1 else concat(xp, parts, 0)
