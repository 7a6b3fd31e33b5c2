"""Random numbers from one seeded generator on the host, and masks for every array library."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from xlstm.arrays import checks, compiled, fuse
from xlstm.arrays.convert import like
from xlstm.arrays.groups import Part, rows
from xlstm.arrays.namespace import Array, Shape, namespace_of

Seed: TypeAlias = "int | np.random.Generator"


def generator(seed: Seed, stream: int = 0, where: str = "random") -> np.random.Generator:
    """Return the generator for all random numbers of the library.

    It runs on the host for every backend, so equal seeds give equal weights everywhere.

    Parameters
    ----------
    seed : int or numpy.random.Generator
        A whole number from 0 up; a generator is returned as it is.
    stream : int
        The number of one of many independent generators from the same seed.
    where : str
        The caller, whose name begins an error.

    Raises
    ------
    ValueError
        The seed is neither a whole number from 0 up nor a generator.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    number = checks.seed_number(where, "seed", seed)
    sequence = np.random.SeedSequence(number, spawn_key=(stream,) if stream else ())
    return np.random.Generator(np.random.PCG64(sequence))


def bernoulli(
    rng: np.random.Generator,
    rate: float,
    shape: Shape,
    array: Array,
    *,
    dropout: bool = False,
) -> Array:
    """Return an array that is 1 with probability `rate`, else 0; or a mask for dropout.

    A mask for dropout is 0 with probability `rate`, else 1 / (1 - rate). Equal states of the
    generator give equal results on every backend, and the same state afterwards.

    Parameters
    ----------
    rng : numpy.random.Generator
        A generator on the host. It draws numbers from [0, 1) in float32. For CuPy they are copied
        unless it is a PCG64.
    rate : float
        The probability, less than 1.
    shape : tuple of int
    array : array
        An array with the library, device and dtype of the result.
    dropout : bool
        Whether the result is a mask for dropout.
    """
    xp = namespace_of(array)
    low, high = (0.0, 1 / (1 - rate)) if dropout else (1.0, 0.0)
    if fuse.compiles(xp):
        mask: Array | None = compiled.module("cupy.random").bernoulli(
            rng, rate, shape, array, (low, high)
        )
        if mask is not None:
            return mask
    drawn = rng.random(shape, dtype=np.float32)
    return like(np.where(drawn < rate, low, high), array)


def skip(bits: Any, count: int) -> None:
    """Advance a PCG64 as if `count` numbers of 32 bits were drawn.

    NumPy takes the low half of each 64 bits first.
    """
    if count == 0:
        return
    state = bits.state
    count -= state["has_uint32"]
    if count:
        bits.advance(-(-count // 2) - 1)
        last = bits.random_raw()
        state = {**bits.state, "uinteger": last >> 32}
    bits.state = {**state, "has_uint32": count % 2}


# The part of a batch on a rank: its numbers are those that a single process would draw for these
# sequences.

GAP = 1 << 12  # for so many numbers of other ranks a jump takes less time than drawing them


class PartGenerator(np.random.Generator):
    """A generator for a part of a batch, which advances as if it had drawn for the whole batch.

    Parameters
    ----------
    bits : numpy.random.BitGenerator
    part : Part
    """

    def __init__(self, bits: np.random.BitGenerator, part: Part) -> None:
        super().__init__(bits)
        self.part = part

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Draw from [0, 1) for an array (T, b, ...), or for packed rows (N, D).

        Arrays of other shapes are the same on all ranks.

        Parameters
        ----------
        size : tuple of int
        dtype : dtype
        out : None
        """
        if not isinstance(size, tuple) or len(size) < 2:
            return super().random(size, dtype, out)
        own = rows(self.part.key, size[0], len(size) == 2)
        count = self.part.count(size)
        width = math.prod(size) // max(1, len(own))
        bits = self.bit_generator
        if np.dtype(dtype) != np.float32 or not isinstance(bits, np.random.PCG64):
            return super().random((count // max(1, width), width), dtype)[own].reshape(size)
        drawn = [np.zeros((0, width), np.float32)]
        at = 0
        for run in np.split(own, np.flatnonzero(np.diff(own) * width > GAP) + 1):
            if len(run):
                first, last = int(run[0]), int(run[-1]) + 1
                skip(bits, first * width - at)
                drawn.append(super().random((last - first, width), np.float32)[run - first])
                at = last * width
        skip(bits, count - at)
        return np.concatenate(drawn).reshape(size)


def of_part(rng: np.random.Generator, part: Part | None) -> np.random.Generator:
    """Return the generator of masks for a part of a batch, or `rng` itself for a whole batch."""
    return rng if part is None or hasattr(rng, "part") else PartGenerator(rng.bit_generator, part)
