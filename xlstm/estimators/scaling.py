"""Scaling of series and of what is known beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.covariates import TimeSeries
from xlstm.data.host import LARGEST, Values
from xlstm.data.series_windows import split

FAR = 1e3  # usual changes beyond which a change counts as no larger, so that one outlier does not decide all
FARTHEST = 1e100  # the same for scales, whose squares are to be finite
FLAT = (float(np.finfo(np.float64).eps), 1e-200)  # unit of a constant series: a share of its value, and the least one
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
    ids : list of S str
        Names of the series, where they have some.
    """

    units: Rows
    past: Rows
    future: Rows
    static: Rows
    ids: Sequence[str] = ()

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
        named = checks.several("Scaling", "ids", self.ids, "names of series", checks.LARGEST)
        if len(named) not in (0, len(self.units)):
            raise ValueError(f"Scaling: ids has {len(named)} names, expected one for each of {len(self.units)} series")
        ids = tuple(checks.text("Scaling", f"ids[{k}]", name) for k, name in enumerate(named))
        object.__setattr__(self, "ids", ids)

    @classmethod
    def fit(cls, tracks: Sequence[TimeSeries], ids: Sequence[str], window: int, stops: Sequence[int]) -> Scaling:
        """Return the units of tracks, each up to a row of `stops`.

        Raises
        ------
        ValueError
            A series is constant there, or its changes are so small that their squares are 0.
        """
        named = zip(tracks, stops, names(ids, len(tracks)), strict=True)
        units = [units_of(track, window, stop, name) for track, stop, name in named]
        cut = [(t.past[:stop], t.future[:stop]) for t, stop in zip(tracks, stops, strict=True)]
        past, future = (np.concatenate(part) for part in zip(*cut, strict=True))
        static = np.stack([t.static for t in tracks])
        return cls(units, _moments(past), _moments(future), _moments(static), ids)

    def fitted(self) -> list[Values]:
        """Return the units (C,) of the series that it was fitted to, in their order."""
        return [np.array(row) for row in self.units]

    def of(self, tracks: Sequence[TimeSeries], ids: Sequence[str], window: int) -> list[Values]:
        """Return the units (C,) of tracks: those of the fitted series of the same name, else their own."""
        named = dict(zip(self.ids, self.fitted(), strict=False))  # without names there are none to look up
        return [
            named[ids[k]] if ids and ids[k] in named else own_units(track, window) for k, track in enumerate(tracks)
        ]


def names(ids: Sequence[str], count: int) -> list[str]:
    """Return the names of so many series for errors, by their `ids` if they have some."""
    return ["the series"] if count == 1 and not ids else [f"series {checks.shown(one)}" for one in ids or range(count)]


def units_of(track: TimeSeries, window: int, stop: int, name: str) -> list[float]:
    """Return the root mean square by which values within a window differ from the last one, (C,)."""
    known = track.known[:stop]
    units = _usual(known, window)
    for c, column in enumerate(known.T):
        where = f" in column {c}" if known.shape[1] > 1 else ""
        if np.min(column) == np.max(column):
            problem = f"is constant at {column[0]:g}{where}, there is nothing to learn"
            raise ValueError(f"Forecaster: the training part of {name} {problem}")
        if units[c] * LARGEST < 1:
            problem = f"changes by no more than {np.ptp(column):g}{where}, expected {1 / LARGEST:g} or more"
            raise ValueError(f"Forecaster: {name} {problem}, as squares are taken; multiply its values")
    return units.tolist()  # type: ignore[no-any-return]


def own_units(track: TimeSeries, window: int) -> Values:
    """Return the units (C,) of a series that is forecast: those of the part of it that `fit` would train on.

    A series that does not change there is measured as a whole; one that never changes has a unit of next to nothing.
    """
    known = track.known
    whole = np.maximum(_usual(known, window), np.maximum(FLAT[0] * np.abs(known[-1]), FLAT[1]))
    part = _usual(known[split(max(len(known), 3)).train], window)  # fewer than 3 rows have no parts
    return np.where(part > 0, part, whole)


def _usual(known: Values, window: int) -> Values:
    """Return the root mean square of changes within a window, (C,); 0 for a single row."""
    with np.errstate(over="ignore"):
        squares = [np.mean((known[lag:] - known[:-lag]) ** 2, axis=0) for lag in range(1, min(window, len(known)))]
    return np.sqrt(np.mean(squares, axis=0)) if squares else np.zeros(known.shape[1])


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
