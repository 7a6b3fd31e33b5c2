"""Exponential smoothing and the Theta method as candidates of a forecaster.

Their coefficients have the smallest errors from rolling origins among those of a grid. The trend of
the Theta method is half of the slope of the line through all values before (Hyndman & Billah 2003).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

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
    smoother : Smoother, optional
        The state after the last call of `apply`, for one series that grows.
    """

    layer: ExponentialSmoothing
    coefficients: Values
    steps: int
    rows: int
    smoother: Any = None
    order: ClassVar[int] = 0  # it has no fixed number of steps to look back

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

    @property
    def reach(self) -> int:
        """The number of values before an origin that the next call of `apply` needs."""
        return self.layer.horizon if self.smoother and self.smoother.rows else ROWS

    def carried(self, rows: int) -> Smoothing:
        """Return the smoothing for a series that grows from `rows` on.

        The second call of `apply` and later ones take n paths, one horizon longer each time.
        """
        layer, numbers = _of_known_seasons(self.layer, self.coefficients[:, None], rows)
        return replace(self, smoother=Smoother(layer, numbers, min(self.rows, rows)))

    def apply(
        self, series: TimeSeries, scaling: SeriesScaling, units: Values, origins: Origins
    ) -> Values:
        """Return the forecasts (M or n, H, C) after each origin, or after n paths, minus the last
        value, in `units`.

        Paths are n * C columns, those of the first path first, and have one origin.
        """
        H, C = self.layer.horizon, len(units)
        if len(origins) == 0:
            return np.empty((0, H, C))
        first = int(np.min(origins))
        smoother = self.smoother or self.carried(first).smoother
        begin = max(0, first - self.reach)
        values = series.known[begin : int(np.max(origins))]
        values = np.reshape(values, (len(values), -1, C))
        ahead = smoother.ahead(values, first - begin - 1)[origins - first]  # (M, n, C, H)
        changes = np.matrix_transpose(ahead) - values[origins - begin - 1][:, :, None]
        return np.reshape(changes / units, (-1, H, C))


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


@dataclass
class Smoother:
    """Smoothing of a series part by part: states and sums go on from one part to the next.

    The first part is one series, and the later parts may be n paths that continue it.

    Attributes
    ----------
    layer : ExponentialSmoothing
    coefficients : array (K, G)
        G sets of coefficients, as in `Smoothing`; one set if there are later parts.
    fitted : int
        Number of values that initial states are fitted to.
    rows : int
        Number of values so far.
    states : sequence of array (lag, G or n, C)
        Level, trend and seasons before the next value.
    least, most : array (1 or n, C)
        Limits of a logarithm: of values from below, and of forecasts from above.
    first : array (1, C)
        The first value, and `sums` are the sums of time and value, and of value, since then.
    """

    layer: ExponentialSmoothing
    coefficients: Values
    fitted: int
    rows: int = 0
    states: Sequence[Values] = ()
    least: Any = None
    most: Any = -np.inf
    first: Any = None
    sums: Any = (0.0, 0.0)

    def ahead(self, x: Values, begin: int = 0) -> Values:
        """Return forecasts (T - begin, G or n, C, H) after each of the next values (T, 1 or n, C)
        from row `begin` on.
        """
        layer = self.layer
        before = max(begin + 1, self.fitted)  # limits come from rows up to the first forecast
        if layer.multiplicative:
            if not self.rows:
                self.least = LEAST_SHARE**2 * np.median(np.abs(x[:before]), axis=0) + 1e-12
            x = np.log(np.maximum(x, self.least))
            self.most = np.maximum(self.most, np.max(x[:before], axis=0))
        *numbers, drift = (row[:, None] for row in self.coefficients)
        # states are linear functions of the values: a graph takes the states that follow from each
        basis = x if isinstance(x, np.ndarray) else np.eye(len(x))[:, None]
        if not self.rows:
            self.first = x[0]
            start = replace(layer, multiplicative=False).initial_state(
                basis[: self.fitted, 0, :, None]
            )
            self.states = [state[:, None] for state in start]
        shape = (max(self.coefficients.shape[1], basis.shape[1]), basis.shape[2])
        states = [np.empty((len(x) + lag, *shape)) for lag in layer.lags]
        for rows, state in zip(states, self.states, strict=True):
            rows[: len(state)] = state
        for t in range(len(x)):
            _, *new = step(np, basis[t], *(rows[t] for rows in states), *numbers)
            for rows, lag, state in zip(states, layer.lags, new, strict=True):
                rows[t + lag] = state
        self.states = [rows[len(x) :] for rows in states]
        used = tuple(rows[begin:] if basis is x else rows[begin:] @ x[:, 0] for rows in states)
        ahead = layer.ahead(np, Smoothed(used, x, tuple(numbers), x))
        if np.any(drift):
            slopes = drift * self._slopes(x)[begin:]
            ahead += slopes[..., None] * np.arange(1, layer.horizon + 1)
        self.rows += len(x)
        if layer.multiplicative:
            ahead = np.minimum(ahead, self.most[..., None] + MOST_ABOVE)
        forecasts: Values = layer.in_units(np, ahead)
        return forecasts

    def _slopes(self, x: Values) -> Values:
        """Return for each row the slope (T, 1 or n, C) of the line through the values up to it; 0
        for the first row.
        """
        time = self.rows + np.arange(len(x))[:, None, None]
        count = time + 1
        x = x - self.first
        below = np.maximum(count * (count**2 - 1) / 12, 1.0)
        parts = zip(self.sums, (time * x, x), strict=True)
        moments, totals = (sums + np.cumsum(part, axis=0) for sums, part in parts)
        self.sums = moments[-1], totals[-1]
        slopes: Values = (moments - time / 2 * totals) / below
        return slopes


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
    fitted = min(initial_rows(rolling, layer), max(cut, 1))
    ahead = Smoother(layer, grid, fitted).ahead(values[:, None])
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
