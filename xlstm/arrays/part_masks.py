"""Random numbers for the part of a batch that a rank has: those that one process would draw for these sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays.bernoulli import Later, after
from xlstm.arrays.groups import Part, rows

GAP = 4096  # numbers of other ranks from which on a jump takes less time than to draw them


class Columns(np.random.Generator):
    """A generator for the part of a batch, which goes on as if the numbers of the whole batch had been drawn.

    Parameters
    ----------
    bits : numpy.random.BitGenerator
    part : Part
    """

    def __init__(self, bits: np.random.BitGenerator, part: Part) -> None:
        super().__init__(bits)
        self.part = part

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Draw from [0, 1) for an array (T, b, ...), or for packed rows (N, D); other shapes are the same on all ranks.

        Parameters
        ----------
        size : tuple of int
        dtype : dtype
        out : None
        """
        if not isinstance(size, tuple) or len(size) < 2:
            return super().random(size, dtype, out)
        found = rows(self.part.key, size[0], len(size) == 2)
        count = self.part.count(size)
        width = int(np.prod(size)) // max(1, len(found))
        if np.dtype(dtype) != np.float32 or not isinstance(self.bit_generator, np.random.PCG64):
            return super().random((count // max(1, width), width), dtype)[found].reshape(size)
        return self._drawn(found, width, count).reshape(size)

    def _drawn(self, found: np.ndarray[Any, Any], width: int, count: int) -> np.ndarray[Any, Any]:
        """Return the rows `found` of all that are drawn, in float32; a draw of 64 bits has two numbers."""
        bits: Any = self.bit_generator
        state, drawn, at = bits.state, [], 0
        kept = state["has_uint32"]
        for some in np.split(found, np.flatnonzero(np.diff(found) * width > GAP) + 1) if len(found) else ():
            start, end = some[0] * width, (some[-1] + 1) * width
            first, last = max(0, start - kept) // 2, (end - kept + 1) // 2
            bits.advance(int(first - at))
            numbers, at = bits.random_raw(int(last - first)).view(np.uint32), last
            if kept and start == 0:
                numbers = np.concatenate(([np.uint32(state["uinteger"])], numbers))
            else:
                numbers = numbers[start - kept - 2 * first :]
            drawn.append(numbers[: end - start].reshape(-1, width)[some - some[0]])
        bits.state = after(state, count) if count else state
        whole = np.concatenate(drawn) if drawn else np.zeros(0, np.uint32)
        return (whole >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def of_part(rng: np.random.Generator, part: Part | None) -> np.random.Generator:
    """Return the generator of the masks for a part of a batch, or as it is for a whole batch."""
    return rng if part is None or isinstance(rng, Later) else Columns(rng.bit_generator, part)
