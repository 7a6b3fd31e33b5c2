"""Scaling of series and of what is known beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values
from xlstm.estimators.tracks import Track

FAR = 1e3  # usual changes beyond which a change counts as no larger, so that one outlier does not decide all
FARTHEST = 1e100  # the same for scales, whose squares are to be finite
LEAST = 0.05  # least scale of a window, as a share of the usual change of its series

Rows = Sequence[Sequence[float]]
Origins = np.ndarray[Any, Any]  # rows of the first values to predict, (M,)


@dataclass(frozen=True)
class Scaling:
    """Units of values and of covariates, from the training part.

    Attributes
    ----------
    units : list of S lists of C floats
        The usual change within a window, of each series and target: a root mean square.
    past, future, static : list of two lists of floats
        Means and standard deviations of covariates.
    """

    units: Rows
    past: Rows
    future: Rows
    static: Rows

    def __post_init__(self) -> None:
        for name in ("units", "past", "future", "static"):
            rows = checks.several("Scaling", name, getattr(self, name), "a list of lists of numbers", checks.LARGEST)
            if len(rows) != 2 and name != "units":
                raise ValueError(f"Scaling: {name} has {len(rows)} lists, expected means and deviations")
            found = []
            for k, row in enumerate(rows):
                kind = checks.real(0, np.inf, strict=True) if name == "units" or k else checks.real(-np.inf, np.inf)
                given = checks.several("Scaling", f"{name}[{k}]", row, "a list of numbers", checks.LARGEST)
                found.append(tuple(kind("Scaling", f"{name}[{k}]", value) for value in given))
            object.__setattr__(self, name, tuple(found))
            if len({len(row) for row in found}) > 1 or not found:
                raise ValueError(f"Scaling: {name} has lists of several lengths or none, expected lists of one length")

    @classmethod
    def fit(cls, tracks: Sequence[Track], window: int, stops: Sequence[int]) -> Scaling:
        """Return the units of tracks, each up to a row of `stops`.

        Raises
        ------
        ValueError
            A series is constant there.
        """
        units = [units_of(track, window, stop) for track, stop in zip(tracks, stops, strict=True)]
        cut = [(t.past[:stop], t.future[:stop]) for t, stop in zip(tracks, stops, strict=True)]
        past, future = (np.concatenate(part) for part in zip(*cut, strict=True))
        static = np.stack([t.static for t in tracks])
        return cls(units, *(_moments(part) for part in (past, future, static)))

    def of(self, tracks: Sequence[Track], window: int) -> list[Values]:
        """Return the units (C,) of tracks: those of the fitted ones in their order, if there are as many of them.

        Other series have units of their own.
        """
        if len(tracks) == len(self.units):
            return [np.array(row) for row in self.units]
        return [np.array(units_of(track, window, len(track.values))) for track in tracks]


def units_of(track: Track, window: int, stop: int) -> list[float]:
    """Return the root mean square by which values within a window differ from the last one, (C,)."""
    known = track.known[:stop]
    for c, column in enumerate(known.T):
        if column.size == 0 or np.min(column) == np.max(column):
            where = f" in column {c}" if known.shape[1] > 1 else ""
            at = f" at {column[0]:g}" if column.size else ""
            raise ValueError(
                f"Forecaster: the training part of the series is constant{at}{where}, there is nothing to learn"
            )
    lags = range(1, min(window, len(known)))
    with np.errstate(over="ignore"):
        squares = np.mean([np.mean((known[lag:] - known[:-lag]) ** 2, axis=0) for lag in lags], axis=0)
    return [float(unit) for unit in np.sqrt(squares)]


def scales(known: Values, origins: Origins, window: int, units: Values, kind: str) -> Values:
    """Return the scale (M, C) of the windows before each origin."""
    if kind == "series":
        return np.broadcast_to(units, (len(origins), len(units)))
    total = np.zeros((len(origins), known.shape[1]))
    for lag in range(2, window + 1):
        total += np.minimum(np.abs(known[origins - lag] - known[origins - 1]) / units, FARTHEST) ** 2
    return np.asarray(units * np.maximum(np.sqrt(total / (window - 1)), LEAST))


def standard(values: Values, moments: Rows) -> Values:
    """Return covariates in units of one."""
    return np.asarray((values - np.array(moments[0])) / np.array(moments[1]))


def _moments(values: Values) -> list[list[float]]:
    std = np.std(values, axis=0)
    return [np.mean(values, axis=0).tolist(), np.where(std > 0, std, 1.0).tolist()]
