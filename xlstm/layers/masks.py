"""Masks of dropout; equal seeds give equal bits on every backend."""

from __future__ import annotations

import numpy as np

from xlstm.arrays.bernoulli import bernoulli
from xlstm.arrays.namespace import Array
from xlstm.arrays.random import Seed, generator

STREAM = 2  # the stream of a seed that masks are drawn from; 0 draws weights, 1 orders batches


def masks(where: str, seed: Seed | None) -> np.random.Generator:
    """Return the generator of masks.

    Raises
    ------
    ValueError
        There is no seed, or `seed` is not one.
    """
    if seed is None:
        raise ValueError(f"{where}: masks are drawn while training, so forward needs a seed; train=False draws none")
    return generator(seed, stream=STREAM, where=where)


def dropout(rng: np.random.Generator | None, rate: float, shape: tuple[int, ...], array: Array) -> Array | None:
    """Draw a mask for an array: 0 with probability `rate`, else 1 / (1 - rate); None where there is none."""
    if rng is None or not rate:
        return None
    return bernoulli(rng, rate, shape, array, dropout=True)
