"""Random numbers, which come from one seeded generator on the host."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from xlstm.arrays import checks

Seed: TypeAlias = "int | np.random.Generator"


def generator(seed: Seed, stream: int = 0, where: str = "") -> np.random.Generator:
    """Return the generator from which the library draws every random number.

    It is on the host, the same for every backend, so equal seeds give equal weights everywhere.

    Parameters
    ----------
    seed : int or numpy.random.Generator
        A whole number from 0 up; a generator is returned as it is.
    stream : int
        The number of one of many independent generators of the same seed.
    where : str
        The caller, with whose name an error begins.

    Raises
    ------
    ValueError
        The seed is neither.
    """
    checked = checks.seed(where, "seed", seed)
    if isinstance(checked, np.random.Generator):
        return checked
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(checked, spawn_key=(stream,) if stream else ())))
