"""A fitted network with its linear baseline, and how it is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array, Params, namespace
from xlstm.data.covariates import TimeSeries
from xlstm.data.host import Values
from xlstm.estimators import linear_baseline
from xlstm.estimators.examples import Examples, inputs
from xlstm.estimators.linear_baseline import CHUNK, LinearBaseline
from xlstm.estimators.scaling import Origins, Scaling, scales
from xlstm.estimators.settings import Settings
from xlstm.models.sequence import SequenceModel
from xlstm.training import losses

FIRST = 0.1  # the network's first weights of its head, as a share of the usual: it begins near the linear baseline
NARROWEST = 1e-3  # least residual of the linear baseline, as a share of a window's scale

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Predictor:
    """Forecasts of windows: last value + linear_baseline + network.

    Attributes
    ----------
    settings : Settings
    backend : Backend
    scaling : Scaling
    line : LinearBaseline
    spread : array (H, C)
        Root mean square of what the linear baseline leaves, in scales of the window; the unit of the network.
    model : SequenceModel
    params : dict of str to array
        The network's weights.
    """

    settings: Settings
    backend: Backend
    scaling: Scaling
    line: LinearBaseline
    spread: Values
    model: SequenceModel
    params: Params

    def forecast(self, track: TimeSeries, units: Values, origins: Origins) -> tuple[Values, Values, Values]:
        """Return the mean (M, H, C), quantiles (M, H, C, Q) and the scale (M, C) after the windows of a series.

        Its units (C,) are those of `Scaling.of`.

        Raises
        ------
        FloatingPointError
            A forecast is not finite.
        """
        if len(origins) > CHUNK:
            parts = [self.forecast(track, units, origins[k : k + CHUNK]) for k in range(0, len(origins), CHUNK)]
            return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]
        s = self.settings
        x, scale = self.seen(track, units, origins)
        y, _, _ = self.model.forward(self.params, x, train=False)
        found = to_numpy(y).astype(np.float64).reshape(len(origins), *self.spread.shape, 1 + len(s.quantiles))
        base = track.known[origins - 1, None] + units * self.line.apply(track, self.scaling, units, origins)
        found = base[..., None] + found * (self.spread * scale[:, None])[..., None]
        if not np.all(np.isfinite(found)):
            raise FloatingPointError("Forecaster: the forecast is not finite; the series or the weights are too large")
        return self.limited(found[..., 0]), np.sort(found[..., 1:], axis=-1), scale

    def seen(self, track: TimeSeries, units: Values, origins: Origins) -> tuple[Array, Values]:
        """Return windows (T, M, D) as the network sees them, and their scale (M, C)."""
        s = self.settings
        scale = scales(track.known, origins, s.window, units, s.scaling)
        return self.backend.asarray(inputs(track, self.scaling, scale, origins, s.window, s.horizon)), scale

    def limited(self, found: Values) -> Values:
        """Return forecasts that are not below the least value that there can be."""
        return found if self.settings.least is None else np.maximum(found, self.settings.least)


def examples(
    tracks: Sequence[TimeSeries],
    scaling: Scaling,
    line: LinearBaseline,
    settings: Settings,
    origins: Sequence[Origins],
    stops: Sequence[int],
    spread: Values | None = None,
) -> tuple[Examples, Values]:
    """Return examples of windows before `origins`, with targets before the rows `stops`, and the spread (H, C)."""
    s, made = settings, []
    for k, (track, units, at, stop) in enumerate(zip(tracks, scaling.fitted(), origins, stops, strict=True)):
        scale = scales(track.known, at, s.window, units, s.scaling)
        left = linear_baseline.changes(track, at, s.horizon, stop, units)
        left -= line.apply(track, scaling, units, at)
        left *= units / scale[:, None]
        made.append((np.full(len(at), k), at, scale, left))
    # One series, which may be long, is not copied.
    series, rows, scale, left = (
        made[0] if len(made) == 1 else (np.concatenate(part) for part in zip(*made, strict=True))
    )
    if spread is None:
        there = np.maximum(np.count_nonzero(~np.isnan(left), axis=0), 1)
        squares = np.stack([np.nansum(left[:, h] ** 2, axis=0) for h in range(s.horizon)])
        spread = np.maximum(np.sqrt(squares / there), NARROWEST)
    left /= spread
    target = left.reshape(len(left), -1)
    mask = ~np.isnan(target)
    target[~mask] = 0.0
    found = Examples(tracks, scaling, s.window, s.horizon, s.batch_size, series, rows, scale, target, mask)
    return found, spread


def begin(model: SequenceModel, settings: Settings, data: Examples, backend: Backend) -> Params:
    """Return first weights: a head near zero, with the quantiles of all targets for its own."""
    params = model.init(settings.seed, backend)
    bias = np.zeros((data.target.shape[1], 1 + len(settings.quantiles)))
    for k, (target, mask) in enumerate(zip(data.target.T, data.mask.T, strict=True)):
        if np.any(mask) and settings.quantiles:
            bias[k, 1:] = np.quantile(target[mask], settings.quantiles)
    return params | {"head.W": FIRST * params["head.W"], "head.b": backend.asarray(bias.reshape(-1))}


def loss(quantiles: Sequence[float], y: Array, target: Array, mask: Array) -> tuple[Array, Array]:
    """Return the squared error of the mean and the pinball loss of quantiles, (B, H * C * (1 + Q)), as one loss."""
    xp = namespace("Forecaster", {"y": y})
    y = xp.reshape(y, (*target.shape, 1 + len(quantiles)))
    total, dy = losses.mse(y[..., 0], target, mask)
    dy = dy[..., None]
    if quantiles:
        more, dq = losses.pinball(y[..., 1:], target, mask, quantiles)
        total, dy = total + more, xp.concat((dy, dq), axis=-1)
    return total, xp.reshape(dy, (target.shape[0], -1))
