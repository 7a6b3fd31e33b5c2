"""The linear autoregression, one of the candidates of a forecaster.

Lai et al. 2018 (LSTNet) put an autoregression beside a network, since networks do not follow the
scale of their input well. Here the weights come from ridge regression (Hoerl & Kennard 1970), and
the network learns the residuals.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import cores
from xlstm.data.host import Host, Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators.baselines import CHUNK, changes
from xlstm.estimators.rolling_origins import FOLDS, RollingOrigins, Validated
from xlstm.estimators.series_scaling import FAR, Origins, SeriesScaling, standard

Penalties = Sequence[tuple[float, float]]  # pairs: of lags, and of covariates and a constant
MOST = 20_000  # most rows for least squares
INPUTS = 1 << 20  # inputs of forecasts in memory at a time
ORDERS = (2, 4, 8, 12, 24, 48, 96)  # lags to try, beside the window and whole seasons
RIDGES = (0.001, 0.01, 0.1, 1.0)  # penalties, in units of the mean square of a lag
COVARIATE_RIDGES = (0.001, 0.01, 0.1)  # for covariates and a constant, in units of 1
CONSTANT_RIDGE = 0.01  # for a constant alone, without a choice
LONG = 52  # least steps of a long season
WIDTH = 24  # lags of a long season of m steps are also averaged over m / WIDTH steps on both sides


@dataclass(frozen=True)
class LinearBaseline:
    """A linear forecast with its own coefficients for each target and each step ahead.

    Attributes
    ----------
    order : int
        Number of latest values that it sees: the last one, and the differences of the others from
        it.
    seasons : tuple of int
        Steps of seasons. For each it sees the values one season before the last value and before
        the step to predict.
    coefficients : array (C, H, K)
        Coefficients, in this order: `order` - 1 differences, values one season before the last
        value, a constant, static numbers, values one season before the step to predict, and known
        covariates of that step.
    ridge, covariate_ridge : float
        The penalty of the differences, and the penalty of the other coefficients.
    """

    order: int
    seasons: tuple[int, ...]
    coefficients: Host
    ridge: float = 0.0
    covariate_ridge: float = 0.0

    def carried(self, rows: int) -> LinearBaseline:
        """Return the baseline for a series that grows: it is the same, since it has no state."""
        return self

    @property
    def reach(self) -> int:
        """The number of values before an origin that a forecast depends on."""
        return max(self.order, *(2 * m for m in self.seasons), 1)

    def apply(
        self, series: TimeSeries, scaling: SeriesScaling, units: Values, origins: Origins
    ) -> Values:
        """Return the forecasts (M or n, H, C) after each origin, or after n paths, minus the last
        value, in `units`.

        Paths are n * C columns, those of the first path first, and have one origin.
        """
        changes: Values = forecasts([self], series, scaling, units, origins)[0]
        return changes


def forecasts(
    lines: Sequence[LinearBaseline],
    series: TimeSeries,
    scaling: SeriesScaling,
    units: Values,
    origins: Origins,
) -> Values:
    """Return the results of `LinearBaseline.apply` for several baselines that differ only in their
    coefficients, (L, M, H, C).
    """
    coefficients = np.stack([line.coefficients for line in lines])
    _, C, H, K = coefficients.shape
    rows = max(1, min(CHUNK, INPUTS // K))
    chunks = []
    for k in range(0, max(1, len(origins)), rows):
        at = origins[k : k + rows]
        by_target = []
        for c in range(C):
            known = series.known[:, c::C]  # (N, n)
            same, by_step = _design(lines[0], series, scaling, units[c], at, H, known)
            own, others = np.split(coefficients[:, c], [same.shape[1]], axis=2)
            ahead = same @ np.swapaxes(own, 1, 2)
            if others.shape[2]:
                ahead += np.vecdot(by_step, others[:, None])
            by_target.append(ahead[..., None])
        chunks.append(np.concatenate(by_target, axis=3))
    return np.concatenate(chunks, axis=1)


def of_arrays(coefficients: Values, seasons: tuple[int, ...], others: int) -> LinearBaseline:
    """Return the autoregression from its arrays in a file, with `others` covariates."""
    order = coefficients.shape[2] - others - 2 * len(_sources(seasons))
    if order < 1:
        raise ValueError(
            f"linear_baseline has shape {coefficients.shape} with seasons {seasons}, expected more"
            f" than {coefficients.shape[2] - order} at its end"
        )
    return LinearBaseline(order, seasons, coefficients)


def repeating(scaling: SeriesScaling, horizon: int) -> LinearBaseline:
    """Return the linear baseline that repeats the last value."""
    C = scaling.units.shape[1]
    K = 1 + scaling.static.shape[1] + scaling.future.shape[1]
    return LinearBaseline(1, (), np.zeros((C, horizon, K)))


def fit(
    rolling: RollingOrigins,
    stops: Sequence[int],
    order: int,
    seasons: tuple[int, ...],
    penalties: Penalties,
) -> list[LinearBaseline]:
    """Return a linear autoregression for each penalty, fitted to the values before the rows
    `stops`.

    Windows that would begin before their series are left out, if there are enough others.
    """
    H = rolling.horizon
    line = LinearBaseline(order, seasons, np.empty(0))
    first = max(order, *seasons, 1)
    origins = [np.arange(first, stop) for stop in stops]
    if sum(map(len, origins)) < 2 * order:
        origins = [np.arange(1, stop) for stop in stops]
    every = max(1, -(-sum(map(len, origins)) // MOST))
    parts = [
        (series, units, at[::every], stop)
        for series, units, at, stop in zip(
            rolling.several, rolling.scaling.units, origins, stops, strict=True
        )
    ]
    change = np.concatenate(
        [changes(series, at, H, stop, units) for series, units, at, stop in parts]
    )  # (M, H, C)
    by_target = []
    for c in range(change.shape[2]):
        designs = [
            _design(line, series, rolling.scaling, units[c], at, H, series.known[:, [c]])
            for series, units, at, _ in parts
        ]
        same, by_step = (np.concatenate(part) for part in zip(*designs, strict=True))
        target = np.ascontiguousarray(change[..., c])
        by_target.append(_solved(line, same, by_step, target, penalties))
    coefficients = np.stack(by_target, axis=1)  # (penalties, C, H, K)
    return [
        LinearBaseline(order, seasons, fitted, *penalty)
        for fitted, penalty in zip(coefficients, penalties, strict=True)
    ]


# The systems are small: threads of BLAS would mostly wait for each other, for long on busy cores.
@cores.one_thread()
def _solved(
    line: LinearBaseline, same: Values, by_step: Values, y: Values, penalties: Penalties
) -> Host:
    """Return coefficients (penalties, H, K) of ridge regressions of y (M, H) on `same` (M, K - F)
    and `by_step` (M, H, F).
    """
    H = y.shape[1]
    K = same.shape[1] + by_step.shape[2]
    seasonal = len(_sources(line.seasons))
    lags = np.zeros(K, bool)
    lags[: line.order - 1 + seasonal] = True
    lags[same.shape[1] : same.shape[1] + seasonal] = True
    weights = np.zeros((len(penalties), H, K))
    lagged = same[:, lags[: same.shape[1]]]
    size = max(float(np.sum(lagged**2)) / max(1, lagged.size), 1e-12)  # mean square of the lags
    for h in range(H):
        there = ~np.isnan(y[:, h])
        A = np.concatenate((same[there], by_step[there, h]), axis=1)
        b = y[there, h]
        gram = A.T @ A
        right = A.T @ b
        for k, (ridge, covariate_ridge) in enumerate(penalties):
            penalty = np.where(lags, ridge * size, covariate_ridge)
            weights[k, h] = np.linalg.solve(gram + np.diag(max(1, len(A)) * penalty), right)
    return weights


def _sources(seasons: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return each season to look back, with the number of steps to average on both sides."""
    pairs = [(m, 0) for m in seasons]
    return pairs + [(m, m // WIDTH) for m in seasons if m >= LONG]


def _design(
    line: LinearBaseline,
    series: TimeSeries,
    scaling: SeriesScaling,
    unit: float,
    origins: Origins,
    horizon: int,
    known: Values,
) -> tuple[Values, Values]:
    """Return the inputs that all steps ahead share, (M * n, K - F), and the inputs of each step, (M
    * n, H, F).

    The target has n paths `known` (N, n), and there is one path or one origin. Before its
    beginning, a series counts as constant. The last row of the covariates replaces missing ones.
    """
    last = known[origins - 1]
    steps = np.arange(1, horizon + 1)
    before = [known[np.maximum(origins[:, None] - np.arange(line.order, 1, -1), 0)]]
    ahead = []
    for m, width in _sources(line.seasons):
        values = _averaged(known, width)
        before.append(values[np.maximum(origins - 1 - m, 0)][:, None])
        rows = origins[:, None] - 1 + steps - m * -(-(steps + width) // m)
        ahead.append(_relative(values[np.maximum(rows, 0)], last, unit)[..., None])
    lags = _relative(np.concatenate(before, axis=1), last, unit)
    static = standard(series.static, scaling.static)
    others = np.concatenate(([1.0], static))
    others = np.broadcast_to(others, (len(lags), len(others)))
    rows = np.minimum(origins[:, None] + steps - 1, len(series.future) - 1)
    future = standard(series.future[rows], scaling.future)
    ahead.append(np.broadcast_to(future, (len(lags), *future.shape[1:])))
    return np.concatenate((lags, others), axis=1), np.concatenate(ahead, axis=2)


def _relative(values: Values, last: Values, unit: float) -> Values:
    """Return values (M, K, n) as inputs (M * n, K): relative to the last ones (M, n), in units."""
    M, K, n = values.shape
    scaled = np.clip((values - last[:, None]) / unit, -FAR, FAR)
    return np.reshape(np.matrix_transpose(scaled), (M * n, K))


def _averaged(known: Values, width: int) -> Values:
    """Return the averages of values (N, n), each with `width` values on both sides."""
    if width == 0:
        return known
    total = np.concatenate((np.zeros((1, known.shape[1])), np.cumsum(known, axis=0)))
    rows = np.arange(len(known))
    begin = np.maximum(rows - width, 0)
    end = np.minimum(rows + width + 1, len(known))
    averages: Values = (total[end] - total[begin]) / (end - begin)[:, None]
    return averages


def candidate(rolling: RollingOrigins, settings: Any) -> Validated[LinearBaseline]:
    """Return the linear autoregression with the smallest validation error, among several orders,
    penalties and seasons.
    """
    has_covariates = rolling.several[0].future.shape[1] + len(rolling.several[0].static) > 0
    ridges = COVARIATE_RIDGES if has_covariates else (CONSTANT_RIDGE,)
    penalties = [*itertools.product(RIDGES, ridges)]
    tried = []
    for order, seasons in itertools.product(_orders(rolling, settings), rolling.choices):
        by_fold = [fit(rolling, rolling.cuts[k], order, seasons, penalties) for k in range(FOLDS)]
        ahead = [
            forecasts(by_fold[k], series, rolling.scaling, units, origins)
            for k in range(FOLDS)
            for series, units, origins, _ in rolling.fold(k)
        ]
        of_penalties = zip(np.concatenate(ahead, axis=1), zip(*by_fold, strict=True), strict=True)
        tried += [(rolling.error(ahead), lines) for ahead, lines in of_penalties]
    error, folds = min(tried, key=lambda pair: pair[0])
    return Validated(refit(rolling, rolling.stops, folds[0]), error, folds)


def refit(rolling: RollingOrigins, stops: Sequence[int], line: LinearBaseline) -> LinearBaseline:
    """Return an autoregression with the same options, fitted to the values before the rows
    `stops`.
    """
    if line.ridge == 0:
        return line
    penalty = (line.ridge, line.covariate_ridge)
    return fit(rolling, stops, line.order, line.seasons, [penalty])[0]


def _orders(rolling: RollingOrigins, settings: Any) -> list[int]:
    """Return the orders to try: the order in the settings, or those that fit into the longest
    series.

    Short series do not limit them: windows that begin before their series are left out.
    """
    if not isinstance(settings.linear_baseline, str):
        return [settings.linear_baseline]
    longest = max(2, (max(rolling.cuts[0]) - rolling.horizon) // 2)
    return sorted(order for order in {*ORDERS, settings.window} if 2 <= order <= longest)
