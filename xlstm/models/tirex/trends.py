"""Series with a trend: TiRex-2 forecasts their changes."""

from __future__ import annotations

import numpy as np

from xlstm.data.host import Values

FEWEST = 4  # values that make a trend
STILL = 1e-12  # a standard deviation, or a sum of squares, that counts as none
RISE, SHARE = 1.5, 0.87  # least rise over the row in standard deviations, and least share that the line explains


def trends(row: Values) -> bool:
    """Return whether a straight line explains most of a row (N,), and rises or falls far enough over it."""
    at = np.flatnonzero(~np.isnan(row))
    if len(at) < FEWEST:
        return False
    values = row[at].astype(np.float64)
    deviation = float(np.std(values, ddof=1))
    if deviation < STILL:
        return False
    z = (values - np.mean(values)) / deviation
    time = at - np.mean(at)
    slope = float(time @ z) / float(time @ time)
    left, total = z - slope * time, float(z @ z)
    share = 1 - float(left @ left) / total if total > STILL else 0.0
    return abs(slope) * len(row) >= RISE and share >= SHARE


def changes(row: Values) -> Values:
    """Return the change from each value of a row (N,) to the next; the first one is 0, even where it is missing."""
    return np.concatenate((np.zeros(min(1, len(row))), np.diff(row)))


def latest(row: Values) -> float:
    """Return the last value of a row (N,) that is there, or 0."""
    there = row[~np.isnan(row)]
    return float(there[-1]) if len(there) else 0.0
