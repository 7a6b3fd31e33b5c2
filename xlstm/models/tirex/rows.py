"""The rows of a call of TiRex-2: the targets and covariates of several series, one row each, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.data.host import Values
from xlstm.models.tirex import trends, windows

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Item(NamedTuple):
    """Series that are forecast together.

    Attributes
    ----------
    target : array (V, L)
        NaN is a missing value, here and below.
    past : array (P, L)
        Covariates that are known as far as the targets are.
    future : array (F, L + H or more)
        Covariates that are known in advance.
    """

    target: Values
    past: Values
    future: Values


class Rows(NamedTuple):
    """The rows of some items: targets, past and future covariates of the first, then those of the second, and so on.

    Attributes
    ----------
    x : array (R, N)
        Windows that end with the steps to forecast.
    groups : whole numbers (R,)
        The item of each row.
    targets : bool array (R,)
        Which rows are forecast.
    known : bool array (R,)
        Which are covariates with values among the steps to forecast.
    summed : bool array (V,)
        Which of the targets are replaced by their changes.
    latest : array (V,)
        The last value of each target.
    """

    x: Values
    groups: Numbers
    targets: Mask
    known: Mask
    summed: Mask
    latest: Values

    def mirrored(self) -> Rows:
        """Return the rows, and after them those of the negated series."""
        x, latest = np.concatenate((self.x, -self.x)), np.concatenate((self.latest, -self.latest))
        groups = np.concatenate((self.groups, self.groups + 1 + np.max(self.groups)))
        targets, known, summed = (np.tile(mask, 2) for mask in (self.targets, self.known, self.summed))
        return Rows(x, groups, targets, known, summed, latest)


def rows(items: Sequence[Item], horizon: int, ahead: int, context: int, differencing: bool) -> Rows:
    """Return the rows of some items.

    Parameters
    ----------
    items : list of Item
    horizon : int
        Steps H to forecast, at most `ahead`.
    ahead : int
        Steps at the end of the window that are forecast or left over.
    context : int
        Steps before them, those of the window.
    differencing : bool
        Replace targets with a trend by their changes.
    """
    width = context + ahead
    x, groups, targets, summed, latest = [], [], [], [], []
    for k, item in enumerate(items):
        for row in item.target:
            rising = differencing and trends.trends(row)
            x.append(windows.last(trends.changes(row) if rising else row, width, ahead))
            summed.append(rising)
            latest.append(trends.latest(row))
        x += [windows.last(row, width, ahead) for row in item.past]
        seen = item.target.shape[1] + horizon
        x += [windows.last(row[:seen], width, ahead - horizon) for row in item.future]
        V, more = len(item.target), len(item.past) + len(item.future)
        groups += [k] * (V + more)
        targets += [True] * V + [False] * more
    found, is_target = np.stack(x), np.array(targets)
    known = ~is_target & np.any(~np.isnan(found[:, width - ahead :]), axis=1)
    return Rows(found, np.array(groups), is_target, known, np.array(summed, dtype=bool), np.array(latest))
