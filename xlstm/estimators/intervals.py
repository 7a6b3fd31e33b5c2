"""Intervals that cover what they promise: quantiles adjusted by errors of the past.

Conformalized quantile regression (Romano et al. 2019): the interval between two quantiles is widened, or narrowed, by
as much as would have made it cover the right share of forecasts whose truth is known and to which the network was not
fitted. Only the most recent of these count, since a series changes. Errors are in scales of their windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.data.host import Values

RECENT = 100  # forecasts whose errors decide

Pairs = list[tuple[int, int]]


def pairs(quantiles: Sequence[float]) -> Pairs:
    """Return the positions of quantiles q and 1 - q, the widest interval first."""
    ranks = range(len(quantiles))
    both = itertools.combinations(ranks, 2)
    return [(low, high) for low, high in both if math.isclose(quantiles[low] + quantiles[high], 1.0)]


def coverages(quantiles: Sequence[float]) -> Values:
    """Return the share that the interval of each pair is to cover, (P,)."""
    return np.array([quantiles[high] - quantiles[low] for low, high in pairs(quantiles)])


def errors(levels: Values, truth: Values, scale: Values, quantiles: Sequence[float]) -> Values:
    """Return by how much truths lie outside of the intervals, (M, H, C, P); below 0 inside, NaN where there is none.

    Parameters
    ----------
    levels : array (M, H, C, Q)
        Quantiles.
    truth : array (M, H, C)
    scale : array (M, C)
    quantiles : list of Q floats
    """
    outside = [np.maximum(levels[..., low] - truth, truth - levels[..., high]) for low, high in pairs(quantiles)]
    found = np.stack(outside, axis=-1) if outside else np.empty((*truth.shape, 0))
    return np.asarray(found / scale[:, None, :, None])


def adjustment(outside: Sequence[Values], quantiles: Sequence[float]) -> Values:
    """Return by how much to widen intervals after the last forecasts of several series, (H, C, P)."""
    recent = np.concatenate([one[-RECENT:] for one in outside])
    found: Values = _limit(np.moveaxis(recent, 0, -1), coverages(quantiles))
    return found


def rolling(outside: Values, first: int, quantiles: Sequence[float]) -> Values:
    """Return by how much to widen each interval from forecast `first` on, (M - first, H, C, P).

    Only errors that are known when a forecast is made decide.

    Parameters
    ----------
    outside : array (M, H, C, P)
        Errors of forecasts that begin one row after another.
    first : int
    quantiles : list of Q floats
    """
    found = np.empty((len(outside) - first, *outside.shape[1:]))
    for h in range(outside.shape[1]):
        unknown = np.full((RECENT + h, *outside.shape[2:]), np.nan)
        padded = np.concatenate((unknown, outside[:, h]))
        recent = np.lib.stride_tricks.sliding_window_view(padded, RECENT, axis=0)  # row i: what is known at i
        found[:, h] = _limit(recent[first : len(outside)], coverages(quantiles))
    return found


def widen(found: Values, scale: Values, by: Values, quantiles: Sequence[float]) -> Values:
    """Return quantiles (M, H, C, Q) whose intervals are widened by (..., P) scales; they do not cross."""
    found = found.copy()
    for p, (low, high) in enumerate(pairs(quantiles)):
        more = by[..., p] * scale[:, None]
        found[..., low] -= more
        found[..., high] += more
    return np.sort(found, axis=-1)


def _limit(recent: Values, shares: Values) -> Any:
    """Return the error (..., P) that the right share of errors (..., P, K) does not exceed; 0 where there are none."""
    count = np.count_nonzero(~np.isnan(recent), axis=-1)
    rank = np.clip(np.ceil((count + 1) * shares).astype(np.int64), 1, np.maximum(count, 1)) - 1
    found = np.take_along_axis(np.sort(recent, axis=-1), rank[..., None], axis=-1)[..., 0]
    return np.where(count > 0, found, 0.0)
