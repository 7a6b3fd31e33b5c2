"""The layout of the flat buffer of gradients that ranks sum: a short head, then buckets of
parameters.

Ranks sum each bucket as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import dtype_of
from xlstm.arrays.namespace import Array, Params, Shape

ROOM = 16  # numbers of the head, so that gradients begin at a cache line


def zeros(home: Backend, size: int, dtype: str = "") -> Array:
    """Return `size` zeros, by default in the dtype of the backend."""
    return home.xp.zeros(size, dtype=dtype_of(home.xp, dtype or home.dtype))


class Bucket(NamedTuple):
    """Parameters whose gradients ranks sum in one operation.

    Attributes
    ----------
    names : list of str
    place : slice
        The place of their gradients in the buffer. It can be divided into equal parts, one for each
        rank.
    part : slice
        The place of a rank's part of this bucket among the rank's parts of all buckets.
    """

    names: list[str]
    place: slice
    part: slice


class Layout:
    """The places of all parameters in the buffer.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        The shapes of the parameters, in their order in the buffer.
    ranks : int
    most : int, optional
        The largest size, in numbers, of a bucket with several parameters; by default there is one
        bucket.

    Attributes
    ----------
    buckets : list of Bucket
    each : int
        The size, in numbers, of all parts of a rank together.
    """

    def __init__(self, shapes: Mapping[str, Shape], ranks: int, most: int | None = None) -> None:
        self.shapes = shapes
        self.ranks = ranks
        self.starts: dict[str, int] = {}  # where each parameter begins in the buffer
        self.buckets: list[Bucket] = []
        self.each = 0
        self.size = ROOM
        names: list[str] = []
        count = 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            if most is not None and names and count + size > most:
                self._close(names, count)
                names = []
                count = 0
            self.starts[name] = self.size + count
            names.append(name)
            count += size
        self._close(names, count)

    def _close(self, names: list[str], count: int) -> None:
        """Add a bucket of `count` numbers, rounded up to equal parts that begin at cache lines."""
        each = -(-count // (self.ranks * ROOM)) * ROOM
        place = slice(self.size, self.size + each * self.ranks)
        self.buckets.append(Bucket(names, place, slice(self.each, self.each + each)))
        self.size = place.stop
        self.each += each

    def named(self, buffer: Array) -> Params:
        """Return views of the parameters in a buffer, by name."""
        arrays = Params()
        for name, shape in self.shapes.items():
            start = self.starts[name]
            arrays[name] = buffer[start : start + math.prod(shape)].reshape(shape)
        return arrays

    def parts(self, rank: int) -> dict[str, tuple[slice, slice]]:
        """Return where the parts of a rank lie: for each parameter the slice of the flat parameter,
        and the slice of the rank's parts.
        """
        places = {}
        for bucket in self.buckets:
            each = bucket.part.stop - bucket.part.start
            first = bucket.place.start + rank * each
            for name in bucket.names:
                at = self.starts[name]
                start = max(at, first)
                end = min(at + math.prod(self.shapes[name]), first + each)
                if start < end:
                    own = slice(start - first + bucket.part.start, end - first + bucket.part.start)
                    places[name] = slice(start - at, end - at), own
        return places
