"""Numbers that are missing in sequences: filled with the last value, and marked by a column."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.data.host import Host
from xlstm.data.series_windows import carry_forward

CHOICES = ("refuse", "indicator")


def averages(where: str, name: str, value: Any) -> Host | None:
    """Check the averages of features in a file, or None where numbers may not be missing."""
    return None if value is None else np.array(value, np.float64)


def scaled(row: Host, mean: Host, std: Host, average: Host | None) -> Host:
    """Return a sequence (T, D) scaled; with averages of features, (T, 2D).

    Then NaN is replaced by the last value of the feature, and before its first value by its
    average. A second column for each feature is 1 where it was NaN, and else 0 (Lipton et al. 2016;
    "forward" in Che et al. 2018, who compare with it).

    Parameters
    ----------
    row : array (T, D)
    mean, std : array (D,) or (T, 1)
    average : array (D,) or (T, 1), optional
    """
    if average is None:
        return np.asarray((row - mean) / std)
    is_missing = np.isnan(row)
    last = carry_forward(row)
    filled = np.where(np.isnan(last), average, last)
    return np.concatenate(((filled - mean) / std, is_missing), axis=1)
