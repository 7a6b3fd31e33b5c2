"""Synthetic series: trends, seasons, steps, random walks and noise, put together by chance."""

from __future__ import annotations

import numpy as np

from xlstm.data.host import Values

SHORTEST = 4.0  # the shortest period of a season
HARMONICS = 3  # of a season
GAP = 0.1  # the longest gap, as a share of the series


def synthetic(rng: np.random.Generator, count: int, length: int) -> Values:
    """Draw series.

    Parameters
    ----------
    rng : numpy.random.Generator
    count, length : int

    Returns
    -------
    array (count, length)
        Their sizes are between 0.001 and 1000, and their levels up to ten times that. A tenth have a gap, of NaN.
    """
    return np.stack([_one(rng, length) for _ in range(count)])


def _one(rng: np.random.Generator, n: int) -> Values:
    t = np.arange(n, dtype=np.float64)
    x: Values = np.zeros(n)
    if rng.random() < 0.5:
        x += rng.normal(scale=2.0) * t / n
    for _ in range(rng.integers(0, 3)):
        x += rng.lognormal(-0.5, 0.7) * _season(rng, t)
    if rng.random() < 0.2:
        x *= 1 + rng.uniform(0, 1.5) * t / n  # seasons that grow
    if rng.random() < 0.4:
        x += rng.lognormal(-0.5, 0.7) * np.cumsum(rng.normal(size=n)) / np.sqrt(n)
    if rng.random() < 0.25:
        for at in rng.integers(0, n, rng.integers(1, 4)):
            x[at:] += rng.normal()
    x += np.exp(rng.uniform(-4.0, 0.0)) * rng.normal(size=n)
    x = float(10.0 ** rng.uniform(-3, 3)) * (x + rng.uniform(-10, 10))
    if rng.random() < 0.1:
        start = rng.integers(0, n)
        x[start : start + rng.integers(1, max(2, int(GAP * n)))] = np.nan
    return x


def _season(rng: np.random.Generator, t: Values) -> Values:
    """Return a periodic series about 0, with harmonics."""
    angle = 2 * np.pi * t / np.exp(rng.uniform(np.log(SHORTEST), np.log(max(SHORTEST + 1, len(t) / 3))))
    count = int(rng.integers(1, HARMONICS + 1))
    waves = [np.sin(k * angle + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 1 + count)]
    return np.asarray(np.sum(waves, axis=0))
