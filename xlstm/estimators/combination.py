"""Forecasts of a linear autoregression and of exponential smoothing, and their average.

The average is weighted by the errors that each of them made most recently (after Bates & Granger 1969), so that it
follows a series which begins to behave differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from xlstm.data.host import Values
from xlstm.data.panels import TimeSeries
from xlstm.estimators import baselines
from xlstm.estimators.base import pop_array
from xlstm.estimators.baselines import LinearBaseline
from xlstm.estimators.series_scaling import Origins, Scaling
from xlstm.layers.smoothing import ExponentialSmoothing, Smoothed, step

HALF = 8  # rows, and at least a horizon, after which the share of an error is half as large
MEMORY = 5  # times so many rows are looked at
RUN = 2000  # steps that are smoothed before the first forecast, at most
POSITIVE = 0.1  # least value of a series whose logarithm is smoothed, as a share of its median
LONGEST = 100_000  # steps of a season in a file
FURTHEST = 3.0  # most that a forecast is above all values, in logarithms


@dataclass(frozen=True)
class Smoothing:
    """Exponential smoothing of each target with coefficients that are known.

    Attributes
    ----------
    layer : ExponentialSmoothing
    coefficients : array (4,)
        gamma, alpha, beta and phi.
    steps : int
        Steps ahead whose errors in the past the coefficients were chosen by.
    """

    layer: ExponentialSmoothing
    coefficients: Values
    steps: int

    def apply(self, series: TimeSeries, scaling: Scaling, units: Values, origins: Origins) -> Values:
        """Return by how much the targets after each origin differ from the last value, (M, H, C), in `units`."""
        first = int(np.min(origins))
        known = series.known[max(0, first - RUN) : int(np.max(origins))]
        ahead = smoothed(self.layer, self.coefficients[:, None], known, min(first, RUN) - 1)[origins - first, 0]
        return np.asarray((np.swapaxes(ahead, 1, 2) - series.known[origins - 1, None]) / units)


Part = LinearBaseline | Smoothing


@dataclass(frozen=True)
class Combination:
    """The weighted average of candidates.

    Attributes
    ----------
    parts : dict of str to LinearBaseline or Smoothing
        K of them.
    errors : array (K,)
        Mean square errors from rolling origins, relative to those of repeating the last value.
    doubts : array (K,)
        By how much these are above the errors for values that the candidates are fitted to.
    usual : array (H, C)
        The mean square of what repeating the last value leaves, in units.
    rejected : dict of str to float
        Errors of candidates that are clearly worse; no file keeps them.
    """

    parts: dict[str, Part]
    errors: Values
    doubts: Values
    usual: Values
    rejected: Mapping[str, float] = field(default_factory=dict)

    @property
    def every_error(self) -> dict[str, float]:
        """The errors of all candidates, also of those that were not chosen, as root mean squares."""
        squares = dict(zip(self.parts, self.errors, strict=True)) | dict(self.rejected)
        return {name: float(np.sqrt(square)) for name, square in squares.items()}

    def apply(self, series: TimeSeries, scaling: Scaling, units: Values, origins: Origins) -> Values:
        """Return by how much the targets after each origin differ from the last value, (M, H, C), in `units`."""
        parts = list(self.parts.values())
        if len(parts) == 1:
            return np.asarray(parts[0].apply(series, scaling, units, origins))
        rows = np.arange(max(1, int(np.min(origins)) - memory(len(self.usual))), int(np.max(origins)) + 1)
        ahead = np.stack([part.apply(series, scaling, units, rows) for part in parts])  # (K, R, H, C)
        found = np.einsum("krc,krhc->rhc", self.weights(series, units, rows, ahead), ahead)
        return np.asarray(found[origins - rows[0]])

    @property
    def reach(self) -> int:
        """Values before an origin that decide about a forecast, at most."""
        return self.order if len(self.parts) == 1 and self.order else RUN + memory(len(self.usual))

    def repeated(self, n: int) -> Combination:
        """Return the combination of n times the targets."""
        parts = {k: one.repeated(n) if isinstance(one, LinearBaseline) else one for k, one in self.parts.items()}
        return replace(self, parts=parts, usual=np.tile(self.usual, n))

    @property
    def order(self) -> int:
        """Values that the linear autoregression looks back to; 0 where there is none."""
        line = self.parts.get("linear")
        return line.order if isinstance(line, LinearBaseline) else 0

    def arrays(self) -> dict[str, Values]:
        """Return the arrays of a file."""
        found = {"candidates": np.stack((self.errors, self.doubts)), "usual": self.usual}
        for part in self.parts.values():
            if isinstance(part, Smoothing):
                layer = part.layer
                found["smoothing"] = np.array([*part.coefficients, max(layer.periods, default=0), layer.multiplicative])
            else:
                found["linear_baseline"] = part.coefficients
        return found

    @classmethod
    def of_arrays(cls, arrays: dict[str, Values], C: int, H: int, others: int) -> Combination:
        """Return the combination of the arrays of a file, which are taken out of them.

        A linear autoregression has coefficients for C targets, H steps and `others` covariates. Files of before there
        was a choice have it alone.
        """
        parts: dict[str, Part] = {}
        if "smoothing" in arrays:
            *numbers, period, multiplicative = pop_array(arrays, "smoothing", {"K": 6})
            if not 0 <= period <= LONGEST:
                raise ValueError(f"smoothing has a season of {period:g} steps, expected at most {LONGEST}")
            periods = (int(period),) if period else ()
            layer = ExponentialSmoothing(H, periods=periods, multiplicative=bool(multiplicative))
            parts["smoothing"] = Smoothing(layer, np.array(numbers), H)
        if "linear_baseline" in arrays or not parts:
            coefficients = pop_array(arrays, "linear_baseline", {"C": C, "H": H, "K": None})
            order = coefficients.shape[2] - others
            if order < 1:
                shape = coefficients.shape
                raise ValueError(f"linear_baseline has shape {shape}, expected more than {others} at its end")
            parts["linear"] = LinearBaseline(order, coefficients)
        if "candidates" not in arrays:
            return cls(parts, np.ones(1), np.ones(1), np.ones((H, C)))
        judged = pop_array(arrays, "candidates", {"2": 2, "K": len(parts)})
        usual = pop_array(arrays, "usual", {"H": H, "C": C})
        for name, array in (("candidates", judged), ("usual", usual)):
            if not np.all(array > 0):
                raise ValueError(f"{name} has {np.min(array):g}, expected errors above 0")
        return cls(parts, judged[0], judged[1], usual)

    def weights(self, series: TimeSeries, units: Values, rows: Origins, ahead: Values) -> Values:
        """Return the weights (K, R, C) of forecasts (K, R, H, C) from successive rows, by what is known at each row.

        They are proportional to 1 / e^2, where e is the mean square error of the latest forecasts.
        """
        H = len(self.usual)
        squares = (ahead - baselines.changes(series, rows, H, int(rows[-1]), units)) ** 2 / self.usual
        latest = errors_of_rows(np.moveaxis(squares, (0, 2), (1, 3)))  # (R, K, C)
        recent = np.swapaxes(averages(latest, (self.errors / self.doubts)[:, None], H), 0, 1)
        weights = np.maximum(recent * self.doubts[:, None, None], 1e-12) ** -2.0
        return np.asarray(weights / np.sum(weights, axis=0))


def memory(horizon: int) -> int:
    """Return the rows whose errors decide about a forecast."""
    return MEMORY * max(HALF, horizon)


def averages(latest: Values, first: Values, horizon: int) -> Values:
    """Return the moving average of errors (R, ...), whose share becomes smaller by the row, from a first one on."""
    found, share = np.empty_like(latest), 1 - 0.5 ** (1 / max(HALF, horizon))
    level = np.broadcast_to(first, latest.shape[1:])
    for r, errors in enumerate(latest):
        level = np.where(np.isnan(errors), level, level + share * (errors - level))
        found[r] = level
    return found


def errors_of_rows(squares: Values) -> Values:
    """Return the mean error, over steps ahead, of all forecasts of the value before each origin, (R, ...).

    Squared errors (R, ..., H) are those of forecasts from successive origins. NaN stands for what is not known.
    """
    total, count = np.zeros(squares.shape[:-1]), np.zeros(squares.shape[:-1])
    for h in range(min(squares.shape[-1], len(squares) - 1)):
        errors = squares[: len(squares) - h - 1, ..., h]
        there = ~np.isnan(errors)
        total[h + 1 :] += np.where(there, errors, 0.0)
        count[h + 1 :] += there
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def smoothed(layer: ExponentialSmoothing, coefficients: Values, known: Values, begin: int = 0) -> Values:
    """Return forecasts (T - begin, G, C, H) after each value (T, C) from row `begin` on, by G sets of coefficients."""
    x = known
    if layer.multiplicative:
        x = np.maximum(known, POSITIVE**2 * np.median(np.abs(known), axis=0) + 1e-12)
    first = layer.initial_state(x[..., None])  # (lag, C) each
    x = np.log(x) if layer.multiplicative else x
    numbers = [one[:, None] for one in coefficients[1 - len(layer.periods) :]]
    states = [np.empty((len(x) + lag, coefficients.shape[1], x.shape[1])) for lag in layer.lags]
    for rows, start in zip(states, first, strict=True):
        rows[: len(start)] = start[:, None]
    for t in range(len(x)):
        _, *new = step(np, x[t], *(rows[t] for rows in states), *numbers)
        for rows, lag, one in zip(states, layer.lags, new, strict=True):
            rows[t + lag] = one
    ahead = layer.ahead(np, Smoothed(tuple(rows[begin:] for rows in states), x, tuple(numbers), x))
    return np.asarray(layer.in_units(np, np.minimum(ahead, np.max(x) + FURTHEST) if layer.multiplicative else ahead))
