"""Exponential smoothing and the Theta method as candidates of a forecaster.

Their coefficients have the smallest errors from rolling origins among those of a grid. The trend of
the Theta method is half of the slope of the line through all values before (Hyndman & Billah 2003).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from xlstm.data.host import Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import baselines, seasons
from xlstm.estimators.baselines import mean
from xlstm.estimators.rolling_origins import FOLDS, RollingOrigins, Validated
from xlstm.estimators.series_scaling import Origins, SeriesScaling
from xlstm.layers.smoothing import ExponentialSmoothing, Smoothed, step

# the coefficients to try; beta is a share of alpha, and gamma a share of 1 - alpha
ALPHAS = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
BETAS = (0.05, 0.2, 0.5)
PHIS = (0.8, 0.9, 0.97, 1.0)
GAMMAS = (0.0, 0.1, 0.3, 0.6)
DRIFT = 0.5  # share of the slope of the line through all values, in the Theta method
SERIES = 100  # most series by which coefficients are chosen
FORECASTS = 4_000_000  # in memory while coefficients are tried: 32 MB per array
ROWS = 2000  # most steps that are smoothed before the first forecast
MOST_ROWS = 10**9  # largest number, in a file, of values that an initial state is fitted to
NAMES = ("smoothing", "theta")
LEAST_SHARE = 0.1  # least value, as a share of the median, of a series whose logarithm is smoothed
MOST_ABOVE = 3.0  # limit of forecasts above all values, in logarithms: a factor of 20


@dataclass(frozen=True)
class Smoothing:
    """Exponential smoothing of each target, with chosen coefficients.

    Attributes
    ----------
    layer : ExponentialSmoothing
    coefficients : array (K,)
        gamma of each season, alpha, beta, phi, and the share of the slope of the line through all
        values.
    steps : int
        The coefficients were chosen by errors of forecasts up to this number of steps ahead.
    rows : int
        Number of values that an initial state is fitted to.
    """

    layer: ExponentialSmoothing
    coefficients: Values
    steps: int
    rows: int
    order: ClassVar[int] = 0  # it has no fixed number of steps to look back
    reach: ClassVar[int] = ROWS

    @property
    def name(self) -> str:
        """The name of the candidate."""
        return NAMES[bool(self.coefficients[-1])]

    @property
    def kind(self) -> tuple[str, int]:
        """The name and the steps: they tell apart the results of one fit of a layer."""
        return self.name, self.steps

    @property
    def seasons(self) -> tuple[int, ...]:
        """Steps of seasons."""
        return self.layer.periods

    def array(self) -> Values:
        """Return the array for a file."""
        seasons = (*self.layer.periods, 0, 0)[:2]
        return np.array([*seasons, self.layer.multiplicative, self.rows, *self.coefficients])

    def repeated(self, n: int) -> Smoothing:
        """Return the smoothing for n copies of the targets: it is the same."""
        return self

    def apply(
        self, series: TimeSeries, scaling: SeriesScaling, units: Values, origins: Origins
    ) -> Values:
        """Return the forecasts (M, H, C) after each origin, minus the last value, in `units`."""
        if len(origins) == 0:
            return np.empty((0, self.layer.horizon, len(units)))
        first = int(np.min(origins))
        values = series.known[max(0, first - ROWS) : int(np.max(origins))]
        layer, numbers = _of_known_seasons(self.layer, self.coefficients[:, None], first)
        ahead = smoothed(layer, numbers, values, min(self.rows, first), min(first, ROWS) - 1)
        ahead = np.matrix_transpose(ahead[:, 0][origins - first])
        changes: Values = (ahead - series.known[origins - 1, None]) / units
        return changes


def of_array(name: str, array: Values, horizon: int) -> Smoothing:
    """Return the smoothing from its array in a file."""
    periods = seasons.of_array(name, array[:2][array[:2] != 0])
    size = 8 + len(periods)
    if len(array) != size:
        raise ValueError(
            f"{name} has {len(array)} numbers with seasons {periods}, expected {size} of them"
        )
    rows = array[3]
    if not (rows.is_integer() and 1 <= rows <= MOST_ROWS):
        raise ValueError(
            f"{name} has an initial state of {rows:g} rows, expected a whole number from 1 to"
            f" {MOST_ROWS}"
        )
    layer = ExponentialSmoothing(horizon, periods=periods, multiplicative=bool(array[2]))
    return Smoothing(layer, array[4:], horizon, int(rows))


def _of_known_seasons(
    layer: ExponentialSmoothing, coefficients: Values, rows: int
) -> tuple[ExponentialSmoothing, Values]:
    """Return smoothing and its coefficients without the seasons that are longer than the `rows`
    before the first forecast.

    This happens in the short series of a panel.
    """
    fits = [m <= rows for m in layer.periods]
    if all(fits):
        return layer, coefficients
    periods = tuple(itertools.compress(layer.periods, fits))
    return replace(layer, periods=periods), coefficients[[*fits, *[True] * 4]]


def smoothed(
    layer: ExponentialSmoothing, coefficients: Values, values: Values, fitted: int, begin: int = 0
) -> Values:
    """Return forecasts (T - begin, G, C, H) after each value (T, C) from row `begin` on, for G sets
    of coefficients.

    Initial states are fitted to the first `fitted` values.
    """
    x = values
    before = max(begin + 1, fitted)  # limits come from these rows only, before any forecast
    if layer.multiplicative:
        least = LEAST_SHARE**2 * np.median(np.abs(x[:before]), axis=0)
        x = np.log(np.maximum(x, least + 1e-12))
    *numbers, drift = (row[:, None] for row in coefficients)
    # states are linear functions of the values: a graph takes the states that follow from each
    basis = x if isinstance(x, np.ndarray) else np.eye(len(x))
    first = replace(layer, multiplicative=False).initial_state(basis[:fitted, :, None])
    states = [np.empty((len(x) + lag, coefficients.shape[1], basis.shape[1])) for lag in layer.lags]
    for rows, start in zip(states, first, strict=True):
        rows[: len(start)] = start[:, None]
    for t in range(len(x)):
        _, *new = step(np, basis[t], *(rows[t] for rows in states), *numbers)
        for rows, lag, state in zip(states, layer.lags, new, strict=True):
            rows[t + lag] = state
    used = tuple(rows[begin:] if basis is x else rows[begin:] @ x for rows in states)
    ahead = layer.ahead(np, Smoothed(used, x, tuple(numbers), x))
    if np.any(drift):
        slopes = drift * _slopes(x)[begin:, None]
        ahead += slopes[..., None] * np.arange(1, layer.horizon + 1)
    if layer.multiplicative:
        ahead = np.minimum(ahead, np.max(x[:before], axis=0)[:, None] + MOST_ABOVE)
    forecasts: Values = layer.in_units(np, ahead)
    return forecasts


def _slopes(x: Values) -> Values:
    """Return for each row the slope (T, C) of the line through the values up to it; 0 for the first
    row.
    """
    time = np.arange(len(x))[:, None]
    count = time + 1
    x = x - x[0]
    below = np.maximum(count * (count**2 - 1) / 12, 1.0)
    return (np.cumsum(time * x, axis=0) - time / 2 * np.cumsum(x, axis=0)) / below


def initial_rows(rolling: RollingOrigins, layer: ExponentialSmoothing) -> int:
    """Return the number of values that initial states are fitted to.

    It is at least a whole season. Otherwise it is small enough to leave errors by which to choose
    coefficients.
    """
    few = min(rolling.cuts[0]) * 3 // 4
    return min(layer.initial_rows, max(few, 2, *layer.periods))


def coefficients(seasons: int) -> Values:
    """Return the coefficients to try, (K, G), with those of the Theta method last."""
    trends = [(0.0, 0.0, 0.0), *itertools.product(BETAS, PHIS, (0.0,))]
    rows = []
    for trend in (trends, [(0.0, 0.0, DRIFT)]):
        gammas = itertools.product(GAMMAS if seasons < 2 else GAMMAS[1:], repeat=seasons)
        for shares, alpha, (beta, phi, drift) in itertools.product(gammas, ALPHAS, trend):
            seasonal = [share * (1 - alpha) for share in shares]
            rows.append((*seasonal, alpha, alpha * beta, phi, drift))
    return np.array(rows).T


def candidates(rolling: RollingOrigins) -> dict[str, Validated[Smoothing]]:
    """Return exponential smoothing and the Theta method, each with the seasons and the scale
    (linear or logarithm) of the smallest validation error.
    """
    best: dict[str, Validated[Smoothing]] = {}
    for layer in layers(rolling):
        for fitted in fit(rolling, layer):
            name = fitted.candidate.name
            if name not in best or fitted.error < best[name].error:
                best[name] = fitted
    return best


def layers(rolling: RollingOrigins) -> Iterator[ExponentialSmoothing]:
    """Yield the layers to try. No season is longer than the ROWS that are smoothed."""
    H = rolling.horizon
    before = zip(rolling.several, rolling.stops, strict=True)
    values = [series.known[:stop] for series, stop in before]
    positive = all(np.min(part) > LEAST_SHARE * np.median(part) for part in values)
    choices = (periods for periods in rolling.choices if max(periods, default=0) <= ROWS)
    for periods in choices:
        for multiplicative in (False, True)[: 1 + (positive and len(periods) > 0)]:
            yield ExponentialSmoothing(H, periods=periods, multiplicative=multiplicative)


def fit(rolling: RollingOrigins, layer: ExponentialSmoothing) -> list[Validated[Smoothing]]:
    """Return smoothing and the Theta method, each with the coefficients of the smallest errors one
    step ahead, and with those of the smallest errors over all steps.
    """
    grid = coefficients(len(layer.periods))
    kinds = [np.flatnonzero(row) for row in (grid[-1] == 0, grid[-1] > 0)]
    lengths = sorted({1, rolling.horizon})
    looked = range(0, len(rolling.several), -(-len(rolling.several) // SERIES))
    before = [_errors_before(rolling, n, layer, grid) for n in looked]
    errors, naive = (np.sum(part, axis=0) for part in zip(*before, strict=True))
    relative = errors / np.maximum(naive, 1e-12)[..., None]  # (FOLDS + 1, H, G)
    totals = [np.mean(relative[:, :length], axis=1) for length in lengths]
    best = [
        [[kind[np.argmin(total[kind])] for total in by_cut] for by_cut in totals] for kind in kinds
    ]  # by kind, length and cut
    pairs = list(itertools.product(range(len(kinds)), range(len(lengths))))
    of_fold = [[grid[:, best[i][j][k]] for i, j in pairs] for k in range(FOLDS)]
    squares = [_validation_squares(rolling, n, layer, of_fold) for n in looked]
    errors = np.concatenate(squares, axis=1) / rolling.naive_squares.T  # (P, M, C, H)
    rows = initial_rows(rolling, layer)
    results = []
    for of_pair, (i, j) in zip(errors, pairs, strict=True):
        *folds, whole = (Smoothing(layer, grid[:, k], lengths[j], rows) for k in best[i][j])
        results.append(Validated(whole, float(np.nanmean(mean(of_pair))), folds))
    return results


def _truth(rolling: RollingOrigins, n: int) -> tuple[int, Values]:
    """Return the first row of a series to smooth, and the targets (T, H, C) after each row from
    there, minus the value of the row, in units.
    """
    begin = max(0, rolling.cuts[0][n] - ROWS)
    stop = rolling.stops[n]
    origins = np.arange(begin + 1, stop + 1)
    units = rolling.scaling.units[n]
    return begin, baselines.changes(rolling.several[n], origins, rolling.horizon, stop, units)


def _squares(
    rolling: RollingOrigins,
    n: int,
    layer: ExponentialSmoothing,
    grid: Values,
    begin: int,
    truth: Values,
) -> Values:
    """Return squared errors (T, G, C, H) of forecasts of a series after each row from `begin` on,
    in units.

    `begin` and `truth` are the results of `_truth`.
    """
    values = rolling.several[n].known[begin : rolling.stops[n]]
    cut = rolling.cuts[0][n] - begin
    layer, grid = _of_known_seasons(layer, grid, cut)
    ahead = smoothed(layer, grid, values, min(initial_rows(rolling, layer), max(cut, 1)))
    ahead -= values[:, None, :, None]
    ahead /= rolling.scaling.units[n][:, None]
    ahead -= np.swapaxes(truth, 1, 2)[:, None]
    ahead *= ahead
    return ahead


def _errors_before(
    rolling: RollingOrigins, n: int, layer: ExponentialSmoothing, grid: Values
) -> tuple[Values, Values]:
    """Return mean square errors of a series, over forecasts whose truth is before each cut.

    They are (FOLDS + 1, H, G) for the grid, and (FOLDS + 1, H) for repeating the last value.

    Rows that initial states are fitted to do not count.
    """
    begin, truth = _truth(rolling, n)
    H = rolling.horizon
    naive = np.nan_to_num(np.mean(truth**2, axis=2))  # (T, H)
    size = max(1, FORECASTS // (truth.size + max(layer.periods, default=0)))
    rows: dict[tuple[int, int], slice] = {}  # by cut and step
    for k, cut in enumerate(rolling.cuts):
        stop = cut[n] - begin
        first = min(initial_rows(rolling, layer), stop * 3 // 4)
        rows |= {(k, h): slice(first, max(first, stop - h - 1)) for h in range(H)}
    counts = {place: max(1, span.stop - span.start) for place, span in rows.items()}
    errors = np.zeros((FOLDS + 1, H, grid.shape[1]))
    of_naive = np.zeros((FOLDS + 1, H))
    for (k, h), span in rows.items():
        of_naive[k, h] = np.sum(naive[span, h]) / counts[k, h]
    for g in range(0, grid.shape[1], size):
        squares = _squares(rolling, n, layer, grid[:, g : g + size], begin, truth)
        squares = np.nan_to_num(np.mean(squares, axis=2))  # (T, G, H)
        for (k, h), span in rows.items():
            errors[k, h, g : g + size] = np.sum(squares[span, :, h], axis=0) / counts[k, h]
    return errors, of_naive


def _validation_squares(
    rolling: RollingOrigins,
    n: int,
    layer: ExponentialSmoothing,
    of_fold: Sequence[Sequence[Values]],
) -> Values:
    """Return squared errors (P, M, C, H) of a series from all origins, with the coefficients (P, K)
    of each fold.
    """
    begin, truth = _truth(rolling, n)
    squares = _squares(rolling, n, layer, np.concatenate(of_fold).T, begin, truth)
    by_fold = np.split(np.swapaxes(squares, 0, 1), FOLDS)  # (P, T, C, H) each
    parts = []
    for k, of_choices in enumerate(by_fold):
        first, stop = (cut[n] - begin - 1 for cut in rolling.cuts[k : k + 2])
        parts.append(of_choices[:, first:stop])
    return np.concatenate(parts, axis=1)
