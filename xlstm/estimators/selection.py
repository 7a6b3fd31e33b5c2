"""Candidates that forecast series, their choice by forecasts from rolling origins, and their
average.

The average of a linear autoregression and of exponential smoothing is weighted by the errors that
each of them made most recently (after Bates & Granger 1969), so that it follows a series which
begins to behave differently.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.cached import cached_property
from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import baselines
from xlstm.estimators.base import pop_array
from xlstm.estimators.baselines import LinearBaseline, mean
from xlstm.estimators.series_scaling import Origins, Scaling
from xlstm.layers.smoothing import ExponentialSmoothing, Smoothed, step

FOLDS = 4  # of the last rows; candidates are fitted to all that comes before each
MOST = 400  # rolling origins that candidates are judged from
ORDERS = (2, 4, 8, 12, 24, 48, 96)  # values that the linear autoregression looks back to
RIDGES = (0.001, 0.01, 0.1, 1.0)  # its penalties, in units of the mean square of a lag
LIGHTS = (0.001, 0.01, 0.1)  # the same for covariates and a constant, in units of one
LIGHT = 0.01  # that of a constant alone
SEASONS = (4, 7, 12, 24, 52)  # steps of the usual seasons
PERIODIC = 0.2  # least share of the changes from step to step that a season has to explain
NEAR = 0.9  # a shorter season is taken where its share is this part of the best
OUTLIER = 6.0  # usual changes beyond which a change counts as no larger
# by how much a root mean square error is above the least one by chance, over that of a single
# horizon
CHANCE = 0.6
ROOM = 8_000_000  # forecasts that are in memory while coefficients of smoothing are tried
SHARES = {  # the coefficients; beta is a share of alpha, and gamma of 1 - alpha
    "alpha": (0.05, 0.15, 0.3, 0.5, 0.75, 1.0),
    "beta": (0.05, 0.2, 0.5),
    "phi": (0.8, 0.9, 0.97, 1.0),
    "gamma": (0.0, 0.1, 0.3, 0.6),
}
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

    def apply(
        self, series: TimeSeries, scaling: Scaling, units: Values, origins: Origins
    ) -> Values:
        """Return by how much the targets after each origin differ from the last value, (M, H, C),
        in `units`.
        """
        first = int(np.min(origins))
        known = series.known[max(0, first - RUN) : int(np.max(origins))]
        ahead = smoothed(self.layer, self.coefficients[:, None], known, min(first, RUN) - 1)[
            origins - first, 0
        ]
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
        """The errors of all candidates, also of those that were not chosen, as root mean
        squares.
        """
        squares = dict(zip(self.parts, self.errors, strict=True)) | dict(self.rejected)
        return {name: float(np.sqrt(square)) for name, square in squares.items()}

    def apply(
        self, series: TimeSeries, scaling: Scaling, units: Values, origins: Origins
    ) -> Values:
        """Return by how much the targets after each origin differ from the last value, (M, H, C),
        in `units`.
        """
        parts = list(self.parts.values())
        if len(parts) == 1:
            return np.asarray(parts[0].apply(series, scaling, units, origins))
        rows = np.arange(max(1, int(np.min(origins)) - self.before), int(np.max(origins)) + 1)
        # (K, R, H, C)
        ahead = np.stack([part.apply(series, scaling, units, rows) for part in parts])
        found = np.einsum("krc,krhc->rhc", self.weights(series, units, rows, ahead), ahead)
        return np.asarray(found[origins - rows[0]])

    @property
    def reach(self) -> int:
        """Values before an origin that decide about a forecast, at most."""
        return self.order if len(self.parts) == 1 and self.order else RUN + self.before

    @property
    def before(self) -> int:
        """Rows before an origin whose forecasts decide about its weights."""
        return memory(len(self.usual)) + len(self.usual)

    def repeated(self, n: int) -> Combination:
        """Return the combination of n times the targets."""
        parts = {
            k: one.repeated(n) if isinstance(one, LinearBaseline) else one
            for k, one in self.parts.items()
        }
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
                found["smoothing"] = np.array(
                    [*part.coefficients, max(layer.periods, default=0), layer.multiplicative]
                )
            else:
                found["linear_baseline"] = part.coefficients
        return found

    @classmethod
    def of_arrays(cls, arrays: dict[str, Values], C: int, H: int, others: int) -> Combination:
        """Return the combination of the arrays of a file, which are taken out of them.

        A linear autoregression has coefficients for C targets, H steps and `others` covariates.
        """
        parts: dict[str, Part] = {}
        if "smoothing" in arrays:
            *numbers, period, multiplicative = pop_array(arrays, "smoothing", {"K": 6})
            if not 0 <= period <= LONGEST:
                raise ValueError(
                    f"smoothing has a season of {period:g} steps, expected at most {LONGEST}"
                )
            periods = (int(period),) if period else ()
            layer = ExponentialSmoothing(H, periods=periods, multiplicative=bool(multiplicative))
            parts["smoothing"] = Smoothing(layer, np.array(numbers), H)
        if "linear_baseline" in arrays or not parts:
            coefficients = pop_array(arrays, "linear_baseline", {"C": C, "H": H, "K": None})
            order = coefficients.shape[2] - others
            if order < 1:
                shape = coefficients.shape
                raise ValueError(
                    f"linear_baseline has shape {shape}, expected more than {others} at its end"
                )
            parts["linear"] = LinearBaseline(order, coefficients)
        judged = pop_array(arrays, "candidates", {"2": 2, "K": len(parts)})
        usual = pop_array(arrays, "usual", {"H": H, "C": C})
        for name, array in (("candidates", judged), ("usual", usual)):
            if not np.all(array > 0):
                raise ValueError(f"{name} has {np.min(array):g}, expected errors above 0")
        return cls(parts, judged[0], judged[1], usual)

    def weights(self, series: TimeSeries, units: Values, rows: Origins, ahead: Values) -> Values:
        """Return the weights (K, R, C) of forecasts (K, R, H, C) from successive rows, by what is
        known at each row.

        They are proportional to 1 / e^2, where e is the mean square error of the latest forecasts.
        """
        H = len(self.usual)
        squares = ahead - baselines.changes(series, rows, H, int(rows[-1]), units)
        squares *= squares  # in place, as there may be many rows
        squares /= self.usual
        latest = errors_of_rows(np.moveaxis(squares, (0, 2), (1, 3)))  # (R, K, C)
        recent = np.swapaxes(averages(latest, (self.errors / self.doubts)[:, None], H), 0, 1)
        weights = np.maximum(recent * self.doubts[:, None, None], 1e-12) ** -2.0
        return np.asarray(weights / np.sum(weights, axis=0))


def memory(horizon: int) -> int:
    """Return the rows whose errors decide about a forecast."""
    return MEMORY * max(HALF, horizon)


def averages(latest: Values, first: Values, horizon: int) -> Values:
    """Return for each row the moving average (R, ...) of a first error and of those of the latest
    rows.

    It begins as many rows before as `memory` says, so that it does not depend on which other rows
    there are.
    """
    found = np.array(np.broadcast_to(first, latest.shape))
    share = 1 - 0.5 ** (1 / max(HALF, horizon))
    for age in reversed(range(min(memory(horizon), len(latest)))):
        errors = latest[: len(latest) - age]
        level = found[age:]
        level += share * np.where(np.isnan(errors), 0.0, errors - level)
    return found


def errors_of_rows(squares: Values) -> Values:
    """Return the mean error, over steps ahead, of all forecasts of the value before each origin,
    (R, ...).

    Squared errors (R, ..., H) are those of forecasts from successive origins. NaN stands for what
    is not known.
    """
    total = np.zeros(squares.shape[:-1])
    count = np.zeros(squares.shape[:-1])
    for h in range(min(squares.shape[-1], len(squares) - 1)):
        errors = squares[: len(squares) - h - 1, ..., h]
        there = ~np.isnan(errors)
        total[h + 1 :] += np.where(there, errors, 0.0)
        count[h + 1 :] += there
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def smoothed(
    layer: ExponentialSmoothing, coefficients: Values, known: Values, begin: int = 0
) -> Values:
    """Return forecasts (T - begin, G, C, H) after each value (T, C) from row `begin` on, by G sets
    of coefficients.
    """
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
    return np.asarray(
        layer.in_units(
            np, np.minimum(ahead, np.max(x) + FURTHEST) if layer.multiplicative else ahead
        )
    )


class Judged(NamedTuple):
    """A candidate that is fitted to all rows, its error from rolling origins, and by how much that
    is above its own.
    """

    part: Part
    error: float
    doubt: float


@dataclass(frozen=True)
class Trial:
    """Series up to the rows `stops`, and rolling origins in their second half, from which
    candidates are judged.
    """

    several: Sequence[TimeSeries]
    scaling: Scaling
    stops: Sequence[int]
    horizon: int

    @cached_property
    def cuts(self) -> list[list[int]]:
        """The row of each series at which each fold begins, and the end of the last one."""
        ends = [(stop, min(stop // 2, MOST)) for stop in self.stops]
        by_series = [
            [stop - count + count * k // FOLDS for k in range(FOLDS + 1)] for stop, count in ends
        ]
        return [list(cuts) for cuts in zip(*by_series, strict=True)]

    def origins(self, fold: int) -> list[Origins]:
        """Return the origins of each series in a fold."""
        return [np.arange(*ends) for ends in zip(self.cuts[fold], self.cuts[fold + 1], strict=True)]

    def of_fold(self, fold: int, forecast: Callable[..., Values]) -> Values:
        """Return what `forecast(series, units, origins, stop)` gives in a fold, (M, H, C), series
        behind each other.
        """
        each = zip(self.several, self.scaling.units, self.origins(fold), self.stops, strict=True)
        return np.concatenate([forecast(*one) for one in each])

    @cached_property
    def truth(self) -> Values:
        """By how much the targets after each origin differ from the last value, (M, H, C), in
        units.
        """

        def changes(series: TimeSeries, units: Values, origins: Origins, stop: int) -> Values:
            return baselines.changes(series, origins, self.horizon, stop, units)

        return np.concatenate([self.of_fold(fold, changes) for fold in range(FOLDS)])

    @cached_property
    def usual(self) -> Values:
        """The mean square of these changes, (H, C)."""
        found = mean(self.truth**2)
        return np.maximum(np.where(np.isnan(found), np.nanmax(found), found), 1e-12)

    @property
    def worst(self) -> float:
        """The greatest error of a candidate that is averaged, relative to the least one."""
        horizons = (sum(self.cuts[FOLDS]) - sum(self.cuts[0])) / self.horizon
        return float((1 + CHANCE / np.sqrt(horizons)) ** 2)

    def error(self, ahead: Sequence[Values]) -> float:
        """Return the error of the forecasts of all folds, relative to that of repeating the last
        value.
        """
        return float(np.nanmean(mean((np.concatenate(ahead) - self.truth) ** 2) / self.usual))

    def after(self, fold: int, part: Part) -> Values:
        """Return the forecasts of a candidate for a fold."""
        return self.of_fold(
            fold, lambda series, units, origins, _: part.apply(series, self.scaling, units, origins)
        )

    def judged(self, part: Part, error: float) -> Judged:
        """Return a candidate that is fitted to all rows beside its error from rolling origins."""
        own = self.error([self.after(fold, part) for fold in range(FOLDS)])
        return Judged(part, error, max(1.0, error / max(own, 1e-12)))


def linear(trial: Trial, orders: Sequence[int], penalties: Sequence[tuple[float, float]]) -> Judged:
    """Return the linear autoregression that forecasts best, of some orders and penalties."""
    errors = {}
    for order in orders:
        by_fold = [
            [trial.after(fold, line) for line in _fitted(trial, trial.cuts[fold], order, penalties)]
            for fold in range(FOLDS)
        ]
        for penalty, ahead in zip(penalties, zip(*by_fold, strict=True), strict=True):
            errors[order, penalty] = trial.error(ahead)
    order, penalty = min(errors, key=errors.__getitem__)
    return trial.judged(_fitted(trial, trial.stops, order, [penalty])[0], errors[order, penalty])


def _fitted(
    trial: Trial, stops: Sequence[int], order: int, penalties: Sequence[tuple[float, float]]
) -> list[LinearBaseline]:
    """Return a linear autoregression for each penalty, fitted to the values before the rows
    `stops`.
    """
    origins = [np.arange(1, stop) for stop in stops]
    return baselines.fit(
        trial.several, trial.scaling, origins, stops, trial.horizon, order, penalties
    )


def smoothing(trial: Trial, season: int) -> Judged:
    """Return the exponential smoothing that forecasts best: with the season or without, of the
    logarithm or not.
    """
    layers = [ExponentialSmoothing(trial.horizon)]
    if season > 1:
        layers.append(ExponentialSmoothing(trial.horizon, periods=(season,)))
        known = [one.known[:stop] for one, stop in zip(trial.several, trial.stops, strict=True)]
        if all(np.min(one) > POSITIVE * np.median(one) for one in known):
            layers.append(replace(layers[-1], multiplicative=True))
    tried = [one for layer in layers for one in _tried(trial, layer)]
    part, error = min(tried, key=lambda one: one[1])
    return trial.judged(part, error)


def _tried(trial: Trial, layer: ExponentialSmoothing) -> list[tuple[Smoothing, float]]:
    """Return smoothing with the coefficients that had the least errors, one step ahead and all, and
    its error.
    """
    grid = coefficients(bool(layer.periods))
    H = trial.horizon
    begin, squares = zip(
        *(_squares(trial, k, layer, grid) for k in range(len(trial.several))), strict=True
    )

    @functools.cache
    def costs(k: int, first: int, steps: int) -> Values:
        return np.nan_to_num(errors_of_rows(squares[k][first:, ..., :steps]))  # (T, G, C)

    def best(stops: Sequence[int], steps: int) -> int:
        by_series = []
        for k, (start, stop) in enumerate(zip(begin, stops, strict=True)):
            first = min(layer.initial_rows, (stop - start) // 2)
            by_series.append(np.mean(costs(k, first, steps)[: stop - start - first], axis=0))
        return int(np.argmin(np.sum(by_series, axis=(0, 2))))

    found = []
    for steps in sorted({1, H}):
        chosen = [best(stops, steps) for stops in trial.cuts]
        total = [
            square[origins - start - 1, chosen[fold]]
            for fold in range(FOLDS)
            for start, square, origins in zip(begin, squares, trial.origins(fold), strict=True)
        ]
        error = float(np.nanmean(mean(np.concatenate(total))))
        found.append((Smoothing(layer, grid[:, chosen[-1]], steps), error))
    return found


def _squares(trial: Trial, k: int, layer: ExponentialSmoothing, grid: Values) -> tuple[int, Values]:
    """Return the first row that is looked at of a series, and relative squared errors (T, G, C, H)
    after each.
    """
    series = trial.several[k]
    units = trial.scaling.units[k]
    stop = trial.stops[k]
    H = trial.horizon
    room = ROOM // (grid.shape[1] * units.size * H * len(trial.several))
    begin = max(0, stop - max(room, 2 * MOST))
    ahead = smoothed(layer, grid, series.known[begin:stop])
    origins = np.arange(begin + 1, stop + 1)
    ahead -= series.known[begin:stop, None, :, None]
    ahead /= units[:, None]
    ahead -= np.swapaxes(baselines.changes(series, origins, H, stop, units), 1, 2)[:, None]
    ahead *= ahead
    ahead /= trial.usual.T
    return begin, ahead


def coefficients(seasonal: bool) -> Values:
    """Return the coefficients of smoothing that are tried, (4, G): gamma, alpha, beta and phi."""
    rows = []
    for alpha, gamma in itertools.product(SHARES["alpha"], SHARES["gamma"] if seasonal else (0.0,)):
        for beta, phi in [(0.0, 0.0), *itertools.product(SHARES["beta"], SHARES["phi"])]:
            rows.append((gamma * (1 - alpha), alpha, alpha * beta, phi))
    return np.array(rows).T


def season(values: Values) -> int:
    """Return the steps of the season that explains the changes from step to step best, or 0 where
    none does.
    """
    tried = {m for m in (*SEASONS, baselines.season(values)) if m and len(values) > 2.5 * m}
    explains = {m: _explained(np.diff(values), m) for m in sorted(tried)}
    best = max(explains.values(), default=0.0)
    return (
        0 if best < PERIODIC else next(m for m, share in explains.items() if share >= NEAR * best)
    )


def _explained(changes: Values, m: int) -> float:
    """Return which share of the variance of changes their means by the place in a season of m steps
    explain.
    """
    middle = np.median(changes)
    far = OUTLIER * np.median(np.abs(changes - middle))
    changes = np.clip(changes, middle - far, middle + far) if far > 0 else changes
    place = np.arange(len(changes)) % m
    N = len(changes)
    means = np.bincount(place, changes) / np.bincount(place)
    left = np.sum((changes - means[place]) ** 2) / max(
        1e-300, np.sum((changes - np.mean(changes)) ** 2)
    )
    return float(1 - left * (N - 1) / (N - m))


def refit(trial: Trial, part: Part) -> Part:
    """Return a candidate with the same options, fitted to the rows of a trial."""
    if isinstance(part, Smoothing):
        return next(one for one, _ in _tried(trial, part.layer) if one.steps == part.steps)
    return (
        part
        if part.ridge == 0
        else _fitted(trial, trial.stops, part.order, [(part.ridge, part.light)])[0]
    )


def combined(trial: Trial, settings: Any) -> Combination:
    """Return the average of the candidates that the settings allow, each fitted to the rows of a
    trial.

    Where there are covariates that are known in advance, exponential smoothing is none unless it is
    named.
    """
    found: dict[str, Judged] = {}
    longest, end = max(zip(trial.several, trial.stops, strict=True), key=lambda one: one[1])
    m = season(longest.known[:end, 0]) if isinstance(settings.season, str) else settings.season
    covariates = trial.several[0].future.shape[1] + len(trial.several[0].static)
    known_ahead = trial.several[0].future.shape[1] > 0
    if allows(settings, "smoothing") and not (known_ahead and isinstance(settings.candidates, str)):
        found["smoothing"] = smoothing(trial, m)
    if settings.linear_baseline == 0 or not (found or allows(settings, "linear")):
        found["linear"] = Judged(baselines.repeating(trial.scaling, trial.horizon), 1.0, 1.0)
    elif allows(settings, "linear"):
        # In several series short ones do not limit it: windows that reach back before their
        # beginning do not count.
        longest_order = max(2, (max(trial.cuts[0]) - trial.horizon) // 2)
        usual = sorted(
            {n for n in (*ORDERS, settings.window, m + 1, 2 * m + 1) if 2 <= n <= longest_order}
        )
        orders = usual if isinstance(settings.linear_baseline, str) else [settings.linear_baseline]
        found["linear"] = linear(
            trial, orders, [*itertools.product(RIDGES, LIGHTS if covariates else (LIGHT,))]
        )
    most = trial.worst * min(one.error for one in found.values())
    rejected = {name: one.error for name, one in found.items() if one.error > most}
    found = {name: one for name, one in found.items() if name not in rejected}
    parts = {name: one.part for name, one in found.items()}
    errors = np.maximum([one.error for one in found.values()], 1e-12)
    return Combination(
        parts, errors, np.array([one.doubt for one in found.values()]), trial.usual, rejected
    )


def allows(settings: Any, name: str) -> bool:
    """Return whether a candidate is among those that the settings name, or choose by themselves."""
    return isinstance(settings.candidates, str) or name in settings.candidates
