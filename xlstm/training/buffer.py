"""The places of gradients in the flat buffer that ranks sum: a head of few numbers, then buckets of
parameters, each of which is one sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import dtype_of
from xlstm.arrays.namespace import Array, Params, Shape

ROOM = 16  # numbers of the head, so that gradients begin where a line of the cache does


def zeros(home: Backend, size: int, dtype: str = "") -> Array:
    """Return so many zeros, by default in the dtype of a backend."""
    return home.xp.zeros(size, dtype=dtype_of(home.xp, dtype or home.dtype))


class Bucket(NamedTuple):
    """Parameters whose gradients are summed at once.

    Attributes
    ----------
    names : list of str
    place : slice
        The place of their gradients in the buffer. Each rank can have a part of it, and all parts
        are equal.
    part : slice
        The place of a rank's part among those of all buckets.
    """

    names: list[str]
    place: slice
    part: slice


class Layout:
    """The places of all parameters in the buffer.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        Those of the parameters, in their order in the buffer.
    ranks : int
    most : int, optional
        The most numbers of a bucket with several parameters; by default there is one bucket.

    Attributes
    ----------
    buckets : list of Bucket
    each : int
        How many numbers the parts of a rank have together.
    """

    def __init__(self, shapes: Mapping[str, Shape], ranks: int, most: int | None = None) -> None:
        self.shapes = shapes
        self.ranks = ranks
        self.starts: dict[str, int] = {}  # of each parameter in the buffer
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
        """Add a bucket of so many numbers, rounded up to equal parts that begin where lines of the
        cache do.
        """
        each = -(-count // (self.ranks * ROOM)) * ROOM
        place = slice(self.size, self.size + each * self.ranks)
        self.buckets.append(Bucket(names, place, slice(self.each, self.each + each)))
        self.size = place.stop
        self.each += each

    def named(self, buffer: Array) -> Params:
        """Return the parameters in a buffer by name."""
        arrays = Params()
        for name, shape in self.shapes.items():
            start = self.starts[name]
            arrays[name] = buffer[start : start + math.prod(shape)].reshape(shape)
        return arrays

    def parts(self, rank: int) -> dict[str, tuple[slice, slice]]:
        """Return the parameters of which a rank has a part: the places of that in the flat
        parameter, and among the rank's parts.
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
