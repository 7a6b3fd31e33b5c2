"""Baselines: the last value, the last season, an autoregression, and the linear baseline to which
the network adds.

Lai et al. 2018 (LSTNet) put an autoregression beside a network, since networks do not follow the
scale of their input well. Here its weights come from ridge regression (Hoerl & Kennard 1970), and
the network learns what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xlstm.arrays import cores
from xlstm.data.host import Host, Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators.series_scaling import FAR, Origins, SeriesScaling, standard

Penalties = Sequence[tuple[float, float]]  # of lags, and of covariates and a constant
BLOCK = 1 << 11  # rows of a least-squares problem that are in memory at once
CHUNK = 4096  # windows that are looked at at once
MOST = 20_000  # rows that are enough for least squares
SEASONAL = 0.2  # least autocorrelation of a season
NEAR = 0.9  # a shorter season is taken where its autocorrelation is this share of the best
SHORTEST = 4  # rows of the shortest season that is looked for


def mean(values: Values) -> Values:
    """Return the mean over the first axis, of the values that are there; NaN where there are
    none.
    """
    there = ~np.isnan(values)
    total = np.sum(np.where(there, values, 0.0), axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(total / np.count_nonzero(there, axis=0))


def seasonal(values: Values, season: int, horizon: int, at: Origins) -> Values:
    """Repeat the values of the last season before each position, (N, horizon, C); with a season of
    1 it is the last value.
    """
    ahead = np.arange(horizon)
    return values[np.maximum(at[:, None] - season + ahead % season, 0)]


# The systems are small: threads of BLAS would mostly wait for each other, long where the cores have
# other work.
@cores.one_thread()
def autoregression(
    bridged: Values, values: Values, order: int, horizon: int, at: Origins
) -> Values:
    """Forecast (N, horizon, C) from the `order` values before each position and a constant, by
    least squares.

    Each column and each step ahead has coefficients of its own, from `numpy.linalg.lstsq` on all
    that comes before the first position, in the triangular form that QR decompositions of blocks of
    rows bring it to. `bridged` are the values without gaps; a gap (NaN) in `values` is no target.
    """
    forecast = np.empty((len(at), horizon, bridged.shape[1]))
    for h, c in np.ndindex(forecast.shape[1:]):
        x = np.lib.stride_tricks.sliding_window_view(bridged[:, c], order)
        target = values[order + h : at[0], c]
        there = np.flatnonzero(~np.isnan(target))
        R = np.empty((0, order + 2))
        for k in range(0, len(there), BLOCK):
            rows = there[k : k + BLOCK]
            block = np.column_stack((x[rows], np.ones(len(rows)), target[rows]))
            R = np.asarray(np.linalg.qr(np.concatenate((R, block)), mode="r"))
        small = np.finfo(R.dtype).eps * max(len(there), order + 1)
        coefficients, *_ = np.linalg.lstsq(R[:, :-1], R[:, -1], rcond=small)
        forecast[:, h, c] = x[at - order] @ coefficients[:-1] + coefficients[-1]
    return forecast


def season(values: Values) -> int:
    """Return the steps of a season, or 0 where there is none.

    It is the first peak of the autocorrelation that is about as high as any, after the line through
    the series has been taken away, up to a third of the length.
    """
    N = len(values)
    if N < 3 * SHORTEST:
        return 0
    time = np.arange(N) - (N - 1) / 2
    unit = float(np.max(np.abs(values))) or 1.0  # squares of large values would overflow
    scaled = values / unit
    left = scaled - np.mean(scaled)
    left -= time * (time @ left) / (time @ time)
    if left @ left < 1e-24 * N:
        return 0
    power = np.abs(np.fft.rfft(left, 2 * N)) ** 2
    correlation = (
        np.fft.irfft(power)[: N // 3 + 1] / (left @ left) * (N / (N - np.arange(N // 3 + 1)))
    )
    below = np.flatnonzero(correlation < 0)
    if below.size == 0:  # it does not swing
        return 0
    peaks = 1 + np.flatnonzero(
        (correlation[1:-1] >= correlation[:-2]) & (correlation[1:-1] > correlation[2:])
    )
    peaks = peaks[(peaks >= SHORTEST) & (peaks > below[0])]
    heights = correlation[peaks]
    best = np.max(heights, initial=0.0)
    return 0 if best < SEASONAL else int(peaks[heights >= NEAR * best][0])


@dataclass(frozen=True)
class LinearBaseline:
    """A linear forecast of each target for each step ahead.

    Attributes
    ----------
    order : int
        Values that it looks back to; it sees by how much the others differ from the last one.
    coefficients : array (C, H, K)
        Those of `order` - 1 differences, a constant, static numbers, and covariates known for the
        step to predict.
    ridge, covariate_ridge : float
        The penalty of the differences, and that of the others.
    """

    order: int
    coefficients: Host
    ridge: float = 0.0
    covariate_ridge: float = 0.0

    def repeated(self, n: int) -> LinearBaseline:
        """Return the baseline of n times the targets."""
        return replace(self, coefficients=np.tile(self.coefficients, (n, 1, 1)))

    def apply(
        self, series: TimeSeries, scaling: SeriesScaling, units: Values, origins: Origins
    ) -> Values:
        """Return by how much the targets after each origin differ from the last value, (M, H, C),
        in `units`.
        """
        C, H, _ = self.coefficients.shape
        changes_ahead = np.empty((len(origins), H, C))
        for k in range(0, len(origins), CHUNK):
            at = origins[k : k + CHUNK]
            ahead = _ahead(series, scaling, at, H)
            for c in range(C):
                design = _design(series, scaling, units, at, self.order, c)  # (M, K - F)
                own, others = np.split(self.coefficients[c], [design.shape[1]], axis=1)
                covariates = np.einsum("mhf,hf->mh", ahead, others)
                changes_ahead[k : k + CHUNK, :, c] = design @ own.T + covariates
        return changes_ahead


def repeating(scaling: SeriesScaling, horizon: int) -> LinearBaseline:
    """Return the linear baseline that repeats the last value."""
    C = scaling.units.shape[1]
    K = 1 + scaling.static.shape[1] + scaling.future.shape[1]
    return LinearBaseline(1, np.zeros((C, horizon, K)))


def fit(
    several: Sequence[TimeSeries],
    scaling: SeriesScaling,
    stops: Sequence[int],
    horizon: int,
    order: int,
    penalties: Penalties,
) -> list[LinearBaseline]:
    """Return a linear baseline for each penalty, fitted to the values before the rows `stops`.

    Windows that reach back before the beginning of their series do not count, if there are enough
    others.
    """
    origins = [np.arange(order, stop) for stop in stops]
    if sum(map(len, origins)) < 2 * order:
        origins = [np.arange(1, stop) for stop in stops]
    every = -(-sum(map(len, origins)) // MOST)
    parts = [
        (series, units, at[::every], stop)
        for series, units, at, stop in zip(several, scaling.units, origins, stops, strict=True)
    ]
    ahead = np.concatenate([_ahead(series, scaling, at, horizon) for series, _, at, _ in parts])
    # (M, H, C)
    change = np.concatenate(
        [changes(series, at, horizon, stop, units) for series, units, at, stop in parts]
    )
    by_target = []
    for c in range(change.shape[2]):
        x = np.concatenate(
            [_design(series, scaling, units, at, order, c) for series, units, at, _ in parts]
        )
        by_target.append(_solved(x, ahead, np.ascontiguousarray(change[..., c]), order, penalties))
    coefficients = np.stack(by_target, axis=1)  # (penalties, C, H, K)
    return [
        LinearBaseline(order, fitted, *penalty)
        for fitted, penalty in zip(coefficients, penalties, strict=True)
    ]


# The systems are small: threads of BLAS would mostly wait for each other, long where the cores have
# other work.
@cores.one_thread()
def _solved(x: Values, ahead: Values, y: Values, order: int, penalties: Penalties) -> Host:
    """Return coefficients (penalties, H, K) of ridge regressions of y (M, H) on x (M, K - F) and
    ahead (M, H, F).
    """
    H = y.shape[1]
    K = x.shape[1] + ahead.shape[2]
    lags = max(float(np.mean(x[:, : order - 1] ** 2)), 1e-12) if order > 1 else 0.0
    weights = np.zeros((len(penalties), H, K))
    penalty = np.empty(K)
    for h in range(H):
        there = ~np.isnan(y[:, h])
        A = np.concatenate((x[there], ahead[there, h]), axis=1)
        b = y[there, h]
        gram = A.T @ A
        right = A.T @ b
        for k, (ridge, covariate_ridge) in enumerate(penalties):
            penalty[: order - 1] = ridge * lags
            penalty[order - 1 :] = covariate_ridge
            weights[k, h] = np.linalg.solve(gram + np.diag(max(1, len(A)) * penalty), right)
    return weights


def targets(series: TimeSeries, origins: Origins, horizon: int, stop: int) -> Values:
    """Return the values (M, H, C) after each origin; NaN from row `stop` on, and where one is
    missing.
    """
    truth = np.full((len(origins), horizon, series.values.shape[1]), np.nan)
    for h in range(horizon):
        there = origins + h < min(stop, len(series.values))
        truth[there, h] = series.values[origins[there] + h]
    return truth


def changes(series: TimeSeries, origins: Origins, horizon: int, stop: int, units: Values) -> Values:
    """Return by how much `targets` differ from the last value before each origin, in units, within
    sane limits.
    """
    differences = targets(series, origins, horizon, stop)
    differences -= series.known[origins - 1, None]
    differences /= units
    return np.clip(differences, -FAR, FAR, out=differences)


def _design(
    series: TimeSeries, scaling: SeriesScaling, units: Values, origins: Origins, order: int, c: int
) -> Values:
    """Return lags of a target, a constant and static numbers; before its beginning a series is as
    at its beginning.
    """
    column = series.known[:, c]
    rows = np.maximum(origins[:, None] - np.arange(order, 1, -1), 0)
    lags = np.clip((column[rows] - column[origins - 1, None]) / units[c], -FAR, FAR)
    static = standard(series.static, scaling.static)
    others = np.broadcast_to((1.0, *static), (len(origins), 1 + len(static)))
    return np.concatenate((lags, others), axis=1)


def _ahead(series: TimeSeries, scaling: SeriesScaling, origins: Origins, horizon: int) -> Values:
    """Return covariates (M, H, F) of the steps that are predicted; the last row stands for those
    that are missing.
    """
    rows = np.minimum(origins[:, None] + np.arange(horizon), len(series.future) - 1)
    return standard(series.future[rows], scaling.future)
