"""Choose among candidates by forecasts from rolling origins, and average their forecasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import baselines, linear, seasons, smoothing
from xlstm.estimators.base import array_of, positive
from xlstm.estimators.linear import LinearBaseline
from xlstm.estimators.rolling_origins import FOLDS, RollingOrigins, Validated
from xlstm.estimators.series_scaling import Origins, SeriesScaling
from xlstm.estimators.smoothing import Smoothing

POWER = 3.0  # least power of errors in the weights
SHARPER = 0.25  # power per horizon behind the errors: errors of more forecasts are surer

Candidate = LinearBaseline | Smoothing


@dataclass(frozen=True)
class Combination:
    """The average of candidates, weighted by a power of their mean square errors (after Bates &
    Granger 1969).

    Attributes
    ----------
    candidates : dict of str to Validated
    power : float
        The weight of a candidate is 1 / e^power, where e is its mean square error.
    """

    candidates: dict[str, Validated[Candidate]]
    power: float

    @property
    def every_error(self) -> dict[str, float]:
        """The validation errors of all candidates, as root mean squares."""
        return {name: float(np.sqrt(each.error)) for name, each in self.candidates.items()}

    @property
    def weights(self) -> Values:
        """The weight of each candidate; the weights add up to 1."""
        errors = np.array([each.error for each in self.candidates.values()])
        weights = (errors / np.min(errors)) ** -self.power
        return np.asarray(weights / np.sum(weights))

    def apply(
        self, series: TimeSeries, scaling: SeriesScaling, units: Values, origins: Origins
    ) -> Values:
        """Return the averaged forecasts (M, H, C) after each origin, minus the last value, in
        `units`.
        """
        ahead = [
            weight * each.candidate.apply(series, scaling, units, origins)
            for weight, each in zip(self.weights, self.candidates.values(), strict=True)
        ]
        average: Values = sum(ahead[1:], ahead[0])
        return average

    def before_fold(self, k: int) -> Combination:
        """Return the average of the candidates that were fitted to the rows before a fold."""
        candidates = {
            name: each._replace(candidate=each.folds[k]) for name, each in self.candidates.items()
        }
        return replace(self, candidates=candidates)

    @property
    def seasons(self) -> tuple[int, ...]:
        """The steps of the seasons of the candidate that has most of them."""
        several = [each.candidate.seasons for each in self.candidates.values()]
        return max(several, key=len)

    @property
    def reach(self) -> int:
        """The most values before an origin that the next call of `apply` needs."""
        return max(each.candidate.reach for each in self.candidates.values())

    def carried(self, rows: int) -> Combination:
        """Return the combination for a series that grows from `rows` on: it keeps its states
        between calls of `apply`.
        """
        candidates = {
            name: each._replace(candidate=each.candidate.carried(rows))
            for name, each in self.candidates.items()
        }
        return replace(self, candidates=candidates)

    @property
    def order(self) -> int:
        """Steps that the linear autoregression looks back; 0 if there is none, or if it repeats the
        last value.
        """
        several = [each.candidate for each in self.candidates.values()]
        return max((each.order for each in several if np.any(each.coefficients)), default=0)

    def arrays(self) -> dict[str, Values]:
        """Return the arrays of the candidates for a file."""
        errors = [each.error for each in self.candidates.values()]
        arrays = {"candidates": np.array(errors), "power": np.array([self.power])}
        for name, each in self.candidates.items():
            candidate = each.candidate
            if isinstance(candidate, Smoothing):
                arrays[name] = candidate.array()
            else:
                arrays["linear_baseline"] = candidate.coefficients
                arrays["linear_seasons"] = np.array(candidate.seasons, np.float64)
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any], C: int, H: int, others: int) -> Combination:
        """Return the combination from its arrays in a file.

        A linear autoregression has coefficients for C targets, H steps and `others` covariates.
        """
        candidates: dict[str, Candidate] = {}
        for name in smoothing.NAMES:
            if name in arrays:
                candidates[name] = smoothing.of_array(name, array_of(arrays, name, {"K": None}), H)
        if "linear_baseline" in arrays or not candidates:
            coefficients = array_of(arrays, "linear_baseline", {"C": C, "H": H, "K": None})
            steps = array_of(arrays, "linear_seasons", {"S": None})
            periods = seasons.of_array("linear_seasons", steps)
            candidates["linear"] = linear.of_arrays(coefficients, periods, others)
        errors = positive("candidates", array_of(arrays, "candidates", {"K": len(candidates)}))
        pairs = zip(candidates.items(), errors.tolist(), strict=True)
        validated = {name: Validated(candidate, error) for (name, candidate), error in pairs}
        return cls(validated, float(positive("power", array_of(arrays, "power", {"1": 1}))[0]))


def past_errors(rolling: RollingOrigins, combination: Combination) -> list[Values]:
    """Return errors (M, H, C), in units, of forecasts of each series by candidates that were fitted
    to the rows before the fold; NaN if the truth is not known.
    """
    by_fold = []
    for k in range(FOLDS):
        average = combination.before_fold(k)
        by_fold.append(
            [
                baselines.changes(series, origins, rolling.horizon, stop, units)
                - average.apply(series, rolling.scaling, units, origins)
                for series, units, origins, stop in rolling.fold(k)
            ]
        )
    return [np.concatenate(of_series) for of_series in zip(*by_fold, strict=True)]


def refitted(rolling: RollingOrigins, combination: Combination) -> Combination:
    """Return candidates with the same options, fitted again to the rows before `stops` and before
    each fold.
    """
    candidates: dict[str, Validated[Candidate]] = {}
    again: dict[Any, list[Validated[Smoothing]]] = {}  # by layer: both methods may have the same
    for name, (candidate, error, _) in combination.candidates.items():
        if isinstance(candidate, Smoothing):
            layer = candidate.layer
            if layer not in again:
                again[layer] = smoothing.fit(rolling, layer)
            fitted = next(each for each in again[layer] if each.candidate.kind == candidate.kind)
            candidates[name] = fitted._replace(error=error)
        else:
            *folds, whole = (linear.refit(rolling, cut, candidate) for cut in rolling.cuts)
            candidates[name] = Validated(whole, error, folds)
    return replace(combination, candidates=candidates)


def combined(rolling: RollingOrigins, settings: Any) -> Combination:
    """Return the average of the candidates that the settings allow, fitted to the rows before
    `stops`.

    If there are covariates that are known in advance, exponential smoothing and the Theta method
    are used only if the settings name them.
    """
    tried: dict[str, Validated[Candidate]] = {}
    known_ahead = rolling.several[0].future.shape[1] > 0
    if not known_ahead or not isinstance(settings.candidates, str):
        results = smoothing.candidates(rolling).items()
        tried |= {name: result for name, result in results if allows(settings, name)}
    if allows(settings, "linear") and settings.linear_baseline != 0:
        tried["linear"] = linear.candidate(rolling, settings)
    if not tried:
        line = linear.repeating(rolling.scaling, rolling.horizon)
        tried["linear"] = Validated(line, 1.0, [line] * FOLDS)
    averaged = {name: each._replace(error=max(each.error, 1e-12)) for name, each in tried.items()}
    return Combination(averaged, max(POWER, SHARPER * rolling.horizons))


def allows(settings: Any, name: str) -> bool:
    """Return whether the settings name a candidate, or let `fit` choose among all."""
    return isinstance(settings.candidates, str) or name in settings.candidates
