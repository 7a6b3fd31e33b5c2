"""Scaling of series and of their covariates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import LARGEST, Host, SeriesError, Values
from xlstm.data.series_windows import split
from xlstm.data.time_series import TimeSeries

# typical changes at which a change is cut, so that one outlier does not decide everything
FAR = 1e3
FARTHEST = 1e100  # the same for scales, so that their squares are finite
# unit of a constant series: this share of its value, and at least this much
FLAT = (float(np.finfo(np.float64).eps), 1e-200)
LEAST = 0.05  # least scale of a window, as a share of the typical change of its series

Origins = Host  # rows of the first values to predict, (M,)


class SeriesScaling(NamedTuple):
    """Units of values and of covariates, from the training part.

    Attributes
    ----------
    units : array (S, C)
        The typical change within a window, for each series and target: a root mean square.
    past, future, static : array (2, K)
        Means and standard deviations of covariates.
    ids : list of S str
        Names of the series, if they have names.
    """

    units: Values
    past: Values
    future: Values
    static: Values
    ids: Sequence[str] = ()

    @classmethod
    def fit(
        cls, several: Sequence[TimeSeries], ids: Sequence[str], window: int, stops: Sequence[int]
    ) -> SeriesScaling:
        """Return the units of series, each up to its row of `stops`; raise if a unit cannot be
        measured.
        """
        units = []
        for series, stop, name in zip(several, stops, names_of(ids, len(several)), strict=True):
            values = series.known[:stop]
            check_changes("Forecaster", values, name)
            if np.any(constant := np.ptp(values, axis=0) == 0):
                c = int(np.argmax(constant))
                where = f" in column {c}" if values.shape[1] > 1 else ""
                raise ValueError(
                    f"Forecaster: the training part of {name} is constant at {values[0, c]:g}"
                    f"{where}, there is nothing to learn"
                )
            units.append(_typical_change(series, stop, window))
        until = list(zip(several, stops, strict=True))
        past = _moments(np.concatenate([series.past[:stop] for series, stop in until]))
        future = _moments(np.concatenate([series.future[:stop] for series, stop in until]))
        static = _moments(np.stack([series.static for series in several]))
        return cls(np.stack(units), past, future, static, ids)

    def of(self, several: Sequence[TimeSeries], ids: Sequence[str], window: int) -> list[Values]:
        """Return the units (C,) of each series: those of the fitted series of the same name, else
        its own.
        """
        # without names, `ids` is empty, and every series has its own units
        named = dict(zip(self.ids, self.units, strict=False))
        own = itertools.zip_longest(several, ids)
        return [named[name] if name in named else own_units(series, window) for series, name in own]


def names_of(ids: Sequence[str], count: int) -> list[str]:
    """Return names of `count` series for errors: their `ids`, if they have some."""
    if count == 1 and not ids:
        return ["the series"]
    return [f"series {checks.shown(name)}" for name in ids or range(count)]


def check_changes(where: str, values: Values, name: str) -> None:
    """Raise ValueError if a column changes, but so little that squares of its changes are 0."""
    spreads = np.ptp(values, axis=0)
    for c in np.flatnonzero((spreads > 0) & (spreads < 1 / LARGEST)):
        column = f" in column {c}" if values.shape[1] > 1 else ""
        raise ValueError(
            f"{where}: {name} changes by no more than {spreads[c]:g}{column}, expected"
            f" {1 / LARGEST:g} or more, as squares are taken; multiply its values"
        )


def check_reach(series: TimeSeries, units: Values, dtype: str) -> None:
    """Raise SeriesError for a value so far from the others, in `units` (C,), that its square
    overflows the dtype.
    """
    values = series.known
    with np.errstate(over="ignore"):
        far = np.abs(values - np.median(values, axis=0)) / units
    row, c = np.unravel_index(np.argmax(far), far.shape)
    if far[row, c] > math.sqrt(float(np.finfo(dtype).max)) / 4:
        problem = (
            f"{far[row, c]:.2g} times the usual change of the series, more than {dtype} has room"
            f" for in column {c}"
        )
        raise SeriesError("Forecaster", series.begin + int(row), values[row, c], problem)


def own_units(series: TimeSeries, window: int) -> Values:
    """Return the units (C,) of a series to forecast, from the part of it that `fit` would train on.

    If that part does not change, the whole series is measured. If the series never changes, its
    unit is next to nothing.
    """
    values = series.known
    least = np.maximum(FLAT[0] * np.abs(values[-1]), FLAT[1])
    whole = np.maximum(_typical_change(series, len(values), window), least)
    # `split` needs 3 rows
    part = _typical_change(series, split(max(len(values), 3)).train.stop, window)
    return np.where(part > 0, part, whole)


def _typical_change(series: TimeSeries, stop: int, window: int) -> Values:
    """Return the root mean square (C,) of changes within a window, since each target began; 0 for a
    single row.
    """
    changes = []
    for c, begin in enumerate(np.argmax(~np.isnan(series.values[:stop]), axis=0)):
        values = series.known[begin:stop, c]
        lags = range(1, min(window, len(values)))
        with np.errstate(over="ignore"):
            squares = [np.mean((values[lag:] - values[:-lag]) ** 2, axis=0) for lag in lags]
        changes.append(np.sqrt(np.mean(np.stack(squares or [np.zeros(())]), axis=0)))
    return np.stack(changes)


def scales(values: Values, origins: Origins, window: int, units: Values) -> Values:
    """Return the scale (M, C) of the window before each origin."""
    total = np.zeros((len(origins), values.shape[1]))
    for lag in range(2, window + 1):
        changes = np.abs(values[origins - lag] - values[origins - 1]) / units
        total += np.minimum(changes, FARTHEST) ** 2
    return units * np.maximum(np.sqrt(total / (window - 1)), LEAST)


def standard(values: Values, moments: Values) -> Values:
    """Return covariates minus their mean, divided by their standard deviation."""
    scaled: Values = (values - moments[0]) / moments[1]
    return scaled


def _moments(values: Values) -> Values:
    std = np.std(values, axis=0)
    return np.stack([np.mean(values, axis=0), np.where(std > 0, std, 1.0)])
