"""Candidates that forecast series, their choice by forecasts from rolling origins, and their
average.

The average of a linear autoregression and of exponential smoothing is weighted by the errors that
each of them made most recently (after Bates & Granger 1969), so that it follows a series which
begins to behave differently.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xlstm.arrays.cached import cached_property
from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import baselines
from xlstm.estimators.base import array_of
from xlstm.estimators.baselines import NEAR, LinearBaseline, Penalties, mean
from xlstm.estimators.series_scaling import Origins, SeriesScaling
from xlstm.layers.smoothing import ExponentialSmoothing, Smoothed, step

# Validation from rolling origins.
FOLDS = 4  # each takes a fit of every candidate to all rows before it
ORIGINS = 400  # of a series, at most, so that the time does not grow with its length
CHANCE = 0.6  # share by which the RMSE over a single horizon is above the least one by chance
# The linear autoregression: what is tried.
ORDERS = (2, 4, 8, 12, 24, 48, 96)  # lags; the window and whole seasons are tried, too
RIDGES = (0.001, 0.01, 0.1, 1.0)  # penalties, in units of the mean square of a lag
COVARIATE_RIDGES = (0.001, 0.01, 0.1)  # the same for covariates and a constant, in units of one
CONSTANT_RIDGE = 0.01  # that of a constant alone, which needs no choice
# Seasons.
SEASONS = (4, 7, 12, 24, 52)  # steps: quarters, days, months, hours and weeks
SEASONAL_SHARE = (
    0.2  # least share of the variance of changes that a season explains; noise has less
)
OUTLIER = 6.0  # median absolute deviations beyond which a change counts as no larger
LONGEST_SEASON = 100_000  # steps of a season in a file, whose states are as many
# Exponential smoothing.
# the coefficients that are tried; beta is a share of alpha, and gamma of 1 - alpha
ALPHAS = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
BETAS = (0.05, 0.2, 0.5)
PHIS = (0.8, 0.9, 0.97, 1.0)
GAMMAS = (0.0, 0.1, 0.3, 0.6)
FORECASTS = 8_000_000  # in memory while coefficients are tried: 64 MB
WARM_UP = (
    2000  # steps that are smoothed before the first forecast, at most, so that it takes no longer
)
LEAST_SHARE = 0.1  # least value, as a share of the median, of a series whose logarithm is smoothed
MOST_ABOVE = 3.0  # most that a forecast is above all values, in logarithms: a factor of 20
# The weights of the average.
HALF_LIFE = 8  # rows, and at least a horizon, after which the weight of an error is half as large
HALF_LIVES = 5  # that are looked at; what is older has a weight of 3 %


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
    order: ClassVar[int] = 0  # it looks back as far as there is something

    def repeated(self, n: int) -> Smoothing:
        """Return the smoothing of n times the targets, which is the same."""
        return self

    def apply(
        self, series: TimeSeries, scaling: SeriesScaling, units: Values, origins: Origins
    ) -> Values:
        """Return by how much the targets after each origin differ from the last value, (M, H, C),
        in `units`.
        """
        first = int(np.min(origins))
        values = series.known[max(0, first - WARM_UP) : int(np.max(origins))]
        ahead = smoothed(self.layer, self.coefficients[:, None], values, min(first, WARM_UP) - 1)[
            origins - first, 0
        ]
        return np.asarray((np.swapaxes(ahead, 1, 2) - series.known[origins - 1, None]) / units)


Candidate = LinearBaseline | Smoothing


class Validated(NamedTuple):
    """A fitted candidate and its validation error.

    Attributes
    ----------
    candidate : LinearBaseline or Smoothing
    error : float
        The mean square error from rolling origins, relative to that of repeating the last value.
    optimism : float
        That error, divided by the one for values that the candidate is fitted to.
    folds : list of LinearBaseline or of Smoothing
        The candidate as it was fitted to the rows before each fold; no file keeps them.
    """

    candidate: Candidate
    error: float
    optimism: float
    folds: Sequence[Candidate] = ()


@dataclass(frozen=True)
class Combination:
    """The weighted average of candidates.

    Attributes
    ----------
    candidates : dict of str to Validated
        K of them.
    naive_squares : array (H, C)
        The mean square error of repeating the last value, in units.
    rejected : dict of str to float
        Validation errors of candidates that are clearly worse; no file keeps them.
    """

    candidates: dict[str, Validated]
    naive_squares: Values
    rejected: dict[str, float] = field(default_factory=dict)

    @property
    def every_error(self) -> dict[str, float]:
        """The validation errors of all candidates, also of rejected ones, as root mean squares."""
        squares = {name: each.error for name, each in self.candidates.items()} | self.rejected
        return {name: float(np.sqrt(square)) for name, square in squares.items()}

    def apply(
        self, series: TimeSeries, scaling: SeriesScaling, units: Values, origins: Origins
    ) -> Values:
        """Return by how much the targets after each origin differ from the last value, (M, H, C),
        in `units`.
        """
        candidates = [each.candidate for each in self.candidates.values()]
        if len(candidates) == 1:
            return candidates[0].apply(series, scaling, units, origins)
        rows = np.arange(max(1, int(np.min(origins)) - self.before), int(np.max(origins)) + 1)
        # (K, R, H, C)
        ahead = np.stack(
            [candidate.apply(series, scaling, units, rows) for candidate in candidates]
        )
        average = np.einsum("krc,krhc->rhc", self.weights(series, units, rows, ahead), ahead)
        return np.asarray(average[origins - rows[0]])

    @property
    def reach(self) -> int:
        """Values before an origin that decide about a forecast, at most."""
        return self.order if len(self.candidates) == 1 and self.order else WARM_UP + self.before

    @property
    def before(self) -> int:
        """Rows before an origin whose forecasts decide about its weights."""
        return error_rows(len(self.naive_squares)) + len(self.naive_squares)

    def repeated(self, n: int) -> Combination:
        """Return the combination of n times the targets."""
        candidates = {
            name: each._replace(candidate=each.candidate.repeated(n))
            for name, each in self.candidates.items()
        }
        return replace(self, candidates=candidates, naive_squares=np.tile(self.naive_squares, n))

    @property
    def order(self) -> int:
        """Values that the linear autoregression looks back to; 0 where there is none."""
        return max(each.candidate.order for each in self.candidates.values())

    def arrays(self) -> dict[str, Values]:
        """Return the arrays of a file."""
        arrays = {"candidates": self._errors, "usual": self.naive_squares}
        for each in self.candidates.values():
            candidate = each.candidate
            if isinstance(candidate, Smoothing):
                layer = candidate.layer
                season = max(layer.periods, default=0)
                arrays["smoothing"] = np.array(
                    [*candidate.coefficients, season, layer.multiplicative]
                )
            else:
                arrays["linear_baseline"] = candidate.coefficients
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any], C: int, H: int, others: int) -> Combination:
        """Return the combination of the arrays of a file.

        A linear autoregression has coefficients for C targets, H steps and `others` covariates.
        """
        candidates: dict[str, Candidate] = {}
        if "smoothing" in arrays:
            *numbers, season, multiplicative = array_of(arrays, "smoothing", {"K": 6})
            if not 0 <= season <= LONGEST_SEASON:
                raise ValueError(
                    f"smoothing has a season of {season:g} steps, expected at most {LONGEST_SEASON}"
                )
            periods = (int(season),) if season else ()
            layer = ExponentialSmoothing(H, periods=periods, multiplicative=bool(multiplicative))
            candidates["smoothing"] = Smoothing(layer, np.array(numbers), H)
        if "linear_baseline" in arrays or not candidates:
            coefficients = array_of(arrays, "linear_baseline", {"C": C, "H": H, "K": None})
            order = coefficients.shape[2] - others
            if order < 1:
                raise ValueError(
                    f"linear_baseline has shape {coefficients.shape}, expected more than {others}"
                    " at its end"
                )
            candidates["linear"] = LinearBaseline(order, coefficients)
        errors = array_of(arrays, "candidates", {"2": 2, "K": len(candidates)})
        naive_squares = array_of(arrays, "usual", {"H": H, "C": C})
        for name, array in (("candidates", errors), ("usual", naive_squares)):
            if not np.all(array > 0):
                raise ValueError(f"{name} has {np.min(array):g}, expected errors above 0")
        validated = {
            name: Validated(candidate, *pair.tolist())
            for (name, candidate), pair in zip(candidates.items(), errors.T, strict=True)
        }
        return cls(validated, naive_squares)

    @property
    def _errors(self) -> Values:
        """Errors and optimism, (2, K)."""
        return np.array([[each.error, each.optimism] for each in self.candidates.values()]).T

    def weights(self, series: TimeSeries, units: Values, rows: Origins, ahead: Values) -> Values:
        """Return the weights (K, R, C) of forecasts (K, R, H, C) from successive rows, by what is
        known at each row.

        They are proportional to 1 / e^2, where e is the mean square error of the latest forecasts.
        """
        H = len(self.naive_squares)
        squares = ahead - baselines.changes(series, rows, H, int(rows[-1]), units)
        squares *= squares  # in place, as there may be many rows
        squares /= self.naive_squares
        latest = errors_of_rows(np.moveaxis(squares, (0, 2), (1, 3)))  # (R, K, C)
        errors, optimism = self._errors[..., None]
        recent = np.swapaxes(averages(latest, errors / optimism, H), 0, 1)
        weights = np.maximum(recent * optimism[..., None], 1e-12) ** -2.0
        return np.asarray(weights / np.sum(weights, axis=0))


def error_rows(horizon: int) -> int:
    """Return the number of latest rows whose errors decide about a forecast."""
    return HALF_LIVES * max(HALF_LIFE, horizon)


def averages(latest: Values, first: Values, horizon: int) -> Values:
    """Return for each row the moving average (R, ...) of a first error and of those of the latest
    rows.

    It begins as many rows before as `error_rows` says, so that it does not depend on which other
    rows there are.
    """
    levels = np.array(np.broadcast_to(first, latest.shape))
    weight = 1 - 0.5 ** (1 / max(HALF_LIFE, horizon))
    for age in reversed(range(min(error_rows(horizon), len(latest)))):
        errors = latest[: len(latest) - age]
        level = levels[age:]
        level += weight * np.where(np.isnan(errors), 0.0, errors - level)
    return levels


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
    with np.errstate(invalid="ignore"):  # 0 / 0
        return total / count


def smoothed(
    layer: ExponentialSmoothing, coefficients: Values, values: Values, begin: int = 0
) -> Values:
    """Return forecasts (T - begin, G, C, H) after each value (T, C) from row `begin` on, by G sets
    of coefficients.
    """
    x = values
    if layer.multiplicative:
        x = np.maximum(x, LEAST_SHARE**2 * np.median(np.abs(x), axis=0) + 1e-12)
    first = layer.initial_state(x[..., None])  # (lag, C) each
    x = np.log(x) if layer.multiplicative else x
    numbers = [row[:, None] for row in coefficients[1 - len(layer.periods) :]]
    states = [np.empty((len(x) + lag, coefficients.shape[1], x.shape[1])) for lag in layer.lags]
    for rows, start in zip(states, first, strict=True):
        rows[: len(start)] = start[:, None]
    for t in range(len(x)):
        _, *new = step(np, x[t], *(rows[t] for rows in states), *numbers)
        for rows, lag, state in zip(states, layer.lags, new, strict=True):
            rows[t + lag] = state
    ahead = layer.ahead(np, Smoothed(tuple(rows[begin:] for rows in states), x, tuple(numbers), x))
    if layer.multiplicative:
        ahead = np.minimum(ahead, np.max(x) + MOST_ABOVE)
    return np.asarray(layer.in_units(np, ahead))


@dataclass(frozen=True)
class RollingOrigins:
    """Series up to the rows `stops`, and origins in their second half, one row after another, from
    which candidates forecast for validation.
    """

    several: Sequence[TimeSeries]
    scaling: SeriesScaling
    stops: Sequence[int]
    horizon: int

    @cached_property
    def cuts(self) -> list[list[int]]:
        """The row of each series at which each fold begins, and the end of the last one."""
        stops = np.array(self.stops)
        counts = np.minimum(stops // 2, ORIGINS)
        return [(stops - counts + counts * k // FOLDS).tolist() for k in range(FOLDS + 1)]

    def fold(self, k: int) -> Iterator[tuple[TimeSeries, Values, Origins, int]]:
        """Return each series, its units, its origins in a fold, and the row that it stops at."""
        origins = [np.arange(*ends) for ends in zip(self.cuts[k], self.cuts[k + 1], strict=True)]
        return zip(self.several, self.scaling.units, origins, self.stops, strict=True)

    @cached_property
    def truth(self) -> Values:
        """By how much the targets after each origin differ from the last value, (M, H, C), in
        units.
        """
        return np.concatenate(
            [
                baselines.changes(series, origins, self.horizon, stop, units)
                for k in range(FOLDS)
                for series, units, origins, stop in self.fold(k)
            ]
        )

    @cached_property
    def naive_squares(self) -> Values:
        """The mean square of these changes, (H, C)."""
        squares = mean(self.truth**2)
        return np.maximum(np.where(np.isnan(squares), np.nanmax(squares), squares), 1e-12)

    @property
    def tolerance(self) -> float:
        """The greatest error of a candidate that is averaged, relative to the least one."""
        horizons = (sum(self.cuts[FOLDS]) - sum(self.cuts[0])) / self.horizon
        return float((1 + CHANCE / np.sqrt(horizons)) ** 2)

    def error(self, ahead: Sequence[Values]) -> float:
        """Return the error of the forecasts of all folds, relative to that of repeating the last
        value.
        """
        squares = mean((np.concatenate(ahead) - self.truth) ** 2)
        return float(np.nanmean(squares / self.naive_squares))

    def forecasts(self, k: int, candidate: Candidate) -> Values:
        """Return the forecasts of a candidate in a fold, (M, H, C), series behind each other."""
        return np.concatenate(
            [
                candidate.apply(series, self.scaling, units, origins)
                for series, units, origins, _ in self.fold(k)
            ]
        )

    def lines(self, stops: Sequence[int], order: int, penalties: Penalties) -> list[LinearBaseline]:
        """Return a linear autoregression for each penalty, fitted to the values before the rows
        `stops`.
        """
        return baselines.fit(self.several, self.scaling, stops, self.horizon, order, penalties)

    def validated(
        self, candidate: Candidate, error: float, folds: Sequence[Candidate]
    ) -> Validated:
        """Return a candidate that is fitted to all rows beside its validation error."""
        own = self.error([self.forecasts(k, candidate) for k in range(FOLDS)])
        return Validated(candidate, error, max(1.0, error / max(own, 1e-12)), folds)

    def errors(self, combination: Combination) -> list[Values]:
        """Return errors (M, H, C) of forecasts of each series by candidates that were fitted
        before the fold, in units; NaN where the truth is not known.
        """
        by_fold = []
        for k in range(FOLDS):
            before = {
                name: each._replace(candidate=each.folds[k])
                for name, each in combination.candidates.items()
            }
            average = replace(combination, candidates=before)
            by_fold.append(
                [
                    baselines.changes(series, origins, self.horizon, stop, units)
                    - average.apply(series, self.scaling, units, origins)
                    for series, units, origins, stop in self.fold(k)
                ]
            )
        return [np.concatenate(of_series) for of_series in zip(*by_fold, strict=True)]


def linear(rolling: RollingOrigins, orders: Sequence[int], penalties: Penalties) -> Validated:
    """Return the linear autoregression of the least validation error, of some orders and
    penalties.
    """
    tried = []
    for order in orders:
        by_fold = [rolling.lines(rolling.cuts[k], order, penalties) for k in range(FOLDS)]
        for lines in zip(*by_fold, strict=True):
            ahead = [rolling.forecasts(k, line) for k, line in enumerate(lines)]
            tried.append((rolling.error(ahead), lines))
    error, folds = min(tried, key=lambda pair: pair[0])
    return rolling.validated(refit(rolling, folds[0]), error, folds)


def smoothing(rolling: RollingOrigins, season: int) -> Validated:
    """Return the exponential smoothing of the least validation error: with the season or without,
    of the logarithm or not.
    """
    layers = [ExponentialSmoothing(rolling.horizon)]
    if season > 1:
        layers.append(ExponentialSmoothing(rolling.horizon, periods=(season,)))
        before = zip(rolling.several, rolling.stops, strict=True)
        values = [series.known[:stop] for series, stop in before]
        if all(np.min(some) > LEAST_SHARE * np.median(some) for some in values):
            layers.append(replace(layers[-1], multiplicative=True))
    tried = [each for layer in layers for each in _fitted_smoothing(rolling, layer)]
    return rolling.validated(*min(tried, key=lambda each: each[1]))


def _fitted_smoothing(
    rolling: RollingOrigins, layer: ExponentialSmoothing
) -> list[tuple[Smoothing, float, list[Smoothing]]]:
    """Return smoothing with the coefficients of the least errors, one step ahead and all steps, its
    validation error, and the same with coefficients of the rows before each fold.
    """
    grid = coefficients(bool(layer.periods))
    looks = [_squares(rolling, k, layer, grid) for k in range(len(rolling.several))]
    begins, squares = zip(*looks, strict=True)
    results = []
    for steps in sorted({1, rolling.horizon}):
        # (K, FOLDS + 1, G, C)
        errors = [
            _errors_before(
                of_series[..., :steps], [cut[k] - begins[k] for cut in rolling.cuts], layer
            )
            for k, of_series in enumerate(squares)
        ]
        best = [
            int(np.argmin(np.sum(by_series, axis=(0, 2))))
            for by_series in zip(*errors, strict=True)
        ]
        total = [
            of_series[origins - begin - 1, best[k]]
            for k in range(FOLDS)
            for begin, of_series, (_, _, origins, _) in zip(
                begins, squares, rolling.fold(k), strict=True
            )
        ]
        error = float(np.nanmean(mean(np.concatenate(total))))
        *folds, whole = (Smoothing(layer, grid[:, k], steps) for k in best)
        results.append((whole, error, folds))
    return results


def _errors_before(
    squares: Values, stops: Sequence[int], layer: ExponentialSmoothing
) -> list[Values]:
    """Return the mean errors (G, C) of forecasts before each row of `stops`, without those that
    initial states were made of.
    """
    latest: dict[int, Values] = {}  # (T, G, C), by the first row
    means = []
    for stop in stops:
        first = min(layer.initial_rows, stop // 2)
        if first not in latest:
            latest[first] = np.nan_to_num(errors_of_rows(squares[first:]))
        means.append(np.mean(latest[first][: stop - first], axis=0))
    return means


def _squares(
    rolling: RollingOrigins, k: int, layer: ExponentialSmoothing, grid: Values
) -> tuple[int, Values]:
    """Return the first row that is looked at of a series, and relative squared errors (T, G, C, H)
    after each.
    """
    series = rolling.several[k]
    units = rolling.scaling.units[k]
    stop = rolling.stops[k]
    H = rolling.horizon
    rows = FORECASTS // (grid.shape[1] * units.size * H * len(rolling.several))
    begin = max(0, stop - max(rows, 2 * ORIGINS))
    values = series.known[begin:stop]
    ahead = smoothed(layer, grid, values)
    origins = np.arange(begin + 1, stop + 1)
    ahead -= values[:, None, :, None]
    ahead /= units[:, None]
    ahead -= np.swapaxes(baselines.changes(series, origins, H, stop, units), 1, 2)[:, None]
    ahead *= ahead
    ahead /= rolling.naive_squares.T
    return begin, ahead


def coefficients(seasonal: bool) -> Values:
    """Return the coefficients of smoothing that are tried, (4, G): gamma, alpha, beta and phi."""
    rows = []
    for alpha, gamma in itertools.product(ALPHAS, GAMMAS if seasonal else (0.0,)):
        for beta, phi in [(0.0, 0.0), *itertools.product(BETAS, PHIS)]:
            rows.append((gamma * (1 - alpha), alpha, alpha * beta, phi))
    return np.array(rows).T


def season(values: Values) -> int:
    """Return the steps of the season that explains the changes from step to step best, or 0 where
    none does.
    """
    tried = {m for m in (*SEASONS, baselines.season(values)) if m and len(values) > 2.5 * m}
    shares = {m: _explained(np.diff(values), m) for m in sorted(tried)}
    best = max(shares.values(), default=0.0)
    if best < SEASONAL_SHARE:
        return 0
    return next(m for m, share in shares.items() if share >= NEAR * best)


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
    left = np.sum((changes - means[place]) ** 2)
    left /= max(1e-300, np.sum((changes - np.mean(changes)) ** 2))
    return float(1 - left * (N - 1) / (N - m))


def refit(rolling: RollingOrigins, candidate: Candidate) -> Candidate:
    """Return a candidate with the same options, fitted to the rows before the stops."""
    if isinstance(candidate, Smoothing):
        fitted = _fitted_smoothing(rolling, candidate.layer)
        return next(other for other, *_ in fitted if other.steps == candidate.steps)
    if candidate.ridge == 0:
        return candidate
    penalty = (candidate.ridge, candidate.covariate_ridge)
    return rolling.lines(rolling.stops, candidate.order, [penalty])[0]


def combined(rolling: RollingOrigins, settings: Any) -> Combination:
    """Return the average of the candidates that the settings allow, each fitted to the rows before
    the stops.

    Where there are covariates that are known in advance, exponential smoothing is none unless it is
    named.
    """
    validated: dict[str, Validated] = {}
    rows = zip(rolling.several, rolling.stops, strict=True)
    longest, end = max(rows, key=lambda pair: pair[1])
    m = season(longest.known[:end, 0]) if isinstance(settings.season, str) else settings.season
    known_ahead = longest.future.shape[1] > 0
    if allows(settings, "smoothing") and not (known_ahead and isinstance(settings.candidates, str)):
        validated["smoothing"] = smoothing(rolling, m)
    if settings.linear_baseline == 0 or not (validated or allows(settings, "linear")):
        line = baselines.repeating(rolling.scaling, rolling.horizon)
        validated["linear"] = Validated(line, 1.0, 1.0, [line] * FOLDS)
    elif allows(settings, "linear"):
        has_covariates = known_ahead or len(longest.static) > 0
        ridges = COVARIATE_RIDGES if has_covariates else (CONSTANT_RIDGE,)
        penalties = [*itertools.product(RIDGES, ridges)]
        validated["linear"] = linear(rolling, _orders(rolling, settings, m), penalties)
    most = rolling.tolerance * min(each.error for each in validated.values())
    rejected = {name: each.error for name, each in validated.items() if each.error > most}
    averaged = {
        name: each._replace(error=max(each.error, 1e-12))
        for name, each in validated.items()
        if name not in rejected
    }
    return Combination(averaged, rolling.naive_squares, rejected)


def _orders(rolling: RollingOrigins, settings: Any, season: int) -> list[int]:
    """Return the orders of the linear autoregression that are tried: the one of the settings, or
    those that the longest series has room for.

    Short ones do not limit it: windows that reach back before their beginning do not count.
    """
    if not isinstance(settings.linear_baseline, str):
        return [settings.linear_baseline]
    longest = max(2, (max(rolling.cuts[0]) - rolling.horizon) // 2)
    orders = {*ORDERS, settings.window, season + 1, 2 * season + 1}
    return sorted(order for order in orders if 2 <= order <= longest)


def allows(settings: Any, name: str) -> bool:
    """Return whether a candidate is among those that the settings name, or choose by themselves."""
    return isinstance(settings.candidates, str) or name in settings.candidates
