"""Gradients that ranks exchange as bfloat16: half the bytes, with sums in float32.

A bfloat16 is the upper half of a float32. Each rank sends every other rank the upper halves of that
rank's part of the gradients. It sums in float32 the halves that it receives, and sends the upper
halves of the sums to all ranks. The lower halves are residuals: they stay on the rank that cut them
off, which adds them in the next step (error feedback; Seide et al. 2014, Karimireddy et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.fuse import fuse
from xlstm.arrays.groups import Group
from xlstm.arrays.namespace import Array, Namespace
from xlstm.training.buffer import Bucket, Layout, zeros

LARGEST = float(np.finfo("float32").max)
UPPER = 1  # the index of the upper 16 bits of a float32 in the memory of a little-endian machine


class Halved:
    """An exchange of a buffer's gradients as bfloat16.

    Parameters
    ----------
    group : Group
    home : Backend
    layout : Layout
    """

    def __init__(self, group: Group, home: Backend, layout: Layout) -> None:
        self.group = group
        self.xp = home.xp
        self.sent = zeros(home, layout.size, "uint16")
        self.received = zeros(home, layout.size, "uint16")
        # the residuals of this rank's gradients, and of the sums of its part
        self.residuals = [zeros(home, size, "float32") for size in (layout.size, layout.each)]

    def send(self, go: Callable[..., None], buffer: Array, bucket: Bucket) -> None:
        """Send the gradients of a bucket to the ranks that sum them."""
        place = bucket.place
        self._cut(buffer[place], self.residuals[0][place], self.sent[place])
        go(self.group.exchange, self.sent[place], self.received[place])

    def sum_up(self, bucket: Bucket) -> Array:
        """Return the float32 sums of this rank's part, once all halves are received."""
        each = bucket.part.stop - bucket.part.start
        first = bucket.place.start
        total = self._widened(self.received[first : first + each])
        for rank in range(1, self.group.size):
            start = first + rank * each
            total += self._widened(self.received[start : start + each])
        return total

    def share_sums(self, total: Array, buffer: Array, bucket: Bucket) -> None:
        """Put the sums of all ranks into the buffer, each rounded in the same way everywhere."""
        place = bucket.place
        own = self.received[place][: total.size]  # these are already summed
        self._cut(total, self.residuals[1][bucket.part], own)
        self.group.gather_parts(own, self.sent[place])
        buffer[place] = self._widened(self.sent[place])

    def _cut(self, a: Array, residual: Array, halves: Array) -> None:
        """Add the residual to an array, put the upper halves into `halves`, and store the new
        residual.
        """
        residual += a
        halves[...] = residual.view(self.xp.uint16)[UPPER::2]
        residual[...] = fuse(self.xp, _lower, residual, self._widened(halves))

    def _widened(self, halves: Array) -> Array:
        """Return the float32 numbers with these upper halves."""
        wide = self.xp.zeros(halves.shape, dtype=self.xp.float32)
        wide.view(self.xp.uint16)[UPPER::2] = halves
        return wide


def _lower(xp: Namespace, total: Array, upper: Array) -> Array:
    # a number that is not finite leaves no residual
    lower = total - upper
    return xp.where(xp.abs(lower) <= LARGEST, lower, xp.zeros_like(lower))
