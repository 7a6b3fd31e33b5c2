"""The rows of a call of TiRex-2: the targets and covariates of several series, one row each, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values
from xlstm.models.tirex import series, trends, windows

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

    def until(self, end: int, most: int | None = None) -> Item:
        """Return the last `most` steps of the item, or all, as it was before step `end`, with what is known later."""
        start = 0 if most is None else max(0, end - most)
        return Item(self.target[:, start:end], self.past[:, start:end], self.future[:, start:])


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
        return joined([self, self._replace(x=-self.x, latest=-self.latest)])


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several calls as those of one, in groups of their own."""
    found = Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    before = np.cumsum([0, *(1 + np.max(part.groups) for part in parts[:-1])])
    return found._replace(groups=found.groups + np.repeat(before, [len(part.groups) for part in parts]))


def read(
    where: str, model: Any, given: Any, past: Any, future: Any, horizon: int = 0
) -> tuple[series.Given, list[Item]]:
    """Return targets as they were given, and each with its covariates; those of TiRex-1 are single series.

    Raises
    ------
    TypeError, ValueError
        The series are none, or covariates are not as long as they have to be, or the model takes none.
    """
    found = series.read(where, given, 2 if model.COVARIATES else 1)
    beside = {"past": past, "future": future}
    for name, one in beside.items():
        if one is not None and not model.COVARIATES:
            expected = "expected None: TiRex takes no covariates, TiRex2 does"
            raise ValueError(f"{where}: {name} is {checks.shown(one)}, {expected}")
    before, after = (series.beside(where, name, one, found) for name, one in beside.items())
    for k, (row, one, other) in enumerate(zip(found.rows, before, after, strict=True)):
        L, entry = row.shape[1], "" if found.single else f"[{k}]"
        if one.shape[1] != L:
            raise ValueError(f"{where}: past{entry} has {one.shape[1]} steps, expected {L}, as many as the series")
        if len(other) and other.shape[1] < L + horizon:
            those = "those of the series and of the horizon" if horizon else "those of the series"
            raise ValueError(
                f"{where}: future{entry} has {other.shape[1]} steps, expected {L + horizon} or more, {those}"
            )
    return found, [Item(*parts) for parts in zip(found.rows, before, after, strict=True)]


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
        x += [windows.last(row[:seen], width, ahead - horizon + max(0, seen - len(row))) for row in item.future]
        V, more = len(item.target), len(item.past) + len(item.future)
        groups += [k] * (V + more)
        targets += [True] * V + [False] * more
    found, is_target = np.stack(x), np.array(targets)
    known = ~is_target & np.any(~np.isnan(found[:, width - ahead :]), axis=1)
    return Rows(found, np.array(groups), is_target, known, np.array(summed, dtype=bool), np.array(latest))
