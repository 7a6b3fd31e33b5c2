"""The length of a season, by the autocorrelation of a series."""

from __future__ import annotations

import numpy as np

from xlstm.data.host import Values

LEAST = 0.2  # least autocorrelation of a season
NEAR = 0.9  # a shorter season is taken where its autocorrelation is this share of the best
SHORTEST = 4  # rows of the shortest season that is looked for


def find(values: Values) -> int:
    """Return the steps of a season, or 0 where there is none.

    It is the first peak of the autocorrelation that is about as high as any, after the line through the series has been
    taken away, up to a third of the length.

    Parameters
    ----------
    values : array (N,)
        Without gaps.

    Returns
    -------
    int
    """
    N = len(values)
    if N < 3 * SHORTEST:
        return 0
    time = np.arange(N) - (N - 1) / 2
    unit = float(np.max(np.abs(values))) or 1.0  # squares of large values would overflow
    scaled = values / unit
    left = scaled - np.mean(scaled)
    left -= time * (time @ left) / (time @ time)
    if left @ left < 1e-24 * N:
        return 0
    power = np.abs(np.fft.rfft(left, 2 * N)) ** 2
    found = np.fft.irfft(power)[: N // 3 + 1] / (left @ left) * (N / (N - np.arange(N // 3 + 1)))
    below = np.flatnonzero(found < 0)
    if below.size == 0:  # it does not swing
        return 0
    peaks = 1 + np.flatnonzero((found[1:-1] >= found[:-2]) & (found[1:-1] > found[2:]))
    peaks = peaks[(peaks >= SHORTEST) & (peaks > below[0])]
    if peaks.size == 0 or np.max(found[peaks]) < LEAST:
        return 0
    return int(peaks[found[peaks] >= NEAR * np.max(found[peaks])][0])
