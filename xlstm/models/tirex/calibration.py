"""Quantiles of TiRex-2 after the network: their calibration, sums of changes, and the mean with the mirrored series.

The constants are in the published package's code; no configuration has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.data.host import Values

SPREAD, GROWTH = math.sqrt(0.90), 0.52 - 0.5  # width of intervals at the first step, and how it grows with the steps
SUMMED_SPREAD, SUMMED_GROWTH = math.sqrt(1.68), 0.51 - 0.5  # the same for sums of changes
NEAR = 1e-6  # two levels of quantiles that differ by less are the same


def calibrated(q: Values) -> Values:
    """Return quantiles (..., H, Q) whose distance from the median grows with the step."""
    middle, off, steps = _parts(q)
    return np.asarray(middle + SPREAD * steps**GROWTH * off)


def summed(q: Values, latest: Values) -> Values:
    """Return quantiles (R, H, Q) of a series from those of its changes, and its latest value, (R,)."""
    middle, off, steps = _parts(q)
    level = latest[:, None, None] + np.cumsum(middle, axis=-2)
    side = np.sign(np.sum(off, axis=-2, keepdims=True))
    width = np.sqrt(np.cumsum(off**2, axis=-2)) * steps**SUMMED_GROWTH
    return np.asarray(level + SUMMED_SPREAD * side * width)


def opposite(levels: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return the place of quantile 1 - q for each quantile q, (Q,).

    Raises
    ------
    ValueError
        One of them is missing.
    """
    given = np.array(levels, dtype=np.float64)
    apart = np.abs(given[:, None] + given - 1)  # (Q, Q)
    for level, least in zip(given, np.min(apart, axis=1), strict=True):
        if least > NEAR:
            raise ValueError(f"TiRex2: sign_flip needs quantile {1 - level:g} beside {level:g}, the model has not")
    return np.asarray(np.argmin(apart, axis=1))


def _parts(q: Values) -> tuple[Values, Values, Values]:
    """Return the middle quantile (..., H, 1), the distance of each from it, and the number of each step (H, 1)."""
    middle = q[..., q.shape[-1] // 2 :][..., :1]
    return middle, q - middle, np.arange(1.0, q.shape[-2] + 1)[:, None]
